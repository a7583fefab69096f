"""`cmd-video evaluate report`: result files as tables, beside pictures of the clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmd_video.data.files import writable_folder

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_FRAMES = 8


def command(
    results: Annotated[list[Path], typer.Argument(help="Files that other verbs of `evaluate` wrote.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder to write report.md and pictures into.", callback=writable_folder),
    ],
    samples: Annotated[
        list[Path] | None, typer.Option(help="Folder of clips to show; can be given several times.")
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Clips of each folder.")] = 8,
    difference: Annotated[
        bool, typer.Option(help="Also show how far the second folder's clips are from the first's, as a picture.")
    ] = False,
) -> None:
    """Tables of the results that may be compared, why the others may not, and sample grids.

    Example: cmd-video evaluate report a.json b.json --samples made/ -o report
    """
    from cmd_video.data.files import whole_file, write_whole
    from cmd_video.evaluation.protocol.compare import read_result
    from cmd_video.evaluation.protocol.report import write_up

    if difference and len(samples or []) != 2:
        raise ValueError("--difference: needs --samples twice")
    names = [path.stem for path in results]
    if len(set(names)) < len(names):
        names = [str(path) for path in results]
    text = "# Report\n\n" + write_up({name: read_result(path) for name, path in zip(names, results, strict=True)})
    pictures = _sheets(samples or [], num_samples, difference)
    output.mkdir(parents=True, exist_ok=True)
    if pictures:
        text += "\n## Samples\n"
    for number, (title, picture) in enumerate(pictures.items()):
        with whole_file(output / f"samples-{number}.png") as temporary:
            picture.save(temporary)
        text += f"\n{title}\n\n![{title}](samples-{number}.png)\n"
    write_whole(output / "report.md", text)
    print(output / "report.md")


def _sheets(folders: list[Path], count: int, difference: bool) -> "dict[str, Image]":
    """A contact sheet for each folder, and one of the differences of two."""
    import numpy as np

    from cmd_video.data.check import find_clips
    from cmd_video.data.decode import probe, read_clip
    from cmd_video.data.frame_folders import probe_frame_folder, read_frame_folder
    from cmd_video.data.pictures import contact_sheet

    shown: list[list[np.ndarray]] = []
    sheets: dict[str, Image] = {}
    for folder in folders:
        paths = find_clips(folder)[:count]
        clips = []
        for path in paths:
            length = (probe_frame_folder if path.is_dir() else probe)(path).num_frames
            clips.append((read_frame_folder if path.is_dir() else read_clip)(path, length).numpy())
        shown.append(clips)
        sheets[str(folder)] = contact_sheet(clips, [path.stem for path in paths], SHOWN_FRAMES)
    if difference:
        names = [[path.stem for path in find_clips(folder)[:count]] for folder in folders]
        if names[0] != names[1]:
            raise ValueError(f"--difference: clips named {names[0]} and {names[1]}; pairs go by name")
        pairs = list(zip(*shown, strict=True))
        wrong = next(((a.shape, b.shape) for a, b in pairs if a.shape != b.shape), None)
        if wrong is not None:
            raise ValueError(f"--difference: clips of shapes {wrong[0]} and {wrong[1]}")
        apart = [np.abs(a.astype(int) - b.astype(int)).clip(0, 255).astype(np.uint8) for a, b in pairs]
        sheets["Absolute difference"] = contact_sheet(apart, names[0], SHOWN_FRAMES)
    return sheets
