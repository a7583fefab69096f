"""What each preset costs and keeps on sprites: seconds, adherence, Fréchet distance to the ground truth, in one run.

python benchmarks/presets.py -o benchmarks/results/sprites-presets.json [--rows quality fast] [--num-scenes 200]

Rows take turns (`by_turns`): presets of the default model, and models made from it. Distances (`by_turns.distances`)
stand beside that between two sets of true clips.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, clips_of, compare, distances, true_clips

from cmd_video.evaluation.results import digest_model, write_result
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import SHIPPED

ROWS = {
    "quality": None,
    "fast": None,
    "turbo": "turbo",
    "pruned": "pruned",
}  # presets of the default model, and models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), help="the first is what speeds refer to"
    )
    parser.add_argument("--num-scenes", type=int, default=200)
    arguments = parser.parse_args()
    pipes = {row: load_pipeline(ROWS[row], preset=None if ROWS[row] in SHIPPED else row) for row in arguments.rows}
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values: dict[str, Any] = {"another set of true clips": {"frechet": distances([others], [truth])}}
    values |= compare({preset: clips_of(pipe) for preset, pipe in pipes.items()}, arguments.num_scenes)
    protocol = {
        "clips": arguments.num_scenes,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "model_sha256": {row: digest_model(ROWS[row]) for row in arguments.rows},
    }
    write_result(arguments.output, "presets", values, protocol)


if __name__ == "__main__":
    main()
