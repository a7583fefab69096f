"""The training kit for lent minutes: its rehearsal, from nothing to clips, each stage on a machine that is empty."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
STAGES = ("autoencoder", "image", "content", "motion", "turbo-content", "turbo-content-matching", "clips")


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """`kit("image")` runs train.sh in an empty work folder."""
    monkeypatch.setenv("PYTHON", sys.executable)

    def run(stage: str, *options: str) -> subprocess.CompletedProcess:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        places = ["--home", tmp_path / "home", "-o", tmp_path / "home", "--work", tmp_path / "work"]
        command = [ROOT / "benchmarks/gpu/train.sh", stage, "5", "--rehearse", *places, *options]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_the_rehearsal_goes_from_nothing_to_clips(kit, tmp_path):
    for stage in STAGES:
        done = kit(stage)
        assert done.returncode == 0, done.stderr
        home = tmp_path / "home" / stage
        files = list(home.iterdir())
        assert len(files) <= 8
        assert max(file.stat().st_size for file in files) <= 16 * 2**20
        if stage != "clips":
            assert {"weights.json", "weights-00001.safetensors", "log.jsonl", "samples.png"} <= {
                file.name for file in files
            }
            assert json.loads((home / "weights.json").read_text())["step"] == 4
    assert Image.open(tmp_path / "home/clips/clips.png").size == (8 * 64, 4 * 64)  # two prompts, two models
    values = json.loads((tmp_path / "home/clips/adherence.json").read_text())["values"]
    assert set(values) == {"quality", "turbo"}


def test_a_stage_goes_on_where_it_came_home(kit, tmp_path):
    assert kit("image").returncode == 0
    home = tmp_path / "home" / "image"
    before = load_file(home / "weights-00001.safetensors")
    done = kit("image", "--set", "loop.steps=6")
    assert done.returncode == 0, done.stderr
    assert "image: goes on after step 4" in done.stdout
    assert json.loads((home / "weights.json").read_text())["step"] == 6
    after = load_file(home / "weights-00001.safetensors")
    assert before.keys() == after.keys()
    steps = [json.loads(line)["step"] for line in (home / "log.jsonl").read_text().splitlines()]
    assert min(steps) == 5


def test_what_comes_first_is_said(kit):
    done = kit("content")
    assert done.returncode == 1
    assert "autoencoder comes first: no weights in" in done.stderr
