"""Work that outlives an interruption and can be shared between processes: folders that know what they are for.

rows = SharedRows(Path("adherence.json.parts"), recipe)(200, 10, make)     # make([0, 1, ...]) -> a row for each
SharedRows(Path("adherence.json.parts"), recipe, Share(1, 8))(200, 10, make)    # an eighth of them; ShareDone
discard(Path("adherence.json.parts"))               # only once the result is written: until then nothing is lost
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from cmd_video.data.files import holds_something, write_whole
from cmd_video.data.lock import FolderLock, lock_folder
from cmd_video.data.shares import WHOLE, Share, ShareDone

Row = dict[str, Any]  # JSON-able
Make = Callable[[list[int]], list[Row]]
Progress = Callable[[int, int], None]
_LOCKS: dict[Path, FolderLock] = {}  # of the folders that this process works in
Rows = Callable[[int, int, Make, Progress | None], list[Row]]  # count, at a time, what makes them, progress


def processes(device: str) -> tuple[PartialState, str]:
    """Who shares the work, and this process's own device; call it before anything is put on a device."""
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=2))  # the slowest chunk may take its time
    return state, str(state.device) if device == "cuda" else device


class NotOurs(ValueError):
    """A folder of work that belongs to something else, or to another process."""


def claim(work: Path, recipe: Row) -> None:
    """Take a folder for a work, or go on with the same work in it; it is this process's until `discard`.

    Raises:
        NotOurs: it belongs to something else, or another process is at the same work.
    """
    _make_folder(work)
    if work not in _LOCKS:
        _LOCKS[work] = _locked(work)
    _agree(work, recipe)


@contextmanager
def claim_share(work: Path, recipe: Row, share: Share) -> Iterator[None]:
    """Take a share of a work, while others are at other shares of it and nobody is at the whole.

    Raises:
        NotOurs: the folder belongs to something else, or another process is at the same share, or at the whole.
        ValueError: several processes were started for it.
    """
    started = PartialState(cpu=not torch.cuda.is_available()).num_processes
    if started > 1:
        raise ValueError(f"shard: {share} is for one process, and {started} were started together")
    _make_folder(work)
    locks = [_locked(work, together=True)]
    try:
        locks.append(_locked(work, part=f"share-{share.first}-of-{share.step}"))
        _agree(work, recipe)
        yield
    finally:
        for lock in reversed(locks):
            lock.release()


def _make_folder(work: Path) -> None:
    if not (work / "recipe.json").is_file() and holds_something(work):
        raise NotOurs(f"{work}: exists and holds no interrupted evaluation")
    work.mkdir(parents=True, exist_ok=True)


def _locked(work: Path, part: str = "", together: bool = False) -> FolderLock:
    try:
        return lock_folder(work, part, together)
    except ValueError as error:
        raise NotOurs(f"{error}; wait for it, or choose another output") from error


def _agree(work: Path, recipe: Row) -> None:
    """Write what a folder is for, or see that it is for the same."""
    path, text = work / "recipe.json", json.dumps(recipe, indent=1)
    if not path.is_file():
        write_whole(path, text)
    if path.read_text() != text:
        raise NotOurs(f"{work}: holds an interrupted evaluation of something else; remove it")


def deal_out(missing: list[int], state: PartialState) -> list[int]:
    """This process's part of the work that is missing, as the first process sees it."""
    (agreed,) = broadcast_object_list([missing])
    return list(agreed[state.process_index :: state.num_processes])


def discard(work: Path) -> None:
    """Remove a folder of work, once what it was for is written."""
    shutil.rmtree(work, ignore_errors=True)
    if work in _LOCKS:
        _LOCKS.pop(work).release()


@contextmanager
def work_on(work: Path, share: Share | None = None) -> Iterator[None]:
    """Work in a folder that goes when clips turn out to be a mistake: what is mended would be another work. Not where
    others are at other shares of it.
    """
    try:
        yield
    except NotOurs:
        raise
    except ValueError:
        if share is None:
            discard(work)
        raise


def discard_empty(work: Path, pieces: str) -> None:
    """Remove a folder of work that holds no piece, unless another process is in it: a corrected command is not kept
    out.

    Args:
        work: the folder.
        pieces: pattern of their names.
    """
    with suppress(NotOurs):
        lock = _locked(work)
        if not any(work.glob(pieces)):
            shutil.rmtree(work, ignore_errors=True)
        lock.release()


def every_row(count: int, at_a_time: int, make: Make, progress: Progress | None = None) -> list[Row]:
    """All rows, made here and now."""
    rows: list[Row] = []
    for start in range(0, count, at_a_time):
        rows += make(list(range(start, min(start + at_a_time, count))))
        if progress is not None:
            progress(len(rows), count)
    return rows


class SharedRows:
    """As `every_row`, but rows are kept in a folder as they are made, and processes deal them out among themselves.

    Args:
        work: the folder; stays until `discard`.
        recipe: what the rows are of; another one is refused in the same folder.
        share: the batches to make where other processes make others, each in a call of its own; None = all that are
            missing, and the rows.
    """

    def __init__(self, work: Path, recipe: Row, share: Share | None = None) -> None:
        self.work, self.recipe, self.share = work, recipe, share

    def __call__(self, count: int, at_a_time: int, make: Make, progress: Progress | None = None) -> list[Row]:
        """All rows; each process returns the same.

        Raises:
            NotOurs: the folder belongs to something else, or to another process.
            ShareDone: the rows of a share are there.
        """
        if self.share is not None:
            self._make_share(self.share, count, at_a_time, make, progress)
        state = PartialState(cpu=not torch.cuda.is_available())
        if state.is_main_process:
            claim(self.work, {**self.recipe, "count": count})
        state.wait_for_everyone()
        (batches,) = broadcast_object_list([self._missing(count, at_a_time)])  # all deal out the same ones
        done = count - sum(map(len, batches))
        path = self.work / f"rows-{state.process_index:04d}.jsonl"
        try:
            for numbers in batches[state.process_index :: state.num_processes]:
                self._append(path, dict(zip(numbers, make(numbers), strict=True)))
                done += len(numbers) * state.num_processes
                if progress is not None:
                    progress(min(done, count), count)
        except BaseException:
            if state.num_processes == 1 and not path.exists():
                discard(self.work)  # nothing is lost, and a corrected command is not kept out
            raise
        state.wait_for_everyone()
        known = self._read()
        state.wait_for_everyone()
        return [known[number] for number in range(count)]

    def _make_share(self, share: Share, count: int, at_a_time: int, make: Make, progress: Progress | None) -> NoReturn:
        """Make what is missing of a share."""
        path = self.work / f"rows-{share.first}-of-{share.step}.jsonl"
        try:
            with claim_share(self.work, {**self.recipe, "count": count}, share):
                missing = self._missing(count, at_a_time, share)
                total, done = sum(map(len, missing)), 0
                for numbers in missing:
                    self._append(path, dict(zip(numbers, make(numbers), strict=True)))
                    done += len(numbers)
                    if progress is not None:
                        progress(done, total)
                known = len(self._read())
        except NotOurs:
            raise
        except BaseException:
            discard_empty(self.work, "rows-*")
            raise
        raise ShareDone(f"{self.work}: share {share} is done, {known} of {count} rows are there")

    def _missing(self, count: int, at_a_time: int, share: Share = WHOLE) -> list[list[int]]:
        """The batches of a share without what is there: the same ones, whoever makes the others."""
        known = self._read()
        firsts = range(share.first * at_a_time, count, share.step * at_a_time)
        batches = [range(first, min(first + at_a_time, count)) for first in firsts]
        missing = [[number for number in batch if number not in known] for batch in batches]
        return [numbers for numbers in missing if numbers]

    def _append(self, path: Path, rows: dict[int, Row]) -> None:
        """A line for each row, on the disk when this returns. One that was cut off stays alone on its line."""
        text = "".join(json.dumps({"number": number, "row": row}) + "\n" for number, row in rows.items())
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> dict[int, Row]:
        """Rows by number; a line that was cut off, or that another process is just writing, does not count."""
        rows: dict[int, Row] = {}
        for path in sorted(self.work.glob("rows-*.jsonl")):
            for line in path.read_text().splitlines():
                with suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    rows[int(entry["number"])] = entry["row"]
        return rows
