"""Result files say how they were made."""

import json
import sys

import pytest
import torch

from cmd_video.evaluation.protocol.results import write_result
from cmd_video.evaluation.protocol.tables import FeatureTable


@pytest.mark.parametrize(
    ("script", "arguments", "command"),
    [
        ("/x/benchmarks/rows.py", ["--row", "video UNet", "run"], "python benchmarks/rows.py --row 'video UNet' run"),
        ("/x/bin/cmd-video", ["sprites", "adherence"], "cmd-video sprites adherence"),
        ("/x/cmd_video/cli/__main__.py", [], "cmd-video"),
    ],
)
def test_the_command_can_be_given_again(script, arguments, command, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    write_result(tmp_path / "result.json", "name", {"value": 1}, {"clips": 2})
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["command"] == command
    assert record["values"] == {"value": 1} and record["protocol"] == {"clips": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("writes", ["result", "table"])
@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("{out}/secret/clips", ".../clips"),
        ("{out}/here/clips/", "clips"),
        ("--reference={out}/secret/a b.json", "'--reference=.../a b.json'"),
        ("videomae:{out}/secret/vit", "videomae:.../vit"),
        ("components.vae={{path: {out}/secret/vae, x: 1}}", "'components.vae={{path: .../vae, x: 1}}'"),
        ("clips/a.mp4", "clips/a.mp4"),
        ("../clips", "../clips"),
        ("loop.steps=3", "loop.steps=3"),
        ("http://x.org/a", "http://x.org/a"),
        ("either/or", "either/or"),
    ],
)
def test_no_file_names_a_place_of_the_machine(argument, shown, writes, monkeypatch, tmp_path):
    """Neither the command nor what the protocol says of where things lay; a prompt may begin as it likes."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["/x/bin/cmd-video", "evaluate", argument.format(out=tmp_path)])
    place = str(tmp_path / "secret" / "clips")
    protocol = {"source": place, "data": {"path": place}, "of": [{"model": place}], "prompt": "/imagine", "clips": 1}
    if writes == "result":
        write_result(tmp_path / "a.json", "name", {}, protocol)
        record = found = json.loads((tmp_path / "a.json").read_text())
    else:
        FeatureTable(torch.zeros(1, 2), torch.zeros(1), protocol).save(tmp_path / "a")
        record = json.loads((tmp_path / "a.json").read_text())
        found = record["made_by"]
    assert found["command"] == f"cmd-video evaluate {shown.format()}"
    assert str(tmp_path) not in json.dumps(record) and record["protocol"]["source"] == ".../clips"
    assert record["protocol"]["data"] == {"path": ".../clips"} and record["protocol"]["prompt"] == "/imagine"
