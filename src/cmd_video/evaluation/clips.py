"""Where the clips of an evaluation come from: folders of videos or frames, arrays, datasets, models that generate.

    clips = FolderClips("ucf101/", num_frames=16, size=(256, 256))
    clips.read([0, 1, 2])                         # [uint8 (F, H, W, 3), ..., or the ClipError of one that is damaged]

A source has a length and a `recipe`: everything that decides which pixels it gives, JSON-able; and an `identity` that
changes when its files do, so that what was computed from them before is not used again.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cmd_video.data.check import find_clips
from cmd_video.data.clip import ClipError, check_span
from cmd_video.data.decode import codec_name, read_clip, read_frame_folder
from cmd_video.data.transforms import resize_and_crop_frame, to_uint8

RESIZE = "antialiased bilinear until it covers, then the middle"


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

    def codecs(self, numbers: Sequence[int]) -> list[str]:
        """Names of the codecs that some clips are stored with; none for clips that never were."""
        ...


class FolderClips:
    """Video files and folders of pictures below a path, or what a manifest lists, in the order of their names.

    Args:
        path: as for `data check`, or the clips themselves.
        num_frames: F.
        size: height and width; None = as they are.
        stride: take every stride-th frame.
        fps: take frames at this rate instead.
        num_clips: only so many; None = all.

    Raises:
        ValueError: no clip there.
    """

    def __init__(
        self,
        path: str | Path | Sequence[Path],
        num_frames: int = 16,
        size: tuple[int, int] | None = None,
        stride: int = 1,
        fps: float | None = None,
        num_clips: int | None = None,
    ) -> None:
        self.paths = (find_clips(path) if isinstance(path, str | Path) else list(path))[:num_clips]
        self._options: dict[str, Any] = {"stride": stride, "place": 0.5}
        if size is not None:
            self._options["transform"] = partial(resize_and_crop_frame, size=size)
        self._fps, self._num_frames = fps, num_frames
        self.recipe = {
            "kind": "files",
            "frames": num_frames,
            "size": list(size) if size else None,
            "resize": RESIZE if size else None,
            "stride": stride,
            "fps": fps,
            "span": "middle of the clip",
        }
        check_span(num_frames, stride, fps, 0, None)
        facts = [(str(file), *_stamp(file)) for file in self.paths]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`."""
        return [self._read(self.paths[number]) for number in numbers]

    def codecs(self, numbers: Sequence[int]) -> list[str]:
        """See `ClipSource`."""
        found = set()
        for path in (self.paths[number] for number in numbers):
            try:
                found.add("pictures" if path.is_dir() else codec_name(path))
            except ClipError:
                continue
        return sorted(found)

    def _read(self, path: Path) -> torch.Tensor | ClipError:
        try:
            if path.is_dir():
                if self._fps is not None:
                    return ClipError(path, "a folder of pictures has no rate; give stride")
                return read_frame_folder(path, self._num_frames, **self._options)
            return read_clip(path, self._num_frames, fps=self._fps, **self._options)
        except ClipError as error:
            return error


class ArrayClips:
    """Clips of an .npz or .npy file: one array, uint8 (N, F, H, W, 3).

    Raises:
        ValueError: it holds something else, or cannot be read.
    """

    def __init__(self, path: str | Path, num_clips: int | None = None) -> None:
        try:
            found = np.load(path, allow_pickle=False, mmap_mode="r" if str(path).endswith(".npy") else None)
            arrays = {name: found[name] for name in found} if hasattr(found, "files") else {"array": found}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        videos = [array for array in arrays.values() if array.ndim == 5]
        if len(videos) != 1 or videos[0].dtype != np.uint8 or videos[0].shape[-1] != 3:
            shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"{path}: expected one array uint8 (N, F, H, W, 3), found {shapes}")
        if not videos[0].size:
            raise ValueError(f"{path}: its array {videos[0].shape} holds no clip")
        self.videos = videos[0][:num_clips]
        _, frames, height, width, _ = self.videos.shape
        self.identity = json.dumps(_stamp(Path(path)))
        self.recipe = {"kind": "array", "frames": frames, "size": [height, width], "resize": None}

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`."""
        return [torch.from_numpy(np.array(self.videos[number])) for number in numbers]

    def codecs(self, numbers: Sequence[int]) -> list[str]:
        """See `ClipSource`."""
        return []


class MadeClips:
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

    def codecs(self, numbers: Sequence[int]) -> list[str]:
        """See `ClipSource`."""
        return []


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; of a folder of its entries together, zeros where there is nothing."""
    if not path.exists():
        return 0, 0
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [file.stat() for file in files]
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def open_clips(path: Path, num_frames: int, size: tuple[int, int] | None, **options: Any) -> ClipSource:
    """Files or an array, by what is at the path.

    Raises:
        FileNotFoundError: nothing is.
        ValueError: no clips, or options that an array cannot follow.
    """
    if path.suffix not in (".npz", ".npy"):
        return FolderClips(path, num_frames, size, **options)
    source = ArrayClips(path, options.get("num_clips"))
    wanted = {"frames": num_frames, "size": list(size) if size else source.recipe["size"]}
    found = {name: source.recipe[name] for name in wanted}
    if wanted != found or options.get("stride", 1) != 1 or options.get("fps") is not None:
        raise ValueError(f"{path}: arrays are taken as they are, {found}; asked for {wanted}, {options}")
    return source
