"""`cmd-video data check|encode`: look over training data, precompute latents."""

from pathlib import Path
from typing import Annotated

import typer

from cmd_video.data.files import writable_file, writable_folder

from .options import Device

app = typer.Typer(help="Look over and encode training data: check, encode.")


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

    if json_file is not None:
        writable_file(json_file)
        if not json_file.absolute().parent.is_dir():
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


@app.command("encode")
def encode_command(
    run: Annotated[Path, typer.Argument(help="A finished run that holds an autoencoder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; a second call goes on.", callback=writable_folder)
    ],
    num_clips: Annotated[int, typer.Option(min=1, help="Clips; at most the whole set in each pass.")] = 10_000,
    passes: Annotated[
        int, typer.Option(min=1, help="Go through a small set of videos so often, at other places each time.")
    ] = 1,
    split: Annotated[str, typer.Option(help="The run's train or validation data.")] = "train",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 16,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the run's data: data.field=value.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Write content frames and motion latents of a run's clips, so that the diffusion stages do not run the
    autoencoder.

    Example: cmd-video data encode runs/sprites/autoencoder -o latents/sprites/train
    """
    if split not in ("train", "validation"):
        raise ValueError(f"--split: {split!r} is neither train nor validation")
    from rich.progress import Progress

    from cmd_video.training.encode import encode_run

    with Progress() as progress:
        task = progress.add_task("clips", total=num_clips)
        encode_run(
            run,
            output,
            num_clips,
            "train" if split == "train" else "validation",
            batch_size,
            device=device,
            progress=lambda done: progress.update(task, completed=done),
            overrides=overrides,
            passes=passes,
        )
    print(output)
