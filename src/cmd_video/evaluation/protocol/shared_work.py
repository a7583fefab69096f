"""Work that outlives an interruption and can be shared between processes: folders that know what they are for.

rows = SharedRows(Path("adherence.json.parts"), recipe)(200, 10, make)     # make([0, 1, ...]) -> a row for each
discard(Path("adherence.json.parts"))               # only once the result is written: until then nothing is lost
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from cmd_video.data.files import holds_something, write_whole
from cmd_video.data.lock import FolderLock, lock_folder

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
    path, text = work / "recipe.json", json.dumps(recipe, indent=1)
    if not path.is_file() and holds_something(work):
        raise NotOurs(f"{work}: exists and holds no interrupted evaluation")
    work.mkdir(parents=True, exist_ok=True)
    if work not in _LOCKS:
        try:
            _LOCKS[work] = lock_folder(work)
        except ValueError as error:
            raise NotOurs(f"{error}; wait for it, or choose another output") from error
    if not path.is_file():
        write_whole(path, text)
    elif path.read_text() != text:
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
def work_on(work: Path) -> Iterator[None]:
    """Work in a folder that goes when clips turn out to be a mistake: what is mended would be another work."""
    try:
        yield
    except NotOurs:
        raise
    except ValueError:
        discard(work)
        raise


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
    """

    def __init__(self, work: Path, recipe: Row) -> None:
        self.work, self.recipe = work, recipe

    def __call__(self, count: int, at_a_time: int, make: Make, progress: Progress | None = None) -> list[Row]:
        """All rows; each process returns the same.

        Raises:
            NotOurs: the folder belongs to something else, or to another process.
        """
        state = PartialState(cpu=not torch.cuda.is_available())
        if state.is_main_process:
            claim(self.work, {**self.recipe, "count": count})
        state.wait_for_everyone()
        known = self._read()
        missing = [number for number in range(count) if number not in known]
        (missing,) = broadcast_object_list([missing])  # all deal out the same ones
        batches = [missing[start : start + at_a_time] for start in range(0, len(missing), at_a_time)]
        done = count - len(missing)
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

    def _append(self, path: Path, rows: dict[int, Row]) -> None:
        """A line for each row, on the disk when this returns."""
        text = "".join(json.dumps({"number": number, "row": row}) + "\n" for number, row in rows.items())
        with path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> dict[int, Row]:
        """Rows by number; a line that was cut off by an interruption ends up alone, and does not count."""
        rows: dict[int, Row] = {}
        for path in sorted(self.work.glob("rows-*.jsonl")):
            text = path.read_text()
            if text and not text.endswith("\n"):
                text = text[: text.rfind("\n") + 1]
                write_whole(path, text)
            for line in text.splitlines():
                entry = json.loads(line)
                rows[int(entry["number"])] = entry["row"]
        return rows
