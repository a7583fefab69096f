"""Outputs that cannot be written are told before the work: no command gets as far as its model, run or data."""

import os

import pytest

from cmd_video.cli import main

FILE_VERBS = {  # what a command writes a file to
    "generate": ["generate", "a red ball", "-o", "{}.mp4"],
    "reconstruct": ["reconstruct", "clip.mp4", "-o", "{}.mp4"],
    "edit": ["edit", "clip.mp4", "a", "-o", "{}.mp4"],
    "edit --keep": ["edit", "clip.mp4", "--keep", "{}.png"],
    "restore": ["restore", "clip.mp4", "--task", "superres", "-o", "{}.mp4"],
    "adherence": ["sprites", "adherence", "-o", "{}.json"],
    "data check": ["data", "check", "clips", "--json", "{}.json"],
    "data index": ["data", "index", "clips", "-o", "{}.parquet"],
    "reference": ["evaluate", "reference", "clips", "-o", "{}.json"],
    "benchmark": ["benchmark", "default", "--json", "{}.json"],
    "benchmark --plot": ["benchmark", "default", "--plot", "{}.png"],
    "importance --plot": ["evaluate", "importance", "default", "-o", "i.json", "--plot", "{}.png"],
    "calc": ["evaluate", "calc", "clips", "clips", "-o", "{}.json"],
}
FOLDER_VERBS = {  # or a folder
    "generate": ["generate", "a red ball", "a blue square", "-o", "{}"],
    "merge": ["merge", "default", "default", "--scale", "0.5", "-o", "{}"],
    "export": ["export", "run", "-o", "{}"],
    "prune": ["prune", "default", "--rule", "vdmini", "-o", "{}"],
    "encode": ["data", "encode", "run", "-o", "{}"],
    "data import": ["data", "import", "afile", "-o", "{}"],
    "sprites make": ["sprites", "make", "--num-clips", "1", "-o", "{}"],
    "samples": ["evaluate", "generate", "prompts.txt", "-o", "{}"],
}


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """Models cannot be loaded here: who tries has begun too early."""
    monkeypatch.chdir(tmp_path)
    early = lambda *_, **__: pytest.fail("the model was loaded first")  # noqa: E731
    monkeypatch.setattr("cmd_video.pipelines.pipeline_cmd.CMDPipeline.from_pretrained", early)
    (tmp_path / "afile").write_text("x")
    (tmp_path / "prompts.txt").write_text("a red ball")
    for name in ("clips", "run"):
        (tmp_path / name).mkdir()
    return tmp_path


def refused(arguments, capsys, *words):
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, lines
    assert any(word in lines[0] for word in words), lines
    return lines[0]


def at(arguments, place):
    return [argument.format(place) if "{}" in argument else argument for argument in arguments]


@pytest.mark.parametrize("verb", FILE_VERBS)
@pytest.mark.parametrize("place", ["afile/out", "folder", "a" * 300])
def test_a_file_that_cannot_be_written_is_told_first(no_work, capsys, verb, place):
    arguments = at(FILE_VERBS[verb], place)
    if place == "folder":
        (no_work / next(each for each in arguments if each.startswith("folder"))).mkdir()
    refused(arguments, capsys, "nothing can be written", "is a folder", "File name too long")


@pytest.mark.parametrize("verb", FOLDER_VERBS)
@pytest.mark.parametrize("place", ["afile", "afile/out", "a" * 300])
def test_a_folder_that_cannot_be_written_is_told_first(no_work, capsys, verb, place):
    refused(at(FOLDER_VERBS[verb], place), capsys, "nothing can be written", "is a file", "File name too long")


@pytest.mark.parametrize("verb", ["merge", "export", "prune"])
def test_a_folder_that_holds_something_is_told_first(no_work, capsys, verb):
    (no_work / "there").mkdir()
    (no_work / "there" / "x").write_text("x")
    assert "exists" in refused(at(FOLDER_VERBS[verb], "there"), capsys, "there")


@pytest.mark.parametrize("verb", ["generate", "reconstruct", "restore"])
def test_the_record_beside_a_clip_counts_too(no_work, capsys, verb):
    (no_work / "out.json").mkdir()
    assert "out.json" in refused(at(FILE_VERBS[verb], "out"), capsys, "is a folder")


@pytest.mark.parametrize("name", ["contact_sheet.png", "01-a-blue-square.gif", "00-a-red-ball.json"])
def test_each_of_several_files_of_a_folder_counts(no_work, capsys, name):
    (no_work / "out" / name).mkdir(parents=True)
    assert name in refused([*at(FOLDER_VERBS["generate"], "out"), "--contact-sheet"], capsys, "is a folder")


def test_a_device_is_never_written_over(no_work, capsys):
    refused(["sprites", "adherence", "-o", "/dev/null"], capsys, "is no file")
    assert not os.path.isfile("/dev/null")


MISTAKES = [
    (["generate", "a", "--device", "meta"], "meta"),
    (["generate", "a", "--steps", "0"], "--steps"),
    (["generate", "a \udcff"], "no valid text"),
    (["generate", "a", "--negative-prompt", "\udcff"], "no valid text"),
    (["generate", "a", "--height", "100000000", "--width", "1000000"], "--height"),
    (["generate", "a", "--num-frames", "4000000000"], "--num-frames"),
    (["generate", "a", "--motion-steps", "0"], "--motion-steps"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), MISTAKES, ids=lambda each: str(each)[:40].encode("ascii", "replace").decode()
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "-o", "out.mp4"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_what_the_memory_cannot_hold_is_one_line(monkeypatch, capsys, tmp_path, error):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cmd_video.pipelines.pipeline_cmd.CMDPipeline.__call__", fail)
    assert main(["generate", "a", "-o", "out.mp4"]) == 2
    assert "error: not enough memory" in capsys.readouterr().err
