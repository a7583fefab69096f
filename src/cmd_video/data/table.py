"""A table of clips (.parquet, written by `data index`), read by row: opening it costs the same for any number.

    manifest = open_table(Path("clips.parquet"));  manifest.records[9_000_000].prompt

A few row groups are held, the last ones that were asked for; nobody asks the disk for a clip before it is read. What
is said of all clips is what the table states.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from .order import WINDOW
from .records import ClipRecord, Clips, Manifest
from .table_file import TableFacts, arrow, read_facts

SAMPLE = 100_000  # captions of a larger table that are looked at
_COLUMNS = ("path", "prompt", "class_label", "sha256")  # what is read of a clip


class _Opened(NamedTuple):
    """A Parquet file of one process, for what opens files in a fork of it may not share them."""

    process: int
    file: Any


class ClipTable(Clips):
    """The clips of a table, by row.

    Attributes:
        path: the file.
        facts: what it states about itself.
        block_sizes: rows of its groups.

    Args:
        path: the file.

    Raises:
        ValueError: it is no table of clips, or pyarrow is not installed.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: _Opened | None = None
        self._groups: OrderedDict[int, list[Any]] = OrderedDict()
        file = self._file()
        self.facts: TableFacts = read_facts(path, file)
        self.block_sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(self.block_sizes)])
        self._root = path.parent / self.facts.root

    def __len__(self) -> int:
        return self.facts.rows

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClipRecord]: ...
    def __getitem__(self, index: int | slice) -> ClipRecord | list[ClipRecord]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[number])
        return self._record(*(column[place].as_py() for column in self._group(number)))

    def __iter__(self) -> Iterator[ClipRecord]:
        for number in range(len(self.block_sizes)):
            yield from map(self._record, *(column.to_pylist() for column in self._read(number, _COLUMNS)))

    @property
    def class_labels(self) -> list[int]:
        return self.facts.class_labels

    @property
    def prompts(self) -> list[str]:
        """Captions of all rows, of more than `SAMPLE` of whole groups that lie evenly in the table."""
        wanted = min(len(self.block_sizes), max(1, SAMPLE // max(self.block_sizes)))
        numbers = range(len(self.block_sizes)) if len(self) <= SAMPLE else _evenly(len(self.block_sizes), wanted)
        return [caption for number in numbers for caption in self._read(number, ("prompt",))[0].to_pylist()]

    def picture_folder(self) -> Path | None:
        return None if self.facts.first_folder is None else self._root / self.facts.first_folder

    def described(self, files: bool) -> list[list[Any]]:
        return [["table", self.facts.files_digest if files else self.facts.digest]]

    def sample(self, count: int) -> list[ClipRecord]:
        """Clips of so many rows that lie evenly in the table, or of all."""
        return [self[row] for row in _evenly(len(self), min(count, len(self)))]

    def _record(self, name: str, prompt: str, class_label: int, sha256: str | None) -> ClipRecord:
        return ClipRecord(self._root / name, prompt, class_label, sha256)

    def _group(self, number: int) -> list[Any]:
        """Columns of a row group; as many are held as a pass shuffles into each other."""
        if number not in self._groups:
            self._groups[number] = self._read(number, _COLUMNS)
            if len(self._groups) > WINDOW:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return self._groups[number]

    def _read(self, number: int, names: Sequence[str]) -> list[Any]:
        """Columns of a row group: arrays of pyarrow."""
        try:  # its threads would not be there in a fork
            table = self._file().read_row_group(number, columns=list(names), use_threads=False).combine_chunks()
        except (arrow().lib.ArrowException, OSError) as error:
            raise OSError(f"{self.path}: row group {number} cannot be read: {_first_line(error)}") from error
        return [table.column(name).chunk(0) for name in names]

    def _file(self) -> Any:
        """The Parquet file, opened in this process."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Opened(os.getpid(), _open(self.path))
        return self._opened.file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_groups": OrderedDict()}


@dataclass(frozen=True, kw_only=True)
class TableManifest(Manifest):
    """What a table holds; what was left out of it was counted when it was made.

    Attributes:
        facts: what the table states.
    """

    facts: TableFacts

    def counts(self) -> dict[str, int]:
        return self.facts.left_out

    def remarks(self) -> list[str]:
        return self.facts.remarks


class TablePaths(Sequence[Path]):
    """Paths of a table that has every clip once."""

    def __init__(self, table: ClipTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [record.path for record in self._table[index]]
        return self._table[index].path

    def __iter__(self) -> Iterator[Path]:
        return (record.path for record in self._table)


def open_table(path: Path) -> TableManifest:
    """Open a table of clips.

    Raises:
        ValueError: it is no table of clips, or pyarrow is not installed.
        OSError: it cannot be read.
    """
    table = ClipTable(path)
    return TableManifest(table, table.facts.class_names, facts=table.facts)


def table_paths(table: ClipTable) -> Sequence[Path]:
    """Paths of all clips, each once however many captions it has; of a table that has several of some, a list."""
    if table.facts.clips == len(table):
        return TablePaths(table)
    return list(dict.fromkeys(record.path for record in table))


def _evenly(length: int, count: int) -> list[int]:
    """Numbers below a length that lie evenly in it, ascending."""
    return [(2 * number + 1) * length // (2 * count) for number in range(count)]


def _open(path: Path) -> Any:
    pa = arrow()
    try:
        return pa.parquet.ParquetFile(str(path))
    except pa.lib.ArrowException as error:
        raise ValueError(f"{path}: no Parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
