"""Which frames a video file has and when they are shown, without decoding, so that a far one costs a seek.

    with opened(path) as video:
        index = index_container(video) or index_packets(video)
        frames = frames_from(video, index, 900)        # from frame 900 on, decoded from the key frame before it

Frame n is the n-th that decoding from the start would give. Packets tell n where each is one frame and says when it is
shown: that holds for the codecs and containers in these tables, of files that begin with a key frame and cut nothing
off by an edit list. Key frames count where decoding may start anew at them by the codec's standard (IDR pictures of
H.264, not those of an open GOP). While decoding, each frame's time is compared with those of the packets. Wherever one
of these fails there is a `ClipError`, and the reader decodes from the start.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice, pairwise
from typing import Any, Literal

from .clip import ClipError, Shown
from .container import Video, reported

CONTAINERS = ("mov", "matroska")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1")
KINDS = {  # what numbers a key frame -> codec -> units that it must begin with, from, to
    "dts": {"h264": (5, 5), "hevc": (19, 20)},
    "pts": {"h264": (5, 5), "hevc": (16, 21)},  # pictures that are stored later but shown earlier have been seen
}


@dataclass(frozen=True)
class Start:
    """Where decoding may start.

    Attributes:
        number: of the frame.
        time: of its packet, in the stream's unit: of decoding or of showing, as the index says.
        target: time in the same unit that a container is asked for to come there.
    """

    number: int
    time: int
    target: int


@dataclass(frozen=True)
class FrameIndex:
    """Frames of a video stream in the order in which they are shown.

    Attributes:
        times: seconds; where it was not asked for them, numbers.
        duration: seconds for which the last one is shown; 0 where it does not say.
        starts: where decoding may start, ascending; empty where packets do not tell which frame is the n-th.
        time: of decoding, "dts", or of showing, "pts": by which the starts are known.
    """

    times: Sequence[float]
    duration: float
    starts: list[Start]
    time: Literal["dts", "pts"]


def index_container(video: Video) -> FrameIndex | None:
    """Numbers of frames, without times, by the table that MP4 files bring along; None where there is none.

    Key frames of this table are numbered as they are stored, so only those count that no frame stored later precedes.

    Raises:
        ClipError: the file begins with damage.
    """
    entries = video.stream.index_entries
    kept = [(entry.timestamp, entry.is_keyframe) for entry in entries if not entry.is_discard]
    trusted = (
        _is_indexed(video)
        and video.container.format.name.startswith("mov")
        and len(kept) == len(entries) == video.stream.frames > 0
        and kept[0][1]
        and all(before[0] < after[0] for before, after in pairwise(kept))
    )
    if not trusted:
        return None
    with reported(video.path, "reading packets"):
        if not _restarts(video, next(video.container.demux(video.stream)), "dts"):
            return None
    keys = [number for number, (_, is_key) in enumerate(kept) if is_key]
    lasts = [following - 1 for following in [*keys[1:], len(kept)]]  # MP4 is asked for what is shown no sooner
    starts = [Start(key, kept[key][0], kept[last][0]) for key, last in zip(keys, lasts, strict=True)]
    return FrameIndex(range(len(kept)), 0.0, starts, "dts")


@dataclass(frozen=True)
class _Packet:
    """What is kept of one, in the stream's unit: when and for how long it is shown, and whether decoding may start."""

    shown: int | None
    duration: int
    starts: bool


def index_packets(video: Video) -> FrameIndex:
    """Frames and their times by all packets of a file.

    Raises:
        ClipError: the file ends in damage.
    """
    found, cut, codec = [], False, _codec(video)
    with reported(video.path, "reading packets"):
        for packet in video.container.demux(video.stream):
            discarded = packet.is_discard
            cut |= discarded or packet.is_corrupt
            if packet.size and not discarded:
                cut |= codec == "vp8" and not memoryview(packet)[0] >> 4 & 1  # is never shown
                starts = packet.is_keyframe and _restarts(video, packet, "pts")
                found.append(_Packet(packet.pts, packet.duration or 0, starts))
    unit = float(video.stream.time_base or 0)
    seconds = [n / video.rate if packet.shown is None else packet.shown * unit for n, packet in enumerate(found)]
    order = sorted(range(len(found)), key=seconds.__getitem__)
    times = [seconds[n] for n in order]
    trusted = (
        _is_indexed(video)
        and not cut
        and len(found) > 0
        and found[0].starts
        and order[0] == 0
        and all(packet.shown is not None for packet in found)
        and all(before < after for before, after in pairwise(times))
    )
    duration = found[order[-1]].duration * unit if found else 0.0
    packets = [found[n] for n in order] if trusted else []
    starts = [
        Start(number, packet.shown, packet.shown)
        for number, packet in enumerate(packets)
        if packet.starts and packet.shown is not None
    ]
    return FrameIndex(times, duration, starts, "pts")


def frames_from(video: Video, index: FrameIndex, number: int) -> Generator[Shown]:
    """Decode from a frame on, of a file that was just indexed.

    Raises:
        ClipError: as `Video.frames`, or the frame can only be found by decoding from the start.
    """
    before = [start for start in index.starts if start.number <= number]
    if not before or number >= len(index.times):
        raise ClipError(video.path, f"frame {number}: its place is not known")
    start = before[-1]
    with reported(video.path, "seeking"):
        video.container.seek(start.target, stream=video.stream, backward=True)
    yield from islice(video.shown(_decoded(video, index, start)), number - start.number, None)


def _decoded(video: Video, index: FrameIndex, start: Start) -> Iterator[Any]:
    """Frames of PyAV from where the container was sent to, if they come as their packets say."""
    unsure = ClipError(video.path, "frames do not come as their packets say")
    first: int | None = None  # when the key frame is shown
    waiting: list[int] = []  # when packets are shown whose frames have not come
    for packet in video.container.demux(video.stream):
        if first is None:
            if getattr(packet, index.time) != start.time or not _restarts(video, packet, index.time):
                raise unsure
            first = packet.pts
        if packet.size:
            if first is None or packet.pts is None or packet.is_discard or packet.is_corrupt:
                raise unsure
            if packet.pts >= first:
                heappush(waiting, packet.pts)
            elif index.time == "dts":
                raise unsure
        for frame in packet.decode():
            if first is None or frame.pts is None or (frame.height, frame.width) != video.size:
                raise unsure
            if frame.pts >= first:  # what is shown before the key frame leans on what was not decoded
                if not waiting or frame.pts != heappop(waiting):
                    raise unsure
                yield frame
    if waiting:
        raise unsure


def _is_indexed(video: Video) -> bool:
    return (
        video.container.format.name.startswith(CONTAINERS)
        and _codec(video) in CODECS
        and video.alpha_decoder is None
        and video.stream.time_base is not None
    )


def _codec(video: Video) -> str:
    return str(video.stream.codec_context.codec.canonical_name)


def _restarts(video: Video, packet: Any, time: str) -> bool:
    """Whether decoding may start at a packet marked as a key frame, which an index knows by its time."""
    codec, kinds = _codec(video), KINDS[time]
    if codec not in kinds:
        return True
    header = bytes(video.stream.codec_context.extradata or b"")
    place = 4 if codec == "h264" else 21  # of avcC and hvcC: how long a length is
    if len(header) <= place or header[0] != 1:
        return False  # start codes, of streams cut from a broadcast
    kind = _first_slice(memoryview(packet), (header[place] & 3) + 1, codec)
    return kind is not None and kinds[codec][0] <= kind <= kinds[codec][1]


def _first_slice(data: memoryview, width: int, codec: str) -> int | None:
    """Kind of the first unit that is a slice of a picture, of units with lengths of `width` bytes before them."""
    place = 0
    while place + width < len(data):
        unit = data[place + width]
        kind, slices = (unit & 31, range(1, 6)) if codec == "h264" else (unit >> 1 & 63, range(32))
        if kind in slices:
            return kind
        place += width + int.from_bytes(data[place : place + width])
    return None
