"""Clips made on the fly, and the folder of real ones that some machines have beside the checkout."""

import csv
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def ramp() -> Callable[..., np.ndarray]:
    """`ramp(16, 32, 48)`: frame n is smooth, differs in its four corners, and has 8 n + 20 in its middle."""

    def make(num_frames: int, height: int, width: int) -> np.ndarray:
        frames = np.zeros((num_frames, height, width, 3), np.uint8)
        frames[..., 0] = np.linspace(30, 220, width)
        frames[..., 1] = np.linspace(200, 40, height)[:, None]
        frames[..., 2] = 90
        for number in range(num_frames):
            frames[number, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 8 * number % 230 + 20
        return frames

    return make


@pytest.fixture(scope="session")
def number_of() -> Callable[[Any], list[int]]:
    """Frame numbers of a clip made by `ramp`, from its middle: (F, H, W, 3) -> F numbers."""

    def read(frames: Any) -> list[int]:
        middle = np.asarray(frames)[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(-1)
        return [round((value - 20) / 8) for value in middle]

    return read


@pytest.fixture(scope="session")
def encode() -> Callable[..., Path]:
    """`encode(path, frames)` writes a file by PyAV; `times` in ms, `rotation` in degrees counter-clockwise."""

    def write(
        path: Path,
        frames: np.ndarray,
        codec: str = "libx264",
        pix_fmt: str = "yuv444p",
        fps: int = 8,
        times: list[int] | None = None,
        rotation: int | None = None,
        source: str = "rgb24",
        options: dict[str, str] | None = None,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps if times is None else 1000)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
            stream.options = {"crf": "8"} if options is None else options
            if rotation is not None:
                stream.set_display_rotation(rotation)
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format=source)
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips."""
    if not (SHARED / "INDEX.tsv").is_file():
        pytest.skip("no ../shared/data beside the checkout: real clips are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def shared_index(shared_data: Path) -> list[dict[str, str]]:
    """Rows of INDEX.tsv whose file is there."""
    with (shared_data / "INDEX.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in rows if (shared_data / row["path"]).exists()]


@pytest.fixture(scope="session")
def mutate() -> Callable[[bytes, int, random.Random], bytes]:
    """`mutate(data, kind, rng)`: the bytes of a file with one of six kinds of damage, 0 to 5."""

    def damage(data: bytes, kind: int, rng: random.Random) -> bytes:
        changed, place = bytearray(data), rng.randrange(len(data))
        size = rng.randrange(1, 200)
        if kind == 0:
            return bytes(changed[:place])
        if kind == 1:
            for _ in range(rng.randrange(1, 12)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[place : place + size] = bytes(len(changed[place : place + size]))
        elif kind == 3:
            moov = data.find(b"moov")
            changed[moov + rng.randrange(len(data) - moov)] = rng.randrange(256)
        elif kind == 4:
            changed[place : place + size] = rng.randbytes(len(changed[place : place + size]))
        else:
            changed[place:place] = rng.randbytes(size)
        return bytes(changed)

    return damage
