"""Checkpoints of a sharded run: the same folder as of any other, written and read by all processes together.

    save_sharded(folder, step, tensors, state)         # every process calls it with its own parts
    step, stored, state = load_latest(folder, open_stored)
    tensors = own_parts(stored, {"model": stage.state_dict(), "ema": ..., "optimizer": ...})

Each process writes its parts below a folder on the disk that all share (PyTorch's distributed checkpoint); the first
one joins them to the files that a run of one process writes, removes the parts, writes the manifest and renames the
folder. So a run goes on with any number of processes, sharded or not. Back, each process reads the slices it holds.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from .checkpoint import Tensors, save_checkpoint
from .processes import every_process


class Stored(NamedTuple):
    """A tensor in a safetensors file, to be read when it is asked for, all of it or some of its rows."""

    file: Any
    name: str

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start <= row < stop of dimension 0."""
        part = self.file.get_slice(self.name)
        if start < stop:
            return part[start:stop]
        return part[:1][:0]  # safetensors cuts no empty slice

    def whole(self) -> Tensor:
        """All of it."""
        return self.file.get_tensor(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file's header."""
        return tuple(self.file.get_slice(self.name).get_shape())


def open_stored(path: Path) -> dict[str, Any]:
    """A safetensors file by its header alone: name -> `Stored`."""
    file = safe_open(path, framework="pt")
    return {name: Stored(file, name) for name in file.keys()}  # noqa: SIM118  # it is no dict


def save_sharded(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write one checkpoint as `save_checkpoint` does; every process must call it.

    Raises:
        OSError: one of the processes could not write; in all of them, and older checkpoints are untouched.
    """
    every_process(lambda: _save(folder, step, tensors, state))


def write_parts(tensors: Tensors, folder: Path) -> None:
    """Write this process's part of each file below a folder, and, in the first one, the whole files of all parts."""
    for stem, named in tensors.items():
        writer = distributed_checkpoint.HuggingFaceStorageWriter(
            str(folder / stem), save_distributed=True, enable_consolidation=True
        )
        distributed_checkpoint.save({name: value.detach() for name, value in named.items()}, storage_writer=writer)


def own_parts(stored: dict[str, dict[str, Any]], like: Tensors) -> Tensors:
    """What this process holds of a checkpoint's tensors.

    Args:
        stored: file stem -> name -> `Stored`.
        like: file stem -> tensors by name, sharded as they are to be.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """
    return {
        stem: {name: _own_part(each, like[stem].get(name)) for name, each in named.items()}
        for stem, named in stored.items()
    }


def _save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
    """This process's share of a checkpoint: the first one tells the others where to write, or that it cannot."""
    if torch.distributed.get_rank():
        (place,) = broadcast_object_list([None])
        if place is not None:
            _as_oserror(tensors, Path(place))
        return
    told = False

    def write(temporary: Path) -> None:
        nonlocal told
        told = True
        broadcast_object_list([str(temporary)])
        write_parts(tensors, temporary)
        for stem in tensors:
            (joined,) = (temporary / stem).glob("*.safetensors")
            _write_scalars({name: value for name, value in tensors[stem].items() if not value.ndim}, joined)
            joined.rename(temporary / f"{stem}.safetensors")
            shutil.rmtree(temporary / stem)

    try:
        save_checkpoint(folder, step, write, state)
    finally:
        if not told:
            broadcast_object_list([None])


def _write_scalars(scalars: dict[str, Tensor], path: Path) -> None:
    """Put tensors without dimensions, steps of Adam, into a safetensors file that has room for them: where torch 2.13
    joins parts it leaves them zero.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, value in scalars.items():
            file.seek(8 + length + header[name]["data_offsets"][0])
            file.write(value.detach().cpu().reshape(1).view(torch.uint8).numpy().tobytes())


def _as_oserror(tensors: Tensors, place: Path) -> None:
    try:
        write_parts(tensors, place)
    except Exception as error:
        raise OSError(f"{place}: could not write the checkpoint ({error}); older ones are untouched") from error


def _own_part(stored: Stored, like: Tensor | None) -> Tensor:
    """A stored tensor, sharded like another one, or whole if that one is, or there is none."""
    if not isinstance(like, DTensor):
        return stored.whole()
    if stored.shape != tuple(like.shape):
        raise RuntimeError(f"{stored.name} is {stored.shape}, {tuple(like.shape)} is needed")
    mesh = like.device_mesh
    number, parts = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)  # dimension 0, over the last one
    rows = -(-like.shape[0] // parts)
    start, stop = (min(rows * bound, like.shape[0]) for bound in (number, number + 1))
    part = stored.rows(start, stop).to(like.device)
    return DTensor.from_local(part, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())
