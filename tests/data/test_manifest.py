"""Every layout is listed in full and in order, and every mistake is one line that names the file."""

import json
import os

import pytest
from PIL import Image

from cmd_video.data.manifest import ClipRecord, class_prompt, load_manifest, paths_of


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_jsonl_and_csv_mean_the_same(tmp_path):
    touch(tmp_path, "clips/b.mp4", "clips/a10.mp4", "clips/a9.mp4")
    digest = "AB" * 32
    rows = [
        {"path": "clips/b.mp4", "caption": "  a red\n ball ", "label": "jump", "sha256": digest},
        {"path": "clips/a10.mp4", "caption": 'Ein Ball, über "Gras"', "label": "run", "sha256": ""},
        {"path": "clips/a9.mp4", "caption": "", "label": "", "sha256": ""},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    text = "path,caption,label,sha256\n"
    for row in rows:
        text += ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) + "\n"
    (tmp_path / "a.csv").write_text("\ufeff" + text, encoding="utf-8")
    expected = [
        ClipRecord(tmp_path / "clips/a9.mp4"),
        ClipRecord(tmp_path / "clips/a10.mp4", 'Ein Ball, über "Gras"', 1),
        ClipRecord(tmp_path / "clips/b.mp4", "a red ball", 0, digest.lower()),
    ]
    for name in ("a.jsonl", "a.csv"):
        manifest = load_manifest("manifest", tmp_path / name)
        assert manifest.records == expected and manifest.class_names == ["jump", "run"] and not manifest.missing


def test_other_column_names_and_number_labels(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    for columns in ("video,text,label", "file_name,prompt,class_label"):
        (tmp_path / "a.csv").write_text(f"{columns}\na.mp4,one,2\nb.mp4,two,0\n")
        manifest = load_manifest("manifest", tmp_path / "a.csv")
        assert [(r.prompt, r.class_label) for r in manifest.records] == [("one", 2), ("two", 0)]
        assert not manifest.class_names  # a number has no name, and none for those before it are made up


BAD = {
    "unknown column": ("a.csv", "path,titel\na.mp4,x\n", "line 2: unknown column 'titel', allowed: path, video"),
    "no path": ("a.csv", "caption\nx\n", "line 2: no path, columns are caption"),
    "twice": ("a.csv", "path,caption,text\na.mp4,x,y\n", "prompt is given twice"),
    "empty path": ("a.csv", "path,caption\n,x\n", "path is empty"),
    "too few columns": ("a.csv", "path,caption\na.mp4\n", "line 2 does not have the 2 columns"),
    "too many columns": ("a.csv", "path,caption\na.mp4,x,y\n", "line 2 does not have the 2 columns"),
    "absent clip": ("a.csv", "path\na.mp4\nc.mp4\n", "1 of 2 clips are not there, the first .*c.mp4"),
    "digest": ("a.csv", "path,sha256\na.mp4,abc\n", "sha256 is 'abc', must be 64"),
    "mixed labels": ("a.csv", "path,label\na.mp4,1\nb.mp4,run\n", "labels mix numbers and names"),
    "nothing": ("a.csv", "path,caption\n", "no clip of kind 'manifest'"),
    "not json": ("a.jsonl", '{"path": "a.mp4"}\n{"path"\n', "line 2 is not JSON"),
    "not an object": ("a.jsonl", "[1]\n", "line 1 is list, must be an object"),
    "number": ("a.jsonl", '{"path": 3}\n', "path is 3, must be text"),
    "suffix": ("a.tsv", "path\na.mp4\n", "suffix '.tsv', allowed: .jsonl, .csv"),
    "bytes": ("a.csv", b"path,caption\na.mp4,\xff\n", "not UTF-8 at byte 19"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_is_named(tmp_path, case):
    touch(tmp_path, "a.mp4", "b.mp4")
    name, text, message = BAD[case]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_manifest("manifest", tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["path", "prompt", "label"])
def test_half_an_emoji_is_named(tmp_path, column):
    touch(tmp_path, "a.mp4", "b.mp4")
    row = {"path": "b.mp4", "prompt": "fine", "label": "cat", column: "bad \ud83d end"}
    rows = [{"path": "a.mp4", "prompt": "one \U0001f600", "label": "cat"}, row]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"m.jsonl: line 2: \w+: no valid text at character 4: '?bad \\ud83d end"):
        load_manifest("manifest", tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "path,label,label\na.mp4,x,y\n"),
        ("m.csv", "path,label,path\na.mp4,x,b.mp4\n"),
        ("m.jsonl", '{"path": "a.mp4", "label": "x", "label": "y"}'),
    ],
)
def test_what_is_said_twice_is_refused(tmp_path, name, text):
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*'(label|path)' is there twice"):
        load_manifest("manifest", tmp_path / name)


def test_a_class_folder_must_have_a_name_in_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.mp4").touch()
    with pytest.raises(ValueError, match="the name of a class: no valid text at character 3"):
        load_manifest("class_folder", tmp_path)


def test_a_clip_that_is_listed_again(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [("a.mp4", "one", "x"), ("./a.mp4", "one", "x"), ("a.mp4", "another", "x"), ("b.mp4", "", "y")]
    (tmp_path / "m.csv").write_text("path,prompt,label\n" + "".join(",".join(row) + "\n" for row in rows))
    manifest = load_manifest("manifest", tmp_path / "m.csv")
    assert [(r.path.name, r.prompt) for r in manifest.records] == [
        ("a.mp4", "one"),
        ("a.mp4", "another"),
        ("b.mp4", ""),
    ]
    assert [reason for _, reason in manifest.left_out] == ["listed again with the same caption"]
    assert manifest.remarks()[-1] == f"1 of 3 clips have no caption, the first {tmp_path / 'b.mp4'}"
    assert paths_of(manifest) == [tmp_path / "a.mp4", tmp_path / "b.mp4"]  # one clip, however many captions
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x\na.mp4,y\n")
    with pytest.raises(ValueError, match="a.mp4 is listed with two classes or two digests"):
        load_manifest("manifest", tmp_path / "m.csv")


def test_captions_beside_clips(tmp_path):
    touch(tmp_path, "b/x2.MP4", "b/x10.avi", "a.webm", ".hidden/c.mp4", "notes.md")
    for name, caption in (("b/x2", "two\n"), ("b/x10", "ten"), ("a", "an  a")):
        (tmp_path / f"{name}.txt").write_text(caption)
    manifest = load_manifest("captioned_folder", tmp_path)
    assert [(r.path.name, r.prompt) for r in manifest.records] == [
        ("a.webm", "an a"),
        ("x2.MP4", "two"),
        ("x10.avi", "ten"),
    ]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="1 of 3 clips have no caption .txt beside them, as a.webm"):
        load_manifest("captioned_folder", tmp_path)


def test_folders_are_classes(tmp_path):
    touch(tmp_path, "RideBike/b.avi", "RideBike/deeper/a.avi", "apply_makeup/c.mp4")
    manifest = load_manifest("class_folder", tmp_path)
    assert manifest.class_names == ["RideBike", "apply_makeup"]
    found = [(r.path.name, r.class_label, r.prompt) for r in manifest.records]
    assert sorted(found) == [("a.avi", 0, "ride bike"), ("b.avi", 0, "ride bike"), ("c.mp4", 1, "apply makeup")]
    touch(tmp_path, "loose.mp4")
    with pytest.raises(ValueError, match="loose.mp4 lies in no class folder, 3 other clips do"):
        load_manifest("class_folder", tmp_path)
    assert class_prompt("YoYo") == "yo yo" and class_prompt("wave1") == "wave1"


def make_ucf(folder):
    names = [f"{c}/v_{c}_g{g:02d}_c01.avi" for c in ("ApplyEyeMakeup", "YoYo") for g in (1, 8)]
    touch(folder / "videos", *names)
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    (folder / "trainlist01.txt").write_text(f"{names[1]} 1\r\n{names[3]} 2\r\n")
    (folder / "testlist01.txt").write_text(f"{names[2]}\r\n{names[0]}\r\nYoYo/v_YoYo_g02_c01.avi\r\n")
    return names


def test_ucf101_splits(tmp_path):
    names = make_ucf(tmp_path)
    train = load_manifest("ucf101", tmp_path, video_root=tmp_path / "videos", split="train1")
    expected = [("apply eye makeup", 0), ("yo yo", 1)]
    assert [(r.prompt, r.class_label) for r in train.records] == expected and not train.missing
    test = load_manifest("ucf101", tmp_path, video_root=tmp_path / "videos", split="test1")
    assert [r.path for r in test.records] == [tmp_path / "videos" / name for name in (names[0], names[2])]
    assert [path.name for path in test.missing] == ["v_YoYo_g02_c01.avi"]
    assert test.class_names == ["ApplyEyeMakeup", "YoYo"]
    for split in (None, "train4", "val1", "train11"):
        with pytest.raises(ValueError, match="allowed: train1"):
            load_manifest("ucf101", tmp_path, split=split)
    with pytest.raises(FileNotFoundError) as missing:
        load_manifest("ucf101", tmp_path, split="train2")
    assert missing.value.filename.endswith("trainlist02.txt")
    with pytest.raises(ValueError, match="2 listed are not there, the first"):
        load_manifest("ucf101", tmp_path, split="train1")
    for line in ("Diving/v.avi 3", "YoYo/../../v.avi 2", "../YoYo/v.avi", "nothing"):
        (tmp_path / "trainlist01.txt").write_text(line)
        with pytest.raises(ValueError, match="trainlist01.txt: line 1 is"):
            load_manifest("ucf101", tmp_path, split="train1")


def test_webvid(tmp_path):
    touch(tmp_path / "videos", "000001_000050/21179416.mp4")
    header = "videoid,contentUrl,duration,page_dir,name\n"
    rows = '21179416,https://x/a.mp4,PT00H00M11S,000001_000050,"Aerial shot, winter forest"\n'
    rows += "5629184,https://x/b.mp4,PT00H00M29S,000001_000050,Senior couple\n"
    (tmp_path / "results.csv").write_text(header + rows)
    manifest = load_manifest("webvid", tmp_path / "results.csv", video_root=tmp_path / "videos")
    assert [r.prompt for r in manifest.records] == ["Aerial shot, winter forest"]
    assert [path.name for path in manifest.missing] == ["5629184.mp4"]
    with pytest.raises(ValueError, match="2 listed are not there"):
        load_manifest("webvid", tmp_path / "results.csv")
    (tmp_path / "results.csv").write_text(header + "x,u,d,../..,name\n")
    with pytest.raises(ValueError, match="line 2: .*x.mp4 does not lie below the video root"):
        load_manifest("webvid", tmp_path / "results.csv")
    (tmp_path / "results.csv").write_text("videoid,name\n1,x\n")
    with pytest.raises(ValueError, match="columns are videoid, name, must be videoid, contentUrl"):
        load_manifest("webvid", tmp_path / "results.csv")


def test_frame_folders(tmp_path):
    for name in ("flat/c2/0.png", "flat/c10/0.png", "classed/run/c1/0.jpg", "classed/WaveHand/c1/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    flat = load_manifest("frame_folders", tmp_path / "flat")
    assert [(r.path.name, r.class_label) for r in flat.records] == [("c2", -1), ("c10", -1)] and not flat.class_names
    classed = load_manifest("frame_folders", tmp_path / "classed")
    assert [r.prompt for r in classed.records] == ["run", "wave hand"] and classed.class_names == ["WaveHand", "run"]
    assert [r.class_label for r in classed.records] == [1, 0]
    assert load_manifest("frame_folders", tmp_path / "flat" / "c2").records == [ClipRecord(tmp_path / "flat" / "c2")]
    with pytest.raises(ValueError, match="c10 lies in no class folder|c2 lies in no class folder"):
        (tmp_path / "classed" / "run").rename(tmp_path / "flat" / "run")
        load_manifest("frame_folders", tmp_path / "flat")


def test_arguments_are_checked(tmp_path):
    touch(tmp_path, "a.csv")
    cases = [
        (("videos", tmp_path), {}, "kind: 'videos', allowed: manifest"),
        (("class_folder", tmp_path), {"split": "train1"}, "split: 'train1', not used"),
        (("manifest", tmp_path / "a.csv"), {"video_root": tmp_path}, "video_root: .* not used"),
        (("manifest", tmp_path), {}, "a folder, kind 'manifest' needs the other"),
        (("class_folder", tmp_path / "a.csv"), {}, "a file, kind 'class_folder' needs the other"),
        (("class_folder", tmp_path), {}, "no clip of kind 'class_folder'"),
    ]
    for arguments, keywords, message in cases:
        with pytest.raises(ValueError, match=message):
            load_manifest(*arguments, **keywords)
    with pytest.raises(FileNotFoundError):
        load_manifest("class_folder", tmp_path / "nowhere")
    assert len(cases) == 6


def test_real_folders(shared_data):
    ucf = load_manifest("class_folder", shared_data / "ucf101")
    assert ucf.class_names == ["CricketShot", "PlayingGuitar"] and len(ucf.records) >= 10
    frames = load_manifest("frame_folders", shared_data / "ucf101-frame-folders")
    assert frames.class_names == ["ApplyEyeMakeup"] and len(frames.records) == 4
