"""Moments: the last frame counts for as long as it is shown, a held frame is held, and a file's own rate gives its own
frames.
"""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from cmd_video.data.check import check_clip
from cmd_video.data.decode import ClipError, probe, read_clip, span_start, write_video


def hold(path, frames, milliseconds):
    """An animated picture whose frames are shown so long."""
    pictures = [Image.fromarray(pixels) for pixels in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".webp"])
@pytest.mark.parametrize(
    ("milliseconds", "wanted"),
    [
        ([100, 100, 1000], [0, 1, *[2] * 10]),
        ([1000, 100, 100], [*[0] * 10, 1, 2]),
        ([300, 300, 300], [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_each_frame_lasts_as_long_as_it_is_shown(tmp_path, ramp, number_of, suffix, milliseconds, wanted):
    path = hold(tmp_path / f"a{suffix}", ramp(3, 32, 48), milliseconds)
    assert number_of(read_clip(path, len(wanted), fps=10)) == wanted
    with pytest.raises(ClipError, match=f"too few for {len(wanted) + 1} at 10 per second"):
        read_clip(path, len(wanted) + 1, fps=10)
    info = probe(path)
    assert info.num_frames == 3 and info.duration == pytest.approx(sum(milliseconds) / 1000, abs=0.011)
    assert number_of(read_clip(path, 1, fps=10, place=1.0)) == [2]
    assert number_of(read_clip(path, 2, start=1)) == number_of(read_clip(path, 2, place=1.0)) == [1, 2]


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".webm"])
@pytest.mark.parametrize("fps", [8, 10, 12.5, 25])
@pytest.mark.parametrize("repeats", [1, 4, 16])
def test_what_is_written_comes_back_at_its_rate(tmp_path, ramp, number_of, suffix, fps, repeats):
    frames = np.repeat(ramp(16 // repeats, 48, 64), repeats, axis=0)
    path = tmp_path / f"a{suffix}"
    write_video(frames, path, fps)
    assert number_of(read_clip(path, 16, fps=fps)) == number_of(frames)
    assert probe(path).duration == pytest.approx(16 / fps, abs=0.03)
    for place in (0.0, 0.5, 1.0):
        assert len(read_clip(path, 16, fps=fps, place=place)) == 16
    with pytest.raises(ClipError, match="too few for 17"):
        read_clip(path, 17, fps=fps)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize("rate", ["8", "12", "24000/1001", "24", "30000/1001", "30", "50", "60000/1001", "60"])
def test_a_files_own_rate_gives_its_own_frames(tmp_path, ramp, number_of, name, rate):
    codec, options = ("libx264", {"crf": "4"}) if name == "a.mp4" else ("libvpx-vp9", {"crf": "4", "cpu-used": "8"})
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in ramp(28, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    own = float(Fraction(rate))
    assert number_of(read_clip(tmp_path / name, 28, fps=own)) == list(range(28))
    assert number_of(read_clip(tmp_path / name, 14, fps=own / 2)) == list(range(0, 28, 2))


def test_where_a_span_begins(tmp_path, ramp, encode, number_of):
    path = encode(tmp_path / "a.mp4", ramp(20, 48, 64))
    for place in (0.0, 0.4, 1.0):
        assert span_start(path, 4, stride=2, place=place) == number_of(read_clip(path, 4, stride=2, place=place))[0]
        assert span_start(path, 4, fps=4, place=place) * 8 == number_of(read_clip(path, 4, fps=4, place=place))[0]


@pytest.mark.parametrize("suffix", [".webp", ".apng", ".gif"])
def test_animated_pictures_are_clips(tmp_path, ramp, number_of, suffix):
    path = hold(tmp_path / f"a{suffix}", ramp(16, 32, 48), 125)
    assert check_clip(path, 16).verdict == "ok" and number_of(read_clip(path, 16)) == list(range(16))
    path.write_bytes(path.read_bytes()[:-200])
    assert check_clip(path, 16).verdict == "damaged"


def test_transparent_webp_lies_on_black_and_a_still_one_is_no_clip(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 1], rgba[:16, :, 0], rgba[:16, :, 3] = 255, 200, 255
    hold(tmp_path / "a.webp", [rgba, np.roll(rgba, 4, axis=1) // 2 * 2], 100)
    info = probe(tmp_path / "a.webp")
    assert info.has_alpha and read_clip(tmp_path / "a.webp", 1)[0, 20:].max() == 0
    Image.fromarray(rgba).save(tmp_path / "still.webp")
    assert check_clip(tmp_path / "still.webp", 1).verdict == "not a video"
