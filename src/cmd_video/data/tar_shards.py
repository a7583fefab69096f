"""Tar shards of others (WebDataset, Cosmos-Curate, NeMo Curator, video2dataset), unpacked into a folder of clips.

    found = import_shards(["shards/{00000..00999}.tar"], "clips/");  found.clips, found.left_out

A shard holds `key.mp4` with `key.txt` or `key.json` beside it; it becomes a folder of its own with `key.mp4` and
`key.txt`, which `captioned_folder` and `data index` read. A shard that was unpacked before is not unpacked again.
Only regular files are taken, and only to places below the folder: links, devices and paths that lead out of it are
left out.
"""

import glob
import gzip
import json
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from .files import whole_folder
from .listing import VIDEO_SUFFIXES, LeftOut

CAPTION_FIELDS = ("caption", "text", "prompt")  # of a .json, the first that is there
MOST_CAPTION = 1 << 20  # bytes of a file with a caption
MOST_SHARDS = 1_000_000
DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)  # what reading a shard raises
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass
class Imported:
    """What was unpacked.

    Attributes:
        clips: how many clips were written.
        skipped: shards that were unpacked before.
        left_out: shard and key of what was not taken, with the reason.
    """

    clips: int = 0
    skipped: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


def import_shards(
    patterns: Sequence[str], output: str | Path, progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Unpack shards, each into a folder of its name that appears whole.

    Args:
        patterns: files, with {first..last}, {one,other} and the wildcards of a shell.
        output: the folder.
        progress: called with the number of shards done, and of all.

    Raises:
        FileNotFoundError: a pattern fits no file.
        ValueError: two shards have one name, or no clip is found in any.
        OSError: the folder cannot be written.
    """
    output, found = Path(output), Imported()
    shards = expand(patterns)
    names = {_stem(shard): shard for shard in reversed(shards)}
    double = next((shard for shard in shards if names[_stem(shard)] != shard), None)
    if double is not None:
        raise ValueError(f"shards: {names[_stem(double)]} and {double} have one name")
    for done, shard in enumerate(shards, 1):
        folder = output / _stem(shard)
        if folder.is_dir():
            found.skipped += 1
        else:
            with whole_folder(folder) as temporary:
                found.clips += _unpack(shard, temporary, found.left_out)
        if progress is not None:
            progress(done, len(shards))
    if not found.clips and not found.skipped:
        first = "".join(f"; the first: {path}: {reason}" for path, reason in found.left_out[:1])
        raise ValueError(f"shards: no clip with a caption in {len(shards)} of them{first}")
    return found


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files that patterns fit, in order, each once.

    Raises:
        FileNotFoundError: a pattern fits none.
        ValueError: a pattern stands for more than a million names.
    """
    shards: dict[Path, None] = {}
    for pattern in patterns:
        for name in _without_braces(pattern):
            fits = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
            files = [Path(file) for file in fits if Path(file).is_file()]
            if not files:
                raise FileNotFoundError(2, "no such file", name)
            shards.update(dict.fromkeys(files))
    return list(shards)


def _without_braces(pattern: str) -> Iterator[str]:
    """Names that a pattern stands for; as in a shell, numbers keep their leading zeros."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(match[1])
    if numbers is None:
        values: Sequence[str] = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < MOST_SHARDS:
            raise ValueError(f"shards: {{{match[1]}}} in {pattern!r}, allowed: first to last, at most {MOST_SHARDS}")
        values = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    for value in values:
        yield from _without_braces(pattern[: match.start()] + value + pattern[match.end() :])


def _stem(shard: Path) -> str:
    return shard.name.split(".")[0] or shard.name


def _unpack(shard: Path, folder: Path, left_out: list[LeftOut]) -> int:
    """Write the clips of a shard that have a caption; the number of them."""
    videos: dict[str, Path] = {}
    captions: dict[str, str] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in _members(tar, shard, left_out):
                key, suffix = _key_of(member.name)
                place, reason = Path(f"{shard}/{key}"), _unsafe(member)  # whatever the key begins with
                if reason is None and suffix in VIDEO_SUFFIXES:
                    reason = "its key is there twice" if key in videos else _write(tar, member, folder, key, suffix)
                    if reason is None:
                        videos[key] = folder / f"{key}{suffix}"
                elif reason is None and suffix in (".txt", ".json"):
                    reason = _caption(tar, member, key, captions)
                if reason is not None:
                    left_out.append(LeftOut(place, reason))
    except DAMAGE as error:
        left_out.append(LeftOut(shard, f"cannot be read on: {str(error).splitlines()[0] if str(error) else 'cut'}"))
    for key, video in videos.items():
        if captions.get(key):
            video.with_suffix(".txt").write_text(captions[key], encoding="utf-8")
        else:
            video.unlink()
            left_out.append(LeftOut(shard / key, "a clip without a caption"))
    return sum(bool(captions.get(key)) for key in videos)


def _members(tar: tarfile.TarFile, shard: Path, left_out: list[LeftOut]) -> Iterator[tarfile.TarInfo]:
    """Files of a shard in order. One that is cut off between two of them lacks only the mark of its end."""
    while (member := tar.next()) is not None:
        if not member.isdir():
            yield member
    if tar.fileobj is not None:
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            left_out.append(LeftOut(shard, "cut off, it has no end"))


def _key_of(name: str) -> tuple[str, str]:
    """Key and suffix of a member: as WebDataset has it, what stands before the first dot of the file's name."""
    path = PurePosixPath(name)
    key, _, suffix = path.name.partition(".")
    return (path.parent / key).as_posix(), f".{suffix.lower()}"


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is not taken, whatever it holds."""
    posix, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts + windows.parts:
        return "a path that leads out of the folder"
    if "\0" in member.name or not member.name.isprintable() or posix.name.startswith("."):
        return "a hidden file, or a name that is none"
    return None if member.isreg() else "no regular file"


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, key: str, suffix: str) -> str | None:
    """Write a video; why there is none where that fails."""
    path, source = folder / f"{key}{suffix}", tar.extractfile(member)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return "its key is there twice"
    with path.open("xb") as file:
        try:
            if source is not None:
                shutil.copyfileobj(source, file, 1 << 20)
        except DAMAGE:
            pass
    if path.stat().st_size != member.size:
        path.unlink()
        return f"cut off, {member.size} bytes are named"
    return None


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, captions: dict[str, str]) -> str | None:
    """Note the caption that a member holds; a text goes before a field. Why there is none where that fails."""
    source = tar.extractfile(member)
    if source is None or member.size > MOST_CAPTION:
        return f"a text of {member.size} bytes, at most {MOST_CAPTION} are read"
    try:
        text = source.read().decode("utf-8-sig")
        if member.name.lower().endswith(".txt"):
            captions[key] = " ".join(text.split())
        else:
            values = json.loads(text)
            stated = [values[name] for name in CAPTION_FIELDS if isinstance(values.get(name), str)]
            captions.setdefault(key, " ".join((stated or [""])[0].split()))
    except DAMAGE:
        return f"cut off, {member.size} bytes are named"
    except (ValueError, AttributeError, RecursionError):
        return "its text is not UTF-8, or its .json is no object"
    return None
