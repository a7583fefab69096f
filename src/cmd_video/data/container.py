"""A video file, opened: what its header says, and its frames in order, upright RGB.

    with opened(Path("clip.mp4")) as video:
        for frame in video.frames():
            frame.rgb()                               # uint8 (H, W, 3)

PyAV is imported where it is used. Whatever it raises becomes a `ClipError`: on damaged files that is some six
unrelated types. Formats that name other files, playlists, are not opened, and nothing reaches for the network.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .clip import MAX_PIXELS, ClipError, Shown, size_changed
from .cut_file import cut_short
from .picture_file import on_black
from .video_file import exact

PLAYLISTS = {"concat", "hls", "dash", "imf", "image2", "sdp", "rtsp", "rtp", "sap", "webm_dash_manifest"}
SIGNATURES = (
    (0, b"RIFF"),
    (4, b"ftyp"),
    (4, b"moov"),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"GIF8"),
    (0, b"\x00\x00\x01\xba"),
)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out
HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their number in ITU-T H.273


class Video:
    """An open video file; made by `opened`.

    Attributes:
        path: the file.
        container: of PyAV.
        stream: the video stream that is read, of PyAV.
        codec: name of its decoder, such as "h264".
        rate: frames per second by the header, for frames that carry no time.
        size: height and width by the header.
        other_streams: video streams that are not read.
        header_frames: number of frames by the header; 0 where it says nothing.
        square_pixels: whether pixels are square, by the header.
        alpha_decoder: name of another decoder, where the stream's own leaves transparency out.
        promised: seconds that the stream lasts by a tag of its own, as Matroska has it.
    """

    def __init__(self, path: Path, container: Any, streams: list[Any]) -> None:
        self.path, self.container, self.stream = path, container, streams[0]
        context = self.stream.codec_context
        self.codec = str(context.name)
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.size = (int(context.height), int(context.width))
        self.other_streams = len(streams) - 1
        self.header_frames = int(self.stream.frames)
        self.square_pixels = self.stream.sample_aspect_ratio in (None, 0, 1)
        tags = {key.lower(): value for key, value in self.stream.metadata.items()}
        self.alpha_decoder = ALPHA_DECODERS.get(self.codec) if tags.get("alpha_mode") == "1" else None
        self.promised = _seconds(tags.get("duration", ""))

    def frames(self) -> Generator[Shown]:
        """Decode from the start.

        Raises:
            ClipError: a frame does not decode, had to be patched up by the decoder, or is of another size.
        """
        return self.shown(self._decoded())

    def shown(self, decoded: Iterator[Any]) -> Generator[Shown]:
        """Frames of PyAV as they are shown; errors as `frames`."""
        size: tuple[int, int] | None = None
        for number in count():
            with reported(self.path, f"frame {number} does not decode"):
                frame = next(decoded, None)
            if frame is None:
                return
            if frame.is_corrupt:
                raise ClipError(self.path, f"frame {number} is incomplete")
            found = (frame.height, frame.width)
            size = size or found
            if found != size:
                raise size_changed(self.path, size, found)
            time = number / self.rate if frame.time is None else float(frame.time)
            lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            yield Shown(time, lasts, found, partial(_to_rgb, self.path, frame), frame)

    def facts(self, first: Shown) -> dict[str, Any]:
        """What the first frame shows of itself and of the file, as fields of `ClipInfo`."""
        frame, notes = first.source, []
        if self.other_streams:
            notes.append(f"{self.other_streams + 1} video streams, the first is read")
        if int(frame.color_trc or 0) in HDR:
            notes.append(f"high dynamic range ({HDR[int(frame.color_trc)]}), its values are read without tone mapping")
        return {
            "rotation": -int(frame.rotation) % 360,
            "bits": max(component.bits for component in frame.format.components),
            "has_alpha": _with_alpha(frame) and int(_to_rgba(frame)[..., 3].min()) < 255,
            "notes": tuple(notes),
        }

    def _decoded(self) -> Iterator[Any]:
        if self.alpha_decoder is None:
            yield from self.container.decode(self.stream)
            return
        import av

        decoder: Any = av.CodecContext.create(self.alpha_decoder, "r")
        decoder.extradata, decoder.thread_count = self.stream.codec_context.extradata, 1
        for packet in self.container.demux(self.stream):
            yield from decoder.decode(packet)


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """Open a video file, with limits against absurd headers.

    Raises:
        ClipError: it is missing, too large or no video.
    """
    if not path.is_file():
        raise ClipError(path, "no such file" if not path.exists() else "not a file", "missing")
    import av

    options = {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file", "format_whitelist": _formats()}
    try:
        container = av.open(f"file:{path}", metadata_errors="replace", options=options)
    except Exception as error:
        raise _why_not_a_video(path, error) from error
    with container:
        kind = container.format.name
        if kind.endswith("_pipe"):
            raise ClipError(path, f"a still picture ({kind.removesuffix('_pipe')}), not a video", "not a video")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            cut = cut_short(path)
            raise ClipError(path, cut or f"no video stream (format {kind})", "damaged" if cut else "no video stream")
        context = streams[0].codec_context
        if context is None:
            raise ClipError(path, "no decoder for its codec")
        if context.width * context.height > MAX_PIXELS:
            size = f"{context.height}x{context.width}"
            raise ClipError(path, f"frames of {size}, at most {MAX_PIXELS} pixels are read", "too large")
        context.thread_count = 1  # loaders bring their own processes
        yield Video(path, container, streams)


@contextmanager
def reported(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever PyAV raises into a ClipError."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClipError(path, f"{doing}: {reason}") from error


@cache
def _formats() -> str:
    """All formats but those that name other files, as FFmpeg wants them."""
    import av

    return ",".join(sorted(av.formats_available - PLAYLISTS))


def _seconds(text: str) -> float | None:
    """Of a tag such as 00:01:02.500000000."""
    parts = text.strip("\0 ").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


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


def _with_alpha(frame: Any) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _to_rgba(frame: Any) -> np.ndarray:
    return frame.reformat(format="rgba", interpolation=exact(), threads=1).to_ndarray()


def _to_rgb(path: Path, frame: Any) -> np.ndarray:
    """Upright uint8 (H, W, 3) of a decoded frame."""
    if frame.width * frame.height > MAX_PIXELS:
        raise ClipError(path, f"a frame of {frame.height}x{frame.width}", "too large")
    with reported(path, "a frame cannot be converted to RGB"):
        if _with_alpha(frame):
            pixels = on_black(_to_rgba(frame))
        elif frame.format.is_rgb:
            pixels = frame.reformat(format="rgb24", interpolation=exact(), threads=1).to_ndarray()
        else:
            pixels = _from_yuv(frame)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return pixels if matrix is None else _orient(pixels, np.frombuffer(matrix, np.int32))


def _from_yuv(frame: Any) -> np.ndarray:
    """As by a conversion to rgb24, to the bit, in a third of the time: libswscale is quick with planes."""
    planar = frame.reformat(format="gbrp", interpolation=exact(), threads=1)
    pixels = np.empty((frame.height, frame.width, 3), np.uint8)
    for plane, channel in zip(planar.planes, (1, 2, 0), strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
        pixels[..., channel] = rows[:, : frame.width]
    return pixels


def _orient(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror as a display matrix (a, b, u, c, d, v, ...) says: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(a) + abs(d) < abs(b) + abs(c):  # x and y change places
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
