"""Frames to a video file.

    write_video(frames, "out.mp4", fps=8)         # frames uint8 (F, H, W, 3), RGB

PyAV is imported where it is used: sprites and latents need none.

A file is written under another name in its folder and appears by rename: it is there in full or not at all.
"""

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .files import whole_file

# Conversions use threads=1: threads do not survive a fork, and a data loading process that frees a converter of its
# parent would wait for them forever.

ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("libx264", {"crf": "16", "preset": "medium", "movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4"}),
}
MAX_GIF_FPS = 50  # viewers show GIF frames for 0.02 s at least
BT601, LIMITED_RANGE = 6, 1  # what libswscale converts RGB to when nothing else is said


def write_video(frames: np.ndarray | torch.Tensor, path: str | Path, fps: float) -> None:
    """Write a clip as .mp4 (H.264), .webm (VP9) or .gif.

    H.264 and VP9 in yuv420p need even sizes: an odd height or width gains one row or column, a copy of the last one.
    A GIF shows equal frames in a row as one longer frame, and its times are multiples of 0.01 s.

    Args:
        frames: uint8 (F, H, W, 3), RGB, F >= 1.
        path: the file; its suffix is the format. The folder must exist.
        fps: frames per second.

    Raises:
        ValueError: the suffix, the frames or the rate cannot be written.
        OSError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    pixels = np.ascontiguousarray(frames.cpu().numpy() if isinstance(frames, torch.Tensor) else frames)
    if path.suffix not in (*ENCODERS, ".gif"):
        raise ValueError(f"{path}: suffix {path.suffix!r}, allowed: {', '.join((*ENCODERS, '.gif'))}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.size == 0:
        raise ValueError(
            f"{path}: frames are {pixels.dtype} {pixels.shape}, must be uint8 (F, H, W, 3), none of them 0"
        )
    limit = MAX_GIF_FPS if path.suffix == ".gif" else 1000
    if not 0.01 <= fps <= limit:
        raise ValueError(f"{path}: fps is {fps}, must lie in [0.01, {limit}]")
    import av

    try:
        with whole_file(path) as temporary:
            (_write_gif if path.suffix == ".gif" else _write_encoded)(pixels, temporary, fps)
    except (OSError, av.FFmpegError) as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@cache
def exact() -> Any:
    """How libswscale is to convert colours. Its own choice darkens them by one to three levels, and drops every second
    pixel's colour on the way in.
    """
    from av.video.reformatter import Interpolation as Flag

    return Flag.BICUBIC | Flag.ACCURATE_RND | Flag.FULL_CHR_H_INT | Flag.FULL_CHR_H_INP


def _write_encoded(pixels: np.ndarray, path: Path, fps: float) -> None:
    import av

    encoder, options = ENCODERS[path.suffix]
    num_frames, height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    muxer = {key: options[key] for key in options if key == "movflags"}
    with av.open(f"file:{path}", "w", format=path.suffix[1:], container_options=muxer) as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        stream.options = {key: options[key] for key in options if key not in muxer}
        stream.codec_context.colorspace, stream.codec_context.color_range = BT601, LIMITED_RANGE
        for frame in pixels:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", interpolation=exact(), threads=1)))
        container.mux(stream.encode(None))


def _write_gif(pixels: np.ndarray, path: Path, fps: float) -> None:
    """One palette per frame and no dithering: flat colours stay flat, and still parts do not flicker."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in pixels]
    ends = [round(100 * number / fps) for number in range(len(pictures) + 1)]  # in 0.01 s, without drift
    durations = [10 * (end - begin) for begin, end in zip(ends, ends[1:])]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)
