"""What a training step costs, of recipes as they are and of the paper's stages, in one call.

rows = training_cost(["configs/sprites/motion.yaml"], Size(64, 64))       # counted, nothing is timed
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cmd_video.benchmark.system import Size
from cmd_video.benchmark.training_step import TrainingStep, measure_training, paper_training, time_training
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import load_config


def training_cost(
    recipes: Sequence[str | Path] = (),
    size: Size | None = None,
    paper: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "meta",
    runs: int = 5,
) -> list[dict[str, Any]]:
    """Count training steps on the meta device, and time them where another device is asked for.

    Args:
        recipes: training configurations; their components must be at hand.
        size: of the clip; None = what a recipe trains on, for the paper's stages 512x512.
        paper: also the paper's stages and a step of ModelScope's.
        dtype: of the paper's stages; a recipe trains in its own precision and is counted in float32.
        device: "meta" counts only; "cpu" and "cuda" also time.
        runs: timed steps, of which the median counts.

    Returns:
        a row for each step: the fields of `measure_training`, and `seconds`, None on the meta device.

    Raises:
        ValueError: a recipe's data are latents, and there is no size.
    """

    def build(place: str) -> list[TrainingStep]:
        steps = [recipe_step(Path(path), size, place) for path in recipes]
        return steps + (paper_training(size or Size(512, 512), place, dtype) if paper else [])

    rows = [{**asdict(measure_training(step)), "seconds": None} for step in build("meta")]
    if device != "meta":
        for row, step in zip(rows, build(device), strict=True):
            row["seconds"] = time_training(step, device, runs)
    return rows


def recipe_step(path: Path, size: Size | None, device: str) -> TrainingStep:
    """A recipe's own stage with one made-up clip, by default of its data's size; its components must be at hand."""
    config = load_config(path)
    if size is None:
        if config.data.kind == "latents":
            raise ValueError(f"{path}: its data are latents, so give the clip's resolution")
        size = Size(config.data.height, config.data.width, config.data.num_frames)
    components = build_components(config.components, ["a"])
    stage = build_stage(config, components).to(device).train()
    stage.place(torch.device(device))

    def loss() -> torch.Tensor:
        video = torch.zeros(1, 3, size.frames, size.height, size.width, device=device)
        number, label = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long, device=device)
        return stage({"video": video, "prompt": ["a"], "class_label": label, "number": number})

    return TrainingStep(f"{path} {size}", [getattr(stage, name) for name in stage.trained], loss)
