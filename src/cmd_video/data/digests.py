"""Digests of clips, by which a file that changed is told from the one that was looked at.

check_digest(record.path, record.sha256)
write_digests("clips.jsonl", manifest, usable)                  # a manifest with the sha256 of each file
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

from .clip import ClipError
from .files import sha256, write_whole
from .manifest import Manifest


def check_digest(path: Path, expected: str | None) -> None:
    """Compare a file with the sha256 that a manifest states; None states nothing.

    Raises:
        ClipError: it is another one, or no file.
    """
    if expected is None:
        return
    if not path.is_file():
        raise ClipError(path, "has a sha256 but is not a file", "missing")
    try:
        found = sha256(path)
    except OSError as error:
        raise ClipError(path, error.strerror or "cannot be read", "missing") from error
    if found != expected:
        raise ClipError(path, "its sha256 is not the one in the manifest")


def write_digests(path: str | Path, manifest: Manifest, usable: Collection[Path]) -> int:
    """Write a .jsonl manifest: the clips that can be used, with caption, class and the sha256 of each file.

    Args:
        path: the .jsonl file; paths in it are relative to its folder.
        manifest: all clips.
        usable: which of them are written. Folders of pictures are, without a sha256.

    Returns:
        How many there are.

    Raises:
        ValueError: the file has another suffix, or no clip is usable.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: suffix {path.suffix!r}, a manifest is written as .jsonl")
    lines = []
    for record in manifest.records:
        if record.path not in usable:
            continue
        row: dict[str, str | int] = {"path": os.path.relpath(record.path.absolute(), path.absolute().parent)}
        if record.prompt:
            row["prompt"] = record.prompt
        if record.class_label >= 0:
            names = manifest.class_names
            row["label"] = names[record.class_label] if names else record.class_label
        if record.path.is_file():
            row["sha256"] = sha256(record.path)
        lines.append(json.dumps(row) + "\n")
    if not lines:
        raise ValueError(f"{path}: no clip can be used, there is nothing to write")
    write_whole(path, "".join(lines))
    return len(lines)
