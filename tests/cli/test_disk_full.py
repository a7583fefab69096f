"""A full disk: every command that writes ends in one line, leaves nothing half-written, and works when there is room.

Files of more than so many bytes are refused by the system, which is what a full disk looks like from here.
"""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmd_video.data.decode import probe
from cmd_video.data.video_file import write_video
from cmd_video.training.logs import RunLog

COMMANDS = {  # what writes -> its arguments
    "generate": ["generate", "a red circle", "--model", "{m}", "--steps", "1", "-o", "{out}/a.mp4"],
    "generate many": [
        "generate", "a red circle", "a star", "--model", "{m}", "--steps", "1", "--contact-sheet", "-o", "{out}/many",
    ],
    "reconstruct": ["reconstruct", "{clips}/0.mp4", "--model", "{m}", "-o", "{out}/a.gif"],
    "restore": [
        "restore", "{clips}/0.mp4", "--model", "{m}", "--task", "deblur", "--factor", "1", "--iterations", "1",
        "-o", "{out}/a.mp4",
    ],
    "data check": ["data", "check", "{clips}", "--num-frames", "4", "--json", "{out}/a.json"],
    "export": ["export", "{m}", "-o", "{out}/model"],
    "prune": ["prune", "{m}", "--budget", "0.9", "--importance", "{importance}", "-o", "{out}/model"],
    "merge": ["merge", "{m}", "{m}", "--scale", "0.5", "-o", "{out}/model"],
    "evaluate reference": [
        "evaluate", "reference", "{clips}", "--frames", "4", "--extractor", "pixels", "-o", "{out}/table",
    ],
    "evaluate calc": [
        "evaluate", "calc", "{clips}", "--reference", "{clips}", "--frames", "4", "--extractor", "pixels",
        "--neighbours", "2", "-o", "{out}/a.json",
    ],
    "evaluate paired": ["evaluate", "paired", "{clips}", "{clips}", "--frames", "4", "-o", "{out}/a.json"],
    "evaluate reconstruction": [
        "evaluate", "reconstruction", "--run", "{run}", "--config", "{config}", "-o", "{out}/a.json",
    ],
    "evaluate report": ["evaluate", "report", "{result}", "--samples", "{clips}", "-o", "{out}/report"],
    "evaluate generate": ["evaluate", "generate", "{prompts}", "--model", "{m}", "--steps", "1", "-o", "{out}/made"],
    "evaluate generate png": [
        "evaluate", "generate", "{prompts}", "--model", "{m}", "--steps", "1", "--format", "png", "-o", "{out}/made",
    ],
    "train": ["train", "{config}", "--set", "output_dir={out}/run"],
    "data encode": ["data", "encode", "{run}", "-o", "{out}/latents", "--num-clips", "8"],
    "sprites make": [
        "sprites", "make", "--num-clips", "2", "--height", "32", "--width", "32", "--num-frames", "4",
        "-o", "{out}/made",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_pipeline, tiny_config, run_train):
    """What the commands read: a model, a finished run, clips, and files."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "clips").mkdir()
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        write_video(frames, folder / "clips" / f"{number}.mp4", fps=8)
    config = tiny_config("autoencoder", folder / "run", loop__steps=2, loop__validate_every=2)
    run_train(config)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "prompts.txt").write_text("a red circle\na star\n")
    (folder / "importance.json").write_text(json.dumps({"mid_block": {"importance": 0.0, "cost": 0.3}}))
    (folder / "result.json").write_text(
        json.dumps({"name": "paired", "protocol": {}, "values": {"psnr": {"value": 1.0}}})
    )
    return {
        "m": tiny_pipeline, "clips": folder / "clips", "run": folder / "run", "config": folder / "config.yaml",
        "prompts": folder / "prompts.txt", "importance": folder / "importance.json", "result": folder / "result.json",
    }  # fmt: skip


@contextmanager
def no_room_after(count: int):
    """Files of at most so many bytes can be written in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def half_written(folder: Path) -> list[str]:
    """Temporary files and folders, and files that cannot be read as what their suffix says."""
    return [path.name for path in folder.rglob("*") if ".tmp-" in path.name or not is_whole(path)]


def is_whole(path: Path) -> bool:
    readers = {
        ".json": lambda: json.loads(path.read_text()), ".png": lambda: Image.open(path).load(),
        ".mp4": lambda: probe(path), ".gif": lambda: probe(path), ".safetensors": lambda: load_file(path),
    }  # fmt: skip
    try:
        readers.get(path.suffix, lambda: None)()
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def test_the_check_itself(tmp_path):
    for name in ("a.json", "a.png", "a.mp4", "a.gif", "a.safetensors"):
        (tmp_path / name).write_bytes(b"{")
        assert half_written(tmp_path) == [name]
        (tmp_path / name).unlink()
    (tmp_path / ".a.tmp-3").mkdir()
    assert half_written(tmp_path) == [".a.tmp-3"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(name, run, places, tmp_path):
    arguments = [word.format(out=tmp_path, **places) for word in COMMANDS[name]]
    refused = 0
    for room in (0, 400, 5_000):
        with no_room_after(room):
            code, _, err = run(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert code in (0, 2) and len(lines) == (code == 2) and "Traceback" not in err, err
        assert not half_written(tmp_path), (room, half_written(tmp_path))
        if code == 0:
            break
        assert "too large" in lines[0] or "cannot be written" in lines[0], lines[0]
        refused += 1
    assert refused
    if code == 2:
        code, _, err = run(*arguments)
        assert code == 0, err
    assert not half_written(tmp_path)


def test_a_picture_of_samples_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("cmd_video.training.logs._open_board", lambda *_: None)  # writes in a thread of its own
    log = RunLog(tmp_path, 0, 1)
    noise = torch.rand(3, 64, 64) * 2 - 1
    with no_room_after(5_000), pytest.raises(OSError, match="too large"):
        log.validation(1, {"loss": 1.0}, noise)
    assert not list((tmp_path / "samples").iterdir())
    log.validation(1, {"loss": 1.0}, noise)
    log.close()
    assert half_written(tmp_path) == [] and [path.name for path in (tmp_path / "samples").iterdir()]
