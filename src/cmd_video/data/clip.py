"""What reading a clip has in common for files and folders: the error, the facts, and which frames are meant.

raise ClipError("clip.mp4", "3 frames, too few for 16 with stride 1", "too short")
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded, 8K: sixteen of them, what a codec may hold on to, fit into one gigabyte."""

TICK = 1e-6
"""Seconds by which two moments that are the same may differ."""

ClipProblem = Literal["missing", "not a video", "no video stream", "too large", "damaged", "too short"]
FrameTransform = Callable[[torch.Tensor], torch.Tensor]


class ClipError(ValueError):
    """A clip that cannot be used, in one line: the file and the reason.

    Args:
        path: the file or folder.
        reason: what is wrong with it.
        problem: the kind of problem, one of `ClipProblem`.
    """

    def __init__(self, path: str | Path, reason: str, problem: ClipProblem = "damaged") -> None:
        super().__init__(path, reason, problem)
        self.path, self.reason, self.problem = Path(path), " ".join(reason.split()), problem

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ClipInfo:
    """What decoding a whole clip shows.

    Attributes:
        path: the file or folder.
        num_frames: frames that decode.
        complete: False where counting stopped at a limit before the end.
        fps: mean frames per second by timestamps; None for a folder of pictures and a single frame.
        height: rows after rotation.
        width: columns after rotation.
        rotation: degrees clockwise that the file asks for and that reading applies.
        codec: name of the codec, or of the picture format.
        duration: seconds from the first frame to the end of the last one; None where no time is known.
        variable_fps: whether frames are shown for different times.
        bits: per channel, before they become 8.
        has_alpha: whether the first frame has transparent parts, laid on black.
        square_pixels: whether pixels are square; others are read as stored.
        header_frames: what the header says; 0 where it says nothing.
        notes: further things that reading passes over, each as a phrase.
    """

    path: Path
    num_frames: int
    complete: bool
    fps: float | None
    height: int
    width: int
    rotation: int
    codec: str
    duration: float | None
    variable_fps: bool
    bits: int
    has_alpha: bool
    square_pixels: bool
    header_frames: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A decoded frame.

    Attributes:
        time: seconds at which it is shown.
        duration: seconds for which it is, by its own statement; 0 where it makes none.
        size: height and width as stored.
        rgb: makes its pixels: upright uint8 (H, W, 3).
        source: the frame as its library gave it.
    """

    time: float
    duration: float
    size: tuple[int, int]
    rgb: Callable[[], np.ndarray]
    source: Any


def check_span(num_frames: int, stride: int, fps: float | None, start: int, place: float | None) -> None:
    """Raise a ValueError that names the argument which is out of range."""
    for name, value, least in (("num_frames", num_frames, 1), ("stride", stride, 1), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name}: {value}, must be {least} or more")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps: {fps}, must be more than 0")
    if fps is not None and stride != 1:
        raise ValueError(f"stride: {stride} together with fps = {fps}, give one of them")
    if place is not None and (start or not 0 <= place <= 1):
        raise ValueError(f"place: {place} with start = {start}, must lie in [0, 1] and stand alone")


def start_frame(
    path: Path, times: Sequence[float], end: float, place: float, num_frames: int, stride: int, fps: float | None
) -> int:
    """Number of the first frame of the span at `place` among all spans that fit.

    Args:
        path: the clip.
        times: seconds at which its frames are shown, ascending.
        end: second at which the last of them goes.
        place: in [0, 1], 0 = the first span.
        num_frames: F.
        stride: every stride-th frame is taken.
        fps: or frames at this rate.

    Raises:
        ClipError: no span fits.
    """
    if fps is None:
        choices = len(times) - (num_frames - 1) * stride
    else:
        length = (num_frames - 1) / fps
        choices = sum(time + length < end - TICK for time in times)
    if choices < 1:
        raise too_short(path, len(times), num_frames, stride, fps)
    return min(int(place * choices), choices - 1)


def last_end(time: float, duration: float, gap: float, step: float) -> float:
    """Second at which the last frame of a clip goes.

    Args:
        time: at which it is shown.
        duration: what it says of itself, 0 = nothing: then it is shown as long as the frame before.
        gap: seconds from the frame before to it.
        step: seconds between the moments that are asked for; what is shown for less than half of it, and of the gap,
            is a file's way of saying nothing.
    """
    return time + max(duration or gap, min(gap, step) / 2, 2 * TICK)


def too_short(path: Path, found: int, num_frames: int, stride: int, fps: float | None, start: int = 0) -> ClipError:
    """Build the error for a clip with fewer frames than asked for."""
    how = f"at {fps:g} per second" if fps is not None else f"with stride {stride}"
    since = f" from frame {start} on" if start else ""
    frames = "1 frame" if found == 1 else f"{found} frames"
    return ClipError(path, f"{frames}, too few for {num_frames} {how}{since}", "too short")


def size_changed(path: Path, before: Sequence[int], after: Sequence[int]) -> ClipError:
    """Build the error for a clip whose frames are not all of one (height, width)."""
    sizes = ["x".join(map(str, size)) for size in (before, after)]
    return ClipError(path, f"frame size changes from {sizes[0]} to {sizes[1]} (height x width)")


def take_frames(path: Path, frames: Iterable[Shown], transform: FrameTransform | None) -> torch.Tensor:
    """Pixels of frames, uint8 (F, H, W, 3), refusing a change of size: also one that a transform would hide."""
    taken: list[torch.Tensor] = []
    size: tuple[int, int] | None = None
    for frame in frames:
        size = size or frame.size
        if frame.size != size:
            raise size_changed(path, size, frame.size)
        pixels = torch.from_numpy(frame.rgb())
        taken.append(pixels if transform is None else transform(pixels))
    return torch.stack(taken) if taken else torch.empty(0, 0, 0, 3, dtype=torch.uint8)
