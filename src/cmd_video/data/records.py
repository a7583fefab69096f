"""What a set of clips is: its clips by number, in memory or on disk, and what was left out of it.

    clips = ClipList([ClipRecord(Path("a.mp4"), "a cat")]);  clips[0].prompt, clips.block_sizes

Whatever needs something of all clips asks `Clips` for it, so that a set that is too large to be held can answer from
what it states.
"""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from .listing import NOT_THERE, LeftOut, counts, tell

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipRecord:
    """One clip.

    Attributes:
        path: a video file or a folder of pictures.
        prompt: its caption; "" where there is none.
        class_label: number of its class; -1 where there is none.
        sha256: what the file must hash to, in lower case; None where the set does not say.
    """

    path: Path
    prompt: str = ""
    class_label: int = -1
    sha256: str | None = None


class Clips(Sequence[ClipRecord]):
    """Clips by number, and what is asked of all of them.

    Attributes:
        block_sizes: clips that lie together, in order; the sum is the number of clips.
    """

    block_sizes: list[int]

    @property
    @abstractmethod
    def class_labels(self) -> list[int]:
        """Numbers of the classes that clips have, -1 for none: of every clip, or each once."""

    @property
    @abstractmethod
    def prompts(self) -> list[str]:
        """The caption of every clip; of a set on disk those of a sample."""

    @abstractmethod
    def picture_folder(self) -> Path | None:
        """The first clip that is a folder of pictures, if one is."""

    @abstractmethod
    def described(self, files: bool) -> list[list[Any]]:
        """Which clips these are, for a digest; see `VideoDataset.described`."""


class ClipList(Clips):
    """Clips in memory, which lie in one block."""

    def __init__(self, records: Iterable[ClipRecord]) -> None:
        self._records = list(records)
        self.block_sizes = [len(self._records)]

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClipRecord]: ...
    def __getitem__(self, index: int | slice) -> ClipRecord | list[ClipRecord]:
        return self._records[index]

    @property
    def class_labels(self) -> list[int]:
        return [record.class_label for record in self._records]

    @property
    def prompts(self) -> list[str]:
        return [record.prompt for record in self._records]

    def picture_folder(self) -> Path | None:
        return next((record.path for record in self._records if record.path.is_dir()), None)

    def described(self, files: bool) -> list[list[Any]]:
        names = [record.path.absolute().as_posix() for record in self._records]
        above = os.path.commonpath([os.path.dirname(name) for name in names])
        rows: list[list[Any]] = []
        for record, name in zip(self._records, names, strict=True):
            row = [os.path.relpath(name, above), record.prompt, record.class_label]
            rows.append([*row, *(_state_of(record) if files else ())])
        return rows


def as_clips(records: Sequence[ClipRecord]) -> Clips:
    """Records that may be a plain list."""
    return records if isinstance(records, Clips) else ClipList(records)


@dataclass(frozen=True)
class Manifest:
    """What a set holds.

    Attributes:
        records: its clips.
        class_names: name of each class label; empty where clips have none, or numbers in place of names.
        left_out: what was found or listed and is no clip here.
    """

    records: Sequence[ClipRecord]
    class_names: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def missing(self) -> list[Path]:
        """Clips that are listed, or linked to, and are not there."""
        return [path for path, reason in self.left_out if reason == NOT_THERE]

    def counts(self) -> dict[str, int]:
        """How many were left out for each reason."""
        return counts(self.left_out)

    def remarks(self) -> list[str]:
        """What to know about the set, a line each: what was left out, and clips without a caption beside others."""
        bare = [record.path for record in self.records if not record.prompt]
        return tell(self.left_out) + tell_bare(len(bare), len(self.records), bare[0] if bare else "")

    def warn(self, where: str | Path) -> None:
        """Log the remarks as warnings, the same wherever clips are listed to be used."""
        for line in self.remarks():
            logger.warning("%s: %s", where, line)


def tell_bare(bare: int, clips: int, first: str | Path) -> list[str]:
    """The line about clips without a caption, where others have one."""
    return [f"{bare} of {clips} clips have no caption, the first {first}"] if 0 < bare < clips else []


def _state_of(record: ClipRecord) -> list[Any]:
    """The sha256 that a clip must have, or size and time of its file, or of each file of its folder."""
    if record.sha256 is not None:
        return [record.sha256]
    folder = record.path.is_dir()
    files = sorted(record.path.iterdir()) if folder else [record.path]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return [[name if folder else "", stat.st_size, stat.st_mtime_ns] for name, stat in stats]
