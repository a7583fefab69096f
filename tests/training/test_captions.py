"""Captions that a text encoder is too short for are counted before a run, and by `data check`."""

import json

import numpy as np
import pytest
import yaml

from cmd_video.cli import main
from cmd_video.data.video_file import write_video

CAPTIONS = ["a red circle", "a red circle and then " * 40, "two words", "on and on " * 60]


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "clips").mkdir()
    rows = []
    for number, caption in enumerate(CAPTIONS):
        write_video(np.full((4, 16, 16, 3), 50 * number, np.uint8), tmp_path / "clips" / f"{number}.mp4", 8)
        (tmp_path / "clips" / f"{number}.txt").write_text(caption)
        rows.append(json.dumps({"path": f"{number}.mp4", "caption": caption}))
    (tmp_path / "clips" / "m.jsonl").write_text("\n".join(rows))
    return tmp_path / "clips"


@pytest.mark.parametrize("kind", ["captioned_folder", "manifest"])
def test_a_run_says_how_many_captions_it_cuts(tiny_config, run_train, read_log, caplog, clips, tmp_path, kind):
    path = clips / "m.jsonl" if kind == "manifest" else clips
    data = {"kind": kind, "path": str(path), "height": 16, "width": 16, "num_frames": 1}
    config = tiny_config(
        "image", tmp_path / "run", data=data, validation__data={**data, "train": False}, loop__steps=1
    )
    run_train(config)
    lines = [line["text"] for line in read_log(tmp_path / "run", "remark")]
    assert len(lines) == 2 and set(lines) <= {record.message for record in caplog.records}
    assert lines[0].startswith(
        "data: 2 of 4 captions are longer than the 12 tokens of tokenizer and are cut, such as 'a "
    )
    assert lines[1].startswith("validation.data: 2 of 4 captions") and ", which loses '" in lines[0]


def test_a_run_that_cuts_nothing_says_nothing(tiny_config, run_train, read_log, clips, tmp_path):
    for number in (1, 3):
        (clips / f"{number}.txt").write_text("short")
    data = {"kind": "captioned_folder", "path": str(clips), "height": 16, "width": 16, "num_frames": 1}
    run_train(
        tiny_config("image", tmp_path / "run", data=data, validation__data={**data, "train": False}, loop__steps=1)
    )
    assert read_log(tmp_path / "run", "remark") == []


def test_what_a_set_leaves_out_stands_in_the_log(tiny_config, run_train, read_log, clips, tmp_path):
    (clips / "left.xyz").touch()
    data = {"kind": "captioned_folder", "path": str(clips), "height": 16, "width": 16, "num_frames": 4}
    run_train(tiny_config("autoencoder", tmp_path / "run", data=data, validation__data=data, loop__steps=1))
    lines = [line["text"] for line in read_log(tmp_path / "run", "remark")]
    assert [line.split(",")[0] for line in lines] == ["data: 1 left out", "validation.data: 1 left out"]


def test_data_check_of_a_recipe_reads_it_as_training_does(tiny_config, clips, tmp_path, capsys):
    data = {"kind": "captioned_folder", "path": str(clips), "height": 16, "width": 16, "num_frames": 2, "stride": 2}
    config = tiny_config("image", tmp_path / "run", data=data, validation__data={**data, "num_frames": 5})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config))
    report = tmp_path / "report.json"
    assert main(["data", "check", str(recipe), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "data: 2 of 4 captions are longer than the 12 tokens of tokenizer" in out
    assert json.loads(report.read_text())["counts"] == {"ok": 4, "too short": 4}  # 2 frames fit, 5 do not
    assert main(["data", "check", str(recipe), "--kind", "manifest", "--split", "train1"]) == 2
    assert "--kind, --split: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_check_with_a_tokenizer(tiny_config, run_train, clips, tmp_path, capsys):
    data = {"kind": "captioned_folder", "path": str(clips), "height": 16, "width": 16, "num_frames": 1}
    folder = run_train(tiny_config("image", tmp_path / "run", data=data, validation__data=data, loop__steps=1))
    asked = ["data", "check", "--num-frames", "4", "--tokenizer", str(folder)]
    assert main([*asked, str(clips / "m.jsonl")]) == 0
    assert "2 of 4 captions are longer than the 12 tokens" in capsys.readouterr().out
    assert main([*asked, str(clips)]) == 2
    assert "--tokenizer: " in capsys.readouterr().err
    assert main(["data", "check", "--num-frames", "4", str(clips / "m.jsonl")]) == 0
    assert "captions" not in capsys.readouterr().out
