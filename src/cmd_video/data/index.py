"""List the clips of a set once, look at each, and write them into a table that opens at once, of any size.

    facts = index_clips("results_10M_train.csv", "clips.parquet", video_root="videos/", num_workers=16)

What is listed and left out is that of `load_manifest`, and what is not there is counted here, once. A csv of WebVid is
never held; other kinds are listed in memory.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .classes import check_text
from .clip import ClipError
from .files import scratch_folder
from .header import Header, read_header
from .listing import NOT_THERE, LeftOut
from .manifest import list_clips
from .records import ClipRecord
from .table_file import GROUP_ROWS, TableFacts, TableRow, TableWriter, arrow, table_writer
from .webvid import is_webvid, sorted_webvid

CHUNK = 256  # clips that a process looks at in one go
NO_TEXT = "their paths are no valid text"


class _Set(NamedTuple):
    """What is to be written: places below the root in order, with what is known of them."""

    kind: str
    root: Path
    records: Iterable[ClipRecord]
    class_names: list[str]
    left_out: list[LeftOut]
    remarks: list[str]


class _Looked(NamedTuple):
    """A clip that was looked at."""

    row: TableRow
    is_folder: bool
    problem: str


def index_clips(
    path: str | Path,
    output: str | Path,
    kind: str = "auto",
    *,
    video_root: str | Path | None = None,
    split: str | None = None,
    probe: bool = True,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
    group_rows: int = GROUP_ROWS,
) -> TableFacts:
    """Write a table of the clips of a set.

    Args:
        path: the set.
        output: the .parquet file; paths in it are relative to its folder.
        kind: as in `list_clips`.
        video_root: as in `load_manifest`.
        split: as in `load_manifest`.
        probe: look at size, frames, rate and duration of each clip. One that cannot be read stays, and is counted.
        num_workers: processes that look at clips; 0 = this one.
        progress: called with the number of clips done, now and then.
        group_rows: rows of a group, see `table_file`.

    Returns:
        What the table states about itself.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no clip there, or not of this kind; the output has another suffix; pyarrow is not installed.
        OSError: the table cannot be written.
    """
    output = Path(output)
    if output.suffix.lower() != ".parquet":
        raise ValueError(f"output: {output}, must end in .parquet")
    arrow()
    with (
        _listed(Path(path), output, kind, video_root, split) as found,
        table_writer(
            output, kind=found.kind, root=found.root, class_names=found.class_names, group_rows=group_rows
        ) as writer,
    ):
        for left in found.left_out:
            writer.tally.add(_below(left.path, found.root), left.reason)
        writer.remarks += found.remarks
        _fill(writer, _look_at(found.records, found.root, probe, num_workers), progress)
        if not writer.rows:
            raise ValueError("; ".join([f"{path}: no clip of kind {found.kind!r}", *writer.tally.lines()]))
    return writer.facts


@contextmanager
def _listed(path: Path, output: Path, kind: str, video_root: str | Path | None, split: str | None) -> Iterator[_Set]:
    """The clips of a set in order; a list of WebVid as a stream."""
    if (kind == "webvid" or (kind == "auto" and path.is_file() and is_webvid(path))) and path.is_file():
        root = Path(video_root or path.parent)
        if not root.exists():
            raise FileNotFoundError(2, "no such file or folder", str(root))
        if split is not None:
            raise ValueError(f"split: {split!r}, not used by kind 'webvid'; leave it out")
        with scratch_folder(output) as scratch:
            records = (ClipRecord(root / name, caption) for name, caption in sorted_webvid(path, scratch))
            yield _Set("webvid", root, records, [], [], [])
        return
    manifest = list_clips(path, kind, video_root=video_root, split=split)
    folders = {record.path.absolute().parent for record in manifest.records}
    root = Path(os.path.commonpath(folders))
    remarks = [] if manifest.left_out or not manifest.counts() else manifest.remarks()
    yield _Set(kind, root, manifest.records, manifest.class_names, manifest.left_out, remarks)


def _fill(writer: TableWriter, clips: Iterable[_Looked], progress: Callable[[int], None] | None) -> None:
    """Write clips, and count those that are not there or cannot be read."""
    unread, first = 0, ""
    for done, clip in enumerate(clips, 1):
        if clip.problem in (NOT_THERE, NO_TEXT):
            writer.tally.add(clip.row.path, clip.problem)
        else:
            writer.add(clip.row, clip.is_folder)
            first = first or (clip.problem and f"{clip.row.path} ({clip.problem})")
            unread += bool(clip.problem)
        if progress is not None and done % CHUNK == 0:
            progress(done)
    if unread:
        writer.remarks.append(f"{unread} clips cannot be read, the first {first}")


def _look_at(records: Iterable[ClipRecord], root: Path, probe: bool, num_workers: int) -> Iterator[_Looked]:
    """Look at clips, in order, by several processes that are never far ahead."""
    look, rest = partial(_look_at_some, root=root, probe=probe), iter(records)
    chunks = iter(lambda: list(islice(rest, CHUNK)), [])
    if not num_workers:
        for chunk in chunks:
            yield from look(chunk)
        return
    waiting: deque[Future[list[_Looked]]] = deque()
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(look, chunk))
            if len(waiting) > 2 * num_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _look_at_some(records: list[ClipRecord], root: Path, probe: bool) -> list[_Looked]:
    return [_look(record, root, probe) for record in records]


def _look(record: ClipRecord, root: Path, probe: bool) -> _Looked:
    """Size and time of a clip's file, and its header."""
    row = TableRow(_below(record.path, root), record.prompt, record.class_label, record.sha256)
    try:
        check_text("path", row.path)
    except ValueError:
        return _Looked(row._replace(path=ascii(row.path)), False, NO_TEXT)
    try:
        is_folder = record.path.is_dir()
        files = [entry.stat() for entry in os.scandir(record.path)] if is_folder else [record.path.stat()]
    except OSError:
        return _Looked(row, False, NOT_THERE)
    sizes, times = [each.st_size for each in files], [each.st_mtime_ns for each in files]
    row = row._replace(bytes=sum(sizes), modified_ns=max(times, default=0))
    header, problem = _header(record.path) if probe else (None, "")
    return _Looked(row if header is None else row._replace(**header._asdict()), is_folder, problem)


def _header(path: Path) -> tuple[Header | None, str]:
    try:
        return read_header(path), ""
    except ClipError as error:
        return None, error.reason


def _below(path: Path, root: Path) -> str:
    """A path as it is seen from the root."""
    return Path(os.path.relpath(path.absolute(), root.absolute())).as_posix()
