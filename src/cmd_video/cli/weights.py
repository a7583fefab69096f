"""`cmd-video weights list|get|verify`: files of weights that metrics need, with their digests."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Files that metrics need: list, get, verify.")
WeightsDir = Annotated[
    Path | None, typer.Option(help="Folder of weights; default: CMD_VIDEO_WEIGHTS or ~/.cache/cmd-video.")
]
Name = Annotated[str, typer.Argument(help="One of `cmd-video weights list`.")]


@app.command("list")
def list_files(weights_dir: WeightsDir = None) -> None:
    """Every file, whether it is there, where it comes from, and its digest.

    Example: cmd-video weights list
    """
    from cmd_video.evaluation.networks.weights import WEIGHT_FILES, find_weights, shown_digest, weights_folder

    print(f"folder: {weights_folder(weights_dir)}")
    for name, known in WEIGHT_FILES.items():
        try:
            found = str(find_weights(name, weights_dir))
        except ValueError as error:
            found = "not there" if "weights: no " in str(error) else "damaged"
        size = "" if known.size is None else f"{known.size / 1e6:.1f} MB  "
        print(f"{name:16s} {known.file}  {size}{found}")
        print(f"{'':16s} {known.source}, {known.url or 'no address'}")
        print(f"{'':16s} sha256 {shown_digest(name)}")


@app.command()
def get(name: Name, weights_dir: WeightsDir = None) -> None:
    """Fetch a file and compare its digest.

    Example: cmd-video weights get i3d-torchscript
    """
    from cmd_video.evaluation.networks.weights import get_weights

    print(get_weights(name, weights_dir))


@app.command()
def verify(name: Name, weights_dir: WeightsDir = None) -> None:
    """Find a file and compare its digest.

    Example: cmd-video weights verify i3d --weights-dir weights/
    """
    from cmd_video.data.files import sha256
    from cmd_video.evaluation.networks.weights import WEIGHT_FILES, find_weights, shown_digest

    path = find_weights(name, weights_dir)
    whole = len(WEIGHT_FILES[name].sha256) == 64
    print(f"{path}: " + ("as published" if whole else f"sha256 {sha256(path)}, which {shown_digest(name)}"))
