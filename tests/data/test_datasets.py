"""Item n depends on (seed, n) and the files only; a clip that cannot be read is named and replaced."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.data.datasets import VideoDataset, open_video_dataset
from cmd_video.data.manifest import ClipRecord
from cmd_video.training.data import collate

SIZE = {"num_frames": 4, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, encode, ramp):
    """Ten clips of 12 frames, clip n with the caption "clip n"; the folder."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(10):
        frames = ramp(12, 24, 32) // 2 + 12 * number
        encode(folder / f"{number}.mkv", frames, "ffv1", "bgr0", options={})
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def same(a, b) -> bool:
    return torch.equal(a["video"], b["video"]) and (a["prompt"], a["class_label"]) == (b["prompt"], b["class_label"])


def test_items(clips):
    dataset = open_video_dataset("captioned_folder", clips, train=False, **SIZE)
    assert len(dataset) == 10
    for number in range(10):
        item = dataset[number]
        assert item["video"].shape == (3, 4, 16, 16) and item["video"].dtype == torch.float32
        assert -1 <= item["video"].min() < item["video"].max() <= 1
        assert (item["prompt"], item["class_label"]) == (f"clip {number}", -1)
        assert same(item, dataset[number + 10])
    with pytest.raises(IndexError):
        dataset[-1]


def test_clips_travel_as_bytes_where_a_device_makes_their_floats(clips):
    settings = {"flip": True, "seed": 3, **SIZE}
    plain, small = (open_video_dataset("captioned_folder", clips, on_device=at, **settings) for at in (False, True))
    numbers = [5, 0, 17, 29]
    batch = collate([small[number] for number in numbers])
    assert batch["video"].dtype == torch.uint8 and batch["video"].shape == (4, 4, 16, 16, 3)
    expected = torch.stack([plain[number]["video"] for number in numbers])
    assert torch.equal(small.finish(batch)["video"], expected)
    assert torch.equal(plain.finish({"video": expected})["video"], expected)


def test_an_item_depends_on_seed_and_number_only(clips):
    def make(seed):
        return open_video_dataset("captioned_folder", clips, flip=True, seed=seed, **SIZE)

    one, two, other = make(3), make(3), make(4)
    numbers = [5, 0, 17, 29, 5, 3, 12]
    items = {number: two[number] for number in reversed(numbers)}
    assert all(same(one[number], items[number]) for number in numbers)
    assert not all(same(one[number], other[number]) for number in set(numbers))
    turns = [[one[number]["prompt"] for number in range(turn * 10, turn * 10 + 10)] for turn in range(3)]
    assert all(sorted(turn) == [f"clip {n}" for n in range(10)] for turn in turns)
    assert turns[0] != turns[1] != turns[2]


def test_places_and_mirroring_vary(clips):
    record = [ClipRecord(clips / "0.mkv")]
    dataset = VideoDataset(record, flip=True, **SIZE)
    kinds = {
        (round(item["video"][2, 0].mean().item(), 4), bool(item["video"][0, 0, 8, 0] > item["video"][0, 0, 8, -1]))
        for item in map(dataset.__getitem__, range(60))
    }
    assert len({place for place, _ in kinds}) == 9 and {mirrored for _, mirrored in kinds} == {True, False}


def test_workers_give_the_same(clips):
    from torch.utils.data import DataLoader

    dataset = open_video_dataset("captioned_folder", clips, **SIZE)
    loader = DataLoader(dataset, batch_size=None, sampler=range(12), num_workers=2)
    items = list(loader)
    assert len(items) == 12 and all(same(item, dataset[number]) for number, item in enumerate(items))


def with_bad(clips, tmp_path, bad):
    records = [ClipRecord(clips / f"{number % 10}.mkv", f"clip {number}") for number in range(40)]
    for number in bad:
        path = tmp_path / f"bad{number}.mp4"
        path.write_bytes(b"no video")
        records[number] = ClipRecord(path)
    return records


def test_bad_clips_are_named_and_replaced(clips, tmp_path):
    records, log = with_bad(clips, tmp_path, (7, 21)), tmp_path / "failures.jsonl"
    dataset = VideoDataset(records, failure_log=log, **SIZE)
    prompts = [dataset[number]["prompt"] for number in range(40, 80)]
    assert "" not in prompts and len(prompts) == 40
    assert prompts[::8] == [VideoDataset(records, **SIZE)[number]["prompt"] for number in range(40, 80, 8)]
    assert sorted(dataset.failures) == [str(tmp_path / f"bad{number}.mp4") for number in (21, 7)]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in lines} == dataset.failures and len(lines) == 2
    assert all(set(line) == {"path", "reason", "time"} for line in lines)


def test_too_many_bad_clips_stop(clips, tmp_path):
    dataset = VideoDataset(with_bad(clips, tmp_path, (1, 2, 3)), train=False, **SIZE)
    with pytest.raises(
        ValueError, match=r"3 of 40 clips cannot be read, max_bad_fraction = 0.05 allows 2; .*bad1.mp4"
    ):
        for number in range(40):
            dataset[number]
    assert len(dataset.failures) == 3
    hopeless = VideoDataset(with_bad(clips, tmp_path, range(40)), max_bad_fraction=1, **SIZE)
    with pytest.raises(ValueError, match="none of 40 clips can be read"):
        hopeless[0]


def test_sha256_is_compared(clips):
    path = clips / "0.mkv"
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert VideoDataset([ClipRecord(path, sha256=good)], **SIZE)[0]["video"].numel()
    dataset = VideoDataset([ClipRecord(path, sha256="0" * 64)], **SIZE)
    with pytest.raises(ValueError, match="its sha256 is not the one in the manifest"):
        dataset[0]


def test_folders_of_pictures(tmp_path):
    for number in range(6):
        (tmp_path / "c").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 40 * number, np.uint8)).save(tmp_path / "c" / f"{number}.png")
    dataset = open_video_dataset("frame_folders", tmp_path, train=False, **SIZE)
    assert dataset[0]["video"][0, :, 0, 0].tolist() == pytest.approx([v / 127.5 - 1 for v in (40, 80, 120, 160)])
    with pytest.raises(ValueError, match="fps: 8, but .* is a folder of pictures"):
        open_video_dataset("frame_folders", tmp_path, fps=8, **SIZE)


def test_arguments_are_checked(clips):
    record = [ClipRecord(clips / "0.mkv")]
    cases = [
        ({"num_frames": 0}, "num_frames: 0"),
        ({"height": 0}, "height: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"max_bad_fraction": 2}, "max_bad_fraction: 2"),
        ({"fps": 8, "stride": 2}, "stride: 2 together"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            VideoDataset(record, **{**SIZE, **change})
    with pytest.raises(ValueError, match="records: none"):
        VideoDataset([], **SIZE)
    assert len(cases) == 5


def test_real_clips_train(shared_data):
    dataset = open_video_dataset("class_folder", shared_data / "weizmann", num_frames=16, height=32, width=32)
    items = [dataset[number] for number in range(12)]
    assert all(item["video"].shape == (3, 16, 32, 32) for item in items) and not dataset.failures
    assert {item["class_label"] for item in items} <= set(range(len(dataset.class_names))) and len(items) == 12
