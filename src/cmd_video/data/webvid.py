"""WebVid's csv, whose ten million rows are read as a stream and sorted on disk.

for name, caption in sorted_webvid(Path("results_10M_train.csv"), scratch): ...            # "page_dir/videoid.mp4"
"""

import heapq
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from .listing import order_bytes
from .rows import csv_rows

COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
RUN_ROWS, BATCH_ROWS = 200_000, 2048  # held while sorting; and of each sorted run while they are merged


def is_webvid(path: Path) -> bool:
    """Whether a file begins as WebVid's csv does."""
    if path.suffix.lower() != ".csv":
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return set(file.readline().strip().split(",")) == set(COLUMNS)


def webvid_rows(path: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """(place below the folder of the videos, caption) of each row, in the order of the file.

    Raises:
        ValueError: it is another csv, or a video would lie elsewhere.
    """
    for line, row in csv_rows(path):
        if set(row) != set(COLUMNS):
            raise ValueError(f"{path}: columns are {', '.join(row)}, must be {', '.join(COLUMNS)}")
        inside = PurePosixPath(row["page_dir"]) / f"{row['videoid']}.mp4"
        if inside.is_absolute() or ".." in inside.parts or "\0" in str(inside):
            raise ValueError(f"{path}: line {line}: {inside} does not lie below the video root")
        yield inside, " ".join(row["name"].split())


def sorted_webvid(path: Path, scratch: Path, run_rows: int = RUN_ROWS) -> Iterator[tuple[str, str]]:
    """(place, caption) in natural order of the places, rows of one place in that of the file, in bounded memory.

    Args:
        path: the csv.
        scratch: a folder for sorted runs, about as large as the csv.
        run_rows: rows that are sorted at a time.

    Raises:
        ValueError: as `webvid_rows`.
    """
    rows = ((order_bytes(inside), inside.as_posix(), caption) for inside, caption in webvid_rows(path))
    runs: list[Path] = []
    while run := sorted(islice(rows, run_rows), key=itemgetter(0)):
        runs.append(scratch / f"{len(runs)}.arrow")
        _write_run(runs[-1], run)
    for _, name, caption in heapq.merge(*map(_read_run, runs), key=itemgetter(0)):
        yield name, caption


def _write_run(path: Path, rows: list[tuple[bytes, str, str]]) -> None:
    from .table_file import arrow

    pa: Any = arrow()
    table = pa.table([pa.array(column) for column in zip(*rows)], names=["order", "name", "caption"])
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)


def _read_run(path: Path) -> Iterator[tuple[bytes, str, str]]:
    from .table_file import arrow

    pa: Any = arrow()
    with pa.ipc.open_file(str(path)) as reader:
        for number in range(reader.num_record_batches):
            yield from zip(*(column.to_pylist() for column in reader.get_batch(number).columns))
