"""Which frames a video file has and when they are shown, without decoding, so that a far one costs a seek.

    with opened(path) as video:
        index = index_packets(video)
        frames = frames_from(video, index, 900)        # from frame 900 on, decoded from the key frame before it

Frame n is the n-th that decoding from the start would give. Packets tell n where each is one frame and says when it is
shown: that holds for the codecs and containers in these tables, of files that begin with a key frame and cut nothing
off by an edit list. Key frames count where decoding may start anew at them by the codec's standard (IDR pictures of
H.264, not those of an open GOP). While decoding, each frame's time is compared with the index. Wherever one of these
fails there is a `ClipError`, and the reader decodes from the start.
"""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .clip import ClipError, Shown
from .container import Video, reported

CONTAINERS = ("mov", "matroska")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1")


@dataclass(frozen=True)
class FrameIndex:
    """Packets of a video stream in the order in which they are shown.

    Attributes:
        times: seconds.
        duration: seconds for which the last one is shown; 0 where it does not say.
        ticks: times in the stream's own unit; empty where packets do not tell which frame is the n-th.
        starts: numbers of the frames at which decoding may start, ascending.
    """

    times: list[float]
    duration: float
    ticks: list[int]
    starts: list[int]


@dataclass(frozen=True)
class _Packet:
    """What is kept of one: times and duration in ticks, and whether decoding may start there."""

    shown: int | None
    duration: int
    starts: bool


def index_packets(video: Video) -> FrameIndex:
    """Read all packets of a file.

    Raises:
        ClipError: the file ends in damage.
    """
    found, cut, codec = [], False, video.stream.codec_context.codec.canonical_name
    with reported(video.path, "reading packets"):
        for packet in video.container.demux(video.stream):
            cut |= bool(packet.is_discard or packet.is_corrupt)
            if packet.size and not packet.is_discard:
                cut |= codec == "vp8" and not memoryview(packet)[0] >> 4 & 1  # is never shown
                found.append(
                    _Packet(packet.pts, packet.duration or 0, packet.is_keyframe and _restarts(video, codec, packet))
                )
    unit = float(video.stream.time_base or 0)
    seconds = [n / video.rate if packet.shown is None else packet.shown * unit for n, packet in enumerate(found)]
    order = sorted(range(len(found)), key=seconds.__getitem__)
    times = [seconds[n] for n in order]
    ticks = [packet.shown for packet in (found[n] for n in order) if packet.shown is not None]
    duration = found[order[-1]].duration * unit if found else 0.0
    trusted = (
        not cut
        and len(ticks) == len(found) > 0
        and order[0] == 0
        and found[0].starts
        and all(before < after for before, after in pairwise(ticks))
        and video.container.format.name.startswith(CONTAINERS)
        and video.alpha_decoder is None
    )
    starts = [number for number, n in enumerate(order) if found[n].starts]
    return FrameIndex(times, duration, ticks if trusted else [], starts if trusted else [])


def frames_from(video: Video, index: FrameIndex, number: int) -> Generator[Shown]:
    """Decode from a frame on, of a file whose packets were read.

    Raises:
        ClipError: as `Video.frames`, or the frame can only be found by decoding from the start.
    """
    unsure = ClipError(video.path, f"frame {number} is not where its packets say")
    if number >= len(index.ticks):
        raise unsure
    key = max(start for start in index.starts if start <= number)
    with reported(video.path, "seeking"):
        video.container.seek(index.ticks[key], stream=video.stream, backward=True)
    expected = iter(index.ticks[number:])
    for frame in video.shown(video.container.decode(video.stream)):
        tick = frame.source.pts
        if tick is None or frame.size != video.size:
            raise unsure
        if tick < index.ticks[number]:
            continue
        if tick != next(expected, None):
            raise unsure
        yield frame
    if next(expected, None) is not None:
        raise unsure


def _restarts(video: Video, codec: str, packet: Any) -> bool:
    """Whether decoding may start at a packet marked as a key frame."""
    if codec not in CODECS:
        return False
    if codec not in ("h264", "hevc"):
        return True
    header = bytes(video.stream.codec_context.extradata or b"")
    place = 4 if codec == "h264" else 21  # of avcC and hvcC: how long a length is
    if len(header) <= place or header[0] != 1:
        return False  # start codes, of streams cut from a broadcast
    return _first_picture(memoryview(packet), (header[place] & 3) + 1, codec)


def _first_picture(data: memoryview, width: int, codec: str) -> bool:
    """Whether the first slice in units with lengths of `width` bytes is of an IDR picture (H.264) or an IRAP one."""
    place = 0
    while place + width < len(data):
        length = int.from_bytes(data[place : place + width])
        kind = data[place + width]
        kind = kind & 31 if codec == "h264" else kind >> 1 & 63
        if kind < 6 if codec == "h264" else kind < 32:  # a slice
            return kind == 5 if codec == "h264" else 16 <= kind <= 21
        place += width + length
    return False
