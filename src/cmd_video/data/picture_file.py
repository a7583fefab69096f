"""One reader of still pictures, for frames of clips, content frames and masks: files, and what Pillow holds in memory.

    pixels = read_picture(Path("photo.jpg"))            # uint8 (H, W, 3), RGB
    picture = upright_rgb(Image.open("photo.jpg"))      # the same, as a picture of Pillow

As with video files, what the file says of its orientation (EXIF) is applied, transparency is laid on black, and 16
bits become 8.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from .clip import MAX_PIXELS, ClipError

RANGELESS = {"I": "whole numbers of 32 bits", "F": "floating point numbers"}  # no file says what is white


def read_picture(path: Path) -> torch.Tensor:
    """Read one picture: uint8 (H, W, 3), RGB, upright, transparency laid on black.

    Raises:
        ClipError: it is missing, damaged, too large or no picture.
    """
    with _opened(path) as picture:
        try:
            return torch.from_numpy(np.array(upright_rgb(picture)))
        except Exception as error:  # Pillow raises some five types on damaged pictures
            raise ClipError(path, f"the picture does not decode: {error}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture as it is meant to be seen: RGB of 8 bits, turned and mirrored as its EXIF data say, laid on black.

    Raises:
        ValueError: its numbers have no range that is known, as in TIFF files of floats.
    """
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")  # older Pillow: "I"
    picture = ImageOps.exif_transpose(picture)
    if sixteen:  # Pillow would clip them
        gray = np.asarray(picture)
        seen = (gray >> 8) * (gray != picture.info.get("transparency"))
        return Image.fromarray(seen.astype(np.uint8)).convert("RGB")
    if picture.mode in RANGELESS:
        raise ValueError(f"pixels are {RANGELESS[picture.mode]}, whose range is not known; give 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = np.asarray(picture.convert("RGBA"))
    return Image.fromarray(on_black(rgba))


def on_black(rgba: np.ndarray) -> np.ndarray:
    """Lay uint8 (..., 4) on black: uint8 (..., 3)."""
    return (rgba[..., :3] * (rgba[..., 3:] / np.float32(255)) + 0.5).astype(np.uint8)


def picture_facts(path: Path) -> tuple[int, bool]:
    """Bits per channel and whether there is transparency, by the header.

    Raises:
        ClipError: it cannot be opened.
    """
    with _opened(path) as picture:
        return 16 if picture.mode.startswith("I") else 8, picture.has_transparency_data


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width once turned upright, by the header.

    Raises:
        ClipError: it cannot be opened.
    """
    with _opened(path) as picture:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in picture.info else 1
        turned = orientation >= 5  # 5 to 8 let the sides change places
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _opened(path: Path) -> Image.Image:
    """Open a picture, whose pixels are not decoded yet.

    Raises:
        ClipError: it cannot be, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ClipError(path, f"too many pixels, at most {MAX_PIXELS} are read", "too large") from error
    except FileNotFoundError as error:
        raise ClipError(path, "no such file", "missing") from error
    except Exception as error:
        raise ClipError(path, f"the picture does not decode: {error}") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        size = f"{picture.height}x{picture.width}"
        raise ClipError(path, f"a picture of {size}, at most {MAX_PIXELS} pixels are read", "too large")
    return picture
