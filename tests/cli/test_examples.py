"""The programs in examples/ do what their first lines say, on a tiny pipeline and clips made on the fly."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.data.video_file import write_video
from cmd_video.techniques import TECHNIQUES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """A program by name, as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def clips(tmp_path):
    """A folder with two classes of three clips, 8 frames of 32x32."""
    source = torch.Generator().manual_seed(0)
    for name in ("left", "right"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(6):
            frames = torch.randint(256, (16, 4, 4, 3), generator=source, dtype=torch.uint8)
            large = np.kron(frames.numpy(), np.ones((1, 8, 8, 1), np.uint8))
            write_video(large, tmp_path / "clips" / name / f"{number}.mp4", fps=8)
    return tmp_path / "clips"


def test_every_example_is_tried():
    tried = {"generate", "swap_solver", "train_on_folder", "measure_fvd", "add_technique"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tried


def test_generate(example, tiny_pipeline, tmp_path):
    example("generate").main(["a red circle", "-o", str(tmp_path / "a.mp4"), "--model", str(tiny_pipeline)])
    assert (tmp_path / "a.mp4").stat().st_size > 100


def test_swap_solver(example, tiny_pipeline, tmp_path):
    out = tmp_path / "solvers.png"
    asked = ["a red circle", "-o", str(out), "--model", str(tiny_pipeline), "--steps", "4"]
    example("swap_solver").main(asked)
    rows = np.split(np.asarray(Image.open(out)), 3)
    assert rows[0].shape == (16, 4 * 16, 3)
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_train_on_folder(example, clips, tmp_path):
    asked = [str(clips), "-o", str(tmp_path / "run"), "--steps", "2", "--frames", "4", "--size", "32"]
    run = example("train_on_folder").main(asked)
    assert (run / "autoencoder").is_dir()
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) >= 2


def test_measure_fvd(example, clips, tmp_path):
    out = tmp_path / "fvd.json"
    same = example("measure_fvd").main(
        [str(clips), str(clips), "--extractor", "pixels", "--size", "32", "32", "-o", str(out)]
    )
    assert same == pytest.approx(0, abs=1e-3)
    assert json.loads(out.read_text())["protocol"]["made"]["clips"] == 12


def test_add_technique(example, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(TECHNIQUES, "fading_guidance", None)  # so that it leaves again
    module = example("add_technique")
    for scale in ("1", "9"):
        out = tmp_path / f"{scale}.png"
        module.main(["a red circle", "-o", str(out), "--model", str(tiny_pipeline), "--scale", scale])
    pictures = [np.asarray(Image.open(tmp_path / f"{scale}.png")) for scale in ("1", "9")]
    assert not np.array_equal(*pictures)
    assert torch.equal(*(module.Settings(scale=1).combine({"all": x}, None) for x in [torch.ones(2)] * 2))
