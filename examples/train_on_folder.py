"""An autoencoder on a folder of clips: python examples/train_on_folder.py clips/ -o runs/mine [--steps 200].

CLIPS/ACTION/*.mp4, or any other kind of data (docs/guide/data.md). The same command goes on where a run was stopped.
"""

import argparse
from pathlib import Path

from cmd_video.training.config import TrainConfig
from cmd_video.training.loop import train


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", help="folder with a folder of clips for each class")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/mine"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args(arguments)

    clips = {"kind": "class_folder", "path": asked.clips, "height": asked.size, "width": asked.size}
    clips["num_frames"] = asked.frames
    side = asked.size // 4  # of pixels that the first layer folds into channels
    config = {
        "stage": "autoencoder",
        "output_dir": str(asked.output),
        "components": {
            "vae": {"class": "AutoencoderPixelUnshuffle", "config": {"patch_size": 4}},
            "autoencoder": {
                "class": "CMDAutoencoder",
                "config": {
                    "in_channels": 48, "sample_size": [side, side], "num_frames": asked.frames, "dim": 64,
                    "encoder_depth": 2, "decoder_depth": 2, "num_heads": 4, "latent_channels": 8,
                },
            },
        },
        "data": clips,
        "validation": {"data": clips, "num_clips": 4, "num_samples": 2},
        "loop": {"steps": asked.steps, "batch_size": 2, "validate_every": asked.steps, "checkpoint_every": 50},
    }  # fmt: skip
    run = train(TrainConfig.model_validate(config))
    print(f"{run}: a pipeline folder; log.jsonl and samples/ lie beside it")
    return run


if __name__ == "__main__":
    main()
