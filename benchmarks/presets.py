"""What each preset costs and keeps on sprites: seconds, adherence, Fréchet distance to the ground truth, in one run.

python benchmarks/presets.py -o benchmarks/results/sprites-presets.json [--turbo FOLDER] [--num-scenes 200]

Presets take turns (`by_turns`). `turbo` is a model of its own, distilled for it. Distances are in pixel features
(`cmd_video.evaluation.pixel_features`), beside that between two sets of true clips.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, clips_of, compare, true_clips

from cmd_video.evaluation.pixel_features import pixel_distances
from cmd_video.evaluation.results import digest, digest_model, write_result
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import DEFAULT_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--turbo", default="turbo", help="a model distilled for few steps")
    parser.add_argument("--num-scenes", type=int, default=200)
    arguments = parser.parse_args()
    pipes = {preset: load_pipeline(None, preset=preset) for preset in ("quality", "fast")}
    pipes["turbo"] = load_pipeline(arguments.turbo)
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values: dict[str, Any] = {"another set of true clips": {"frechet": pixel_distances([others], [truth])}}
    values |= compare({preset: clips_of(pipe) for preset, pipe in pipes.items()}, arguments.num_scenes)
    protocol = {
        "clips": arguments.num_scenes,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "model_sha256": digest(DEFAULT_MODEL),
        "turbo_sha256": digest_model(arguments.turbo),
    }
    write_result(arguments.output, "presets", values, protocol)


if __name__ == "__main__":
    main()
