"""`cmd-video launch list|show|copy`: scripts that start training, encoding and measuring on many GPUs and machines."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cmd_video.data.files import writable_file, write_whole

app = typer.Typer(help="Scripts for many GPUs and machines, with and without Slurm: list, show, copy.")
Name = Annotated[str, typer.Argument(help="Of a script; see `launch list`.")]


@app.command("list")
def list_command() -> None:
    """Name the scripts, and what each is for.

    Example: cmd-video launch list
    """
    for name, text in scripts().items():
        print(f"{name:18s} {text.splitlines()[1].removeprefix('# ').rstrip(':')}")


@app.command("show")
def show_command(name: Name) -> None:
    """Print a script.

    Example: cmd-video launch show train.sbatch
    """
    print(find(name), end="")


@app.command("copy")
def copy_command(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; default: the script's name, in this folder."),
    ] = None,
) -> None:
    """Copy a script, to change it. What it takes from the environment stands in its first lines.

    Example: cmd-video launch copy encode.sbatch
    """
    text, path = find(name), writable_file(output or Path(name))
    if path.exists():
        raise ValueError(f"output: {path} exists; choose a new file")
    write_whole(path, text)
    print(path)


def scripts() -> dict[str, str]:
    """The scripts that come with the package, by name."""
    folder = files("cmd_video").joinpath("launch")
    return {path.name: path.read_text() for path in sorted(folder.iterdir(), key=lambda path: path.name)}


def find(name: str) -> str:
    """The text of a script.

    Raises:
        ValueError: there is none of this name.
    """
    found = scripts()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(found)}"
        raise ValueError(f"NAME: {name!r} is no script, {hint}")
    return found[name]
