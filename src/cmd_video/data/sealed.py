"""Folders of weights that say what their files hash to, so that one that changed since is named before it is used.

    seal(folder)                                  # after the weights are written
    check_sealed(folder, "unet", "model")         # before those of a subfolder are read

A flipped bit in a file of weights loads without an error and gives another clip. Folders without the list, of other
programs or earlier versions, are read as they are.
"""

import json
from pathlib import Path

from .files import read_json, sha256, write_whole

LIST = "sha256.json"


def seal(folder: Path) -> None:
    """Write what every file of weights in a folder, at any depth, hashes to."""
    files = sorted(folder.rglob("*.safetensors"))
    write_whole(folder / LIST, json.dumps({file.relative_to(folder).as_posix(): sha256(file) for file in files}))


def check_sealed(folder: Path, subfolder: str, name: str) -> None:
    """Compare the weights in a subfolder with the list of the folder, or with its own.

    Args:
        folder: what may hold a list.
        subfolder: where the weights lie in it; "" is the folder itself.
        name: of the argument that says the folder, for the message.

    Raises:
        ValueError: a file is not what the list says, or the list cannot be read.
    """
    for place, inside in ((folder, subfolder), (folder / subfolder, "")):
        if not (place / LIST).is_file():
            continue
        for file, expected in read_json(place / LIST, dict).items():
            path = place / file
            if path.parent == place / inside and path.is_file() and sha256(path) != expected:
                raise ValueError(
                    f"{name}: {path}: damaged, or changed since it was saved (its sha256 is not that in "
                    f"{place / LIST}); if it is meant so, remove {LIST}"
                )
        return
