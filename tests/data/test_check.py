"""Every clip gets one verdict, and the verdicts add up."""

import json

import pytest
from PIL import Image

from cmd_video.cli import EXIT_USER_ERROR, main
from cmd_video.data.check import check_clip, check_clips, find_clips


@pytest.fixture
def mixed(tmp_path, encode, ramp):
    """A folder with a clip of every kind, and the verdict on each."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = ramp(20, 32, 48)
    encode(folder / "ok.mp4", good)
    encode(folder / "short.mp4", good[:8])
    encode(folder / "rotated.mp4", good, rotation=90)
    encode(folder / "ten-bit.mkv", good, pix_fmt="yuv420p10le")
    encode(folder / "size.mkv", ramp(20, 31, 47), "ffv1", "bgr0", options={})
    encode(folder / "rate.mkv", good, times=[n * n * 10 for n in range(20)])
    (folder / "half.mp4").write_bytes((folder / "ok.mp4").read_bytes()[:1500])
    (folder / "empty.webm").write_bytes(b"")
    (folder / "text.mp4").write_text("nothing to see " * 50)
    for name, count in (("frames", 16), ("few", 3)):
        (folder / name).mkdir()
        for number in range(count):
            Image.fromarray(good[number]).save(folder / name / f"{number}.png")
    odd = dict.fromkeys(("rotated.mp4", "ten-bit.mkv", "size.mkv", "rate.mkv"), "odd")
    short = dict.fromkeys(("short.mp4", "few"), "too short")
    bad = {"half.mp4": "damaged", "empty.webm": "damaged", "text.mp4": "not a video"}
    return folder, {"ok.mp4": "ok", "frames": "ok", **odd, **short, **bad}


def test_verdicts(mixed):
    folder, expected = mixed
    report = check_clips(find_clips(folder), num_frames=16)
    found = {verdict.path.removeprefix(f"{folder}/"): verdict for verdict in report.verdicts}
    assert {name: verdict.verdict for name, verdict in found.items()} == expected
    assert report.counts() == {"ok": 2, "odd": 4, "not a video": 1, "damaged": 2, "too short": 2}
    reasons = {"rotated.mp4": "turned upright", "ten-bit.mkv": "10 bits", "size.mkv": "31x47", "rate.mkv": "variable"}
    assert all(text in found[name].reason for name, text in reasons.items())
    assert all((verdict.reason == "") == (verdict.verdict == "ok") for verdict in report.verdicts)
    assert found["short.mp4"].reason == "8 frames, too few for 16 with stride 1"


def test_stride_counts(mixed):
    folder, _ = mixed
    verdicts = [check_clip(folder / "ok.mp4", *span).verdict for span in ((10, 2), (11, 2), (20, 1), (21, 1))]
    assert verdicts == ["ok", "too short", "ok", "too short"]


def test_command(mixed, tmp_path, capsys):
    folder, expected = mixed
    assert main(["data", "check", str(folder), "--json", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    for name, verdict in expected.items():
        assert (f"{verdict}: {folder / name}: " in out) == (verdict != "ok")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["total"] == len(expected) == sum(report["counts"].values()) == len(report["clips"])


def test_sets_and_what_they_miss(tmp_path, encode, ramp):
    encode(tmp_path / "1.mp4", ramp(16, 32, 32))
    (tmp_path / "a.csv").write_text("path,caption\n1.mp4,x\n")
    header = "videoid,contentUrl,duration,page_dir,name\n"
    (tmp_path / "webvid.csv").write_text(header + "1,u,d,.,x\n2,u,d,.,y\n")
    assert check_clips(find_clips(tmp_path / "a.csv"), 16).counts() == {"ok": 1}
    assert check_clips(find_clips(tmp_path / "webvid.csv"), 16).counts() == {"ok": 1, "missing": 1}
    assert find_clips(tmp_path / "1.mp4") == [tmp_path / "1.mp4"]


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = [
        ([str(tmp_path / "nowhere")], "no such file or folder"),
        ([str(tmp_path / "empty")], "no video file and no folder of pictures"),
        ([str(tmp_path / "empty"), "--kind", "videos"], "kind: 'videos', allowed: auto, manifest"),
        ([str(tmp_path / "empty"), "--split", "train1"], "only with kind ucf101"),
        ([str(tmp_path / "empty"), "--json", str(tmp_path / "no" / "x.json")], "--json: no such folder"),
        ([str(tmp_path / "empty"), "--num-frames", "0"], "--num-frames"),
    ]
    for arguments, message in cases:
        assert main(["data", "check", *arguments]) == EXIT_USER_ERROR
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert len(cases) == 6


def test_real_broken_clips(shared_data):
    report = check_clips(find_clips(shared_data / "broken"), 16)
    expected = {
        "corrupted.mp4": "damaged",
        "png_named.mp4": "not a video",
        "result.webm": "damaged",
        "truncated_2k.avi": "damaged",
        "truncated_half.avi": "damaged",
        "woman.mp4": "not a video",
    }
    assert {verdict.path.rsplit("/", 1)[1]: verdict.verdict for verdict in report.verdicts} == expected
