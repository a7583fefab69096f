"""What the default autoencoder alone allows: adherence of its reconstructions of the scenes that are asked for.

python benchmarks/autoencoder_adherence.py -o benchmarks/results/sprites-adherence-autoencoder.json
"""

import argparse
from pathlib import Path

import torch
from by_turns import encode_scenes

from cmd_video.denoisers.latent_space import decode_video
from cmd_video.evaluation.protocol.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.shipped import model_folder
from cmd_video.sprites.adherence import choose_scenes, evaluate_adherence


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=200)
    arguments = parser.parse_args()
    pipe = CMDPipeline.from_pretrained()
    scenes = choose_scenes(arguments.num_scenes)

    def reconstruct(prompts: list[str], indices: list[int]) -> torch.Tensor:
        return decode_video(pipe.vae, pipe.autoencoder.decode(*encode_scenes(pipe, scenes, indices)).sample)

    values = evaluate_adherence(reconstruct, arguments.num_scenes, batch_size=20)
    protocol = {"clips": arguments.num_scenes, "model": "default", "model_sha256": digest(model_folder(None))}
    write_result(arguments.output, "adherence of reconstructions", values, protocol)
    for name, score in values["accuracy"].items():
        print(f"{name:8s} {score['rate']:6.1%}")


if __name__ == "__main__":
    main()
