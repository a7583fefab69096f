"""Video files to frames.

    frames = read_clip("clip.mp4", num_frames=16, stride=2)       # uint8 (F, H, W, 3), RGB

Folders of pictures (`read_frame_folder`) and writing (`write_video`) are importable from here too.

Whatever is wrong with a clip is a `ClipError`. Numbers in a header are not believed: frames are
counted, sizes limited. Rotation and mirroring named in the file are applied, transparency is laid on black, more
than 8 bits per channel become 8, pixels that are not square are read as stored. Frame n is the same frame in every
format: that of decoding from the start, whether or not a seek leads there. Damage far from the wanted frames is not
looked for; `probe` does.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from statistics import median

import torch

from .animated_webp import AnimatedWebp, is_webp, opened_webp
from .clip import (
    TICK,
    ClipError,
    ClipInfo,
    FrameTransform,
    Shown,
    check_span,
    last_end,
    start_frame,
    take_frames,
    too_short,
)
from .container import Video, opened
from .cut_file import cut_short
from .frame_folders import list_frames, read_frame_folder
from .frame_index import FrameIndex, frames_from, index_container, index_packets
from .video_file import write_video

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
        ClipError: it cannot be opened, some frame cannot be decoded, or its end is missing.
    """
    path = Path(path)
    with _open(path) as video, closing(video.frames()) as frames:
        first = next(frames, None)
        if first is None:
            raise ClipError(path, "no frame decodes")
        times, duration = [first.time], first.duration
        for frame in islice(frames, max_frames - 1):
            times.append(frame.time)
            duration = frame.duration
        gaps = [after - before for before, after in pairwise(times)]
        usual = median(gaps or [0.0])
        seconds = times[-1] - times[0]
        end = last_end(times[-1], duration, gaps[-1] if gaps else 0.0, usual)
        complete = len(times) < max_frames
        if complete:
            _check_whole(path, end - times[0], video.promised)
        height, width = first.rgb().shape[:2]
        return ClipInfo(
            path=path,
            num_frames=len(times),
            complete=complete,
            fps=len(gaps) / seconds if seconds > 0 else None,
            height=height,
            width=width,
            codec=video.codec,
            duration=end - times[0] if gaps or duration else None,
            variable_fps=any(abs(gap - usual) > 0.1 * usual + 0.002 for gap in gaps),
            square_pixels=video.square_pixels,
            header_frames=video.header_frames,
            **video.facts(first),
        )


def codec_and_rate(path: str | Path) -> tuple[str, float | None]:
    """Name of the codec of a video file, such as "h264", and frames per second by its header, without decoding.

    Raises:
        ClipError: it cannot be opened.
    """
    with _open(Path(path)) as video:
        return video.codec, video.rate


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
        path: a file of any format that PyAV reads, mp4, mov, avi, mkv, webm, mpg, gif, apng ..., or animated WebP.
        num_frames: F.
        stride: take every stride-th frame.
        fps: take the frames nearest to moments 1 / fps apart instead, by their timestamps; where the file has fewer
            per second each is repeated for as long as it is shown, the last one too.
        start: number of the first frame taken.
        place: in [0, 1]; where to take them instead of a start: 0 from the first frame on, 0.5 in the middle, 1 at the
            end of the clip.
        transform: called on each frame taken, uint8 (H, W, 3), so that a clip of large frames is never held in full.

    Raises:
        ClipError: the file is missing, too large, too short, no video, of several frame sizes, or damaged
            where the frames are decoded.
        ValueError: an argument is out of range.
    """
    path = Path(path)
    check_span(num_frames, stride, fps, start, place)
    span = _Span(path, num_frames, stride, fps, transform)
    if place is None:
        return span.read(start)
    try:  # packets are counted without decoding, but some are not frames
        return span.read_at(place)
    except ClipError as error:
        if error.problem != "too short":
            raise
    return span.decode(span.start_of(*_frame_times(path), place))


def span_start(path: str | Path, num_frames: int, *, stride: int = 1, fps: float | None = None, place: float) -> float:
    """Where the span begins that `read_clip` or `read_frame_folder` takes at a place.

    Number of its first frame, or with `fps` its moment in seconds after the first frame of the file; by the packets,
    without decoding.

    Raises:
        ClipError: the file cannot be read or is too short.
    """
    path = Path(path)
    if path.is_dir():
        times, duration = [float(number) for number in range(len(list_frames(path)))], 1.0
    else:
        with _open(path) as video:
            index = index_packets(video) if isinstance(video, Video) else None
        times, duration = _frame_times(path) if index is None else (list(index.times), index.duration)
    first = _Span(path, num_frames, stride, fps, None).start_of(times, duration, place)
    return first if fps is None else times[first] - times[0]


@dataclass(frozen=True)
class _Span:
    """Which frames of a clip are taken, wherever they start."""

    path: Path
    num_frames: int
    stride: int
    fps: float | None
    transform: FrameTransform | None

    def start_of(self, times: Sequence[float], duration: float, place: float) -> int:
        """Number of the first frame of the span at a place; the duration is that of the last frame."""
        gap = times[-1] - times[-2] if len(times) > 1 else 0.0
        end = last_end(times[-1], duration, gap, 1 / (self.fps or 1)) if times else 0.0
        return start_frame(self.path, times, end, place, self.num_frames, self.stride, self.fps)

    def read_at(self, place: float) -> torch.Tensor:
        """Frames at a place, by their number where that is enough, or by the times of packets."""
        if self.fps is None:
            with suppress(ClipError), _open(self.path) as video:
                if isinstance(video, Video) and (numbers := index_container(video)) is not None:
                    return self._seek(video, numbers, self.start_of(numbers.times, 0.0, place))
        with _open(self.path) as video:
            if isinstance(video, Video):
                index = index_packets(video)
                start = self.start_of(index.times, index.duration, place)
                with suppress(ClipError):
                    return self._seek(video, index, start)
            else:
                start = self.start_of(*_frame_times(self.path), place)
        return self.decode(start)

    def read(self, start: int) -> torch.Tensor:
        """Frames from a frame on."""
        for indexed in (index_container, index_packets) if start else ():
            with suppress(ClipError), _open(self.path) as video:
                if isinstance(video, Video) and (index := indexed(video)) is not None:
                    return self._seek(video, index, start)
        return self.decode(start)

    def _seek(self, video: Video, index: FrameIndex, start: int) -> torch.Tensor:
        """Frames from a frame on, without decoding all before; a ClipError unless they are sure to be those."""
        with closing(frames_from(video, index, start)) as frames:
            taken = self._take(frames)
        if len(taken) < self.num_frames:
            raise too_short(self.path, len(index.times), self.num_frames, self.stride, self.fps, start)
        return taken

    def decode(self, start: int) -> torch.Tensor:
        """Frames from a frame on, by decoding all before."""
        decoded = count()
        with _open(self.path) as video, closing(video.frames()) as frames:
            taken = self._take(islice((frame for frame, _ in zip(frames, decoded)), start, None))
        if len(taken) < self.num_frames:
            raise too_short(self.path, next(decoded), self.num_frames, self.stride, self.fps, start)
        return taken

    def _take(self, frames: Iterator[Shown]) -> torch.Tensor:
        """Those wanted of frames that begin with the first one."""
        chosen = islice(frames, None, None, self.stride) if self.fps is None else _at_rate(frames, self.fps)
        return take_frames(self.path, islice(chosen, self.num_frames), self.transform)


def _at_rate(frames: Iterator[Shown], fps: float) -> Iterator[Shown]:
    """The frame shown at each of the moments first, first + 1 / fps ..., or the next one where that is nearer.

    A frame is not taken before its time by more than half of what lies between two moments, or between two frames.
    """
    frame = next(frames, None)
    if frame is None:
        return
    first, step, gap = frame.time, 1 / fps, 0.0
    moments = (first + number * step for number in count())
    moment = next(moments)
    for following in frames:
        gap = following.time - frame.time
        early = min(gap, step) / 2 - TICK  # a tie goes to the frame that is there
        while moment < following.time - early:
            yield frame
            moment = next(moments)
        frame = following
    end = last_end(frame.time, frame.duration, gap, step)
    while moment < end - TICK:
        yield frame
        moment = next(moments)


def _frame_times(path: Path) -> tuple[list[float], float]:
    """Seconds at which the frames are shown that decode before any damage, and the duration of the last one."""
    times, duration = [], 0.0
    with suppress(ClipError), _open(path) as video, closing(video.frames()) as frames:
        for frame in frames:
            times.append(frame.time)
            duration = frame.duration
    return times, duration


def _open(path: Path) -> AbstractContextManager[Video | AnimatedWebp]:
    return opened_webp(path) if is_webp(path) else opened(path)


def _check_whole(path: Path, seconds: float, promised: float | None) -> None:
    """Refuse a file whose end is missing, which demuxers may take for whole.

    Raises:
        ClipError: its end is missing, by its structure or by the duration that its header names.
    """
    try:
        reason = cut_short(path)
    except OSError as error:
        raise ClipError(path, error.strerror or "cannot be read", "missing") from error
    if reason is None and promised is not None and seconds < 0.9 * promised - 0.1:
        reason = f"ends after {seconds:.2f} of the {promised:.2f} s that its header names"
    if reason is not None:
        raise ClipError(path, reason)
