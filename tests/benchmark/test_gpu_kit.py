"""The kit for a few minutes of a GPU, rehearsed on a CPU: every step, every row, no package that is not there."""

import argparse
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu"
STEPS = ("numerics", "presets", "profiles", "peers", "training", "vdmini")
ABSENT = ("av", "webdataset", "tensorboard", "cv2", "typer", "peft", "torchmetrics", "matplotlib", "scipy")
PRESETS = {"turbo", "quality", "fast"}
BATCHES = (1, 2, 4, 8, 16)
ROWS = {
    "numerics": {"content", "motion", "autoencoder", "image decoder"},
    "presets": {
        "compiler",
        *(f"{preset}, {kind}" for preset in PRESETS for kind in ("eager", "compiled, graphs", "eager, batch 4")),
        *(f"turbo, {kind}" for kind in ("graphs", "compiled", "compiled, batch 4", "compiled, graphs, all compiled")),
        *(f"turbo, compiled, graphs, all compiled, {kind}" for kind in ("motion L", "batch 4")),
        *(f"turbo, eager, {kind}" for kind in ("motion L", "channels-last", "AutoencoderKL")),
        *(f"quality, eager, {kind}" for kind in ("channels-last", "AutoencoderTiny")),
        "fast, eager, AutoencoderKL",
    },
    "profiles": PRESETS,
    "peers": {"ltx-video-2b", "modelscope", "wan2.1-1.3b"},
    "training": {f"CMD {stage}, batch {n}" for stage in ("motion", "content", "autoencoder") for n in BATCHES},
    "vdmini": {"Stable Video Diffusion", "VideoCrafter2", "HunyuanVideo"},
}


@pytest.fixture
def environment(tmp_path):
    """As on a machine without the packages that the kit shall not need."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(hidden)}


@pytest.fixture(scope="module")
def kit():
    return runpy.run_path(str(KIT / "rows.py"))


def suite(environment, *arguments, **more):
    command = [str(KIT / "suite.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, **more}, cwd="/")


def rows_of(path):
    record = json.loads(path.read_text())
    assert record["values"]["not_run"] == [] and record["protocol"]["rehearsal"] is True
    rows = record["values"]["rows"]
    assert [row["failure"] for row in rows.values() if "failure" in row] == []
    return rows


@pytest.mark.slow
def test_the_rehearsal_writes_every_row(tmp_path, environment):
    out = tmp_path / "results"
    done = suite(environment, "--rehearse", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {f"{name}.json" for name in STEPS}
    found = {name: rows_of(out / f"{name}.json") for name in STEPS}
    assert {name: set(rows) for name, rows in found.items()} == ROWS
    presets = found["presets"]
    for name in ("turbo, eager", "turbo, compiled, graphs"):
        assert set(presets[name]["parts"]) == {"text encoder", "content", "motion", "autoencoder", "image decoder"}
        assert presets[name]["denoiser"] > 0 and 0 < presets[name]["end_to_end"] <= presets[name]["p95"]
    assert presets["turbo, compiled, graphs"]["compiled_graphs"] == 3  # the UNet, the first motion step and the others
    assert presets["quality, compiled, graphs"]["compiled_graphs"] == 1  # the guided UNet; motion is turbo's
    assert all(row["compiled_later"] == 0 for name, row in presets.items() if name.endswith("compiled, graphs"))
    for row in found["profiles"].values():
        assert row["kernels"] > len(row["top"]) == 25 and 0 <= row["idle_share"] < 1
        assert sum(part["share"] for part in row["parts"].values()) == pytest.approx(1)
    assert found["peers"]["modelscope"]["estimated_from_steps"] is True
    assert all(row["fits"] and row["samples_per_second"] > 0 for row in found["training"].values())
    assert found["vdmini"]["Stable Video Diffusion"]["end_to_end"]["1 step"]["times_as_fast"] > 0


def test_the_first_row_of_all(tmp_path, environment):
    path = tmp_path / "presets.json"
    command = [sys.executable, KIT / "presets.py", "--rehearse", "-o", path, "--rows", "turbo, eager"]
    paths = os.pathsep.join([environment["PYTHONPATH"], str(ROOT / "src")])
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "PYTHONPATH": paths}, cwd="/")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(path).values()
    assert row["end_to_end"] > 0 and row["sampling"] == "4+4 steps" and row["target_seconds"] == 0.1


def test_a_row_that_fails_is_written_and_the_next_one_is_tried(tmp_path, kit, capsys):
    def fail(error):
        raise error

    def run(seconds, *chosen):
        arguments = argparse.Namespace(
            output=tmp_path / "r.json", rehearse=True, device="cpu", seconds=seconds, rows=list(chosen) or None
        )
        row = kit["Row"]
        code = kit["Results"]("r", arguments, {}, ("seconds", "peak_bytes")).run([
            row("large", lambda: fail(torch.OutOfMemoryError("out of memory.\nand much more")), needs=1e6),
            row("wrong", lambda: fail(TypeError("no"))),
            row("right", lambda: {"seconds": 1.0, "peak_bytes": 2e9}),
        ])  # fmt: skip
        return code, json.loads((tmp_path / "r.json").read_text())["values"] if code != 2 else None

    code, values = run(math.inf)
    failures = {name: row.get("failure") for name, row in values["rows"].items()}
    assert code == 1 and failures == {"large": "out of memory.", "wrong": "TypeError: no", "right": None}
    assert "right: seconds 1, peak_bytes 2.00 G, row_seconds" in capsys.readouterr().out
    code, values = run(math.inf, "right")
    assert code == 0 and set(values["rows"]) == {"right"} and values["not_run"] == []
    code, values = run(0.0)
    assert code == 3 and values == {"rows": {}, "not_run": ["large", "wrong", "right"]}
    code, values = run(9e5, "large", "right")  # too short for the first, not for the other
    assert code == 3 and set(values["rows"]) == {"right"} and values["not_run"] == ["large"]
    assert run(math.inf, "left") == (2, None)
    assert "--rows: 'left' is none of large; wrong; right" in capsys.readouterr().err


def test_scripts_load_without_packages_that_they_do_not_need(environment):
    load = f"import runpy, sys; sys.path[0] = {str(KIT)!r}\n" + "".join(
        f"runpy.run_path({str(KIT / name)!r} + '.py', run_name='loaded')\n" for name in STEPS
    )
    paths = os.pathsep.join([environment["PYTHONPATH"], str(ROOT / "src")])
    command = [sys.executable, "-c", load + f"print(*[name for name in {ABSENT} if sys.modules[name]])"]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "PYTHONPATH": paths})
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr


def test_without_time_every_step_is_skipped(tmp_path, environment):
    done = suite(environment, "--rehearse", tmp_path / "results", SUITE_SECONDS="0")
    assert done.returncode == 3
    assert f"skipped, no time was left: {' '.join(STEPS)}" in done.stdout
    assert list((tmp_path / "results").iterdir()) == []


def test_a_step_that_fails_or_takes_too_long_stops_no_other(tmp_path, environment):
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\necho "ran $1"\n'
        'case "$1" in *numerics.py) exec sleep 60 ;; *presets.py) exit 1 ;; *profiles.py) exit 3 ;; esac\n'
    )
    python.chmod(0o755)
    done = suite(environment, "--rehearse", tmp_path / "results", PYTHON=str(python), SUITE_SECONDS="100")
    assert done.returncode == 1
    assert [name for name in STEPS if f"ran {KIT / name}.py" in done.stdout] == list(STEPS)
    assert "failed: presets\n" in done.stdout and "time was up during: numerics profiles\n" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("arguments", [("--rehears",), ("a", "b"), ("--rehearse", "-o", "x")])
def test_mistakes_are_told(arguments, environment):
    done = suite(environment, *arguments)
    assert done.returncode == 2 and "usage: benchmarks/gpu/suite.sh" in done.stderr
