"""Latents of many shards: the same clips in the same order, in memory that does not grow with their number."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmd_video.data.latents import OPEN_SHARDS, LatentsDataset, write_latents

CLIPS = 5


def write(folder, shards, clips=CLIPS, side=4):
    """A folder whose clips say in their values and captions which they are."""

    def batches():
        for number in range(shards):
            values = torch.arange(number * clips, (number + 1) * clips).float()
            yield {
                "content_frame": values.view(-1, 1, 1, 1).expand(-1, 3, side, side),
                "motion_latents": -values.view(-1, 1, 1, 1).expand(-1, 2, 4, side),
                "prompt": [f"clip {int(value)}" for value in values],
                "class_label": values % 7,
            }

    write_latents(folder, batches(), {"what": "test"})
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write(tmp_path_factory.mktemp("many"), 150)


@pytest.mark.parametrize("shards", [1, 10, 64])
def test_a_set_of_few_shards_is_shuffled_whole(shards, tmp_path):
    dataset, length = LatentsDataset(write(tmp_path, shards), seed=3), shards * CLIPS
    for turn in (0, 2):
        order = np.random.default_rng([3, turn]).permutation(length)
        for place, clip in enumerate(order.tolist()):
            item = dataset[turn * length + place]
            assert item["prompt"] == f"clip {clip}" == dataset.prompt(turn * length + place)
            assert item["class_label"] == clip % 7 and item["content_frame"].dtype == torch.float32
            assert torch.equal(item["content_frame"], torch.full((3, 4, 4), float(clip)))
            assert torch.equal(item["motion_latents"], torch.full((2, 4, 4), -float(clip)))


def test_of_many_shards_each_clip_comes_once_in_a_pass_and_few_are_open(many):
    dataset = LatentsDataset(many, seed=1)
    for turn in range(2):
        items = [dataset[turn * 750 + place] for place in range(750)]
        assert sorted(int(item["prompt"].split()[1]) for item in items) == list(range(750))
        assert all(item["content_frame"][0, 0, 0] == int(item["prompt"].split()[1]) for item in items)
    assert len(dataset._open) == OPEN_SHARDS
    assert pickle.loads(pickle.dumps(dataset))[7]["prompt"] == dataset[7]["prompt"]


def test_captions_and_classes_are_sequences_that_are_not_held(many):
    dataset = LatentsDataset(many)
    assert len(dataset.prompts) == len(dataset.class_labels) == 750
    assert list(dataset.prompts) == [f"clip {number}" for number in range(750)]
    assert list(dataset.class_labels) == [number % 7 for number in range(750)]
    assert dataset.prompts[:12] == [f"clip {number}" for number in range(12)] and dataset.prompts[-1] == "clip 749"
    assert (
        dataset.prompts[8:2:-3] == ["clip 8", "clip 5"]
        and dataset.class_labels[700:] == list(dataset.class_labels)[700:]
    )
    with pytest.raises(IndexError):
        dataset.prompts[750]


def test_other_captions_make_other_clips(tmp_path):
    one, same = (LatentsDataset(write(tmp_path / name, 3)) for name in ("one", "same"))
    other = LatentsDataset(write(tmp_path / "other", 3, clips=6))
    assert one.described() == same.described() != other.described()


def test_a_shard_of_another_folder_is_not_taken(many, tmp_path):
    for name, shard in (("a", 0), ("b", 1)):
        write(tmp_path / name, 3)
        (tmp_path / name / f"shard-{shard:05d}.safetensors").write_bytes(
            (many / "shard-00002.safetensors").read_bytes()
        )
    with pytest.raises(ValueError, match=r"shard-0000[01]\.safetensors: (captions or classes are not|damaged)"):
        [item["prompt"] for name in "ab" for item in map(LatentsDataset(tmp_path / name).__getitem__, range(15))]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    dataset = LatentsDataset(write(tmp_path, 1, side=32))
    assert dataset[0]["prompt"]
    os.truncate(tmp_path / "shard-00000.safetensors", 1500)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: damaged \(it ends too early\)"):
        [dataset[number] for number in range(5)]


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of this process")
def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    """Shards of 1.3 MB: 90 more would be 117 MB."""
    used = []
    for shards in (10, 100):
        before = resident()
        dataset = LatentsDataset(write(tmp_path / str(shards), shards, clips=64, side=56))
        for number in range(len(dataset)):
            dataset[number]
        used.append(resident() - before)
    assert sum(path.stat().st_size for path in (tmp_path / "100").iterdir()) > 100e6
    assert used[1] - used[0] < 20e6


def test_end_frames_are_kept_where_they_are_given_and_in_all_shards(tmp_path):
    def batches(which):
        for with_ends in which:
            values = torch.arange(3.0).view(-1, 1, 1, 1)
            ends = {"end_frames": torch.stack([values, -values], dim=1).expand(-1, 2, 2, 4, 4)} if with_ends else {}
            yield {"content_frame": values.expand(-1, 2, 4, 4), "motion_latents": values.expand(-1, 1, 4, 8),
                   "prompt": ["a", "b", "c"], "class_label": torch.zeros(3), **ends}  # fmt: skip

    write_latents(tmp_path / "with", batches([True]), {"end_frames": True})
    item = next(item for item in map(LatentsDataset(tmp_path / "with").__getitem__, range(3)) if item["prompt"] == "c")
    assert torch.equal(item["end_frames"], torch.tensor([2.0, -2.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4))
    write_latents(tmp_path / "without", batches([False]), {})
    assert "end_frames" not in LatentsDataset(tmp_path / "without")[0]
    write_latents(tmp_path / "mixed", batches([True, False]), {})
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: end_frames of shape None, \(2, 2, 4, 4\) in"):
        for number in range(6):
            LatentsDataset(tmp_path / "mixed")[number]
