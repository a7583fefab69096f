"""Runs over processes that come and go: the same curve as one process, and a stop that loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmd_video.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

SMALL_VIDEO = {
    "class": "UNet3DConditionModel",
    "config": {
        "sample_size": 8, "in_channels": 12, "out_channels": 12, "block_out_channels": [16, 32], "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"], "norm_num_groups": 8, "cross_attention_dim": 16,
        "attention_head_dim": 8,
    },
}  # fmt: skip


def config_of(stage, folder, tiny_config):
    """Thirty steps of a stage."""
    long = {"loop__steps": 30, "loop__validate_every": 15, "loop__checkpoint_every": 10}
    if stage != "video":
        return tiny_config(stage, folder, **long)
    config = {**tiny_config("content", folder, **long), "stage": "video"}
    config["components"] = {name: config["components"][name] for name in ("vae", "tokenizer", "text_encoder")}
    config["components"] |= {
        "video_model": SMALL_VIDEO,
        "video_scheduler": {"class": "DDIMScheduler", "config": {"clip_sample": False}},
    }
    return config


@pytest.mark.parametrize("stage", ["content", "motion", "video"])
def test_two_processes_equal_one_for_thirty_steps(stage, tiny_config, forked_train, assert_close_logs, tmp_path):
    """Not classifier and decoder: rounding makes 2e-5 of their gradients' norms at step 2, then 1e-3."""
    for processes in (1, 2):
        config = config_of(stage, tmp_path / str(processes), tiny_config)
        without = {"without_dropout": True} if stage == "video" else {}
        assert forked_train(config, processes=processes, **without).codes == [0] * processes
    assert_close_logs(tmp_path / "1", tmp_path / "2")


def test_two_then_one_then_two_processes(tiny_config, forked_train, assert_close_logs, tmp_path):
    changes = {"loop__steps": 30, "loop__validate_every": 15}
    assert forked_train(tiny_config("motion", tmp_path / "one", **changes)).codes == [0]
    config = tiny_config("motion", tmp_path / "some", **changes)
    assert forked_train(config, processes=2, signal=[signal.SIGTERM, 9], signal_rank=1).codes == [143, 143]
    assert forked_train(config, signal=[signal.SIGTERM, 19]).codes == [143]
    assert forked_train(config, processes=2).codes == [0, 0]
    assert_close_logs(tmp_path / "one", tmp_path / "some")


def torchrun(config, path):
    path.write_text(json.dumps(config))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         "-m", "cmd_video.cli", "train", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def trainers(parent):
    """Numbers of the processes that a process started."""
    stats = (path for path in Path("/proc").glob("[0-9]*/stat"))
    found = []
    for stat in stats:
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = {"loop__steps": 80, "loop__validate_every": 80, "loop__checkpoint_every": 5, "validation__num_samples": 0}


def test_sigterm_to_torchrun_saves_and_the_next_run_ends_alike(tiny_config, differences, tmp_path):
    assert torchrun(tiny_config("motion", tmp_path / "whole", **LONG), tmp_path / "whole.yaml").wait(timeout=300) == 0
    config, run = tiny_config("motion", tmp_path / "run", **LONG), tmp_path / "run"
    process = torchrun(config, tmp_path / "run.yaml")
    wait_for(lambda: len(list_checkpoints(run / "checkpoints")) >= 2)
    process.terminate()
    begun = time.monotonic()
    assert process.wait(timeout=300) != 0
    assert time.monotonic() - begun < 30 and not trainers(process.pid)
    assert not (run / "pipeline").exists() and list_checkpoints(run / "checkpoints")
    assert torchrun(config, tmp_path / "run.yaml").wait(timeout=300) == 0
    assert differences(tmp_path / "whole", run, 80) == []
