"""Animated WebP, which PyAV does not decode, by Pillow; opened and read like a `container.Video`."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .clip import MAX_PIXELS, ClipError, Shown
from .picture_file import upright_rgb


def is_webp(path: Path) -> bool:
    """Whether a file says in its first bytes that it is WebP, a still picture or not."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


class AnimatedWebp:
    """An open file; made by `opened_webp`. Attributes as those of `container.Video`."""

    codec, rate, square_pixels, promised = "webp", None, True, None

    def __init__(self, path: Path, picture: Any) -> None:
        self.path, self.picture = path, picture
        self.header_frames = int(picture.n_frames)

    def frames(self) -> Generator[Shown]:
        """Decode from the start.

        Raises:
            ClipError: a frame does not decode.
        """
        milliseconds = 0
        for number in range(self.header_frames):
            try:
                self.picture.seek(number)
                whole = self.picture.copy()  # frames that show a part only are laid on those before
            except Exception as error:
                raise ClipError(self.path, f"frame {number} does not decode: {error}") from error
            lasts = int(self.picture.info["duration"])
            size = (whole.height, whole.width)
            yield Shown(milliseconds / 1000, lasts / 1000, size, partial(_pixels, whole), whole)
            milliseconds += lasts

    def facts(self, first: Shown) -> dict[str, Any]:
        """What the first frame shows, as fields of `ClipInfo`."""
        whole = first.source
        transparent = whole.mode == "RGBA" and whole.getextrema()[3][0] < 255
        return {"rotation": 0, "bits": 8, "has_alpha": transparent, "notes": ()}


@contextmanager
def opened_webp(path: Path) -> Iterator[AnimatedWebp]:
    """Open an animated WebP.

    Raises:
        ClipError: it is damaged, too large or a still picture.
    """
    try:
        picture = Image.open(path)
    except Exception as error:
        raise ClipError(path, f"cannot be opened: {error}") from error
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            size = f"{picture.height}x{picture.width}"
            raise ClipError(path, f"frames of {size}, at most {MAX_PIXELS} pixels are read", "too large")
        if getattr(picture, "n_frames", 1) == 1:
            raise ClipError(path, "a still picture (webp), not a video", "not a video")
        yield AnimatedWebp(path, picture)


def _pixels(whole: Image.Image) -> np.ndarray:
    """Uint8 (H, W, 3)."""
    return np.array(upright_rgb(whole))
