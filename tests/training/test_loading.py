"""Loading processes: what they cannot read is counted once and kept, errors are one line, no wait is endless."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cmd_video.data.datasets import open_video_dataset
from cmd_video.data.video_file import write_video
from cmd_video.training.config import LoopConfig
from cmd_video.training.data import StepSampler, training_batches


def write_clips(folder: Path, count: int, broken: tuple[int, ...] = ()) -> dict:
    folder.mkdir()
    for number in range(count):
        frames = np.random.default_rng(number).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        write_video(frames, folder / f"{number:02d}.mp4", fps=8)
        (folder / f"{number:02d}.txt").write_text(f"clip {number}")
        if number in broken:
            (folder / f"{number:02d}.mp4").write_bytes(b"no video")
    return {"kind": "captioned_folder", "path": str(folder), "num_frames": 4, "height": 16, "width": 16}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_failures_are_counted_once_and_kept(workers, tiny_config, run_train, read_log, caplog, tmp_path):
    data = {**write_clips(tmp_path / "clips", 12, broken=(2, 7)), "max_bad_fraction": 0.2}
    held_out = {**write_clips(tmp_path / "held out", 6, broken=(3,)), "max_bad_fraction": 0.2}
    config = tiny_config("autoencoder", tmp_path / "run", data=data, loop__num_workers=workers, loop__steps=6)
    config["validation"] |= {"data": held_out, "num_clips": 6}
    run_train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["02.mp4", "03.mp4", "07.mp4"]
    assert all(line["reason"] and line["time"] for line in lines)
    assert sum("left out" in message for message in caplog.messages) == 3
    told = [line["text"] for line in read_log(tmp_path / "run", "remark")][-2:]
    assert told == [
        "data: 2 of 12 clips could not be read (failures.jsonl)",
        "validation.data: 1 of 6 clips could not be read (failures.jsonl)",
    ]
    assert set(told) <= set(caplog.messages)


@pytest.mark.parametrize("workers", [0, 3])
def test_too_many_failures_are_one_line_over_all_loading_processes(workers, tmp_path):
    """Each of three loading processes may see too few of them to stop by itself."""
    data = write_clips(tmp_path / "clips", 12, broken=(1, 4, 8, 10))
    dataset = open_video_dataset(**data, max_bad_fraction=0.25)
    loop = LoopConfig(steps=20, batch_size=2, num_workers=workers)
    with pytest.raises(ValueError) as caught:
        for _ in training_batches(dataset, StepSampler(0, 20, 2, 1, 0, 1), loop):
            pass
    assert str(caught.value).startswith("4 of 12 clips cannot be read, max_bad_fraction = 0.25 allows 3; the first: ")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


class Ill:
    """A dataset whose item 5 is a disaster of some kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> dict:
        if number == 5:
            {
                "raises": lambda: (_ for _ in ()).throw(OSError(5, "Input/output error", "a.mp4")),
                "sleeps": lambda: time.sleep(600),
                "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
                "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "no memory": lambda: torch.empty(10**15),
                "no shared memory": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
            }[self.kind]()
        return {"prompt": "a", "video": torch.zeros(64, 64)}


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("raises", ValueError, "Input/output error: 'a.mp4'"),
        ("sleeps", TimeoutError, r"data: no batch came for 2 s \(loop.timeout_s\) from the 2 loading processes"),
        ("stopped", TimeoutError, "data: no batch came for 2 s"),
        ("killed", ChildProcessError, r"data: a loading process died \(DataLoader worker"),
        ("no memory", ValueError, "loop.batch_size: the 2 clips that are loaded at a time do not fit into memory"),
        ("no shared memory", ValueError, r"data: a batch could not be put into shared memory \(.*loop.num_workers"),
    ],
)
def test_a_loading_process_that_is_ill_ends_the_run_in_one_line(kind, error, message):
    loop = LoopConfig(steps=20, batch_size=2, num_workers=2, timeout_s=2)
    batches = training_batches(Ill(kind), StepSampler(0, 20, 2, 1, 0, 1), loop)
    begun = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        for _ in batches:
            pass
    assert "\n" not in str(caught.value)
    del caught, batches
    assert time.monotonic() - begun < 40


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's iterator was not finished
def test_no_room_for_the_queues_of_loading_processes_is_one_line():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    loop = LoopConfig(steps=20, batch_size=2, num_workers=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(OSError, match=r"data: loading processes could not be started \(.*; make /dev/shm larger"):
            training_batches(Ill("none"), StepSampler(0, 20, 2, 1, 0, 1), loop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux")
def test_a_stuck_loading_process_does_not_outlive_its_trainer(tmp_path):
    script = f"""
import os, sys, time
from pathlib import Path
from cmd_video.training.config import LoopConfig
from cmd_video.training.data import StepSampler, training_batches

class Stuck:
    def __len__(self): return 10
    def __getitem__(self, number):
        Path({str(tmp_path)!r}, str(os.getpid())).touch()
        time.sleep(600)

for _ in training_batches(Stuck(), StepSampler(0, 5, 2, 1, 0, 1), LoopConfig(steps=5, batch_size=2, num_workers=2)):
    pass
"""
    trainer = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    loaders = [int(path.name) for path in tmp_path.iterdir()]
    assert len(loaders) == 2 and all(Path(f"/proc/{loader}").exists() for loader in loaders)
    trainer.kill()
    trainer.wait()
    while any(alive(loader) for loader in loaders) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(loader) for loader in loaders)


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_clip_of_broken_values_is_named(tiny_config, run_train, monkeypatch, tmp_path):
    from cmd_video.data.datasets import VideoDataset

    finish = VideoDataset.finish

    def broken(self, batch):
        finished = finish(self, batch)
        finished["video"][[Path(path).name == "03.mp4" for path in batch["path"]]] = np.nan
        return finished

    monkeypatch.setattr(VideoDataset, "finish", broken)
    config = tiny_config("autoencoder", tmp_path / "run", data=write_clips(tmp_path / "clips", 6))
    with pytest.raises(
        ValueError, match=r"step \d: the loss is nan, of samples \d '.*03\.mp4', which hold values that"
    ):
        run_train(config)
