"""Which files below a folder are clips, and what else was found there and why it is none.

    found = look_through(Path("clips/"));  found.videos, found.picture_folders, found.left_out

Folders are gone through at any depth, linked ones too, each once. Hidden files and folders (".name") are not looked
at.
"""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from .frame_folders import PICTURE_SUFFIXES, natural_key

MAIN_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".vob", ".flv",
    ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf", ".y4m", ".nut", ".dv",
    ".divx", ".rm", ".rmvb",
)  # fmt: skip
RENDERING_SUFFIXES = (
    ".webm",
    ".gif",
    ".apng",
    ".webp",
)  # another rendering where a file of the same stem is before it
VIDEO_SUFFIXES = MAIN_SUFFIXES + RENDERING_SUFFIXES
BESIDE_SUFFIXES = (  # of texts and numbers about clips: no one takes them for one
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".yaml", ".yml", ".srt", ".vtt", ".ass", ".xml", ".html", ".log",
    ".sh", ".py", ".pdf", ".npz", ".npy", ".safetensors",
)  # fmt: skip
NOT_THERE = "not there"


class LeftOut(NamedTuple):
    """Something that was found, or listed, and is not used.

    Attributes:
        path: what; of pictures beside videos their folder.
        reason: why, the same words for all of a kind; `NOT_THERE` for what is listed, or linked to, and missing.
    """

    path: Path
    reason: str


class Found(NamedTuple):
    """What is below a folder, each in natural order.

    Attributes:
        videos: video files, one for each clip.
        picture_folders: folders that hold pictures, the folder itself included.
        texts: .txt files.
        left_out: everything else, but for texts and numbers about clips.
    """

    videos: list[Path]
    picture_folders: list[Path]
    texts: list[Path]
    left_out: list[LeftOut]


def look_through(folder: Path) -> Found:
    """List a folder.

    Of files of one stem beside each other that are renderings of one clip (a.mp4, a.gif) the first by
    `VIDEO_SUFFIXES` is taken.
    """
    files, left_out = _walk(folder)
    videos, picture_folders, texts = [], [], []
    for parent, names in files.items():
        by_suffix: dict[str, list[Path]] = {}
        for path in names:
            by_suffix.setdefault(path.suffix.lower(), []).append(path)
        found = [path for suffix in VIDEO_SUFFIXES for path in by_suffix.get(suffix, ())]
        stills = {path for path in found if path.suffix.lower() == ".webp" and _is_still(path)}
        left_out += [LeftOut(path, "a still picture, no video") for path in stills]
        taken, renderings = _one_rendering([path for path in found if path not in stills])
        videos += taken
        left_out += [LeftOut(path, "another rendering of a clip beside it") for path in renderings]
        if any(suffix in by_suffix for suffix in PICTURE_SUFFIXES):
            picture_folders.append(parent)
        texts += by_suffix.get(".txt", [])
        left_out += [
            LeftOut(path, f"no video by its suffix {suffix!r}" if suffix else "a file without a suffix")
            for suffix in by_suffix.keys() - {*VIDEO_SUFFIXES, *PICTURE_SUFFIXES, *BESIDE_SUFFIXES}
            for path in by_suffix[suffix]
        ]
    left_out.sort(key=lambda each: order_of(each.path))
    return Found(in_order(videos), in_order(picture_folders), in_order(texts), left_out)


class Tally:
    """How many things were left out for each reason, and the first of them, of however many.

    Attributes:
        counts: reason -> how many.
    """

    def __init__(self, left_out: Iterable[LeftOut] = ()) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str | Path] = {}
        for path, reason in left_out:
            self.add(path, reason)

    def add(self, path: str | Path, reason: str) -> None:
        """Count one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._first.setdefault(reason, path)

    def lines(self) -> list[str]:
        """In words, a line for each reason."""
        return [
            f"{count} {'listed are' if reason == NOT_THERE else 'left out,'} {reason}, the first {self._first[reason]}"
            for reason, count in self.counts.items()
        ]


def tell(left_out: Iterable[LeftOut]) -> list[str]:
    """What was left out in words, a line for each reason with how many and the first of them."""
    return Tally(left_out).lines()


def counts(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """How many were left out for each reason."""
    return Tally(left_out).counts


def order_of(path: Path) -> list[Any]:
    """Sort key of paths in which numbers count as numbers."""
    return [natural_key(part) for part in path.parts]


def order_bytes(path: PurePath) -> bytes:
    """`order_of` a path as bytes that sort alike, for what sorts outside Python; no part may hold a null character."""
    return b"".join(b"\1" + _part_bytes(part) for part in path.parts)


def _part_bytes(part: str) -> bytes:
    """Pieces of a name, texts before numbers, a number by how many digits it has; then the name itself."""
    pieces, name = natural_key(part)
    written = [
        b"\1" + text.encode() + b"\0" if number < 0 else b"\2" + len(str(number)).to_bytes(2) + str(number).encode()
        for number, text in pieces
    ]
    return b"".join(written) + b"\0" + name.encode() + b"\0"


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths in natural order."""
    return sorted(paths, key=order_of)


def _walk(root: Path) -> tuple[dict[Path, list[Path]], list[LeftOut]]:
    """Files by folder. A folder that several ways lead to is listed by the first: that without links, if there is."""
    files: dict[Path, list[Path]] = {}
    left_out: list[LeftOut] = []
    above = set(root.resolve().parents)
    listed: set[Path] = set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = folder.resolve()
        if real in listed or real in above or real in folder.parent.resolve().parents:
            left_out.append(LeftOut(folder, "a link to a folder that is listed already, or that it lies in"))
            continue
        listed.add(real)
        files[folder] = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            left_out.append(LeftOut(folder, f"cannot be listed: {error.strerror}"))
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if os.path.isdir(path):  # False, not an error, for links that lead nowhere or in a ring
                (links if entry.is_symlink() else folders).append(path)
            elif os.path.isfile(path) or path.suffix.lower() in PICTURE_SUFFIXES + BESIDE_SUFFIXES:
                files[folder].append(path)
            else:
                left_out.append(LeftOut(path, NOT_THERE if entry.is_symlink() else "no regular file"))
    return files, left_out


def _one_rendering(videos: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of the videos of one folder those to take, and other renderings of the same clips."""
    by_stem: dict[str, list[Path]] = {}
    for path in videos:
        by_stem.setdefault(path.stem, []).append(path)
    taken: list[Path] = []
    renderings: list[Path] = []
    for paths in by_stem.values():  # each in the order of VIDEO_SUFFIXES
        main = sum(path.suffix.lower() in MAIN_SUFFIXES for path in paths)
        taken += paths[: max(main, 1)]
        renderings += paths[max(main, 1) :]
    return taken, renderings


def _is_still(webp: Path) -> bool:
    """Whether a WebP file says that it is a single picture: no extended header, or one without the animation flag."""
    try:
        with webp.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False  # whoever reads it will say so
    return head[8:12] == b"WEBP" and not (head[12:16] == b"VP8X" and head[20] & 2)


def split_pictures(found: Found) -> tuple[list[Path], list[LeftOut]]:
    """Folders of pictures that are clips, and those that hold videos too, whose pictures are none."""
    with_video = {video.parent for video in found.videos}
    apart = [folder for folder in found.picture_folders if folder not in with_video]
    beside = [folder for folder in found.picture_folders if folder in with_video]
    return apart, [LeftOut(folder, "pictures beside videos") for folder in beside]
