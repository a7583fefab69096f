"""`cmd-video data check PATH`: look over training data."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look over training data.")


@app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="Folder, manifest or video file.")],
    kind: Annotated[
        str,
        typer.Option(
            help="auto, or how the set lies on disk: manifest, captioned_folder, class_folder, ucf101, webvid, "
            "frame_folders."
        ),
    ] = "auto",
    num_frames: Annotated[int, typer.Option(min=1, help="Frames that a training clip needs.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Every stride-th frame is taken.")] = 1,
    video_root: Annotated[Path | None, typer.Option(help="Folder of the clips (ucf101, webvid).")] = None,
    split: Annotated[str | None, typer.Option(help="train1 ... test3 (ucf101).")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every verdict to this file.")] = None,
) -> None:
    """Decode every clip from end to end and say which can be used for training, and why the others cannot.

    Example: cmd-video data check clips/ --num-frames 16 --stride 2
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
    from rich.text import Text

    from cmd_video.data.check import check_clips, find_clips

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise FileNotFoundError(2, "--json: no such folder", str(json_file.parent))
    clips = find_clips(path, kind, video_root=video_root, split=split)
    console = Console(soft_wrap=True)
    progress = track(clips, "decoding", console=Console(stderr=True), transient=True)
    report = check_clips(progress, num_frames, stride)
    table = Table("verdict", "clips", title=f"{path}: {num_frames} frames, stride {stride}")
    for verdict, number in report.counts().items():
        table.add_row(verdict, str(number))
    table.add_section()
    table.add_row("total", str(len(report.verdicts)))
    console.print(table)
    for found in report.verdicts:
        if found.verdict != "ok":
            console.print(Text(f"{found.verdict}: {found.path}: {found.reason}"))
    if json_file is not None:
        report.save(json_file)
        console.print(Text(str(json_file)))
