"""A full disk: every command that writes ends in one line, leaves nothing half-written, and works when there is room.

Files of more than so many bytes are refused by the system, which is what a full disk looks like from here.
"""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmd_video.data.decode import probe
from cmd_video.training.logs import RunLog


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


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(writing, run, tmp_path):
    refused = 0
    for room in (0, 400, 5_000):
        with no_room_after(room):
            code, _, err = run(*writing)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert code in (0, 2) and len(lines) == (code == 2) and "Traceback" not in err, err
        assert not half_written(tmp_path), (room, half_written(tmp_path))
        if code == 0:
            break
        assert "too large" in lines[0] or "cannot be written" in lines[0], lines[0]
        refused += 1
    assert refused
    if code == 2:
        code, _, err = run(*writing)
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
