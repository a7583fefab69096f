"""Clips that are folders of pictures, one per frame.

    frames = read_frame_folder("clips/0001", num_frames=16)         # uint8 (F, H, W, 3), RGB

The pictures are taken in natural order: frame2.jpg before frame10.jpg.
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .clip import (
    MAX_PIXELS,
    ClipError,
    ClipInfo,
    FrameTransform,
    check_span,
    size_changed,
    stack_frames,
    start_frame,
    too_short,
)

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
        ClipError: the folder is missing or has too few pictures, or one is damaged, too large or of another size.
        ValueError: an argument is out of range.
    """
    path = Path(path)
    check_span(num_frames, stride, None, start, place)
    files = list_frames(path)
    if place is not None:
        start = start_frame(path, [float(number) for number in range(len(files))], place, num_frames, stride, None)
    chosen = files[start::stride][:num_frames]
    if len(chosen) < num_frames:
        raise too_short(path, len(files), num_frames, stride, None, start)
    frames = map(read_frame, chosen)
    return stack_frames(path, frames if transform is None else map(transform, frames))


def read_frame(path: Path) -> torch.Tensor:
    """Read one picture: uint8 (H, W, 3), RGB, upright, transparency laid on black.

    Raises:
        ClipError: it is damaged or too large.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.height}x{picture.width}"
                raise ClipError(path, f"a picture of {size}, at most {MAX_PIXELS} pixels are read", "too large")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits of gray; Pillow would clip them
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.mode != "RGB":
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright).convert(
                    "RGB"
                )
            return torch.from_numpy(np.array(upright))
    except ClipError:
        raise
    except Exception as error:  # Pillow raises some five types on damaged pictures
        raise ClipError(path, f"the picture does not decode: {error}") from error


def probe_frame_folder(path: str | Path) -> ClipInfo:
    """Decode all pictures of a folder and say what is in it.

    Raises:
        ClipError: no picture, or one that cannot be used.
    """
    path = Path(path)
    files = list_frames(path)
    if not files:
        raise ClipError(path, f"no picture ({', '.join(PICTURE_SUFFIXES)})", "too short")
    height, width = read_frame(files[0]).shape[:2]
    for file in files[1:]:
        size = read_frame(file).shape[:2]
        if size != (height, width):
            raise size_changed(file, (height, width), size)
    with Image.open(files[0]) as picture:
        has_alpha = picture.has_transparency_data
        bits = 16 if picture.mode.startswith("I") else 8
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
        has_alpha=has_alpha,
        square_pixels=True,
        header_frames=0,
    )
