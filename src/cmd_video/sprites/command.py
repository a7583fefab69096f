"""`cmd-video sprites make|adherence`: clips of the demonstration, and whether a model makes what its prompts say."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cmd_video.data.files import writable_file, writable_folder
from cmd_video.data.shares import read_share

app = typer.Typer(help="The demonstration: make its clips, measure how well a model follows its prompts.")


@app.command("make")
def make_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; must be new or empty.", callback=writable_folder)
    ],
    num_clips: Annotated[int, typer.Option(min=1, help="Clips.")] = 100,
    height: Annotated[int, typer.Option(min=8, help="Height in pixels.")] = 64,
    width: Annotated[int, typer.Option(min=8, help="Width in pixels.")] = 64,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Which world of scenes.")] = 0,
    split: Annotated[str, typer.Option(help="train, or held_out: combinations that training never sees.")] = "train",
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the files.")] = 8,
) -> None:
    """Write clips of the procedural set `sprites`, with a manifest that holds prompts and ground truth.

    Example: cmd-video sprites make -o sprites/ --num-clips 100
    """
    from rich.progress import Progress

    from .make import write_sprites

    with Progress() as progress:
        task = progress.add_task("clips", total=num_clips)
        manifest = write_sprites(
            output, num_clips, height, width, num_frames, seed, split, fps,
            progress=lambda done: progress.update(task, completed=done),
        )  # fmt: skip
    print(manifest)


@app.command("adherence")
def adherence_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.", callback=writable_file)] = Path(
        "adherence.json"
    ),
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or hub id; default: the model that ships with the package.")
    ] = None,
    num_scenes: Annotated[int, typer.Option(min=1, help="Clips to generate.")] = 200,
    preset: Annotated[str | None, typer.Option(help="quality, fast or turbo; what follows overrides it.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each of the two models.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance of the content model.")] = None,
    motion_guidance: Annotated[float | None, typer.Option(min=1, help="Guidance of the motion model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes, and the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 10,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only batches i, i + n, ...; without it, the others and the result.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "cpu",
) -> None:
    """Whether generated sprites have the color, shape and motion of their prompts, on combinations never trained on.

    Started again after an interruption it goes on; `accelerate launch -m cmd_video.cli` shares the work, and so do
    processes that are each given a `--shard`.

    Example: cmd-video sprites adherence -o adherence.json
    """
    from accelerate import PartialState
    from rich.progress import Progress

    from .adherence import measure_adherence

    with Progress() as progress:
        task = progress.add_task("clips", total=num_scenes)
        values = measure_adherence(
            model, num_scenes, seed, batch_size, preset, steps, guidance, motion_guidance, device, output,
            None if shard is None else read_share(shard),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if PartialState().is_main_process:
        _print_scores(values, output)


def _print_scores(values: dict[str, Any], output: Path) -> None:
    for name, score in values["accuracy"].items():
        floor = values["reader_on_ground_truth"][name]["rate"]
        print(
            f"{name:8s} {score['rate']:6.1%}   95% interval {score['low']:.1%} to {score['high']:.1%}   "
            f"reader {floor:.1%}"
        )
    print(output)
