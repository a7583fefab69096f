"""The samples of a step are a function of its number: however many processes and loading workers share it, and
wherever a run goes on, of a small set and of a table with more groups than are shuffled into each other.
"""

import numpy as np
import pytest

from cmd_video.data.datasets import VideoDataset
from cmd_video.data.records import ClipRecord
from cmd_video.data.table import open_table
from cmd_video.data.table_file import TableRow, table_writer
from cmd_video.training.config import LoopConfig
from cmd_video.training.data import StepSampler, digest_of_clips, training_batches

SIZE = {"num_frames": 2, "height": 8, "width": 8}
ROWS, BATCH = 280, 8


@pytest.fixture(scope="module")
def clips(tmp_path_factory, encode, ramp):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        encode(folder / f"{number}.mkv", ramp(6, 16, 16) // 2 + 12 * number, "ffv1", "bgr0", options={})
    return folder


@pytest.fixture(scope="module")
def sets(clips):
    """The same rows, of five clips with other captions each time: a list, one group, seventy groups."""
    rows = [TableRow(f"{number // 56}.mkv", f"clip {number}") for number in range(ROWS)]
    found = {"list": [ClipRecord(clips / row.path, row.prompt) for row in rows]}
    for name, group_rows in {"a group": ROWS, "groups": 4}.items():
        path = clips / f"{group_rows}.parquet"
        with table_writer(path, kind="manifest", root=clips, group_rows=group_rows) as writer:
            for row in rows:
                writer.add(row)
        found[name] = open_table(path).records
    return found


def steps_of(records, world, workers, first=0, last=4):
    """Of every step the captions that all processes together are given, sorted."""
    loop = LoopConfig(steps=100, batch_size=BATCH, num_workers=workers)
    steps = [[] for _ in range(first, last)]
    for rank in range(world):
        dataset = VideoDataset(records, seed=3, **SIZE)
        sampler = StepSampler(first, last, BATCH, 1, rank, world)
        for step, batch in zip(steps, training_batches(dataset, sampler, loop), strict=True):
            step += zip(batch["number"].tolist(), batch["prompt"])
    return [[caption for _, caption in sorted(step)] for step in steps]


@pytest.mark.parametrize("name", ["list", "groups"])
def test_a_step_is_the_same_for_any_world_and_workers(sets, name):
    alone = steps_of(sets[name], 1, 0)
    assert len({caption for step in alone for caption in step}) == 4 * BATCH
    for world in (2, 4):
        assert steps_of(sets[name], world, 0) == alone
    assert steps_of(sets[name], 2, 3) == alone


def test_a_run_goes_on_in_another_world_with_the_same_samples(sets):
    assert steps_of(sets["groups"], 4, 0, first=2, last=6) == steps_of(sets["groups"], 1, 0, last=6)[2:]


def test_a_set_of_few_groups_has_the_order_of_a_list(sets):
    assert steps_of(sets["a group"], 1, 0) == steps_of(sets["list"], 1, 0) != steps_of(sets["groups"], 1, 0)


def test_the_order_of_a_list_is_what_it_was(sets):
    dataset = VideoDataset(sets["list"], seed=3, **SIZE)
    order = [*np.random.default_rng([3, 0, 0]).permutation(ROWS), *np.random.default_rng([3, 0, 1]).permutation(ROWS)]
    for number in (0, 1, 100, ROWS - 1, ROWS, ROWS + 7):
        assert dataset[number]["prompt"] == f"clip {order[number]}"


def test_a_pass_of_a_table_has_every_row_once(sets):
    table = sets["groups"]
    dataset = VideoDataset(table, seed=3, **SIZE)
    for turn in (0, 1):
        assert sorted(dataset._order(turn, place) for place in range(ROWS)) == list(range(ROWS))


def test_a_run_knows_its_clips_by_what_the_table_states(sets):
    digests = [digest_of_clips(VideoDataset(sets[name], **SIZE)) for name in ("groups", "a group", "list")]
    assert digests[0] == digests[1] != digests[2]


def test_a_run_trains_on_a_table(tiny_config, run_train, read_log, tmp_path, encode, ramp):
    from cmd_video.data.index import index_clips

    (tmp_path / "clips").mkdir()
    for number in range(4):
        encode(tmp_path / "clips" / f"{number}.mkv", ramp(6, 16, 16) // 2, "ffv1", "bgr0", options={})
        (tmp_path / "clips" / f"{number}.txt").write_text("a ball" if number else "")
    index_clips(tmp_path / "clips", tmp_path / "t.parquet", "captioned_folder", group_rows=2)
    data = {"kind": "manifest", "path": str(tmp_path / "t.parquet"), "height": 16, "width": 16, "num_frames": 4}
    config = tiny_config("autoencoder", tmp_path / "run", data=data, validation__data=data, loop__num_workers=1)
    assert run_train(config).is_dir()
    lines = [line["text"] for line in read_log(tmp_path / "run", "remark")]
    assert lines[0] == "data: 1 of 4 clips have no caption, the first 0.mkv"
