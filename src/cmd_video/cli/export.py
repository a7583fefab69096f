"""`cmd-video export RUN... -o DIR`: finished runs as one folder for `CMDPipeline.from_pretrained`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import NewFolder


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs; for a component that several hold, the last counts.")
    ],
    output: NewFolder,
    guidance: Annotated[float, typer.Option(min=1, help="Default guidance of the content model.")] = 7.5,
    motion_guidance: Annotated[float, typer.Option(min=1, help="Default guidance of the motion model.")] = 1.0,
    motion_starts: Annotated[
        list[int] | None,
        typer.Option(help="Timesteps of an undistilled motion model beside a distilled content model; 999: one step."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Files of half the size: weights as float16.")] = False,
) -> None:
    """Turn training runs into a folder for from_pretrained.

    Example: cmd-video export runs/sprites/content runs/sprites/motion -o my-model
    """
    import torch

    from cmd_video.training.export import export_pipeline

    dtype = torch.float16 if half else torch.float32
    print(export_pipeline(runs, output, guidance, motion_guidance, dtype, motion_starts))
