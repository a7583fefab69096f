"""A table of clips as a Parquet file: its columns, what it states about itself, and how it is written.

    with table_writer(Path("clips.parquet"), kind="webvid", root=Path("videos")) as writer:
        writer.add(TableRow("a/1.mp4", "a cat"))

Rows lie in groups of `GROUP_ROWS`. A pass shuffles 64 groups into each other and holds them: of 4,096 rows these are
a quarter of a million clips and, at some 200 bytes a row, 50 MB in each loading process. Smaller groups would shuffle
less and make the index of a file of ten million rows, 2,442 groups, slow to read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from .files import whole_file
from .listing import Tally
from .records import tell_bare

GROUP_ROWS = 4096
VERSION = 1
KEY = b"cmd_video"


def arrow() -> Any:
    """The package pyarrow, with `parquet` and `ipc`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("a table of clips (.parquet) needs pyarrow: pip install 'cmd-video[scale]'") from error
    return pyarrow


class TableRow(NamedTuple):
    """A row: a clip and what is known of its file.

    Attributes:
        path: below the table's root, with "/".
        prompt: its caption; "" where there is none.
        class_label: number of its class; -1 where there is none.
        sha256: what the file must hash to; None where its set does not say.
        bytes: size of the file; of a folder of pictures of all its files.
        modified_ns: when the file was last written, nanoseconds since 1970; of a folder the last of its files.
        height: rows of a frame, upright; None where it was not looked at, or cannot be read.
        width: columns of a frame.
        num_frames: frames, by the packets of the file.
        fps: frames per second by the header; None of folders of pictures, too.
        duration: seconds by the header; None of folders of pictures, too.
    """

    path: str
    prompt: str = ""
    class_label: int = -1
    sha256: str | None = None
    bytes: int | None = None
    modified_ns: int | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    duration: float | None = None


class TableFacts(BaseModel):
    """What a table states about itself, so that nobody needs to walk through it.

    Attributes:
        version: of this format.
        kind: of the set that it was made of.
        root: folder of the clips, seen from the folder of the table.
        class_names: name of each class label; empty where clips have none, or numbers in place of names.
        class_labels: numbers of classes that occur, ascending, -1 for none.
        rows: how many.
        clips: how many different files or folders.
        first_folder: the first clip that is a folder of pictures; None where all are files.
        left_out: how many things were found or listed that are not in it, by the reason.
        remarks: lines about the set, as of `Manifest.remarks`.
        digest: sha256 of all paths, captions and classes.
        files_digest: sha256 also of what tells that a file was replaced: its sha256, or size and time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    kind: str
    root: str
    class_names: list[str]
    class_labels: list[int]
    rows: int
    clips: int
    first_folder: str | None
    left_out: dict[str, int]
    remarks: list[str]
    digest: str
    files_digest: str


def schema() -> Any:
    """Columns of a table, those of `TableRow`."""
    pa = arrow()
    types = {"sha256": pa.string(), "bytes": pa.int64(), "modified_ns": pa.int64(), "fps": pa.float64()}
    types |= {"path": pa.string(), "prompt": pa.string(), "duration": pa.float64()}
    return pa.schema([(name, types.get(name, pa.int32())) for name in TableRow._fields])


def read_facts(path: Path, file: Any) -> TableFacts:
    """What a Parquet file, opened by pyarrow, states, after a look at its columns.

    Raises:
        ValueError: it is no table of clips, or of another version.
    """
    stated = (file.metadata.metadata or {}).get(KEY)
    if stated is None:
        raise ValueError(f"{path}: no table of clips, it has no entry {KEY.decode()!r}; `data index` makes one")
    try:
        values = json.loads(stated)
        version = values["version"] if isinstance(values, dict) and "version" in values else None
        if version != VERSION:
            raise ValueError(f"{path}: version is {version!r}, allowed: {VERSION}; `data index` again makes it")
        facts = TableFacts.model_validate(values)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: what it states of itself is damaged ({_first_line(error)})") from error
    if not file.schema_arrow.equals(schema()):
        raise ValueError(
            f"{path}: columns are {', '.join(map(_column, file.schema_arrow))}, "
            f"must be {', '.join(map(_column, schema()))}"
        )
    if facts.rows != file.metadata.num_rows:
        raise ValueError(f"{path}: holds {file.metadata.num_rows} rows, states {facts.rows}; `data index` again")
    return facts


def _column(field: Any) -> str:
    return f"{field.name} ({field.type})"


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]


class TableWriter:
    """Takes rows, in order, and writes a group whenever one is full; made by `table_writer`.

    Attributes:
        rows: how many so far.
        tally: what is left out; who writes adds to it.
        remarks: further lines about the set; who writes adds to them.
        facts: what the table states about itself, once it is written.
    """

    facts: TableFacts

    def __init__(self, file: Any, group_rows: int) -> None:
        self.rows, self.tally, self.remarks = 0, Tally(), list[str]()
        self._file, self._group_rows, self._waiting = file, group_rows, list[TableRow]()
        self._names, self._states = hashlib.sha256(), hashlib.sha256()
        self._clips, self._bare, self._labels = 0, 0, set[int]()
        self._last: str | None = None
        self._first_bare = ""
        self._first_folder: str | None = None

    def add(self, row: TableRow, is_folder: bool = False) -> None:
        """Take a row; those of one clip come one after the other.

        Args:
            row: the row.
            is_folder: whether the clip is a folder of pictures.
        """
        self._waiting.append(row)
        self.rows += 1
        self._clips += row.path != self._last
        self._last = row.path
        if not row.prompt:
            self._first_bare = self._first_bare or row.path
            self._bare += 1
        if is_folder and self._first_folder is None:
            self._first_folder = row.path
        if len(self._waiting) == self._group_rows:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        self._labels.update(row.class_label for row in rows)
        self._names.update("".join(json.dumps(row[:3]) + "\n" for row in rows).encode())
        self._states.update("".join(json.dumps(_state(row)) + "\n" for row in rows).encode())
        pa = arrow()
        columns = [pa.array(column, field.type) for column, field in zip(zip(*rows), schema(), strict=True)]
        self._file.write_table(pa.table(columns, schema=schema()), row_group_size=self._group_rows)

    def finish(self, kind: str, root: str, class_names: Sequence[str]) -> None:
        """Write what is left, and what the table states about itself."""
        self._flush()
        self.facts = TableFacts(
            version=VERSION,
            kind=kind,
            root=root,
            class_names=list(class_names),
            class_labels=sorted(self._labels),
            rows=self.rows,
            clips=self._clips,
            first_folder=self._first_folder,
            left_out=self.tally.counts,
            remarks=self.tally.lines() + tell_bare(self._bare, self.rows, self._first_bare) + self.remarks,
            digest=self._names.hexdigest(),
            files_digest=self._states.hexdigest(),
        )
        self._file.add_key_value_metadata({KEY: self.facts.model_dump_json().encode()})


def _seen_from(root: Path, folder: Path) -> str:
    """A folder as it is seen from another one; where the way leads up, without links, which ".." does not go back."""
    if not root.is_relative_to(folder):
        root, folder = root.resolve(), folder.resolve()
    return Path(os.path.relpath(root, folder)).as_posix()


def _state(row: TableRow) -> list[Any]:
    """Which clip a row is, and what tells that its file was replaced."""
    return [*row[:3], *([row.sha256] if row.sha256 else [row.bytes, row.modified_ns])]


@contextmanager
def table_writer(
    path: Path, *, kind: str, root: Path, class_names: Sequence[str] = (), group_rows: int = GROUP_ROWS
) -> Iterator[TableWriter]:
    """Write a table that appears when the block ends well.

    Args:
        path: the file.
        kind: of the set that it is made of.
        root: folder of the clips.
        class_names: name of each class label.
        group_rows: rows of a group.

    Raises:
        ValueError: pyarrow is not installed.
        OSError: it cannot be written.
    """
    pa = arrow()
    above = _seen_from(root.absolute(), path.absolute().parent)
    with (
        whole_file(path) as temporary,
        pa.parquet.ParquetWriter(str(temporary), schema(), compression="zstd") as file,
    ):
        writer = TableWriter(file, group_rows)
        yield writer
        writer.finish(kind, above, class_names)
