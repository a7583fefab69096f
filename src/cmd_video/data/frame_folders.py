"""Clips that are folders of pictures, one per frame.

    frames = read_frame_folder("clips/0001", num_frames=16)         # uint8 (F, H, W, 3), RGB

The pictures are taken in natural order: frame2.jpg before frame10.jpg.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from .clip import ClipError, ClipInfo, FrameTransform, check_span, size_changed, start_frame, too_short
from .picture_file import picture_facts, read_picture, upright_size

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def list_frames(path: str | Path) -> list[Path]:
    """Pictures of a folder in natural order; hidden files are left out.

    Raises:
        ClipError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise ClipError(path, "no such folder", "missing")
    files = (file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != ".")
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key in which numbers count as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts], name


def read_frame_folder(
    path: str | Path,
    num_frames: int,
    *,
    stride: int = 1,
    start: int = 0,
    place: float | None = None,
    transform: FrameTransform | None = None,
) -> torch.Tensor:
    """Read a folder of PNG or JPEG frames as `read_clip` reads a file: uint8 (F, H, W, 3), RGB.

    Args:
        path: the folder.
        num_frames: F.
        stride: take every stride-th picture.
        start: number of the first picture taken, from 0.
        place: in [0, 1]; where to take them instead of a start, as in `read_clip`.
        transform: called on each frame taken, uint8 (H, W, 3).

    Raises:
        ClipError: the folder is missing or has too few pictures, one that is taken is damaged or too large, or any of
            them is of another size than the first.
        ValueError: an argument is out of range.
    """
    path = Path(path)
    check_span(num_frames, stride, None, start, place)
    files = list_frames(path)
    if place is not None:
        start = start_frame(path, range(len(files)), len(files), place, num_frames, stride, None)
    chosen = files[start::stride][:num_frames]
    if len(chosen) < num_frames:
        raise too_short(path, len(files), num_frames, stride, None, start)
    _check_sizes(files)
    frames = map(read_picture, chosen)
    return torch.stack([frame if transform is None else transform(frame) for frame in frames])


def _check_sizes(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all pictures, by their headers; one that is damaged matters only to who reads it.

    Raises:
        ClipError: they are not of one size.
    """
    sizes: dict[tuple[int, int], Path] = {}  # size -> the first picture of it
    for file in files:
        with suppress(ClipError):
            sizes.setdefault(upright_size(file), file)
        if len(sizes) > 1:
            raise size_changed(file, *sizes)
    return next(iter(sizes), (0, 0))


def probe_frame_folder(path: str | Path) -> ClipInfo:
    """Decode all pictures of a folder and say what is in it.

    Raises:
        ClipError: no picture, or one that cannot be used.
    """
    path = Path(path)
    files = list_frames(path)
    if not files:
        raise ClipError(path, f"no picture ({', '.join(PICTURE_SUFFIXES)})", "too short")
    for file in files:
        read_picture(file)
    height, width = _check_sizes(files)
    bits, has_alpha = map(max, zip(*map(picture_facts, files)))
    return ClipInfo(
        path=path,
        num_frames=len(files),
        complete=True,
        fps=None,
        height=height,
        width=width,
        rotation=0,
        codec=files[0].suffix[1:].lower(),
        duration=None,
        variable_fps=False,
        bits=bits,
        has_alpha=bool(has_alpha),
        square_pixels=True,
        header_frames=0,
    )
