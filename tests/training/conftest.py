"""Fixtures of the training tests: stages without a loop, runs in forks that can be killed, fingerprints of runs."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def build_tiny(tiny_config, tmp_path) -> Callable[..., tuple[Any, Any]]:
    """`build_tiny("motion", objective__content_frame_noise=0.5)`: stage and dataset, without a loop.

    `weights=0.2` draws all weights with this deviation, so that every input counts (a fresh motion model says zero).
    """

    def build(name: str, weights: float | None = None, **changes: Any) -> tuple[Any, Any]:
        import torch

        from cmd_video.training.build import build_stage
        from cmd_video.training.captions import captions_of
        from cmd_video.training.components import build_components
        from cmd_video.training.config import TrainConfig
        from cmd_video.training.loop import _needs_captions

        config = TrainConfig.model_validate(tiny_config(name, tmp_path / "unused", **changes))
        dataset = config.data.open()
        captions = captions_of(dataset) if _needs_captions(config) else None
        stage = build_stage(config, build_components(config.components, captions, config.seed))
        if weights is not None:
            draw = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in stage.parameters():
                    parameter.copy_(weights * torch.randn(parameter.shape, generator=draw))
        return stage, dataset

    return build


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., dict[str, Any]]:
    """`batch_of(dataset, range(4))`: a batch as the loop makes it."""

    def batch(dataset: Any, numbers: Any) -> dict[str, Any]:
        from cmd_video.training.data import collate

        return collate([{**dataset[number], "number": number} for number in numbers])

    return batch


def fingerprint(run: str | Path, step: int = 8) -> dict[str, str]:
    """Everything a run leaves behind: name -> sha256 of a tensor or file, or the text of a line of the log."""
    from safetensors.torch import load_file

    run = Path(run)
    found: dict[str, str] = {}
    checkpoint = run / "checkpoints" / f"step-{step:08d}"
    for stem in ("model", "ema", "optimizer"):
        for name, tensor in load_file(checkpoint / f"{stem}.safetensors").items():
            found[f"{stem}/{name}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    found["state"] = (checkpoint / "state.json").read_text()
    for path in sorted([*(run / "pipeline").rglob("*"), *(run / "samples").rglob("*")]):
        if path.is_file():
            found[path.relative_to(run).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    for number, text in enumerate((run / "log.jsonl").read_text().splitlines()):
        line = json.loads(text)
        line.pop("seconds")
        found[f"log/{number}"] = json.dumps(line)
    return found


@pytest.fixture(scope="session")
def differences() -> Callable[..., list[str]]:
    """`differences(run, other_run)`: names of what is not the same to the last bit."""

    def compare(run: str | Path, other: str | Path, step: int = 8) -> list[str]:
        one, two = fingerprint(run, step), fingerprint(other, step)
        assert len(one) > 30
        return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))

    return compare


@pytest.fixture(scope="session")
def assert_close_logs(read_log) -> Callable[..., None]:
    """`assert_close_logs(run, other, 1e-5)`: the same lines, the numbers in them up to this relative difference."""

    def check(run: Path, other: Path, tolerance: float = 1e-5) -> None:
        one, two = read_log(run), read_log(other)
        assert len(one) == len(two) > 0
        for line, twin in zip(one, two, strict=True):
            assert line.pop("kind") == twin.pop("kind")
            assert line == pytest.approx(twin, rel=tolerance)

    return check


@pytest.fixture(scope="module")
def forked_train(tmp_path_factory) -> Iterator[Callable[..., SimpleNamespace]]:
    """`forked_train(config, kill_after_cpu=0.4)`: `train` in a fork of a process of its own; see kill_runs.py."""
    import cmd_video

    source = str(Path(cmd_video.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, "TOKENIZERS_PARALLELISM": "false"}
    messages = tmp_path_factory.mktemp("forks") / "output.txt"
    with messages.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_runs.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, env=environment,
        )  # fmt: skip

    def ask(config: dict[str, Any], **request: Any) -> SimpleNamespace:
        process.stdin.write(json.dumps({"config": config, **request}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, messages.read_text()[-3000:]
        result = SimpleNamespace(**json.loads(answer))
        assert 1 not in result.codes, messages.read_text()[-3000:]
        return result

    yield ask
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def run(tiny_config, run_train, tmp_path_factory):
    """A finished run of an autoencoder, for what encodes; other files have runs of their own."""
    folder = tmp_path_factory.mktemp("encode") / "run"
    run_train(tiny_config("autoencoder", folder, loop__steps=2))
    return folder
