"""Files and folders that appear whole or not at all, JSON in and out, and the digests of files.

    write_whole(path, text)                                  # or bytes
    write_json(path, {"psnr": 31.4})                         # no NaN
    with whole_file(path) as temporary:                      # for what writes its file itself
        save_file(tensors, temporary)
    with whole_folder(path) as temporary:
        model.save_pretrained(temporary)
    read_json(path, dict)
    sha256(path)

Whatever ends the work, an error or an interruption, leaves what was there before. What a killed process leaves is
hidden, `.NAME.tmp-HOST-PID`, and goes when the next one writes beside it.
"""

import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from safetensors import SafetensorError

from .lock import is_lock

LEFTOVER = re.compile(r"\..*\.tmp-(.+-)?\d+(\.\w+)?", re.DOTALL)
Content = TypeVar("Content")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, a text as UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold.

    Raises:
        ValueError: a number in it is NaN or infinite, which is no JSON; the message says where it stands.
        OSError: it cannot be written.
    """
    for place, number in _numbers(content):
        if not math.isfinite(number):
            raise ValueError(f"{place}: {number}, which is no number that a result can have; {path} is not written")
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False))


def read_json(path: Path, kind: type[Content]) -> Content:
    """Read JSON whose outermost value is of a kind, such as `dict`.

    Raises:
        ValueError: it is no JSON, holds NaN or infinity, or is something else; the message names the file.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, kind):
        needed = "an object" if kind is dict else f"a {kind.__name__}"
        raise ValueError(f"{path} holds a {type(found).__name__}, {needed} is needed")
    return found


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside a file, of the same suffix, to write it under; it becomes the file when the block ends well.

    Raises:
        OSError: it cannot be written, also where safetensors says so in an error of its own.
    """
    temporary = _temporary(path.with_name(path.stem[:40]), path.suffix)
    _remove_leftovers(path.parent)
    try:
        with _said_as_oserror(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder beside another to fill; it becomes that one when the block ends well.

    Args:
        path: the folder, which is not there yet; folders above it are made.
        replace: it may be there, and then goes.

    Raises:
        OSError: it is there and holds something, or nothing can be written, as for `whole_file`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _remove_leftovers(path.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that had this number before
    temporary.mkdir()
    try:
        with _said_as_oserror(path):
            yield temporary
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside a file, for what is needed only while that one is made.

    Raises:
        OSError: nothing can be written there.
    """
    folder = _temporary(path.with_name(path.stem[:40]), ".parts")
    _remove_leftovers(path.parent)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that had this number before
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def holds_something(folder: Path) -> bool:
    """Whether a folder is there with something else in it than locks and what is being written, or was half-written
    by a process that was killed.
    """
    return folder.is_dir() and any(
        not is_lock(entry.name) and not LEFTOVER.fullmatch(entry.name) for entry in folder.iterdir()
    )


def is_left_behind(temporary: Path) -> bool:
    """Whether nobody is at a temporary file or folder, `...tmp-HOST-PID`: its process, of this machine, is dead."""
    host, _, number = temporary.name.rpartition(".tmp-")[2].partition(".")[0].rpartition("-")
    return not number.isdecimal() or (host in ("", _host()) and not is_alive(int(number)))


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; where that cannot be asked, it does."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


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


def _temporary(path: Path, suffix: str = "") -> Path:
    return path.with_name(f".{path.name}.tmp-{_host()}-{os.getpid()}{suffix}")


def _host() -> str:
    """Name of this machine: processes of several may share a folder, and numbers are of one machine."""
    return re.sub(r"\W", "_", socket.gethostname())[:64]


@cache  # once is enough: who writes ten thousand files would list them as often
def _remove_leftovers(folder: Path) -> None:
    with suppress(OSError):  # a folder that cannot be listed, or that another process removes
        for entry in [folder / name for name in os.listdir(folder) if LEFTOVER.fullmatch(name)]:
            if is_left_behind(entry):
                (shutil.rmtree if entry.is_dir() else Path.unlink)(entry)


@contextmanager
def _said_as_oserror(path: Path) -> Iterator[None]:
    """What safetensors says when a disk is full is no OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error


def _numbers(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a JSON value with where they stand, "values.psnr"."""
    if isinstance(content, float):
        yield place, content
    elif isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _numbers(value, f"{place}.{key}" if place else str(key))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number")
