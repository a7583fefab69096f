"""What several commands check alike."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmd_video.data.files import new_folder, writable_file
from cmd_video.data.shares import Share, read_share

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FORMATS = (".mp4", ".gif", ".webm")
DTYPES = ("float32", "bfloat16", "float16")


def share_of(shard: str | None) -> Share | None:
    """What `--shard` says.

    Raises:
        ValueError: it is no share.
    """
    return None if shard is None else read_share(shard)


def find_dtype(name: str) -> "torch.dtype":
    """The type of weights that `--dtype` names.

    Raises:
        ValueError: it is none of DTYPES.
    """
    if name not in DTYPES:
        raise ValueError(f"--dtype: {name!r} is none of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)


def open_picture(path: Path, name: str) -> "Image":
    """A picture from a file.

    Raises:
        ValueError: it is none that can be read; the message begins with this name of an argument.
    """
    from PIL import Image

    from cmd_video.data.clip import ClipError
    from cmd_video.data.picture_file import read_picture

    try:
        return Image.fromarray(read_picture(path).numpy())
    except ClipError as error:
        raise ValueError(f"{name}: {error}") from error


def class_of(label: str | None, pipe: Any) -> tuple[int | str | None, str | None]:
    """What `--class` means, and its name: a name that the model knows, else a number; the pipeline refuses others."""
    from cmd_video.data.classes import number_of

    if label is None:
        return None, None
    number = number_of(pipe.class_names).get(label)
    if number is None and re.fullmatch("-?[0-9]+", label):
        number = int(label)
    if number is None:
        return label, None
    return number, dict(enumerate(pipe.class_names)).get(number)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that hold something, such as prompts.

    Raises:
        ValueError: it is not UTF-8, or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not lines:
        raise ValueError(f"{path}: holds no prompt")
    return lines


def usable_device(name: str) -> str:
    """The name of a device that is there.

    Raises:
        ValueError: there is no such device, or torch was built without it, or it is the one without numbers.
    """
    if name == "meta":
        raise ValueError("device: 'meta' holds no numbers; allowed: cpu, cuda, mps")
    if name != "cpu":  # which is there, and needs no import of torch to know
        from cmd_video.benchmark.timing import check_device

        check_device(name)
    return name


def writable_pair(path: Path) -> Path:
    """A name beside which a .safetensors and a .json can be written. Raises as `writable_file`."""
    base = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    for suffix in (".safetensors", ".json"):
        writable_file(base.with_name(base.name + suffix))
    return path


def optional_file(path: Path | None) -> Path | None:
    """The path of a file that may be left out, or be standard output. Raises as `writable_file`."""
    return path if path is None or path == Path("-") else writable_file(path)


def file_if_given(path: Path | None) -> Path | None:
    """The path of a file that may be left out. Raises as `writable_file`."""
    return None if path is None else writable_file(path)


def video_file(path: Path) -> Path:
    """The path of a clip to write, of a known format, where it and the record beside it can be written.

    Raises:
        ValueError: it cannot be written, or is of another format.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"output: {path} ends in {path.suffix!r}, allowed: {', '.join(FORMATS)}")
    writable_file(path.with_suffix(".json"))
    return writable_file(path)


@contextmanager
def progress_bar(name: str, total: int | None = None) -> "Iterator[Callable[[int, int], None]]":
    """A bar with the time that is left; what it gives is called with (done, all), which may be known only then."""
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(name, total=total)
        yield lambda done, total: progress.update(task, completed=done, total=total)


Output = Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.", callback=writable_file)]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write the numbers; - is standard output.", callback=optional_file)
]
Plot = Annotated[Path | None, typer.Option(help="Also draw the numbers, to this PNG.", callback=optional_file)]
VideoFile = Annotated[Path, typer.Option("-o", "--output", help="A .mp4, .gif or .webm file.", callback=video_file)]
NewFolder = Annotated[
    Path, typer.Option("-o", "--output", help="Folder to write; must be new or empty.", callback=new_folder)
]
Revision = Annotated[str | None, typer.Option(help="Of a hub id: a branch, tag or commit; default: its main branch.")]
Shard = Annotated[
    str | None, typer.Option(help="i/n: only pieces i, i + n, ...; without it, what is missing and the result.")
]
ClassLabel = Annotated[
    str | None, typer.Option("--class", help="Name or number of a class, for class-conditional models.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps.", callback=usable_device)]
