"""Colours are those that a file says, by its matrix, range and pixel format; what is passed over is named."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from cmd_video.data.check import check_clip
from cmd_video.data.container import _from_yuv
from cmd_video.data.datasets import VideoDataset
from cmd_video.data.decode import probe, read_clip
from cmd_video.data.manifest import ClipRecord
from cmd_video.data.video_file import exact
from cmd_video.evaluation.protocol.clips import FolderClips, Reading

MATRICES = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}  # ITU-T H.273's number -> Kr, Kb
YUV = ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "nv12", "yuv420p10le", "yuv444p12le", "p010le", "gray", "yuyv422")


def yuv_of(rgb: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """Uint8 (..., 3) -> planes (3, ...), by the definition."""
    red, blue = MATRICES[matrix]
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([y, (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))])
    scale, offset = (np.array([255, 255, 255]), [0, 128, 128]) if full else (np.array([219, 224, 224]), [16, 128, 128])
    shape = (3,) + (1,) * (planes.ndim - 1)
    return (planes * scale.reshape(shape) + np.reshape(offset, shape)).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_matrix_and_range_of_the_file_are_used(tmp_path, matrix, full):
    colours = np.random.default_rng(0).integers(20, 236, (4, 4, 3), dtype=np.uint8)
    picture = colours.repeat(16, 0).repeat(16, 1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(yuv_of(picture, matrix, full), format="yuv444p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_clip(tmp_path / "a.mp4", 1)[0, 8::16, 8::16].float()
    assert (found - torch.from_numpy(colours).float()).abs().max() <= 3


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (17, 5), (2, 2)])
@pytest.mark.parametrize("pix_fmt", YUV)
def test_the_way_by_planes_gives_the_bits_of_rgb24(pix_fmt, size):
    rng = np.random.default_rng(0)
    for matrix in (1, 5, 9):
        frame = av.VideoFrame(size[1], size[0], pix_fmt)
        for plane in frame.planes:
            values = rng.integers(0, 256, plane.buffer_size, dtype=np.uint8)
            if "10" in pix_fmt or "12" in pix_fmt:
                values[1::2] %= 4
            plane.update(values.tobytes())
        frame.colorspace = matrix
        direct = frame.reformat(format="rgb24", interpolation=exact(), threads=1).to_ndarray()
        assert np.array_equal(_from_yuv(frame), direct)


def write(path, ramp, streams: int = 1, transfer: int = 0) -> None:
    """A clip of 16 frames; a second stream shows other ones."""
    with av.open(str(path), "w") as container:
        written = []
        for number in range(streams):
            stream = container.add_stream("libx264", rate=8, options={"crf": "4"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            if transfer:
                stream.codec_context.color_trc = transfer
            written.append((stream, ramp(16, 48, 64) if number == 0 else 255 - ramp(16, 48, 64)))
        for number in range(16):
            for stream, frames in written:
                frame = av.VideoFrame.from_ndarray(frames[number], format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 8)
                if transfer:
                    frame.color_trc = transfer
                container.mux(stream.encode(frame))
        for stream, _ in written:
            container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"streams": 2}, "2 video streams, the first is read"),
        ({"transfer": 16}, "high dynamic range (PQ), its values are read without tone mapping"),
        ({"transfer": 18}, "high dynamic range (HLG), its values are read without tone mapping"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_passed_over_is_named_and_read_alike(tmp_path, ramp, number_of, what, told, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, ramp, **what)
    verdict = check_clip(path, 16)
    assert verdict.verdict == "odd" and told in verdict.reason and told in probe(path).notes
    (judged,) = FolderClips([path], Reading(8)).read([0])
    trained = VideoDataset([ClipRecord(path)], num_frames=8, height=48, width=64, train=False)[0]["video"]
    assert number_of(judged) == list(range(4, 12))
    assert torch.equal(judged.permute(3, 0, 1, 2).float() / 127.5 - 1, trained)


def test_a_plain_clip_has_no_notes(tmp_path, ramp):
    write(tmp_path / "a.mp4", ramp, transfer=1)
    assert probe(tmp_path / "a.mp4").notes == () and check_clip(tmp_path / "a.mp4", 16).verdict == "ok"
