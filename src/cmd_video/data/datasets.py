"""Clips on disk as a torch dataset.

    dataset = open_video_dataset("captioned_folder", "clips/", num_frames=16, height=64, width=64)
    dataset[0]["video"]                                               # float32 (3, F, H, W) in [-1, 1]

Item n is a pure function of (seed, n) and the files, for every n >= 0: beyond the last clip the clips come again, in a
new order. A clip that cannot be read is named in `failures`, and the next one in the order takes its place.
"""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .classes import mirror_classes
from .clip import ClipError, check_span
from .decode import read_clip, read_frame_folder
from .digests import check_digest
from .directions import in_mirror
from .listing import NOT_THERE
from .manifest import load_manifest
from .order import BlockOrder
from .records import ClipRecord, as_clips
from .transforms import flip_horizontal, resize_and_crop_frame, to_float

logger = logging.getLogger(__name__)

MOST_VERIFIED = 100_000  # clips whose sha256 is known to be right, or not; an older one is compared again


class VideoDataset(Dataset):
    """Items: `video`, float32 (3, F, H, W) in [-1, 1]; `prompt`, text; `class_label`, a number, -1 for none;
    `path`, text, of the file that was read. With `on_device`, `video` is uint8 (F, H, W, 3), a quarter as large.

    Attributes:
        failures: path -> reason of each clip that could not be read so far, in this process.
        missing: how many clips the list names that are not there.
        left_out: how many things were found or listed that are not used, by the reason.
        remarks: lines about the set, as of `Manifest.remarks`.

    Args:
        records: the clips.
        num_frames: F.
        height: H; clips are scaled until they cover H x W, and the middle is cut out.
        width: W.
        stride: take every stride-th frame.
        fps: take frames at this rate instead; not for folders of pictures, which have none.
        train: a random place in the clip and each pass in another order; otherwise the middle, in the given order.
        flip: mirror half of the clips; left and right change places in their captions and classes.
        seed: of all these choices.
        max_bad_fraction: stop when more than this part of the clips cannot be read.
        failure_log: append a JSON line with path, reason and time for each of them.
        class_names: name of each class label.
        on_device: leave it to `finish`, where a batch lies, to make floats of its clips.

    Raises:
        ValueError: an argument is out of range, or a class has no mirrored one; when an item is read, too many clips
            cannot be.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        *,
        num_frames: int,
        height: int,
        width: int,
        stride: int = 1,
        fps: float | None = None,
        train: bool = True,
        flip: bool = False,
        seed: int = 0,
        max_bad_fraction: float = 0.05,
        failure_log: str | Path | None = None,
        class_names: Sequence[str] = (),
        on_device: bool = False,
    ) -> None:
        check_span(num_frames, stride, fps, 0, None)
        if not records:
            raise ValueError("records: none, at least one clip is needed")
        for name, value, least in (("height", height, 1), ("width", width, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}: {value}, must be {least} or more")
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction: {max_bad_fraction}, must lie in [0, 1]")
        clips = as_clips(records)
        folder = None if fps is None else clips.picture_folder()
        if folder is not None:
            raise ValueError(f"fps: {fps}, but {folder} is a folder of pictures, which has no rate; give stride")
        self.records, self.class_names = clips, list(class_names)
        self.num_frames, self.size, self.stride, self.fps = num_frames, (height, width), stride, fps
        self.train, self.flip, self.seed, self.max_bad_fraction = train, flip, seed, max_bad_fraction
        self.failure_log = None if failure_log is None else Path(failure_log)
        self.on_device = on_device
        self.failures: dict[str, str] = {}
        self.missing = 0
        self.left_out: dict[str, int] = {}
        self.remarks: list[str] = []
        self._mirror_classes = mirror_classes(self.class_names) if flip else {}
        self._verified: dict[Path, bool] = {}
        self._order = BlockOrder(clips.block_sizes, key=[seed, 0])

    def __len__(self) -> int:
        return len(self.records)

    @property
    def class_labels(self) -> list[int]:
        """Numbers of the classes that clips have, -1 for none: of every clip, of a table each once."""
        return self.records.class_labels

    @property
    def prompts(self) -> list[str]:
        """The caption of every clip, of a large table those of a sample."""
        return self.records.prompts

    def __getitem__(self, index: int) -> dict[str, Any]:
        for further in range(len(self)):
            item = self.item(index, further)
            if item is not None:
                return item
        raise ValueError(f"none of {len(self)} clips can be read; the first: {self._first_failure()}")

    def item(self, index: int, further: int = 0) -> dict[str, Any] | None:
        """An item without another clip in the place of one that cannot be read: None, and a note of it.

        Args:
            index: as of an item.
            further: of the clip that comes so many later in the order, as the item.

        Raises:
            ValueError: too many clips cannot be read.
        """
        if index < 0:
            raise IndexError(f"item {index}: numbers start at 0")
        turn, first = divmod(index, len(self))
        place_in_turn = (first + further) % len(self)
        generator = np.random.default_rng([self.seed, 1, index])
        place, mirrored = (generator.random() if self.train else 0.5), self.flip and generator.random() < 0.5
        record = self.records[self._order(turn, place_in_turn) if self.train else place_in_turn]
        try:
            frames = self._read(record, place)
        except ClipError as error:
            self.note(str(record.path), error.reason)
            return None
        prompt, label = record.prompt, record.class_label
        if mirrored:
            frames, prompt = flip_horizontal(frames), in_mirror(prompt)
            label = self._mirror_classes.get(label, label)
        video = frames if self.on_device else to_float(frames)
        return {"video": video, "prompt": prompt, "class_label": label, "path": str(record.path)}

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of items with `video` as float32 (B, 3, F, H, W) in [-1, 1]."""
        return {**batch, "video": to_float(batch["video"])} if self.on_device else batch

    def _read(self, record: ClipRecord, place: float) -> torch.Tensor:
        """Frames of one clip: uint8 (F, H, W, 3)."""
        self._verify(record)
        span: dict[str, Any] = {"stride": self.stride, "place": place}
        span["transform"] = partial(resize_and_crop_frame, size=self.size)
        if record.path.is_dir():
            return read_frame_folder(record.path, self.num_frames, **span)
        return read_clip(record.path, self.num_frames, fps=self.fps, **span)

    def _verify(self, record: ClipRecord) -> None:
        """Compare the file with its sha256, once."""
        if record.sha256 is None:
            return
        if record.path not in self._verified:
            if len(self._verified) >= MOST_VERIFIED:
                self._verified.pop(next(iter(self._verified)))
            self._verified[record.path] = False
            check_digest(record.path, record.sha256)
            self._verified[record.path] = True
        if not self._verified[record.path]:
            raise ClipError(record.path, "its sha256 is not the one in the manifest")

    def note(self, path: str, reason: str) -> None:
        """Note a clip that could not be read, once.

        Raises:
            ValueError: there are too many of them.
        """
        if path not in self.failures:
            self.failures[path] = reason
            logger.warning("left out: %s: %s", path, reason)
            if self.failure_log is not None:
                line = {"path": path, "reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")}
                with self.failure_log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        if len(self.failures) > self.max_bad_fraction * len(self):
            allowed = f"max_bad_fraction = {self.max_bad_fraction:g} allows {int(self.max_bad_fraction * len(self))}"
            failed = f"{len(self.failures)} of {len(self)} clips cannot be read"
            raise ValueError(f"{failed}, {allowed}; the first: {self._first_failure()}")

    def described(self, files: bool = False) -> list[list[Any]]:
        """Which clips these are: of each its name below the folder of all of them, its caption and its class.

        Args:
            files: also what tells that a file was replaced: the sha256 that its manifest states, or size and time.

        Returns:
            A row for each clip; of a table a row with the digest of them that it states.
        """
        return self.records.described(files)

    def _first_failure(self) -> str:
        return ": ".join(next(iter(self.failures.items())))


def open_video_dataset(
    kind: str, path: str | Path, *, video_root: str | Path | None = None, split: str | None = None, **settings: Any
) -> VideoDataset:
    """List the clips of a set and make a dataset of them; what is left out of it is counted in a warning.

    Args:
        kind: one of `manifest.KINDS`.
        path: the manifest, csv or folder.
        video_root: folder of the clips, for "ucf101" and "webvid".
        split: of "ucf101", "train1" ... "test3".
        settings: of `VideoDataset`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no usable clip, or a setting is out of range.
    """
    manifest = load_manifest(kind, path, video_root=video_root, split=split)
    manifest.warn(path)
    dataset = VideoDataset(manifest.records, class_names=manifest.class_names, **settings)
    dataset.left_out = manifest.counts()
    dataset.missing = dataset.left_out.get(NOT_THERE, 0)
    dataset.remarks = manifest.remarks()
    return dataset
