"""Result files say how they were made."""

import json
import sys

import pytest

from cmd_video.evaluation.protocol.results import write_result


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
