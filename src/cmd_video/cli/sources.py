"""Options of the verbs of `cmd-video evaluate` that say which clips are looked at, and how they are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from cmd_video.evaluation.protocol.clips import Reading

Frames = Annotated[int, typer.Option(min=1, help="Frames of a clip.")]
Size = Annotated[str | None, typer.Option(help="HxW before the extractor's own resizing; default: as they are.")]
Stride = Annotated[int, typer.Option(min=1, help="Take every stride-th frame.")]
Fps = Annotated[float | None, typer.Option(help="Take frames at this rate instead of --stride.")]
NumClips = Annotated[int | None, typer.Option(min=2, help="Only so many clips, drawn by --draw-seed.")]
Span = Annotated[
    str, typer.Option(help="Which frames of a longer clip: start, middle, or random (StyleGAN-V's), by --draw-seed.")
]
Reconstruct = Annotated[
    str | None,
    typer.Option(help="Pass the clips to judge through the autoencoder of this model, or finished run, first."),
]
Split = Annotated[str, typer.Option(help="Which clips of a training configuration: validation or train.")]
DrawSeed = Annotated[int, typer.Option(min=0, help="Which clips --num-clips takes, and which spans of them.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a model's pipeline.")]
Prompts = Annotated[
    Path | None,
    typer.Option(help="File of a model's prompts, one a line; default: held-out sprites, or classes."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips at a time.")]
WeightsDir = Annotated[Path | None, typer.Option(help="Folder of the extractors' weights.")]


def parse_reading(
    frames: int,
    size: str | None,
    stride: int,
    fps: float | None,
    num_clips: int | None,
    span: str = "middle",
    draw_seed: int = 0,
) -> "Reading":
    """What the options say about how clips are read.

    Raises:
        ValueError: --size or --span is none.
    """
    from typing import get_args

    from cmd_video.evaluation.protocol.clips import Reading
    from cmd_video.evaluation.protocol.clips import Span as Spans

    if span not in get_args(Spans):
        raise ValueError(f"--span: {span!r} is none of {', '.join(get_args(Spans))}")
    return Reading(frames, _parse_size(size), stride, fps, num_clips, cast("Spans", span), draw_seed)


def check_reading(sources: list[str], reading: "Reading", split: str = "validation") -> None:
    """Refuse options that would do nothing, because none of the sources is files, or a configuration.

    Raises:
        ValueError: there are such.
    """
    from cmd_video.studies.clips import are_files, is_recipe, lists_files

    if split != "validation" and not any(map(is_recipe, sources)):
        raise ValueError(f"--split: {', '.join(sources)} are no training configurations")
    if reading.draw_seed and reading.num_clips is None and reading.span != "random":
        raise ValueError("--draw-seed: nothing is drawn without --num-clips or --span random")
    if any(map(are_files, sources)):
        return
    if reading.size is not None or reading.stride != 1 or reading.fps is not None:
        raise ValueError(f"--size, --stride, --fps: they say how files are read, and {', '.join(sources)} are none")
    if reading.span != "middle" and not any(lists_files(source, split) for source in sources):
        raise ValueError(f"--span: it says how files are read, and {', '.join(sources)} are none")


def _parse_size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"--size: {size!r}, expected such as 256x256")
    return int(height), int(width)
