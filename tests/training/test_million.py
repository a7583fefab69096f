"""A recipe of the paper, with tiny networks, takes its first step on a table of a million rows within a minute."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cmd_video.data.table_file import TableRow, table_writer
from cmd_video.data.video_file import write_video

ROOT = Path(__file__).parents[2]
ROWS, CLIPS = 1_000_000, 20
SIZE = {"data.height": 32, "data.width": 32, "data.num_frames": 4}
TINY = {
    "components.vae": "{class: AutoencoderPixelUnshuffle, config: {patch_size: 2}}",
    "components.autoencoder": "{class: CMDAutoencoder, config: {in_channels: 12, sample_size: [16, 16], "
    "num_frames: 4, dim: 24, encoder_depth: 1, decoder_depth: 1, num_heads: 2}}",
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table for training and one for validation, of a few clips with many captions each."""
    folder = tmp_path_factory.mktemp("million")
    draws = np.random.default_rng(0)
    for clip in range(CLIPS):
        write_video(draws.integers(0, 256, (8, 32, 32, 3), np.uint8), folder / f"{clip:02d}.mp4", 8)
    for name, rows in (("train", ROWS), ("validation", CLIPS)):
        with table_writer(folder / f"{name}.parquet", kind="webvid", root=folder) as writer:
            for number in range(rows):
                writer.add(TableRow(f"{number * CLIPS // rows:02d}.mp4", f"caption {number}"))
    return folder


@pytest.mark.slow
def test_the_first_step_on_a_million_rows_comes_within_a_minute(tables, tmp_path):
    changes = {
        **SIZE,
        **TINY,
        "data.kind": "manifest",
        "data.path": tables / "train.parquet",
        "data.video_root": "null",
        "validation.data.kind": "manifest",
        "validation.data.path": tables / "validation.parquet",
        "validation.num_clips": 2,
        "loop.steps": 1,
        "loop.precision": "fp32",
        "output_dir": tmp_path / "run",
    }
    chosen = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cmd_video.cli", "train", str(ROOT / "configs/webvid-sd15/autoencoder.yaml"), *chosen],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "pipeline" / "autoencoder" / "config.json").is_file()
    assert time.perf_counter() - begun < 60
