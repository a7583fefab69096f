"""What is wrong with a file is one line and one verdict, in training, evaluation and `data check` alike."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmd_video.cli import main
from cmd_video.data.check import check_clip, check_clips
from cmd_video.data.clip import ClipError
from cmd_video.data.cut_file import cut_short
from cmd_video.data.datasets import VideoDataset, open_video_dataset
from cmd_video.data.decode import probe, read_clip, read_frame_folder
from cmd_video.data.manifest import ClipRecord, load_manifest
from cmd_video.data.transforms import resize_and_crop_frame
from cmd_video.evaluation.protocol.clips import FolderClips, Reading

SMALL = partial(resize_and_crop_frame, size=(48, 64))
MPEG2 = {"codec": "mpeg2video", "pix_fmt": "yuv420p", "fps": 25, "options": {"g": "8"}}


def joined(folder: Path, encode, ramp, suffix: str) -> Path:
    """Eight frames of 48x64, then eight of 96x64, in one file."""
    codec = (
        {"codec": "libx264", "pix_fmt": "yuv420p", "fps": 25, "options": {"g": "8"}} if suffix == ".h264" else MPEG2
    )
    parts = [encode(folder / f"{n}{suffix}", ramp(8, side, 64), **codec) for n, side in enumerate((48, 96))]
    path = folder / f"joined{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def pictures(folder: Path, ramp, suffix: str) -> Path:
    path = folder / "joined"
    path.mkdir()
    for number in range(16):
        Image.fromarray(ramp(1, 48 if number < 8 else 96, 64)[0]).save(path / f"{number}{suffix}")
    return path


@pytest.mark.parametrize("kind", [".mpg", ".ts", ".h264", "png folder", "jpg folder", "turned folder"])
def test_a_change_of_size_is_refused_alike(tmp_path, encode, ramp, kind):
    """Also where a transform makes all frames equal, and where none is wanted of the other size."""
    if kind == "turned folder":  # one picture is stored lying, and upright of another size
        path, exif = pictures(tmp_path, ramp, ".jpg"), Image.Exif()
        exif[0x0112] = 6
        for number in range(16):
            Image.fromarray(ramp(1, 48, 64)[0]).save(path / f"{number}.jpg", **({"exif": exif} if number == 9 else {}))
    elif kind.endswith("folder"):
        path = pictures(tmp_path, ramp, f".{kind.split()[0]}")
    else:
        path = joined(tmp_path, encode, ramp, kind)
    read = read_frame_folder if path.is_dir() else read_clip
    for span in ({}, {"start": 3}, {"place": 0.5}, {"place": 1.0}, {"stride": 1, "start": 6}):
        count = 10 if span.get("start") == 6 else 12
        with pytest.raises(ClipError, match=r"frame size changes from \d+x\d+ to \d+x\d+"):
            read(path, count, transform=SMALL, **span)
    assert check_clip(path, 12).verdict == "damaged" and "frame size changes" in check_clip(path, 12).reason
    (judged,) = FolderClips([path], Reading(12, (48, 64))).read([0])
    assert isinstance(judged, ClipError) and "frame size changes" in judged.reason
    dataset = VideoDataset([ClipRecord(path)], num_frames=12, height=48, width=64, max_bad_fraction=1)
    with pytest.raises(ValueError, match="frame size changes"):
        dataset[0]
    if path.is_dir():
        with pytest.raises(ClipError, match="frame size changes"):
            read(path, 4)


NOISE = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8)
CONTAINERS = {
    "a.mp4": ("libx264", "yuv420p", {}),
    "a.mov": ("mjpeg", "yuvj444p", {}),
    "a.mkv": ("libx264", "yuv420p", {"g": "4"}),
    "b.mkv": ("ffv1", "bgr0", {}),
    "a.webm": ("libvpx-vp9", "yuv420p", {"cpu-used": "8", "g": "4"}),
    "a.avi": ("mpeg4", "yuv420p", {"g": "4"}),
    "a.gif": ("gif", "rgb8", {}),
    "a.apng": ("apng", "rgb24", {}),
}


@pytest.mark.parametrize("share", [0.55, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_whose_end_is_missing_is_damaged(tmp_path, encode, name, share):
    codec, pix_fmt, options = CONTAINERS[name]
    path = encode(tmp_path / name, NOISE, codec, pix_fmt, options=options)
    assert cut_short(path) is None and check_clip(path, 4).verdict == "ok"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert check_clip(path, 4).verdict == "damaged"


def test_a_duration_that_the_frames_do_not_reach_is_noticed(tmp_path, encode):
    """What is behind the middle was overwritten: the file is as long as ever, and the demuxer takes it for the end."""
    path = encode(tmp_path / "a.mkv", NOISE, options={"g": "4"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(ClipError):
        probe(path)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile good.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    "<BaseURL>good.mp4</BaseURL></Period></MPD>",
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_text_that_names_other_files_is_no_video(tmp_path, encode, ramp, kind, suffix):
    encode(tmp_path / "good.mp4", ramp(16, 48, 64))
    (tmp_path / f"list{suffix}").write_text(PLAYLISTS[kind])
    assert check_clip(tmp_path / f"list{suffix}", 8).verdict == "not a video"
    with pytest.raises(ClipError):
        read_clip(tmp_path / f"list{suffix}", 8)


@pytest.mark.parametrize("change", ["other clip", "one bit", "longer", "gone"])
def test_a_digest_is_written_and_compared(tmp_path, encode, ramp, capsys, change):
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(3):
        encode(clips / f"{number}.mkv", ramp(8, 48, 64) // 2 + 20 * number, "ffv1", "bgr0", options={})
        (clips / f"{number}.txt").write_text(f"clip {number}")
    (clips / "3.mkv").write_text("damaged")
    (clips / "3.txt").write_text("clip 3")
    listed = tmp_path / "clips.jsonl"
    command = ["data", "check", str(clips), "--kind", "captioned_folder", "--num-frames", "8"]
    assert main([*command, "--write-digests", str(listed)]) == 0
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"clips/{number}.mkv" for number in range(3)]
    assert [row["prompt"] for row in rows] == [f"clip {number}" for number in range(3)]
    assert main(["data", "check", str(listed), "--num-frames", "8", "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["counts"] == {"ok": 3}
    path, data = clips / "1.mkv", bytearray((clips / "1.mkv").read_bytes())
    if change == "one bit":
        data[len(data) // 2] ^= 1
    path.write_bytes((clips / "2.mkv").read_bytes() if change == "other clip" else data)
    if change == "longer":
        path.write_bytes(data + b"\0")
    manifest = load_manifest("manifest", listed)
    if change == "gone":
        path.unlink()
        path.mkdir()
    digests = {record.path: record.sha256 for record in manifest.records}
    report = check_clips(digests, 8, digests=digests)
    assert report.counts() == {"ok": 2, "missing" if change == "gone" else "damaged": 1}
    dataset = VideoDataset(manifest.records, num_frames=8, height=16, width=16, train=False, max_bad_fraction=1)
    assert [dataset.item(number) is None for number in range(3)] == [False, True, False] and len(dataset.failures) == 1


def test_classes_stay_in_a_written_manifest(tmp_path, encode, ramp, capsys):
    for name in ("jump", "run"):
        (tmp_path / "set" / name).mkdir(parents=True)
        encode(tmp_path / "set" / name / "a.mp4", ramp(8, 48, 64))
    listed = tmp_path / "set" / "list.jsonl"
    arguments = ["--kind", "class_folder", "--num-frames", "8", "--write-digests", str(listed)]
    assert main(["data", "check", str(tmp_path / "set"), *arguments]) == 0
    manifest = load_manifest("manifest", listed)
    assert manifest.class_names == ["jump", "run"] and [each.class_label for each in manifest.records] == [0, 1]
    assert all(record.sha256 for record in manifest.records)
    assert main(["data", "check", str(tmp_path / "set"), "--write-digests", str(tmp_path / "a.csv")]) == 2
    assert "--write-digests" in capsys.readouterr().err


def test_an_unreadable_clip_is_left_out_and_not_its_neighbour_twice(tmp_path, encode, ramp):
    for number in range(24):
        encode(tmp_path / f"{number:02d}.mkv", ramp(4, 16, 16), "ffv1", "bgr0", options={})
        (tmp_path / f"{number:02d}.txt").write_text(f"clip {number}")
    (tmp_path / "07.mkv").write_bytes(b"x")
    sizes = {"num_frames": 4, "height": 16, "width": 16}
    for train in (False, True):
        dataset = open_video_dataset("captioned_folder", tmp_path, train=train, **sizes)
        items = [dataset.item(number) for number in range(24)]
        prompts = sorted(item["prompt"] for item in items if item is not None)
        assert prompts == sorted(f"clip {number}" for number in range(24) if number != 7)
        assert list(dataset.failures) == [str(tmp_path / "07.mkv")]
