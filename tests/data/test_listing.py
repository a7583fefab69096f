"""Everything below a folder is a clip or is named with the reason why not, the same wherever clips are listed."""

import json
import os
import shutil

import av
import pytest
from PIL import Image

from cmd_video.cli import main
from cmd_video.data.check import check_clip, find_clips
from cmd_video.data.datasets import open_video_dataset
from cmd_video.data.listing import MAIN_SUFFIXES, VIDEO_SUFFIXES, look_through
from cmd_video.data.manifest import list_clips, load_manifest
from cmd_video.data.video_file import write_video
from cmd_video.evaluation.protocol.clips import FolderClips, Reading


def picture(path, animated=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (8, 8), (20 * n, 0, 0)) for n in range(5)]
    frames[0].save(path, **({"save_all": True, "append_images": frames[1:]} if animated else {}))


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


# what lies beside the one clip a/x.mp4: what makes it, the path that is named, words of the reason
BESIDE = {
    "gif of it": (lambda f: shutil.copy(f / "a/x.mp4", f / "a/x.gif"), "a/x.gif", "another rendering"),
    "webm of it": (lambda f: shutil.copy(f / "a/x.mp4", f / "a/x.webm"), "a/x.webm", "another rendering"),
    "webp of it": (lambda f: picture(f / "a/x.webp", animated=True), "a/x.webp", "another rendering"),
    "still webp": (lambda f: picture(f / "a/cover.webp"), "a/cover.webp", "a still picture"),
    "unknown suffix": (lambda f: (f / "a/y.xyz").touch(), "a/y.xyz", "'.xyz'"),
    "no suffix": (lambda f: (f / "a/y").touch(), "a/y", "without a suffix"),
    "cover picture": (lambda f: picture(f / "a/cover.png"), "a", "pictures beside videos"),
    "link to the folder itself": (lambda f: link(f / "a/again", "."), "a/again", "a link to a folder"),
    "link to a folder above": (lambda f: link(f / "a/again", f.parent), "a/again", "a link to a folder"),
    "second link": (lambda f: link(f / "b", f / "a"), "b", "a link to a folder"),
    "pipe": (lambda f: os.mkfifo(f / "a/y.mp4"), "a/y.mp4", "no regular file"),
}


@pytest.fixture
def folder(tmp_path, ramp):
    (tmp_path / "set" / "a").mkdir(parents=True)
    write_video(ramp(5, 16, 16), tmp_path / "set" / "a" / "x.mp4", 8)
    return tmp_path / "set"


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_clip_is_named_everywhere_alike(folder, name, caplog, capsys):
    make, path, words = BESIDE[name]
    make(folder)
    manifest = list_clips(folder)
    assert [record.path for record in manifest.records] == [folder / "a" / "x.mp4"]
    ((left, reason),) = manifest.left_out
    assert left == folder / path and words in reason
    assert load_manifest("class_folder", folder).left_out[:1] == manifest.left_out

    dataset = open_video_dataset("class_folder", folder, num_frames=4, height=16, width=16)
    clips = FolderClips(folder, Reading(4))
    assert len(dataset) == len(clips) == 1 and clips.recipe["left_out"] == {reason: 1}
    assert dataset.left_out[reason] == 1
    assert [record.message for record in caplog.records].count(
        f"{folder}: 1 left out, {reason}, the first {left}"
    ) == 2

    report = folder.parent / "report.json"
    assert main(["data", "check", str(folder), "--num-frames", "4", "--json", str(report)]) == 0
    assert f"left out: {left}: {reason}" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert (written["total"], written["counts"]) == (1, {"ok": 1})
    assert written["left_out"] == [{"path": str(left), "reason": reason}]


def test_a_clip_with_several_captions_is_one_clip(folder, tmp_path):
    from cmd_video.studies.clips import dataset_clips
    from cmd_video.training.config import VideoData

    rows = [{"path": "set/a/x.mp4", "prompt": text} for text in ("one", "two")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = VideoData(kind="manifest", path=str(tmp_path / "m.jsonl"), num_frames=4, height=16, width=16)
    assert len(data.open()) == 2 and len(find_clips(tmp_path / "m.jsonl")) == 1
    assert len(FolderClips(tmp_path / "m.jsonl", Reading(4))) == len(dataset_clips(data, "", Reading(4))) == 1


def test_nothing_is_said_where_all_is_used(folder, caplog):
    (folder / "a" / "x.txt").write_text("a clip")
    (folder / "a" / "x.json").write_text("{}")
    assert not list_clips(folder).left_out and "left_out" not in FolderClips(folder, Reading(4)).recipe
    assert not load_manifest("captioned_folder", folder).left_out and not caplog.records


def test_what_generate_writes_is_one_clip_each(tmp_path, ramp):
    for number in range(3):
        for suffix in (".mp4", ".gif"):
            write_video(ramp(5, 16, 16), tmp_path / f"{number}{suffix}", 8)
    assert find_clips(tmp_path) == [tmp_path / f"{number}.mp4" for number in range(3)]
    (tmp_path / "1.mp4").unlink()
    assert [path.name for path in find_clips(tmp_path)] == ["0.mp4", "1.gif", "2.mp4"]
    (tmp_path / "2.MOV").touch()  # no rendering that is written beside another
    assert len(find_clips(tmp_path)) == 4


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_is_found(tmp_path, suffix):
    path = tmp_path / f"clip{suffix.upper()}"
    picture(path, animated=True) if suffix == ".webp" else path.touch()
    assert look_through(tmp_path).videos == [path]


MUXERS = {
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".flv": "flv",
    ".wmv": "asf",
    ".3gp": "3gp",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
}


@pytest.mark.parametrize("suffix", MUXERS)
def test_suffixes_of_containers_are_read(tmp_path, ramp, suffix):
    codec = {"asf": "wmv2", "mpeg": "mpeg2video", "flv": "flv", "3gp": "mpeg4"}.get(MUXERS[suffix], "libx264")
    with av.open(str(tmp_path / f"a{suffix}"), "w", format=MUXERS[suffix]) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in ramp(12, 32, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert suffix in MAIN_SUFFIXES
    (clip,) = find_clips(tmp_path)
    assert check_clip(clip, 8).verdict in ("ok", "odd")


def test_linked_folders_are_entered_once(tmp_path):
    for name in ("store/cat/1.mp4", "store/cat/deep/2.mp4", "store/dog/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    link(tmp_path / "set/cat", tmp_path / "store/cat")
    shutil.copytree(tmp_path / "store/dog", tmp_path / "set/dog")
    link(tmp_path / "set/dog/gone.mp4", tmp_path / "nowhere.mp4")
    link(tmp_path / "set/dog/4.mp4", tmp_path / "store/dog/3.mp4")
    link(tmp_path / "set/bird", tmp_path / "nowhere")
    link(tmp_path / "set/ring", tmp_path / "set/ring")
    link(tmp_path / "store/cat/deep/up", tmp_path / "store")
    manifest = load_manifest("class_folder", tmp_path / "set")
    assert manifest.class_names == ["cat", "dog"]
    paths = [record.path.relative_to(tmp_path / "set").as_posix() for record in manifest.records]
    assert sorted(paths) == ["cat/1.mp4", "cat/deep/2.mp4", "dog/3.mp4", "dog/4.mp4"]
    assert manifest.missing == [tmp_path / "set/bird", tmp_path / "set/dog/gone.mp4", tmp_path / "set/ring"]
    assert [path for path, reason in manifest.left_out if "a link" in reason] == [tmp_path / "set/cat/deep/up"]
    assert "3 listed are not there, the first" in manifest.remarks()[0]
    link(tmp_path / "top", tmp_path / "set")
    assert len(find_clips(tmp_path / "top")) == 7  # those that are missing get a verdict, too
    assert check_clip(tmp_path / "set/bird", 4).verdict == check_clip(tmp_path / "set/dog/gone.mp4", 4).verdict
    assert check_clip(tmp_path / "set/bird", 4).verdict == "missing"


@pytest.mark.parametrize("kind", ["captioned_folder", "class_folder", "frame_folders"])
def test_each_kind_names_what_belongs_to_another(tmp_path, kind):
    for name in ("c/1.mp4", "c/lonely.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "1.txt").touch()
    picture(tmp_path / "d/frames/0.png")
    left_out = load_manifest(kind, tmp_path).left_out
    expected = {
        "captioned_folder": {("frames", "a folder of pictures, not a video"), ("lonely.txt", "a text without a clip")},
        "class_folder": {("frames", "a folder of pictures, not a video"), ("d", "a class without a clip")},
        "frame_folders": {("1.mp4", "a video, not a folder of pictures"), ("c", "a class without a clip")},
    }
    assert {(path.name, reason) for path, reason in left_out} == expected[kind]


def test_where_nothing_is_a_clip_the_message_says_what_is_there(tmp_path):
    (tmp_path / "a.xyz").touch()
    for kind in ("auto", "class_folder", "captioned_folder"):
        with pytest.raises(ValueError, match="1 left out, no video by its suffix '.xyz', the first .*a.xyz"):
            list_clips(tmp_path, kind)
