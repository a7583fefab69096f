"""Measurements by `--shard i/n`: the result is that of one process, for every measure whose work can be shared."""

import json

import pytest

from cmd_video.sprites import adherence

MEASURES = {  # its command line, and in how many pieces its work comes
    "paired": (["evaluate", "paired", "{clips}", "{clips}", "--frames", "4"], 4),
    "reconstruction": (
        ["evaluate", "reconstruction", "--run", "{run}", "--config", "{config}", "--batch-size", "2"], 4,
    ),
    "calc": (
        [
            "evaluate", "calc", "{m}", "--reference", "{clips}", "--prompts", "{prompts}", "--frames", "4",
            "--steps", "1", "--extractor", "pixels", "--neighbours", "1", "--batch-size", "1",
        ], 2,
    ),
    "adherence": (
        [
            "sprites", "adherence", "--model", "{m}", "--num-scenes", "4", "--batch-size", "1", "--steps", "1",
            "--guidance", "1",
        ], 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
def test_shares_give_what_one_process_gives(measure, run, writing_places, tmp_path, monkeypatch):
    read = adherence.read_scene
    large = lambda video: read(video.repeat_interleave(2, 2).repeat_interleave(2, 3))  # noqa: E731
    monkeypatch.setattr(adherence, "read_scene", large)  # the tiny model's clips are too small to be read
    words, pieces = MEASURES[measure]
    order = [word.format(**writing_places) for word in words]
    code, _, error = run(*order, "-o", tmp_path / "alone.json")
    assert code == 0, error
    out = tmp_path / "shared.json"
    for number in range(2):
        code, said, error = run(*order, "-o", out, "--shard", f"{number}/2")
        assert code == 0 and f"share {number}/2 is done" in said, error
        assert not out.exists()
    assert f"{pieces} of {pieces} " in said.replace("\n", " ")
    code, _, error = run(*order, "-o", out)
    assert code == 0, error
    alone, shared = (json.loads((tmp_path / name).read_text()) for name in ("alone.json", "shared.json"))
    assert alone["values"] == shared["values"] and alone["protocol"] == shared["protocol"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "shared.json"]


def test_a_reference_by_shares(run, writing_places, tmp_path):
    order = ["evaluate", "reference", writing_places["clips"], "--frames", "4", "--extractor", "pixels", "-o"]
    assert run(*order, tmp_path / "alone")[0] == 0
    for number in range(2):  # all clips are in one chunk, the first share's
        code, said, _ = run(*order, tmp_path / "shared", "--shard", f"{number}/2")
        assert code == 0 and "1 of 1 chunks are there" in said
    assert not list(tmp_path.glob("shared.[js]*"))
    assert run(*order, tmp_path / "shared")[0] == 0
    files = [tmp_path / f"{name}.safetensors" for name in ("alone", "shared")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("measure", [*MEASURES, "importance", "clipsim"])
def test_a_share_that_is_none_is_told_first(measure, run, writing_places, tmp_path):
    others = {
        "importance": ["evaluate", "importance", "{config}"],
        "clipsim": ["evaluate", "clipsim", "{clips}"],
    }
    words = others.get(measure) or MEASURES[measure][0]
    order = [word.format(**writing_places) for word in words]
    code, _, error = run(*order, "-o", tmp_path / "out.json", "--shard", "2/2")
    assert code == 2 and "--shard: '2/2', allowed: i/n with 0 <= i < n" in " ".join(error.split())
    assert not list(tmp_path.iterdir())
