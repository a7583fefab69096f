"""A class is its name: numbers follow from names alike everywhere, and a mirror turns directions round."""

import json

import numpy as np
import pytest

from cmd_video.data.classes import mirror_classes, name_classes, translate
from cmd_video.data.datasets import VideoDataset, open_video_dataset
from cmd_video.data.directions import in_mirror
from cmd_video.data.manifest import ClipRecord, load_manifest
from cmd_video.data.video_file import write_video

LABELS = {  # what stands in a manifest -> numbers, names
    "numbers": (["2", "0", "10"], [2, 0, 10], []),
    "words": (["run", "jump", "run"], [1, 0, 1], ["jump", "run"]),
    "leading zeros": (["00", "02", "01"], [0, 2, 1], ["00", "01", "02"]),
    "zeros and words": (["01", "cat"], [0, 1], ["01", "cat"]),
    "as pandas writes numbers": (["0.0", "10.0", "2.0"], [0, 2, 1], ["0.0", "2.0", "10.0"]),
    "some without zeros": (["08", "9", "10"], [0, 1, 2], ["08", "9", "10"]),
    "full-width digits": (["１", "０"], [1, 0], ["０", "１"]),
    "spaces": ([" cat", "cat "], [0, 0], ["cat"]),
    "two ways of é": (["caf\u00e9", "cafe\u0301"], [0, 0], ["caf\u00e9"]),
    "none beside some": (["cat", "", "dog"], [0, -1, 1], ["cat", "dog"]),
}
REFUSED = {
    "a number in two ways": (["01", "1"], "'01' and '1' write one number in two ways"),
    "a number and a fraction": (["1", "1.0"], "write one number in two ways"),
    "one digit in two widths": (["1", "１"], "write one number in two ways"),
    "numbers and words": (["1", "cat"], "labels mix numbers and names: 1, cat"),
    "less than none": (["-1", "0"], "label -1: numbers of classes are 0 or more"),
    "a date": (["20261127"], "label 20261127 among 1 clips is an identifier"),
    "a large identifier": (["0", str(10**9)], "label 1000000000 among 2 clips is an identifier"),
    "far more digits than a number has": (["9" * 5000], "is an identifier"),
}


def write_manifest(folder, labels, suffix):
    for number in range(len(labels)):
        (folder / f"{number}.mp4").touch()
    if suffix == ".csv":
        text = "path,label\n" + "".join(f"{number}.mp4,{label}\n" for number, label in enumerate(labels))
    else:
        text = "".join(json.dumps({"path": f"{n}.mp4", "label": label}) + "\n" for n, label in enumerate(labels))
    (folder / f"m{suffix}").write_text(text, encoding="utf-8")
    return folder / f"m{suffix}"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", LABELS)
def test_labels_have_one_numbering(tmp_path, name, suffix):
    labels, numbers, names = LABELS[name]
    manifest = load_manifest("manifest", write_manifest(tmp_path, labels, suffix))
    assert [record.class_label for record in manifest.records] == numbers and manifest.class_names == names


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_no_classes_are_refused(tmp_path, name, suffix):
    labels, message = REFUSED[name]
    path = write_manifest(tmp_path, labels, suffix)
    with pytest.raises(ValueError, match=message) as error:
        load_manifest("manifest", path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_numbers_of_json_are_labels_too(tmp_path):
    manifest = load_manifest("manifest", write_manifest(tmp_path, [3, 0, None], ".jsonl"))
    assert [record.class_label for record in manifest.records] == [3, 0, -1]


def test_many_clips_may_have_many_classes():
    labels = [str(number) for number in range(12_000)]
    assert name_classes(labels)[1]["11999"] == 11_999
    with pytest.raises(ValueError, match="label 12000 among 12000 clips"):
        name_classes([*labels[:-1], "12000"])


@pytest.mark.parametrize(
    ("own", "known", "expected"),
    [
        (["b", "d"], ["a", "b", "c", "d"], {0: 1, 1: 3}),
        (["b", "a"], ["a", "b"], {0: 1, 1: 0}),
        ([], [], {0: 0, 1: 1}),
        ([], ["1", "0"], {0: 1, 1: 0}),  # numbers where names are known: by what they are called
        (["1", "0"], [], {0: 1, 1: 0}),
        (["cafe\u0301", "x"], ["x", "caf\u00e9"], {0: 1, 1: 0}),
    ],
)
def test_numbers_are_translated_by_name(own, known, expected):
    from cmd_video.data.classes import class_name

    own = [class_name(name) for name in own]
    assert translate(own, known, [0, 1, 1, -1], "validation.data") == expected


@pytest.mark.parametrize(
    ("own", "known", "message"),
    [
        (["b", "zebra"], ["a", "b"], "validation.data: class 'zebra' is none of a, b"),
        ([], ["a", "b"], "class '0' is none of a, b"),
        (["cat", "dog"], [], "class 'cat' has a name, the classes that are known are numbers"),
        (["jumps", "b"], ["jump", "b"], "did you mean 'jump'"),
    ],
)
def test_a_class_that_is_not_known_is_refused(own, known, message):
    with pytest.raises(ValueError, match=message):
        translate(own, known, [0, 1], "validation.data")


MIRRORED = {
    "a square moves to the right": "a square moves to the left",
    "Left, then RIGHT; right-hand": "Right, then LEFT; left-hand",
    "leftwards, rightmost and lefthanded": "rightwards, leftmost and righthanded",
    "from left to right": "from right to left",
    "a bright, upright fright; copyright, leftover": "a bright, upright fright; copyright, leftover",
    "turns clockwise": "turns counterclockwise",
    "Anti-clockwise or counterclockwise": "Clockwise or clockwise",
    "move_left": "move_right",
    "MoveLeft": "MoveRight",
    "leftTurn": "rightTurn",
    "TURN_LEFT_2": "TURN_RIGHT_2",
    "right": "left",
    "ein Ball rollt nach links": "ein Ball rollt nach links",
    "": "",
}


@pytest.mark.parametrize("text", MIRRORED)
def test_directions_in_a_mirror(text):
    assert in_mirror(text) == MIRRORED[text]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["move_left", "move_right", "wave"], {0: 1, 1: 0}),
        (["TurnRight", "Wave", "TurnLeft"], {0: 2, 2: 0}),
        (["clockwise", "anti_clockwise"], {0: 1, 1: 0}),
        (["left_to_right", "right_to_left"], {0: 1, 1: 0}),
        (["bright", "wave"], {}),
    ],
)
def test_classes_in_a_mirror(names, expected):
    assert mirror_classes(names) == expected


def test_a_class_without_a_mirrored_one_is_refused():
    with pytest.raises(ValueError, match="flip: class 'move_left' is 'move_right' in a mirror, and there is no such"):
        VideoDataset(
            [ClipRecord("a.mp4")], num_frames=4, height=8, width=8, flip=True, class_names=["move_left", "wave"]
        )


@pytest.mark.parametrize("kind", ["captioned_folder", "class_folder", "manifest"])
def test_a_mirrored_clip_says_where_it_goes(tmp_path, kind):
    frames = np.full((8, 32, 32, 3), 60, np.uint8)
    for moment in range(8):
        frames[moment, 12:20, 1 + 3 * moment : 7 + 3 * moment] = 230
    rows = []
    for name, clip in (("go_left", frames[::-1]), ("go_right", frames)):
        (tmp_path / name).mkdir()
        write_video(clip, tmp_path / name / "x.mp4", 8)
        (tmp_path / name / "x.txt").write_text(f"it moves to the {name[3:]}")
        rows.append(json.dumps({"path": f"{name}/x.mp4", "prompt": f"Off to the {name[3:]}!", "label": name}))
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    path = tmp_path / "m.jsonl" if kind == "manifest" else tmp_path
    dataset = open_video_dataset(kind, path, num_frames=8, height=32, width=32, flip=True)
    ways = set()
    for number in range(24):
        item = dataset[number]
        bright = item["video"][0].amax(dim=1).argmax(dim=1)  # column of the square in each frame
        way = "right" if bright[-1] > bright[0] else "left"
        assert way in item["prompt"]
        if kind != "captioned_folder":
            assert dataset.class_names[item["class_label"]] == f"go_{way}"
        ways.add(way)
    assert len(ways) == 2
