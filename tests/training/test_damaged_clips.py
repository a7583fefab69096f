"""Clips that cannot be read are left out of what is encoded and validated, never replaced by a neighbour."""

import numpy as np
import pytest

from cmd_video.cli import main
from cmd_video.data.datasets import open_video_dataset
from cmd_video.data.latents import LatentsDataset
from cmd_video.data.video_file import write_video
from cmd_video.training.data import fixed_batches
from cmd_video.training.encode import encode_run


@pytest.mark.parametrize("shard_size", [256, 16, 1])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_clip_is_left_out_and_its_neighbour_not_taken_twice(
    tiny_config, run_train, tmp_path, shard_size, split, capsys
):
    (tmp_path / "clips").mkdir()
    for number in range(40):
        frames = np.full((4, 16, 16, 3), 6 * number, dtype=np.uint8)
        write_video(frames, tmp_path / "clips" / f"{number:02d}.mp4", fps=8)
        (tmp_path / "clips" / f"{number:02d}.txt").write_text(f"clip {number}")
    (tmp_path / "clips" / "07.mp4").write_bytes(b"x")
    data = {"kind": "captioned_folder", "path": str(tmp_path / "clips"), "num_frames": 4, "height": 16, "width": 16}
    validation = {**data, "train": False}
    run_train(tiny_config("autoencoder", tmp_path / "run", data=data, validation__data=validation, loop__steps=2))
    for _ in range(2):  # the second time goes on
        count = encode_run(tmp_path / "run", tmp_path / "latents", 100, split, shard_size=shard_size)
        latents = LatentsDataset(tmp_path / "latents")
        prompts = sorted(latents[number]["prompt"] for number in range(len(latents)))
        assert count == 39 and prompts == sorted(f"clip {number}" for number in range(40) if number != 7)
    if shard_size == 256:  # the command's own
        again = ["data", "encode", str(tmp_path / "run"), "-o", str(tmp_path / "latents"), "--split", split]
        assert main([*again, "--num-clips", "100"]) == 0
        assert "1 of 40 clips could not be read" in capsys.readouterr().out


def test_validation_leaves_a_damaged_clip_out(tmp_path):
    for number in range(24):
        write_video(np.full((4, 16, 16, 3), 9 * number, np.uint8), tmp_path / f"{number:02d}.mp4", 8)
        (tmp_path / f"{number:02d}.txt").write_text(f"clip {number}")
    (tmp_path / "03.mp4").write_bytes(b"x")
    sizes = {"num_frames": 4, "height": 16, "width": 16, "train": False}
    dataset = open_video_dataset("captioned_folder", tmp_path, **sizes)
    batches = fixed_batches(dataset, 8, 4)
    assert [prompt for batch in batches for prompt in batch["prompt"]] == [f"clip {n}" for n in (0, 1, 2, 4, 5, 6, 7)]
    assert [number for batch in batches for number in batch["number"].tolist()] == [0, 1, 2, 4, 5, 6, 7]
    assert list(dataset.failures) == [str(tmp_path / "03.mp4")]
