"""`cmd-video export RUN... -o DIR`: finished runs as one folder for `CMDPipeline.from_pretrained`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs; for a component that several hold, the last counts.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; must not exist.")],
    guidance: Annotated[float, typer.Option(min=1, help="Default guidance of the content model.")] = 7.5,
    motion_guidance: Annotated[float, typer.Option(min=1, help="Default guidance of the motion model.")] = 1.0,
) -> None:
    """Turn training runs into a folder for from_pretrained.

    Example: cmd-video export runs/sprites/content runs/sprites/motion -o my-model
    """
    from cmd_video.training.export import export_pipeline

    print(export_pipeline(runs, output, guidance, motion_guidance))
