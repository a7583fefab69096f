"""A far frame costs a seek, and is the same frame, to the bit, that decoding from the start gives."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cmd_video.data import decode
from cmd_video.data.clip import ClipError
from cmd_video.data.container import opened
from cmd_video.data.decode import read_clip, write_video
from cmd_video.data.frame_index import frames_from, index_container, index_packets

FRAMES, KEYS = 48, 12
X264 = {"g": str(KEYS), "bf": "3", "crf": "20"}
VARIABLE = [0, 40, 80, 120, 300, 340, 900, *(1000 + 37 * k + k % 3 * 9 for k in range(FRAMES - 7))]
CLIPS = {  # file -> codec, pixel format, options, times, whether a seek is sure
    "b-frames.mp4": ("libx264", "yuv420p", X264, None, True),
    "b-frames.mkv": ("libx264", "yuv420p", X264, None, True),
    "variable.mp4": ("libx264", "yuv420p", X264, VARIABLE, True),
    "variable.mkv": ("libx264", "yuv420p", X264, VARIABLE, True),
    "open-gop.mp4": ("libx264", "yuv420p", {**X264, "x264-params": "open-gop=1"}, None, True),
    "refresh.mkv": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}, None, True),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "keyint=12:bframes=3:log-level=none"}, None, True),
    "hevc.mkv": ("libx265", "yuv420p10le", {"x265-params": "keyint=12:log-level=none"}, None, True),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "12", "cpu-used": "8", "lag-in-frames": "16"}, None, True),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "12", "cpu-used": "8"}, None, True),
    "mjpeg.mov": ("mjpeg", "yuvj444p", {}, None, True),
    "ffv1.mkv": ("ffv1", "bgr0", {}, None, True),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}, None, False),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}, None, False),
    "b-frames.ts": ("libx264", "yuv420p", X264, None, False),
    "b-frames.flv": ("libx264", "yuv420p", X264, None, False),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}, None, False),
}


def linear(path: Path) -> list[torch.Tensor]:
    with opened(path) as video:
        return [torch.from_numpy(frame.rgb()) for frame in video.frames()]


@pytest.mark.parametrize("name", CLIPS)
def test_a_seek_gives_the_frames_of_decoding_from_the_start(tmp_path, ramp, encode, name):
    codec, pix_fmt, options, times, sure = CLIPS[name]
    path = encode(tmp_path / name, ramp(FRAMES, 48, 64), codec, pix_fmt, 25, times, options=options)
    frames = linear(path)
    assert len(frames) == FRAMES
    reached = 0
    for number in (0, 1, 5, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS + 5, FRAMES - 2, FRAMES - 1):
        assert torch.equal(read_clip(path, 1, start=number)[0], frames[number]), number
        for indexed in (index_container, index_packets):
            with opened(path) as video:
                index = indexed(video)
                try:
                    found = None if index is None else next(frames_from(video, index, number)).rgb()
                except ClipError:
                    continue
                reached += found is not None
                assert found is None or torch.equal(torch.from_numpy(found), frames[number]), number
    assert (reached > 0) == sure
    for place in (0.0, 0.3, 0.5, 1.0):
        first = min(int(place * (FRAMES - 7)), FRAMES - 8)
        assert torch.equal(read_clip(path, 8, place=place), torch.stack(frames[first : first + 8])), place
        first = min(int(place * (FRAMES - 9)), FRAMES - 10)
        assert torch.equal(read_clip(path, 4, place=place, stride=3), torch.stack(frames[first : first + 10 : 3]))


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".webm"])
def test_what_is_written_is_found_too(tmp_path, ramp, suffix):
    write_video(ramp(30, 32, 32), tmp_path / f"a{suffix}", 8)
    frames = linear(tmp_path / f"a{suffix}")
    for number in (3, 17, 29):
        assert torch.equal(read_clip(tmp_path / f"a{suffix}", 1, start=number)[0], frames[number])


@pytest.mark.parametrize("name", ["b-frames.mp4", "vp9.webm", "hevc.mp4"])
def test_a_far_place_does_not_decode_what_lies_before(tmp_path, ramp, encode, name, monkeypatch):
    codec, pix_fmt, options, times, _ = CLIPS[name]
    path = encode(
        tmp_path / name, np.tile(ramp(20, 48, 64), (15, 1, 1, 1)), codec, pix_fmt, 25, times, options=options
    )
    shown = decode.Video.shown
    decoded: list[float] = []

    def counting(self, frames):
        for frame in shown(self, frames):
            decoded.append(frame.time)
            yield frame

    monkeypatch.setattr(decode.Video, "shown", counting)
    for place in (0.0, 0.5, 1.0):
        decoded.clear()
        assert len(read_clip(path, 8, place=place)) == 8
        assert len(decoded) <= 8 + KEYS, place
        decoded.clear()
        assert len(read_clip(path, 8, place=place, fps=25)) == 8
        assert len(decoded) <= 9 + KEYS, place


def test_frames_are_counted_where_packets_are_no_frames(tmp_path, ramp, encode):
    """Damage before the wanted frames ends decoding from the start, but not a seek."""
    path = encode(tmp_path / "a.mp4", ramp(FRAMES, 48, 64), options=X264)
    with opened(path) as video:
        entries = [(entry.pos, entry.size, entry.is_keyframe) for entry in video.stream.index_entries]
    data = bytearray(path.read_bytes())
    position, size, _ = entries[3]
    data[position : position + size] = bytes(size)
    whole = linear(path)
    path.write_bytes(data)
    assert torch.equal(read_clip(path, 8, start=2 * KEYS), torch.stack(whole[2 * KEYS : 2 * KEYS + 8]))
    with pytest.raises(ClipError):
        read_clip(path, 8, start=2)
    with pytest.raises(ClipError):
        decode.probe(path)


def test_real_clips_are_found(shared_data):
    files = [file for file in sorted((shared_data / "edge").rglob("*")) if file.suffix in (".mp4", ".mov", ".mkv")]
    checked = 0
    for path in files:
        if path.stat().st_size > 200_000:
            continue
        frames = linear(path)
        for number in {len(frames) // 2, len(frames) - 1}:
            assert torch.equal(read_clip(path, 1, start=number)[0], frames[number]), (path.name, number)
            checked += 1
    assert checked > 20


def test_the_order_of_reading_does_not_matter(tmp_path, ramp, encode):
    path = encode(tmp_path / "a.mp4", ramp(FRAMES, 48, 64), options=X264)
    spans = [(place, read_clip(path, 4, place=place)) for place in (1.0, 0.2, 0.7, 0.0)]
    shutil.copy(path, tmp_path / "b.mp4")
    assert all(torch.equal(read_clip(tmp_path / "b.mp4", 4, place=place), clip) for place, clip in reversed(spans))
