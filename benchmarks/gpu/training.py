"""A training step of each of CMD's stages at the true size: samples per second, memory, the largest batch that fits.

python benchmarks/gpu/training.py -o benchmarks/results/gpu/training.json [--rehearse] [--device cuda] [--seconds 50]

Forward and backward pass and Adam's update, weights in float32, computed in bf16 as training does, on made-up latents
and text features, without gradient checkpointing.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rows import DTYPE, Results, Row, parse

from cmd_video.benchmark.timing import peak_memory, reset_peak_memory
from cmd_video.benchmark.training_step import paper_training_step, time_training

STAGES = ("CMD motion", "CMD content", "CMD autoencoder")
BATCHES = (1, 2, 4, 8, 16)
RUNS = 3


class Stage:
    """A stage at growing batch sizes, until one does not fit."""

    def __init__(self, name: str, arguments: Namespace) -> None:
        self.name, self.arguments, self.full = name, arguments, False

    def measure(self, batch: int) -> dict[str, Any]:
        row = {"stage": self.name, "batch": batch}
        try:
            if not self.full:
                return {**row, "fits": True, **self._time(batch)}
        except torch.OutOfMemoryError:  # the answer, no failure
            self.full = True
        return {**row, "fits": False}

    def _time(self, batch: int) -> dict[str, Any]:
        at = self.arguments.place
        reset_peak_memory(at.device)
        step = paper_training_step(self.name, self.arguments.clip, replace(at, dtype=torch.float32), batch)
        seconds = time_training(step, at.device, RUNS, autocast=DTYPE)
        return {"seconds": seconds, "samples_per_second": batch / seconds, "peak_bytes": peak_memory(at.device)}


def main() -> None:
    arguments = parse(__doc__)
    stages = {name: Stage(name, arguments) for name in STAGES}
    shown = ("fits", "seconds", "samples_per_second", "peak_bytes")
    results = Results("training steps", arguments, {"clip": str(arguments.clip), "weights": "float32"}, shown)
    rows = [
        Row(f"{name}, batch {batch}", partial(stage.measure, batch))
        for name, stage in stages.items()
        for batch in BATCHES
    ]
    raise SystemExit(results.run(rows))


if __name__ == "__main__":
    main()
