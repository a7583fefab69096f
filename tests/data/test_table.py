"""A table of clips holds what the set holds, opens at once, and is read by row."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmd_video.data.datasets import VideoDataset, open_video_dataset
from cmd_video.data.index import index_clips
from cmd_video.data.listing import order_bytes, order_of
from cmd_video.data.manifest import list_clips, load_manifest, paths_of
from cmd_video.data.table import open_table
from cmd_video.data.table_file import KEY, TableRow, table_writer
from cmd_video.data.webvid import sorted_webvid

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SIZE = {"num_frames": 4, "height": 16, "width": 16}


def files(folder: Path, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def listed(tmp_path):
    """A csv of 1,000 rows, of clips in two folders, with captions, classes, digests and one clip named twice."""
    names = [f"{'ab'[number % 2]}/clip{number}.mp4" for number in range(999)]
    files(tmp_path / "clips", names)
    rows = [
        {"path": f"clips/{name}", "prompt": f"clip, {n}" if n % 7 else "", "label": ("run", "jump", "")[n % 3],
         "sha256": f"{n:064x}" if n % 5 == 0 else ""}
        for n, name in enumerate(names)
    ]  # fmt: skip
    return write_csv(tmp_path / "clips.csv", [*rows, {**rows[3], "prompt": "another"}])


def test_records_are_those_of_the_csv(listed, tmp_path):
    facts = index_clips(listed, tmp_path / "clips.parquet", probe=False, group_rows=64)
    known, table = load_manifest("manifest", listed), list_clips(tmp_path / "clips.parquet")
    assert list(table.records) == known.records == [table.records[row] for row in range(1000)]
    assert table.records[-1] == known.records[-1] and table.records[5:9] == known.records[5:9]
    assert table.class_names == known.class_names == ["jump", "run"]
    assert (facts.rows, facts.clips, facts.root, facts.class_labels) == (1000, 999, "clips", [-1, 0, 1])
    assert table.records.block_sizes == [64] * 15 + [40]
    assert table.remarks() == [line.replace(f"{tmp_path}/clips/", "") for line in known.remarks()]
    assert list(paths_of(table)) == list(paths_of(known))
    with pytest.raises(IndexError):
        table.records[1000]


def test_a_table_moves_with_its_clips(listed, tmp_path):
    index_clips(listed, tmp_path / "clips.parquet", probe=False)
    before = [record.prompt for record in load_manifest("manifest", tmp_path / "clips.parquet").records]
    (tmp_path / "moved").mkdir()
    for name in ("clips", "clips.parquet"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    records = load_manifest("manifest", tmp_path / "moved" / "clips.parquet").records
    assert [record.prompt for record in records] == before and all(record.path.is_file() for record in records)


def test_a_table_behind_a_link_finds_its_clips(tmp_path):
    files(tmp_path / "videos", ["1.mp4", "2.mp4"])
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    index_clips(tmp_path / "videos", tmp_path / "link" / "t.parquet", probe=False)
    for folder in ("link", "far/away"):
        assert all(record.path.is_file() for record in list_clips(tmp_path / folder / "t.parquet").records)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, encode, ramp):
    """Ten captioned clips of 12 frames of 24x32, and one that is damaged; the folder."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(10):
        encode(folder / f"{number}.mkv", ramp(12, 24, 32) // 2 + 12 * number, "ffv1", "bgr0", options={})
    (folder / "10.mkv").write_bytes(b"no video")
    for number in range(11):
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_known_of_each_clip(clips, tmp_path, num_workers):
    facts = index_clips(clips, tmp_path / "t.parquet", "captioned_folder", num_workers=num_workers)
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for row in rows[:10]:
        assert (row["height"], row["width"], row["num_frames"], row["fps"]) == (24, 32, 12, 8)
        assert row["duration"] == pytest.approx(1.5, abs=0.01)
        assert row["bytes"] == (clips / row["path"]).stat().st_size
    assert rows[10]["num_frames"] is None and rows[10]["bytes"] == 8
    assert len(facts.remarks) == 1 and facts.remarks[0].startswith("1 clips cannot be read, the first 10.mkv (")


def test_frame_folders(tmp_path):
    from PIL import Image

    for name in ("jump/c1", "jump/c2", "run/c1"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 6)).save(tmp_path / "set" / name / f"{number}.png")
    index_clips(tmp_path / "set", tmp_path / "t.parquet", "frame_folders")
    table = open_table(tmp_path / "t.parquet")
    assert list(table.records) == load_manifest("frame_folders", tmp_path / "set").records
    row = pq.read_table(tmp_path / "t.parquet").to_pylist()[0]
    assert (row["height"], row["width"], row["num_frames"], row["fps"]) == (6, 8, 3, None)
    with pytest.raises(ValueError, match="fps: 8, but .*c1 is a folder of pictures"):
        VideoDataset(table.records, fps=8, **SIZE)


WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")


def webvid(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    rows = [(n, "u", "PT10S", f"{n % 7}_{n % 11}", f"a {n}\nthing, {n}") for n in rng.permutation(count)]
    return write_csv(folder / "w.csv", [dict(zip(WEBVID, row)) for row in rows])


def test_webvid_is_sorted_and_counted_as_in_memory(tmp_path):
    path = webvid(tmp_path, 300)
    inside = [f"{n % 7}_{n % 11}/{n}.mp4" for n in range(300)]
    files(tmp_path / "videos", inside[20:])
    facts = index_clips(path, tmp_path / "w.parquet", video_root=tmp_path / "videos", probe=False)
    known, table = load_manifest("webvid", path, video_root=tmp_path / "videos"), open_table(tmp_path / "w.parquet")
    assert list(table.records) == known.records and len(table.records) == 280
    assert table.counts() == known.counts() == facts.left_out == {"not there": 20}
    dataset = open_video_dataset("manifest", tmp_path / "w.parquet", **SIZE)
    assert dataset.missing == 20 and dataset.remarks[0].startswith("20 listed are not there, the first ")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["videos", "w.csv", "w.parquet"]


@pytest.mark.parametrize("run_rows", [7, 100, 1000])
def test_sorting_on_disk_is_sorting(tmp_path, run_rows):
    found = list(sorted_webvid(webvid(tmp_path, 300), tmp_path, run_rows))
    assert found == sorted(found, key=lambda row: order_of(Path(row[0]))) and len(set(found)) == 300


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6)
PLACES = st.lists(NAMES | st.text("aB019.", min_size=1), min_size=1, max_size=3).map(lambda names: Path(*names))


@given(st.lists(PLACES, max_size=12))
def test_bytes_sort_as_names_do(paths):
    assert sorted(paths, key=order_bytes) == sorted(paths, key=order_of)


def synthetic(path: Path, rows: int, group_rows: int = 4096) -> Path:
    with table_writer(path, kind="webvid", root=path.parent, group_rows=group_rows) as writer:
        for number in range(rows):
            writer.add(TableRow(f"{number:08d}.mp4", f"clip {number}"))
    return path


def test_opening_costs_nothing_per_clip(tmp_path):
    """No clip is asked for, none is held, and what is asked of all of them is stated."""
    import tracemalloc

    synthetic(tmp_path / "t.parquet", 200_000)
    open_video_dataset("manifest", tmp_path / "t.parquet", **SIZE)  # whatever is imported by that
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    dataset = open_video_dataset("manifest", tmp_path / "t.parquet", flip=True, **SIZE)
    assert (dataset.class_labels, dataset.missing, len(dataset)) == ([-1], 0, 200_000)
    assert len(json.dumps(dataset.described())) < 200 and len(dataset.prompts) <= 100_000
    for number in range(0, 200_000, 20_011):
        assert dataset.records[number].prompt == f"clip {number}"
    assert tracemalloc.get_traced_memory()[1] < 30e6 and pa.total_allocated_bytes() - before < 20e6
    tracemalloc.stop()


def test_few_groups_are_held(tmp_path):
    table = open_table(synthetic(tmp_path / "t.parquet", 1000, 10)).records
    assert [table[row].prompt for row in range(1000)] == [f"clip {row}" for row in range(1000)]
    assert len(table._groups) == 64
    again = pickle.loads(pickle.dumps(table))
    assert not again._groups and again[999] == table[999]


def test_a_sample_of_captions_is_spread(tmp_path):
    table = open_table(synthetic(tmp_path / "t.parquet", 200_000)).records
    numbers = [int(caption.split()[1]) for caption in table.prompts]
    assert 90_000 < len(numbers) <= 100_000 and numbers[0] < 10_000 and numbers[-1] > 190_000
    few = open_table(synthetic(tmp_path / "few.parquet", 1000)).records
    assert few.prompts == [f"clip {row}" for row in range(1000)]
    assert [record.prompt for record in few.sample(4)] == ["clip 125", "clip 375", "clip 625", "clip 875"]


def test_digests_are_of_names_captions_and_classes(tmp_path):
    def digests(group_rows=4, **changed):
        with table_writer(tmp_path / "t.parquet", kind="webvid", root=tmp_path, group_rows=group_rows) as writer:
            for number in range(10):
                row = TableRow(f"{number}.mp4", "a", bytes=1)
                writer.add(row._replace(**changed) if number == 7 else row)
        records = open_table(tmp_path / "t.parquet").records
        return str(records.described(False)), str(records.described(True))

    assert digests() == digests(3)
    for changed in ({"path": "70.mp4"}, {"prompt": "b"}, {"class_label": 1}):
        assert digests()[0] != digests(**changed)[0]
    assert digests()[0] == digests(bytes=2)[0] and digests()[1] != digests(bytes=2)[1]


def test_a_clip_that_is_not_there_is_a_failure_when_it_is_read(clips, tmp_path):
    index_clips(clips, tmp_path / "t.parquet", "captioned_folder", probe=False)
    table = open_table(tmp_path / "t.parquet").records
    dataset = VideoDataset(table, train=False, max_bad_fraction=0.2, **SIZE)
    assert dataset[10]["prompt"] == "clip 0"  # the next in the order
    assert list(dataset.failures) == [str(table[10].path)]
    table._root = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match="of 11 clips cannot be read.*no such file"):
        VideoDataset(table, **SIZE)[0]


def stated(path: Path, change) -> Path:
    """The file with what it states of itself changed."""
    values = change(json.loads(pq.ParquetFile(path).metadata.metadata[KEY]))
    values = values if isinstance(values, bytes) else json.dumps(values)
    pq.write_table(pq.read_table(path).replace_schema_metadata({KEY: values}), path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: {**facts, "version": 2}, "version is 2, allowed: 1"),
        (lambda facts: [], "version is None, allowed: 1"),
        (lambda facts: {**facts, "rows": 11}, "holds 10 rows, states 11"),
        (lambda facts: {**facts, "rows": "many"}, "is damaged (rows: "),
        (lambda facts: b"{", "is damaged (Expecting"),
    ],
)
def test_a_table_of_others_is_told(tmp_path, change, words):
    path = stated(synthetic(tmp_path / "t.parquet", 10), change)
    with pytest.raises(ValueError) as error:
        load_manifest("manifest", path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_told(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"no Parquet at all")
    with pytest.raises(ValueError, match="t.parquet: no Parquet file"):
        load_manifest("manifest", path)
    pq.write_table(pa.table({"path": ["a.mp4"]}), path)
    with pytest.raises(ValueError, match="t.parquet: no table of clips, it has no entry 'cmd_video'"):
        list_clips(path)
    stated_of = pq.ParquetFile(synthetic(path, 10)).metadata.metadata[KEY]
    pq.write_table(pq.read_table(path).drop_columns(["fps"]).replace_schema_metadata({KEY: stated_of}), path)
    with pytest.raises(ValueError, match=r"t.parquet: columns are path \(string\), .*, must be .* fps \(double\)"):
        list_clips(path)
    whole = synthetic(path, 10).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="t.parquet: no Parquet file"):
        load_manifest("manifest", path)


def test_a_damaged_group_is_told_when_it_is_read(tmp_path):
    path = synthetic(tmp_path / "t.parquet", 1000, 10)
    whole = bytearray(path.read_bytes())
    whole[4:200] = bytes(196)
    path.write_bytes(whole)
    table = open_table(path).records
    assert table[999].prompt == "clip 999"
    with pytest.raises(OSError, match="row group 0 cannot be read"):
        table[0]


def test_nothing_is_left_of_a_table_that_cannot_be_made(tmp_path):
    path = webvid(tmp_path, 5)
    with pytest.raises(ValueError, match="no clip of kind 'webvid'; 5 listed are not there, the first"):
        index_clips(path, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="output: .*t.csv, must end in .parquet"):
        index_clips(path, tmp_path / "t.csv")
    path.write_text(path.read_text() + "\n1,2\n")
    with pytest.raises(ValueError, match="does not have the 5 columns"):
        index_clips(path, tmp_path / "t.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.csv"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    path = synthetic(tmp_path / "t.parquet", 10)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'cmd-video\[scale\]'"):
        list_clips(path)


def test_a_large_table_is_checked_and_its_captions_counted_in_a_sample(clips, tmp_path, capsys):
    from cmd_video.cli import main
    from cmd_video.data.check import to_look_at
    from cmd_video.training.captions import cut_by

    index_clips(clips, tmp_path / "t.parquet", "captioned_folder", probe=False)
    table = open_table(tmp_path / "t.parquet")
    assert to_look_at(table, 11) is table
    assert [record.prompt for record in to_look_at(table, 2).records] == ["clip 2", "clip 8"]
    assert main(["data", "check", str(tmp_path / "t.parquet"), "--num-frames", "4"]) == 0
    out = capsys.readouterr().out
    assert "t.parquet: 4 frames" in out and "sample" not in out and f"{clips.name}/10.mkv: no known video" in out

    class Words:
        model_max_length = 1

        def __call__(self, texts, **settings):
            return {"input_ids": [[0]] * len(texts)}

    lines = cut_by({"tokenizer": Words()}, ["", ""], "data", 10)
    assert lines == ["data: none of 2 clips in a sample of 10 has a caption, text_encoder is told nothing"]


def test_data_index_says_what_it_wrote(clips, tmp_path, capsys):
    from cmd_video.cli import main

    assert main(["data", "index", str(clips), "--kind", "captioned_folder", "-o", str(tmp_path / "t.parquet")]) == 0
    out = capsys.readouterr().out
    assert "1 clips cannot be read, the first 10.mkv" in out and "t.parquet: 11 clips" in out
    assert main(["data", "index", str(clips), "-o", str(tmp_path / "t.csv")]) == 2
    assert "must end in .parquet" in capsys.readouterr().err
