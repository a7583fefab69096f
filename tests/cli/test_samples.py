"""`cmd-video evaluate generate`: files and manifest, going on, VBench's names, one-line mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

PROMPTS = "a red circle\n\na blue star moves up\n"


@pytest.fixture
def generate(run, tiny_pipeline, tmp_path):
    """`generate("out", "--num-samples", 2)`: the command on two prompts."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def call(output, *options):
        return run(
            "evaluate", "generate", tmp_path / "prompts.txt", "-o", tmp_path / output, "--model", tiny_pipeline,
            "--steps", 2, *options,
        )  # fmt: skip

    return call


def test_clips_have_seeds_of_their_own_and_batches_do_not_matter(generate, tmp_path):
    for output, batch in (("one", 1), ("many", 8)):
        code, _, error = generate(output, "--num-samples", 2, "--format", "png", "--batch-size", batch)
        assert code == 0, error
    rows = json.loads((tmp_path / "one" / "recipe.json").read_text())["clips"]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3] and rows[2]["prompt"] == "a blue star moves up"
    clips = {
        output: [
            np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / output / row["path"]).iterdir())])
            for row in rows
        ]
        for output in ("one", "many")
    }
    for one, many in zip(clips["one"], clips["many"], strict=True):
        assert one.shape == (4, 16, 16, 3) and np.abs(one.astype(int) - many).max() <= 1
    assert not np.array_equal(clips["one"][0], clips["one"][1])


def test_a_stopped_run_goes_on(generate, tmp_path):
    assert generate("out")[0] == 0
    kept, lost = sorted((tmp_path / "out").glob("*.mp4"))
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert generate("out")[0] == 0
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == stamp
    code, _, error = generate("out", "--guidance", 3)
    assert code == 2 and "holds clips of another command" in error


def test_what_was_generated_can_be_measured(generate, run, tmp_path):
    generate("out", "--num-samples", 4)
    options = ("--reference", tmp_path / "out", "--extractor", "pixels", "--frames", 4, "-o", tmp_path / "d.json")
    code, _, error = run("evaluate", "calc", tmp_path / "out" / "prompts.jsonl", *options)
    assert code == 0, error
    assert json.loads((tmp_path / "d.json").read_text())["protocol"]["made"]["clips"] == 8


def test_vbench_finds_its_file_names(generate, tmp_path):
    code, _, error = generate("bench", "--layout", "vbench", "--num-samples", 2)
    assert code == 0, error
    names = sorted(path.name for path in (tmp_path / "bench" / "videos").iterdir())
    assert names == [f"{prompt}-{n}.mp4" for prompt in ("a blue star moves up", "a red circle") for n in (0, 1)]
    script = (tmp_path / "bench" / "run_vbench.sh").read_text()
    assert "venv" in script and "--videos_path" in script


def test_mistakes(generate, run, tiny_pipeline, tmp_path):
    for options, message in (
        (("--layout", "flat"), "--layout: 'flat' is none of clips, vbench"),
        (("--format", "gif"), "--format: 'gif' is none of mp4, png"),
        (("--layout", "vbench", "--format", "png"), "--format: VBench reads mp4"),
        (("--preset", "slow"), "slow"),
    ):
        code, _, error = generate("out", *options)
        assert code == 2 and message in error.strip().splitlines()[-1]
        assert not (tmp_path / "out").exists()
    (tmp_path / "prompts.txt").write_text("a cat/dog\n")
    code, _, error = generate("out", "--layout", "vbench")
    assert code == 2 and "'a cat/dog' can be no file name" in error and not (tmp_path / "out" / "videos").exists()
    (tmp_path / "prompts.txt").write_text("\n")
    code, _, error = generate("new")
    assert code == 2 and "holds no prompt" in error
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    code, _, error = generate("full")
    assert code == 2 and "is not empty" in error
