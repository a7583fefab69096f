"""Where the clips of an evaluation come from: folders of videos or frames, arrays, datasets, models that generate.

    clips = FolderClips("ucf101/", Reading(frames=16, size=(256, 256), num_clips=2048, span="random"))
    clips.read([0, 1, 2])                         # [uint8 (F, H, W, 3), ..., or the ClipError of one that is damaged]

A source has a length and a `recipe`: everything that decides which pixels it gives, JSON-able; and an `identity` that
changes when its files do, so that what was computed from them before is not used again.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from cmd_video.data.clip import ClipError, check_span
from cmd_video.data.decode import codec_and_rate, read_clip, read_frame_folder, span_start
from cmd_video.data.frame_folders import list_frames
from cmd_video.data.manifest import list_clips, paths_of
from cmd_video.data.transforms import resize_and_crop_frame, to_uint8

RESIZE = "antialiased bilinear until it covers, then the middle"


Span = Literal["start", "middle", "random"]
SPANS = {"start": 0.0, "middle": 0.5}  # their places in a clip


class ClipSource(Protocol):
    """Numbered clips, each the same however and wherever it is asked for."""

    recipe: dict[str, Any]
    identity: str

    def __len__(self) -> int:
        """Clips, readable or not."""
        ...

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """Each uint8 (F, H, W, 3), or why it cannot be read."""
        ...

    def storage(self, number: int) -> tuple[str | None, float | None]:
        """Codec that a clip is stored with, and its own frames per second; None where it has none."""
        return None, None

    def start(self, number: int) -> float:
        """Where in a clip the frames that are read begin: their number, or seconds where a rate is read; 0 where clips
        are taken whole.

        Raises:
            ClipError: it cannot be read.
        """
        return 0.0

    def origin(self, number: int) -> str | None:
        """Digest of the clip that one was computed from, after it was read; None for a clip that is as it is."""
        return None

    @property
    def underneath(self) -> "ClipSource":
        """The source that is read, where another one passes its clips through a model."""
        return self


@dataclass(frozen=True)
class Reading:
    """Which clips are looked at, and which of their frames.

    What is drawn hangs on the seed and a clip's number alone, not on how often or in which order clips are read.

    Attributes:
        frames: F.
        size: height and width; None = as they are.
        stride: take every stride-th frame.
        fps: take frames at this rate instead.
        num_clips: only so many, drawn without repetition; None = all.
        span: which frames of a longer clip: its first ones, those in its middle, or a span drawn among all that fit,
            as StyleGAN-V's protocol has it.
        draw_seed: of both draws.
    """

    frames: int = 16
    size: tuple[int, int] | None = None
    stride: int = 1
    fps: float | None = None
    num_clips: int | None = None
    span: Span = "middle"
    draw_seed: int = 0

    def choose(self, count: int) -> list[int]:
        """Numbers of the clips to look at among `count`, ascending."""
        if self.num_clips is None or self.num_clips >= count:
            return list(range(count))
        return sorted(nsmallest(self.num_clips, range(count), key=lambda number: self._draw(f"clip {number}")))

    def chosen(self, count: int) -> str:
        """How clips were chosen among `count`, in words, for the protocol."""
        if self.num_clips is None or self.num_clips >= count:
            return "all"
        return f"drawn with seed {self.draw_seed} among {count}"

    def place(self, number: int) -> float:
        """Where in the clip of this number the span lies: in [0, 1], see `read_clip`."""
        return self._draw(f"span {number}") if self.span == "random" else SPANS[self.span]

    def _draw(self, what: str) -> float:
        """Uniform in [0, 1)."""
        return int.from_bytes(hashlib.sha256(f"{self.draw_seed} {what}".encode()).digest()[:6]) / 2**48


class FolderClips(ClipSource):
    """Video files and folders of pictures below a path, or what a manifest lists, in the order of their names.

    Args:
        path: as for `data check`, or the clips themselves.
        reading: which of them, and which of their frames.

    Raises:
        ValueError: no clip there, or a reading that contradicts itself.
    """

    def __init__(self, path: str | Path | Sequence[Path], reading: Reading) -> None:
        left_out: dict[str, int] = {}
        found: Sequence[Path]
        if isinstance(path, str | Path):
            manifest = list_clips(path)
            manifest.warn(path)
            found, left_out = paths_of(manifest), manifest.counts()
        else:
            found = path
        chosen = reading.choose(len(found))
        self.paths = [found[number] for number in chosen]
        self._reading, self._places = reading, [reading.place(number) for number in chosen]
        self._options: dict[str, Any] = {"stride": reading.stride}
        if reading.size is not None:
            self._options["transform"] = partial(resize_and_crop_frame, size=reading.size)
        self.recipe = {
            "kind": "files",
            "frames": reading.frames,
            "size": list(reading.size) if reading.size else None,
            "resize": RESIZE if reading.size else None,
            "stride": reading.stride,
            "fps": reading.fps,
            "span": f"drawn with seed {reading.draw_seed}"
            if reading.span == "random"
            else f"{reading.span} of the clip",
            "chosen": reading.chosen(len(found)),
        }
        if left_out:
            self.recipe["left_out"] = left_out
        check_span(reading.frames, reading.stride, reading.fps, 0, None)
        facts = [(str(file), _stamp(file)) for file in self.paths]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`."""
        return [self._read(self.paths[number], self._places[number]) for number in numbers]

    def storage(self, number: int) -> tuple[str | None, float | None]:
        """See `ClipSource`."""
        path = self.paths[number]
        try:
            return (f"{list_frames(path)[0].suffix.lower()} pictures", None) if path.is_dir() else codec_and_rate(path)
        except ClipError:
            return None, None

    def start(self, number: int) -> float:
        """See `ClipSource`."""
        reading, place = self._reading, self._places[number]
        if place == 0:
            return 0.0
        return span_start(self.paths[number], reading.frames, stride=reading.stride, fps=reading.fps, place=place)

    def _read(self, path: Path, place: float) -> torch.Tensor | ClipError:
        reading, options = self._reading, {**self._options, "place": place}
        try:
            if path.is_dir():
                if reading.fps is not None:
                    return ClipError(path, "a folder of pictures has no rate; give stride")
                return read_frame_folder(path, reading.frames, **options)
            return read_clip(path, reading.frames, fps=reading.fps, **options)
        except ClipError as error:
            return error


class ArrayClips(ClipSource):
    """Clips of an .npz or .npy file: one array, uint8 (N, F, H, W, 3), as they are.

    Args:
        path: the file.
        num_clips: only so many, as in `Reading`.
        draw_seed: of their choice.

    Raises:
        ValueError: it holds something else, or cannot be read.
    """

    def __init__(self, path: str | Path, num_clips: int | None = None, draw_seed: int = 0) -> None:
        try:
            found = np.load(path, allow_pickle=False, mmap_mode="r" if str(path).endswith(".npy") else None)
            arrays = {name: found[name] for name in found} if hasattr(found, "files") else {"array": found}
        except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        videos = [array for array in arrays.values() if array.ndim == 5]
        if len(videos) != 1 or videos[0].dtype != np.uint8 or videos[0].shape[-1] != 3:
            shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"{path}: expected one array uint8 (N, F, H, W, 3), found {shapes}")
        if not videos[0].size:
            raise ValueError(f"{path}: its array {videos[0].shape} holds no clip")
        self.videos = videos[0]
        count, frames, height, width, _ = self.videos.shape
        reading = Reading(frames, (height, width), num_clips=num_clips, draw_seed=draw_seed)
        self._numbers = reading.choose(count)
        self.identity = json.dumps(_stamp(Path(path)))
        self.recipe = {
            "kind": "array",
            "frames": frames,
            "size": [height, width],
            "resize": None,
            "chosen": reading.chosen(count),
        }

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`."""
        return [torch.from_numpy(np.array(self.videos[self._numbers[number]])) for number in numbers]


class MadeClips(ClipSource):
    """Clips that a function makes, such as a dataset's items or a pipeline's output.

    Args:
        make: numbers -> (B, 3, F, H, W) in [-1, 1].
        count: how many there are.
        recipe: what decides them.
    """

    def __init__(self, make: Callable[[Sequence[int]], torch.Tensor], count: int, recipe: dict[str, Any]) -> None:
        self._make, self._count, self.recipe, self.identity = make, count, recipe, ""

    def __len__(self) -> int:
        return self._count

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`."""
        return [to_uint8(video) for video in self._make(numbers)]


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of each entry of a folder; nothing where there is nothing."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [(file.name, found.st_size, found.st_mtime_ns) for file in files for found in [file.lstat()]]


def stored_as(clips: ClipSource, number: int, clip: torch.Tensor) -> dict[str, Any]:
    """What a row keeps of a clip beside its metrics, for `storage_facts`: uint8 (F, H, W, 3)."""
    codec, rate = clips.storage(number)
    size = "x".join(map(str, clip.shape[1:3]))
    return {"size": size, "codec": codec, "fps": rate and round(rate, 2), "of": clips.origin(number)}


def storage_facts(stored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all clips, for the protocol: sizes, codecs and the files' own frames per second, each once; and one digest of
    the clips that they were computed from, if they were.
    """
    fields = {"sizes": "size", "codecs": "codec", "source_fps": "fps"}
    facts: dict[str, Any] = {
        name: sorted({row[field] for row in stored if row[field] is not None}) for name, field in fields.items()
    }
    origins = [row["of"] for row in stored if row["of"] is not None]
    if origins:
        facts["of_pixels_sha256"] = hashlib.sha256("".join(origins).encode()).hexdigest()
    return facts


class NothingReadable(ValueError):
    """None of the clips can be read."""


def as_problem(error: ClipError) -> dict[str, str]:
    """The row of a clip that cannot be read, as `readable_rows` knows it."""
    return {"problem": f"{error.path.name}: {error.reason}"}


def readable_rows(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the clips that could be read, and what was wrong with the others.

    Raises:
        NothingReadable: none could.
    """
    problems = [row["problem"] for row in rows if "problem" in row]
    if len(problems) == len(rows):
        raise NothingReadable(
            f"clips: none of {len(rows)} can be read" + (f"; the first: {problems[0]}" if rows else "")
        )
    return [row for row in rows if "problem" not in row], problems


def open_clips(path: Path, reading: Reading) -> ClipSource:
    """Files or an array, by what is at the path.

    Raises:
        FileNotFoundError: nothing is.
        ValueError: no clips, or a reading that an array cannot follow.
    """
    if path.suffix not in (".npz", ".npy"):
        return FolderClips(path, reading)
    source = ArrayClips(path, reading.num_clips, reading.draw_seed)
    frames, size = source.recipe["frames"], tuple(source.recipe["size"])
    as_it_is = Reading(frames, size, num_clips=reading.num_clips, draw_seed=reading.draw_seed)
    if reading.span == "start":  # which is where an array's clips begin; beside longer files it is needed
        as_it_is = replace(as_it_is, span="start")
    if replace(reading, size=reading.size or size) != as_it_is:
        raise ValueError(
            f"{path}: arrays are taken as they are, {frames} frames of {size[0]}x{size[1]}, got {reading}"
        )
    return source
