"""What a clip says of itself, at the cost of its packets and one frame: for a set too large to be decoded.

read_header(Path("clip.mp4")).num_frames
"""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from .animated_webp import is_webp, opened_webp
from .clip import ClipError
from .container import Video, opened
from .frame_folders import list_frames
from .frame_index import index_container, index_packets
from .picture_file import upright_size


class Header(NamedTuple):
    """Of a clip.

    Attributes:
        height: rows of its first frame, upright.
        width: columns of it.
        num_frames: frames, by its packets; damage within them is not noticed.
        fps: frames per second by the header; None of a folder of pictures.
        duration: seconds by the header; None where no time is known.
    """

    height: int
    width: int
    num_frames: int
    fps: float | None
    duration: float | None


def read_header(path: Path) -> Header:
    """Look at a video file or a folder of pictures.

    Raises:
        ClipError: it cannot be opened, or its first frame does not decode.
    """
    if path.is_dir():
        files = list_frames(path)
        if not files:
            raise ClipError(path, "no picture", "too short")
        return Header(*upright_size(files[0]), len(files), None, None)
    if is_webp(path):
        return _of_webp(path)
    with opened(path) as video, closing(video.frames()) as frames:
        first = next(frames, None)
        if first is None:
            raise ClipError(path, "no frame decodes")
        height, width = first.rgb().shape[:2]
    with opened(path) as video:
        index = index_container(video)
        number = len((index_packets(video) if index is None else index).times)
        return Header(height, width, number, video.rate, _duration(video, number))


def _of_webp(path: Path) -> Header:
    """Of an animated WebP, whose frames say how long each is shown."""
    with opened_webp(path) as video, closing(video.frames()) as frames:
        height, width, *_ = next(frames).rgb().shape
    with opened_webp(path) as video, closing(video.frames()) as frames:
        shown = [frame.duration for frame in frames]
        seconds = sum(shown)
        return Header(height, width, len(shown), len(shown) / seconds if seconds else None, seconds or None)


def _duration(video: Video, frames: int) -> float | None:
    """Seconds of the stream, or of the file, by the header, or by its rate."""
    if video.stream.duration and video.stream.time_base:
        return float(video.stream.duration * video.stream.time_base)
    if video.container.duration:
        return float(video.container.duration) / 1e6
    return frames / video.rate if video.rate else None
