"""Video files to frames, by PyAV, which is imported where it is used.

    frames = read_clip("clip.mp4", num_frames=16, stride=2)       # uint8 (F, H, W, 3), RGB

Folders of pictures (`read_frame_folder`) and writing (`write_video`) are importable from here too.

Whatever is wrong with a clip is a `ClipError`. Numbers in a header are not believed: frames are
counted, sizes limited. Rotation and mirroring named in the file are applied, transparency is laid on black, more
than 8 bits per channel become 8, pixels that are not square are read as stored. Frames before the wanted ones
are decoded and dropped, so that frame n is the same frame in every format; damage behind the wanted frames is not
looked for.
"""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

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
from .frame_folders import list_frames, read_frame_folder
from .video_file import exact, write_video

LIMITS = {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"}  # a playlist must not reach for the network
SIGNATURES = (
    (0, b"RIFF"),
    (4, b"ftyp"),
    (4, b"moov"),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"GIF8"),
    (0, b"\x00\x00\x01\xba"),
)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out

__all__ = [
    "ClipError",
    "ClipInfo",
    "codec_and_rate",
    "probe",
    "read_clip",
    "read_frame_folder",
    "span_start",
    "write_video",
]


def probe(path: str | Path, max_frames: int = 100_000) -> ClipInfo:
    """Decode a video file from end to end and say what is in it.

    Args:
        path: the file.
        max_frames: stop counting here.

    Raises:
        ClipError: it cannot be opened, or some frame cannot be decoded.
    """
    path = Path(path)
    with _opened(path) as (container, stream), closing(_frames(path, container, stream)) as frames:
        start = next(frames, None)
        if start is None:
            raise ClipError(path, "no frame decodes")
        times, first = [start[0]], start[1]
        for time, frame in islice(frames, max_frames - 1):
            if (frame.height, frame.width) != (first.height, first.width):
                raise size_changed(path, (first.height, first.width), (frame.height, frame.width))
            times.append(time)
        gaps = [after - before for before, after in zip(times, times[1:])]
        usual = median(gaps or [0.0])
        seconds = times[-1] - times[0]
        fps = len(gaps) / seconds if seconds > 0 else None
        height, width = _to_rgb(path, first).shape[:2]
        return ClipInfo(
            path=path,
            num_frames=len(times),
            complete=len(times) < max_frames,
            fps=fps,
            height=height,
            width=width,
            rotation=-int(first.rotation) % 360,
            codec=stream.codec_context.name,
            duration=len(times) / fps if fps else None,
            variable_fps=any(abs(gap - usual) > 0.1 * usual + 0.002 for gap in gaps),
            bits=max(component.bits for component in first.format.components),
            has_alpha=_has_alpha(first) and int(_to_rgba(first)[..., 3].min()) < 255,
            square_pixels=stream.sample_aspect_ratio in (None, 0, 1),
            header_frames=stream.frames,
        )


def codec_and_rate(path: str | Path) -> tuple[str, float]:
    """Name of the codec of a video file, such as "h264", and frames per second by its header, without decoding.

    Raises:
        ClipError: it cannot be opened.
    """
    with _opened(Path(path)) as (_, stream):
        return str(stream.codec_context.name), _rate(stream)


def read_clip(
    path: str | Path,
    num_frames: int,
    *,
    stride: int = 1,
    fps: float | None = None,
    start: int = 0,
    place: float | None = None,
    transform: FrameTransform | None = None,
) -> torch.Tensor:
    """Read frames of a video file: uint8 (F, H, W, 3), RGB.

    Args:
        path: a file of any format that PyAV reads: mp4, mov, avi, mkv, webm, mpg, gif, apng ...
        num_frames: F.
        stride: take every stride-th frame.
        fps: take the frames nearest to moments 1 / fps apart instead, by their timestamps; frames repeat where the
            file has fewer per second.
        start: number of the first frame taken.
        place: in [0, 1]; where to take them instead of a start: 0 from the first frame on, 0.5 in the middle, 1 at the
            end of the clip.
        transform: called on each frame taken, uint8 (H, W, 3), so that a clip of large frames is never held in full.

    Raises:
        ClipError: the file is missing, too large, too short, no video, or damaged before the last frame taken.
        ValueError: an argument is out of range.
    """
    path = Path(path)
    check_span(num_frames, stride, fps, start, place)
    if place is None:
        return _read_from(path, start, num_frames, stride, fps, transform)
    try:  # packets are counted without decoding, but some are not frames
        first = start_frame(path, _packet_times(path), place, num_frames, stride, fps)
        return _read_from(path, first, num_frames, stride, fps, transform)
    except ClipError as error:
        if error.problem != "too short":
            raise
    first = start_frame(path, _frame_times(path), place, num_frames, stride, fps)
    return _read_from(path, first, num_frames, stride, fps, transform)


def span_start(path: str | Path, num_frames: int, *, stride: int = 1, fps: float | None = None, place: float) -> float:
    """Where the span begins that `read_clip` or `read_frame_folder` takes at a place: number of its first frame, or
    with `fps` its moment in seconds after the first frame of the file; by the packets, without decoding.

    Raises:
        ClipError: the file cannot be read or is too short.
    """
    path = Path(path)
    times = [float(number) for number in range(len(list_frames(path)))] if path.is_dir() else _packet_times(path)
    first = start_frame(path, times, place, num_frames, stride, fps)
    return first if fps is None else times[first] - times[0]


def _read_from(
    path: Path, start: int, num_frames: int, stride: int, fps: float | None, transform: FrameTransform | None
) -> torch.Tensor:
    decoded = 0

    def counted(frames: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
        nonlocal decoded
        for timed in frames:
            decoded += 1
            yield timed

    with _opened(path) as (container, stream), closing(_frames(path, container, stream)) as frames:
        timed = islice(counted(frames), start, None)
        chosen = (frame for _, frame in islice(timed, None, None, stride)) if fps is None else _at_rate(timed, fps)
        pictures = (torch.from_numpy(_to_rgb(path, frame)) for frame in islice(chosen, num_frames))
        taken = stack_frames(path, pictures if transform is None else map(transform, pictures))
    if len(taken) < num_frames:
        raise too_short(path, decoded, num_frames, stride, fps, start)
    return taken


def _at_rate(timed: Iterator[tuple[float, Any]], fps: float) -> Iterator[Any]:
    """The frame nearest to each of the moments first, first + 1 / fps ..., up to half a frame behind the last one."""
    first, frame = next(timed, (0.0, None))
    if frame is None:
        return
    moments, before = (first + number / fps for number in count()), first
    moment, gap = next(moments), 0.0
    for after, following in timed:
        while moment <= after:
            yield frame if moment - before <= after - moment + 1e-6 else following  # a tie goes to the earlier one
            moment = next(moments)
        before, frame, gap = after, following, after - before
    while moment <= before + gap / 2:
        yield frame
        moment = next(moments)


def _packet_times(path: Path) -> list[float]:
    """Seconds at which packets are shown, in order; without decoding."""
    with _opened(path) as (container, stream), _reported(path, "reading packets"):
        rate = _rate(stream)
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        return sorted(
            float(packet.pts * packet.time_base) if packet.pts is not None else number / rate
            for number, packet in enumerate(packets)
        )


def _frame_times(path: Path) -> list[float]:
    """Seconds at which the frames are shown that decode before any damage."""
    times: list[float] = []
    with (
        suppress(ClipError),
        _opened(path) as (container, stream),
        closing(_frames(path, container, stream)) as frames,
    ):
        times.extend(time for time, _ in frames)
    return times


@contextmanager
def _reported(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever PyAV raises into a ClipError; on damaged files that is some six unrelated types."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClipError(path, f"{doing}: {reason}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and yield (container, video stream), with limits against absurd headers."""
    if not path.is_file():
        raise ClipError(path, "no such file" if not path.exists() else "not a file", "missing")
    import av

    try:
        container = av.open(f"file:{path}", metadata_errors="replace", options=LIMITS)
    except Exception as error:
        raise _why_not_a_video(path, error) from error
    with container:
        kind = container.format.name
        if kind.endswith("_pipe") or kind == "image2":
            raise ClipError(path, f"a still picture ({kind.removesuffix('_pipe')}), not a video", "not a video")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise ClipError(path, f"no video stream (format {kind})", "no video stream")
        context = streams[0].codec_context
        if context is None:
            raise ClipError(path, "no decoder for its codec")
        if context.width * context.height > MAX_PIXELS:
            size = f"{context.height}x{context.width}"
            raise ClipError(path, f"frames of {size}, at most {MAX_PIXELS} pixels are read", "too large")
        context.thread_count = 1  # loaders bring their own processes
        yield container, streams[0]


def _is_cover(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _why_not_a_video(path: Path, error: Exception) -> ClipError:
    """Tell a damaged video from what never was one, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as unreadable:
        return ClipError(path, unreadable.strerror or "cannot be read", "missing")
    if not head:
        return ClipError(path, "empty file, 0 bytes")
    if head.startswith(b"version https://git-lfs"):
        return ClipError(path, "a Git LFS pointer, not the file itself; run `git lfs pull`", "not a video")
    if any(head[offset:].startswith(magic) for offset, magic in SIGNATURES):
        return ClipError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}")
    return ClipError(path, "no known video format", "not a video")


def _rate(stream: Any) -> float:
    """Frames per second by the header, for frames that carry no time."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def _frames(path: Path, container: Any, stream: Any) -> Generator[tuple[float, Any]]:
    """Decode: (seconds, frame). A frame that the decoder had to patch up is damage too."""
    rate, packets = _rate(stream), iter(_decode(container, stream))
    for number in count():
        with _reported(path, f"frame {number} does not decode"):
            frame = next(packets, None)
        if frame is None:
            return
        if frame.is_corrupt:
            raise ClipError(path, f"frame {number} is incomplete")
        yield (number / rate if frame.time is None else float(frame.time)), frame


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or tags.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    import av

    decoder: Any = av.CodecContext.create(name, "r")
    decoder.extradata, decoder.thread_count = stream.codec_context.extradata, 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _has_alpha(frame: Any) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _to_rgba(frame: Any) -> np.ndarray:
    return frame.reformat(format="rgba", interpolation=exact(), threads=1).to_ndarray()


def _to_rgb(path: Path, frame: Any) -> np.ndarray:
    """Upright uint8 (H, W, 3) of a decoded frame."""
    if frame.width * frame.height > MAX_PIXELS:
        raise ClipError(path, f"a frame of {frame.height}x{frame.width}", "too large")
    with _reported(path, "a frame cannot be converted to RGB"):
        if _has_alpha(frame):
            rgba = _to_rgba(frame)
            pixels = (rgba[..., :3] * (rgba[..., 3:] / np.float32(255)) + 0.5).astype(np.uint8)
        else:
            pixels = frame.reformat(format="rgb24", interpolation=exact(), threads=1).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return pixels if matrix is None else _orient(pixels, np.frombuffer(matrix, np.int32))


def _orient(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror as a display matrix (a, b, u, c, d, v, ...) says: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(a) + abs(d) < abs(b) + abs(c):  # x and y change places
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
