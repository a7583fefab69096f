"""Reading and writing clips: the right frames, upright, in the right colours, or a ClipError that names the file."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.data.decode import ClipError, probe, read_clip, read_frame_folder, write_video
from cmd_video.data.manifest import VIDEO_SUFFIXES


def psnr(a, b) -> float:
    return float(10 * np.log10(255**2 / max(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean(), 1e-9)))


CODECS = {  # file -> codec, pixel format, options
    "h264.mp4": ("libx264", "yuv444p", None),
    "h264.mkv": ("libx264", "yuv420p", None),
    "h264-10bit.mp4": ("libx264", "yuv420p10le", None),
    "hevc-10bit.mkv": ("libx265", "yuv420p10le", {"crf": "8", "x265-params": "log-level=none"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"qscale": "2", "flags": "+qscale", "global_quality": "236"}),
    "ffv1.mkv": ("ffv1", "bgr0", {}),
    "mjpeg.mov": ("mjpeg", "yuvj444p", {"flags": "+qscale", "global_quality": "118"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"crf": "5", "b": "0", "cpu-used": "8"}),
    "gray.mkv": ("ffv1", "gray", {}),
    "anim.apng": ("apng", "rgb24", {}),
}


@pytest.mark.parametrize("name", CODECS)
def test_every_format_gives_the_frames_that_were_written(tmp_path, ramp, encode, number_of, name):
    codec, pix_fmt, options = CODECS[name]
    frames = ramp(12, 48, 64)
    if pix_fmt == "gray":
        frames[...] = frames.mean(-1, keepdims=True).astype(np.uint8)
    path = encode(tmp_path / name, frames, codec, pix_fmt, options=options)
    info, clip = probe(path), read_clip(path, 12)
    assert clip.dtype == torch.uint8 and clip.shape == (12, 48, 64, 3)
    assert psnr(clip, frames) > 33 and number_of(clip) == list(range(12))
    assert (info.num_frames, info.height, info.width, info.complete) == (12, 48, 64, True)
    assert info.fps == pytest.approx(8, rel=0.02) and info.duration == pytest.approx(1.5, rel=0.02)
    assert info.bits == (10 if "10" in pix_fmt else 8) and not info.variable_fps


def test_colours_are_right_to_one_level(tmp_path, encode):
    """libswscale's default conversion is up to three levels too dark."""
    colours = np.random.default_rng(0).integers(25, 230, (24, 3), dtype=np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (24, 32, 32, 3)).copy()
    lossless = {"qp": "0"}
    written = read_clip(encode(tmp_path / "a.mkv", frames, "libx264rgb", "rgb24", options=lossless), 24)
    assert np.array_equal(written, frames)
    write_video(frames, tmp_path / "b.mp4", 8)
    difference = read_clip(tmp_path / "b.mp4", 24)[:, 8:24, 8:24].float().mean((1, 2)) - torch.from_numpy(colours)
    assert difference.abs().max() < 3 and difference.mean(0).abs().max() < 0.7


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_in_the_file_is_applied(tmp_path, ramp, encode, turn):
    upright = ramp(3, 48, 64)
    stored = np.ascontiguousarray(np.rot90(upright, -turn // 90, axes=(1, 2)))
    path = encode(tmp_path / "a.mp4", stored, rotation=turn)
    info = probe(path)
    assert (info.height, info.width, info.rotation) == (48, 64, -turn % 360)
    assert psnr(read_clip(path, 3), upright) > 35


def test_mirroring_in_the_file_is_applied():
    from cmd_video.data.container import _orient

    pixels = np.arange(6).reshape(2, 3, 1).repeat(3, -1)
    one = 65536
    cases = {  # (a, b, c, d) -> what should come out
        (one, 0, 0, one): pixels,
        (-one, 0, 0, one): pixels[:, ::-1],
        (one, 0, 0, -one): pixels[::-1],
        (-one, 0, 0, -one): pixels[::-1, ::-1],
        (0, one, -one, 0): np.rot90(pixels, -1),
        (0, -one, one, 0): np.rot90(pixels, 1),
        (0, one, one, 0): pixels.transpose(1, 0, 2),
        (0, -one, -one, 0): pixels[::-1, ::-1].transpose(1, 0, 2),
    }
    for (a, b, c, d), expected in cases.items():
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)
        assert np.array_equal(_orient(pixels, matrix), expected), (a, b, c, d)
    assert len(cases) == 8


@pytest.mark.parametrize("name", ["vp9.webm", "ffv1.mkv"])
def test_transparency_lies_on_black(tmp_path, encode, name):
    frames = np.full((4, 32, 32, 4), 200, np.uint8)
    frames[:, :, :16, 3], frames[:, :, 16:, 3] = 255, 0
    vp9 = name == "vp9.webm"
    options = {"crf": "5", "b": "0", "auto-alt-ref": "0", "cpu-used": "8"} if vp9 else {}
    codec, pix_fmt = ("libvpx-vp9", "yuva420p") if vp9 else ("ffv1", "bgra")
    path = encode(tmp_path / name, frames, codec, pix_fmt, source="rgba", options=options)
    clip = read_clip(path, 4).float()
    assert probe(path).has_alpha
    assert abs(clip[:, :, :12].mean() - 200) < 4 and clip[:, :, 20:].mean() < 4


def test_stride_start_and_place(tmp_path, ramp, encode, number_of):
    path = encode(tmp_path / "a.mp4", ramp(20, 32, 32))
    assert number_of(read_clip(path, 4, stride=3, start=5)) == [5, 8, 11, 14]
    assert number_of(read_clip(path, 1, start=19)) == [19]
    for place, first in ((0, 0), (0.5, 6), (1, 12), (0.999, 12)):
        assert number_of(read_clip(path, 8, place=place)) == list(range(first, first + 8))
    for problem in ({"start": 19}, {"stride": 20}, {"start": 30}):
        with pytest.raises(ClipError, match="20 frames, too few for 2") as error:
            read_clip(path, 2, **problem)
        assert error.value.problem == "too short"
    with pytest.raises(ClipError, match="20 frames, too few for 21"):
        read_clip(path, 21, place=0.5)


def test_a_rate_follows_the_timestamps(tmp_path, ramp, encode, number_of):
    times = [0, 40, 80, 120, 160, 200, 400, 600, 800, 1000]  # 25 per second, then 5
    path = encode(tmp_path / "a.mkv", ramp(10, 32, 32), times=times)
    assert probe(path).variable_fps
    cases = [  # per second, first frame, what must come: the nearest ones, and each as long as it is shown
        (5, 0, [0, 5, 6, 7, 8, 9]),
        (10, 0, [0, 2, 5, 5, 6, 6, 7, 7, 8, 8, 9]),
        (25, 0, [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7]),
        (4, 3, [3, 6, 7]),
    ]
    for fps, start, wanted in cases:
        assert number_of(read_clip(path, len(wanted), fps=fps, start=start)) == wanted, fps
    assert number_of(read_clip(path, 3, fps=5, place=1))[-1] == 9
    with pytest.raises(ClipError, match="too few for 8 at 5 per second"):
        read_clip(path, 8, fps=5)


def test_frames_without_times_are_counted(tmp_path, ramp, encode, number_of):
    """A bare H.264 stream has no timestamps."""
    path = encode(tmp_path / "a.h264", ramp(10, 32, 32), options={"crf": "8", "bf": "0"})
    assert number_of(read_clip(path, 10)) == list(range(10))
    assert number_of(read_clip(path, 4, place=0.5)) == [3, 4, 5, 6]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1)])
def test_written_clips_come_back(tmp_path, ramp, number_of, suffix, size):
    frames = (
        ramp(10, *size) if size != (1, 1) else np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, 3) * 20
    )
    path = tmp_path / f"a{suffix}"
    write_video(torch.from_numpy(frames), path, fps=8)
    info = probe(path)
    even = size if suffix == ".gif" else tuple(side + side % 2 for side in size)
    assert (info.num_frames, info.height, info.width) == (10, *even)
    assert info.fps == pytest.approx(8, rel=0.03)
    clip = read_clip(path, 10)[:, : size[0], : size[1]]
    assert psnr(clip, frames) > (34 if size != (1, 1) else 28)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_nothing(tmp_path, ramp):
    frames = ramp(2, 16, 16)
    cases = [
        (frames, "a.avi", 8, "suffix '.avi', allowed: .mp4, .webm, .gif"),
        (frames.astype(np.float32), "a.mp4", 8, "must be uint8"),
        (frames[:0], "a.mp4", 8, "none of them 0"),
        (frames[..., :1], "a.mp4", 8, r"must be uint8 \(F, H, W, 3\)"),
        (frames, "a.mp4", 0, "fps is 0"),
        (frames, "a.gif", 60, "fps is 60"),
    ]
    for pixels, name, fps, message in cases:
        with pytest.raises(ValueError, match=message):
            write_video(pixels, tmp_path / name, fps)
    with pytest.raises(OSError, match="a.mp4"):
        write_video(frames, tmp_path / "nowhere" / "a.mp4", 8)
    assert len(cases) == 6 and not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files by setrlimit")
def test_a_full_disk_leaves_nothing(tmp_path):
    script = (
        "import resource, sys, numpy as np; from cmd_video.data.decode import write_video\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); failed = 0\n"
        "frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)\n"
        "for name in ('a.mp4', 'a.webm', 'a.gif'):\n"
        "    try: write_video(frames, sys.argv[1] + '/' + name, 8)\n"
        "    except OSError as error: failed += name in str(error)\n"
        "print(failed)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), list(tmp_path.iterdir())) == ("3", []), done.stderr


def broken_files(folder: Path, good: bytes) -> dict[Path, str]:
    """Files that no clip can be read from, and the problem each is to be reported as."""
    audio = folder / "sound.wav"
    header = b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\x08\0\0"
    audio.write_bytes(header + bytes(2048))
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    contents = {
        "zero.mp4": (b"", "damaged"),
        "text.mp4": (b"this is no video " * 40, "not a video"),
        "pointer.mp4": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not a video"),
        "picture.mp4": ((folder / "picture.png").read_bytes(), "not a video"),
        "half.mp4": (good[: len(good) // 2], "damaged"),
        "head.mp4": (good[:64], "damaged"),
    }
    files = {audio: "no video stream", folder / "nowhere.mp4": "missing", folder: "missing"}
    for name, (content, problem) in contents.items():
        (folder / name).write_bytes(content)
        files[folder / name] = problem
    return files


def test_broken_files_are_one_kind_of_error_and_leak_nothing(tmp_path, ramp, encode):
    good = encode(tmp_path / "good.mp4", ramp(16, 32, 32))
    files = broken_files(tmp_path, good.read_bytes())
    opened = Path("/proc/self/fd")
    before = None
    for _ in range(8):
        for path, problem in files.items():
            for read in (lambda path=path: read_clip(path, 4), lambda path=path: probe(path)):
                with pytest.raises(ClipError) as error:
                    read()
                assert error.value.problem == problem, str(error.value)
                assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        before = before or (opened.exists() and len(list(opened.iterdir())))
    assert len(files) == 9 and before == (opened.exists() and len(list(opened.iterdir())))
    assert len(read_clip(good, 16)) == 16


def test_damage_behind_the_wanted_frames_does_not_matter(tmp_path, ramp, encode, number_of):
    path = encode(tmp_path / "a.avi", ramp(40, 128, 128), "mpeg4", "yuv420p", options={"g": "4"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert number_of(read_clip(path, 8)) == list(range(8))
    with pytest.raises(ClipError):
        read_clip(path, 40)


def test_mutated_files_raise_only_clip_errors(tmp_path, encode, mutate):
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    data = encode(tmp_path / "a.mp4", noise, options={"crf": "30"}).read_bytes()
    rng, path, results = random.Random(0), tmp_path / "b.mp4", {"read": 0, "refused": 0}
    for number in range(120):
        path.write_bytes(mutate(data, number % 6, rng))
        try:
            clip = read_clip(path, 8, place=rng.random())
            assert clip.shape[0] == 8 and clip.shape[3] == 3
            results["read"] += 1
        except ClipError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            results["refused"] += 1
    assert sum(results.values()) == 120 and min(results.values()) > 10, results


def test_headers_are_not_believed(tmp_path, ramp, encode):
    """A frame size of 16384 x 16384 is refused before anything is allocated; a wrong frame count does not matter."""
    path = encode(tmp_path / "a.avi", ramp(10, 32, 32), "mpeg4", "yuv420p", options={})
    data = path.read_bytes()
    count = data.index(b"strh") + 8 + 32
    path.write_bytes(data[:count] + (2**31 - 1).to_bytes(4, "little") + data[count + 4 :])
    assert probe(path).num_frames == 10 and len(read_clip(path, 10, place=0.5)) == 10
    path = encode(tmp_path / "b.avi", ramp(2, 32, 48), "ffv1", "bgr0", options={})
    data = path.read_bytes()
    size = data.index(b"strf") + 12
    assert data[size : size + 8] == (48).to_bytes(4, "little") + (32).to_bytes(4, "little")
    path.write_bytes(data[:size] + (16384).to_bytes(4, "little") * 2 + data[size + 8 :])
    with pytest.raises(ClipError, match="b.avi: "):
        read_clip(path, 2)


def test_absurd_sizes_are_refused(tmp_path, monkeypatch, ramp, encode):
    import cmd_video.data.container as container
    import cmd_video.data.picture_file as picture_file

    path = encode(tmp_path / "a.mp4", ramp(2, 32, 32))
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "frames" / "0.png")
    for module in (container, picture_file):
        monkeypatch.setattr(module, "MAX_PIXELS", 32 * 31)
    for read in (lambda: read_clip(path, 1), lambda: read_frame_folder(tmp_path / "frames", 1)):
        with pytest.raises(ClipError, match="at most 992 pixels") as error:
            read()
        assert error.value.problem == "too large"


def test_arguments_are_checked(tmp_path):
    cases = [
        ({"num_frames": 0}, "num_frames: 0"),
        ({"stride": 0}, "stride: 0"),
        ({"start": -1}, "start: -1"),
        ({"fps": 0.0}, "fps: 0"),
        ({"fps": 8, "stride": 2}, "stride: 2 together with fps"),
        ({"place": 1.5}, "place: 1.5"),
        ({"place": 0.5, "start": 1}, "place: 0.5 with start = 1"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            read_clip(tmp_path / "a.mp4", **{"num_frames": 4, **arguments})
        assert not isinstance(error.value, ClipError)
    assert len(cases) == 7


def test_frame_folders(tmp_path, ramp, number_of):
    frames = ramp(12, 24, 32)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert torch.equal(read_frame_folder(tmp_path, 12), torch.from_numpy(frames))  # frame2 before frame10
    assert number_of(read_frame_folder(tmp_path, 3, stride=2, start=5)) == [5, 7, 9]
    assert number_of(read_frame_folder(tmp_path, 4, place=1)) == [8, 9, 10, 11]
    with pytest.raises(ClipError, match="12 frames, too few for 13"):
        read_frame_folder(tmp_path, 13)
    rgba = np.dstack([frames[3], np.where(np.arange(32) < 16, 255, 0)[None].repeat(24, 0)]).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "frame3.png")
    assert read_frame_folder(tmp_path, 1, start=3)[0, :, 16:].max() == 0
    whole = (tmp_path / "frame5.png").read_bytes()
    for name, content in (("frame5.png", whole[:60]), ("frame5.png", b""), ("frame5.png", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match="frame5.png: the picture does not decode"):
            read_frame_folder(tmp_path, 12)
    Image.new("RGB", (8, 8)).save(tmp_path / "frame5.png")
    with pytest.raises(ClipError, match="frame size changes from 24x32 to 8x8"):
        read_frame_folder(tmp_path, 12)


def test_real_clips_give_sixteen_frames(shared_data, shared_index):
    def small(frame: torch.Tensor) -> torch.Tensor:
        return frame[::8, ::8].clone()

    good = [row for row in shared_index if row["path"].split("/")[0] != "broken" and float(row["frames"] or 0) >= 16]
    chosen = [row for row in good if Path(row["path"]).suffix in VIDEO_SUFFIXES][::8]
    for row in chosen:
        clip = read_clip(shared_data / row["path"], 16, transform=small)
        assert len(clip) == 16 and clip.float().std() > 1, row["path"]
    broken = [row for row in shared_index if row["err"]]
    for row in broken:
        with pytest.raises(ClipError):
            probe(shared_data / row["path"])
    assert len(chosen) >= 20 and len(broken) >= 5
