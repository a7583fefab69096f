"""Files and folders that appear whole or not at all, and the digests of files.

    write_whole(path, text)                                  # or bytes
    with whole_file(path) as temporary:                      # for what writes its file itself
        save_file(tensors, temporary)
    with whole_folder(path) as temporary:
        model.save_pretrained(temporary)
    sha256(path)

Whatever ends the work, an error or an interruption, leaves what was there before. What a killed process leaves is
hidden, `.NAME.tmp-PID`, and does not count.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, a text as UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside a file, of the same suffix, to write it under; it becomes the file when the block ends well."""
    temporary = path.with_name(f".{path.stem[:40]}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder beside another to fill; it becomes that one when the block ends well.

    Args:
        path: the folder, which is not there yet; folders above it are made.
        replace: it may be there, and then goes; what killed processes left of theirs goes as well.

    Raises:
        OSError: it is there and holds something, or nothing can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.tmp-"
    temporary = path.with_name(f"{prefix}{os.getpid()}")
    for entry in list(path.parent.iterdir()) if replace else [temporary]:
        if entry.name.startswith(prefix):
            shutil.rmtree(entry, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def writable_file(path: Path) -> Path:
    """The path of a file that can be written, to know it before the work that it is for.

    Raises:
        ValueError: it is a folder, or lies where nothing can be written.
    """
    if path.is_dir():
        raise ValueError(f"output: {path} is a folder, a file is needed")
    if path.exists() and not path.is_file():
        raise ValueError(f"output: {path} is no file that could be written anew")
    _check_above(path)
    return path


def writable_folder(path: Path) -> Path:
    """The path of a folder that files can be put into, there or not.

    Raises:
        ValueError: it is no folder, or lies where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"output: {path} is a file, a folder is needed")
    _check_above(path / "file")
    return path


def new_folder(path: Path) -> Path:
    """The path of a folder that is not there yet, or empty, and can be made.

    Raises:
        ValueError: it is there and holds something, or lies where nothing can be written.
    """
    if writable_folder(path).is_dir() and any(path.iterdir()):
        raise ValueError(f"output: {path} exists; choose a new folder")
    _check_above(path)
    return path


def _check_above(path: Path) -> None:
    """Raise a ValueError unless files can be made beside a path."""
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise ValueError(f"output: {path}: nothing can be written below {ancestor}")


def sha256(*paths: Path) -> str:
    """Hex digest of a file, or of several one behind the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()
