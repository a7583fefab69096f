"""One file of latents: written, read as a whole and compared with what was written, or read clip by clip.

    write_shard(path, Shard(tensors, prompts));  shard = read_shard(path)
    with OpenShard(path) as shard:
        frame = shard.read("content_frame", 7)              # (C, H, W), 7 counted from 0; the others stay on the disk

A shard `shard-00000.safetensors` holds `content_frame` (N, C, H, W), `motion_latents` (N, D, F, H' + W') and
`class_label` (N,), and where it was asked for `end_frames` (N, 2, C, H, W), first and last frame; its metadata have
the N prompts, and the sha256 of prompts and tensors.
"""

import hashlib
import json
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .files import write_whole

TENSORS = {"content_frame": 4, "motion_latents": 4, "class_label": 1}  # name -> dimensions
FURTHER = {"end_frames": 5}  # likewise, of folders that were encoded with them
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
MAX_HEADER = 2**27  # bytes; safetensors itself allows 100 MB
AGAIN = "`cmd-video data encode` again mends it"


class Shard(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, of N clips each.
        prompts: N texts.
    """

    tensors: dict[str, torch.Tensor]
    prompts: list[str]


def shard_path(folder: Path, number: int) -> Path:
    """File of shard `number`."""
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, shard: Shard) -> None:
    """Write a file, with the sha256 of what it holds; the same shard gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {"prompts": json.dumps(shard.prompts), "sha256": _digest(shard)}
    plain = save(shard.tensors)  # what safetensors is told as metadata it writes in an order that chance decides
    end = 8 + int.from_bytes(plain[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(plain[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_whole(path, len(header).to_bytes(8, "little") + header + plain[end:])


def is_whole(path: Path, clips: int) -> bool:
    """Whether a shard of at most so many clips is there and not damaged; it has fewer where some could not be read."""
    try:
        return path.is_file() and len(read_shard(path).prompts) <= clips
    except ValueError:
        return False


def read_shard(path: Path) -> Shard:
    """Read a shard and look whether it is what was written.

    Raises:
        ValueError: it is damaged, or no shard.
    """
    try:
        with safe_open(path, "pt") as file:
            names = (*TENSORS, *(name for name in FURTHER if name in set(file.keys())))
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
        shard = Shard(tensors, json.loads(metadata["prompts"]))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; `cmd-video data encode` again writes it") from error
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); {AGAIN}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_shapes(path, len(shard.prompts), shapes)
    if "sha256" in metadata and metadata["sha256"] != _digest(shard):  # those of earlier versions have none
        raise ValueError(f"{path}: damaged, it is not what was written; {AGAIN}")
    return shard


def captions_digest(prompts: list[str], labels: list[int]) -> str:
    """sha256 of the captions and classes of a shard."""
    return hashlib.sha256(json.dumps([prompts, labels]).encode()).hexdigest()


class OpenShard:
    """A shard whose clips are read one at a time, by their places in the file: no more of it is held than its prompts
    and labels. Nothing is mapped into memory, so that a file that shrinks is an error and not the end of the process.

    Args:
        path: the file.

    Attributes:
        prompts: N texts.
        labels: N numbers of classes.
        shapes: of one clip, by name of the tensor.

    Raises:
        ValueError: it is no shard, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file; `cmd-video data encode` again writes it") from error
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        try:
            header, self._start = self._header()
            places = {name: header[name] for name in (*TENSORS, *(name for name in FURTHER if name in header))}
            self.prompts: list[str] = json.loads(header["__metadata__"]["prompts"])
            self._dtypes = {name: DTYPES[place["dtype"]] for name, place in places.items()}
            self._offsets = {name: place["data_offsets"][0] for name, place in places.items()}
            shapes = {name: tuple(place["shape"]) for name, place in places.items()}
            _check_shapes(path, len(self.prompts), shapes)
            self.shapes = {name: shape[1:] for name, shape in shapes.items()}
            self.labels: list[int] = self._read("class_label", 0, len(self.prompts)).tolist()
        except (KeyError, TypeError, IndexError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
            self.close()
            raise ValueError(f"{path}: damaged ({type(error).__name__}: {error}); {AGAIN}") from error
        except ValueError:
            self.close()
            raise

    def read(self, name: str, number: int) -> torch.Tensor:
        """A tensor of one clip, without the first dimension.

        Raises:
            ValueError: the file has become too short, or cannot be read.
        """
        return self._read(name, number, 1)[0]

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def _header(self) -> tuple[dict[str, Any], int]:
        """What safetensors says of the tensors, and the byte where they begin."""
        length = int.from_bytes(self._bytes(0, 8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"{self.path}: damaged (a header of {length} bytes); {AGAIN}")
        return json.loads(self._bytes(8, length)), 8 + length

    def _read(self, name: str, first: int, count: int) -> torch.Tensor:
        """Rows of a tensor: (count, ...)."""
        shape, dtype = (count, *self.shapes[name]), self._dtypes[name]
        row = prod(self.shapes[name]) * dtype.itemsize
        content = self._bytes(self._start + self._offsets[name] + first * row, count * row)
        return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)

    def _bytes(self, start: int, count: int) -> bytes:
        try:
            if hasattr(os, "pread"):  # forks share where a file is read, so that is not to matter
                content = os.pread(self._file, count, start)
            else:
                os.lseek(self._file, start, os.SEEK_SET)
                content = os.read(self._file, count)
        except (OSError, OverflowError) as error:
            raise ValueError(f"{self.path}: cannot be read ({error})") from error
        if len(content) != count:
            raise ValueError(f"{self.path}: damaged (it ends too early); {AGAIN}")
        return content


def _check_shapes(path: Path, prompts: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise a ValueError unless there is one prompt for each clip, and as many dimensions as latents have."""
    counts = [prompts, *(shape[0] if shape else 0 for shape in shapes.values())]
    if set(counts) != {counts[0]} or not counts[0]:
        numbers = ", ".join(f"{count} {name}" for name, count in zip(("prompts", *shapes), counts, strict=True))
        raise ValueError(f"{path}: holds {numbers}; there must be as many of each, and one at least")
    if any(len(shapes[name]) != dimensions for name, dimensions in (TENSORS | FURTHER).items() if name in shapes):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{path}: shapes {found} are not those of latents")


def _digest(shard: Shard) -> str:
    total = hashlib.sha256(json.dumps(shard.prompts).encode())
    for name, tensor in sorted(shard.tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
