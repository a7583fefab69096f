"""A checkpoint small enough to travel: averaged weights in float16, in shards, without the optimizer's moments.

    pack_checkpoint(Path("runs/image/checkpoints"), Path("home/image"))  # weights-00001.safetensors ..., weights.json
    step = unpack_checkpoint(Path("home/image"), Path("runs/image/checkpoints"))

Where a machine is lent for minutes and only small files come back, training goes on from here: with the same weights
(rounded), at the same step of the schedule and of the data, with fresh moments.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cmd_video.data.files import sha256, whole_folder

from .checkpoint import load_latest, save_checkpoint

INDEX = "weights.json"
KEPT = ("ema", "best", "pending", "stage", "samples", "digests")  # of a checkpoint's state
HEADER_BYTES = 128  # at most, for each tensor's name, type, shape and place


def pack_checkpoint(
    checkpoints: Path, folder: Path, shard_bytes: int = 16 * 2**20, total_bytes: int = 64 * 2**20
) -> list[Path]:
    """Write the newest checkpoint of a run as small files.

    Args:
        checkpoints: the run's folder `checkpoints`.
        folder: where to write; what is there is replaced once the new files are complete.
        shard_bytes: no file is larger.
        total_bytes: nor are all of them together.

    Returns:
        The files, `weights.json` last.

    Raises:
        ValueError: there is no checkpoint, or it does not fit.
    """
    found = load_latest(checkpoints)
    if found is None:
        raise ValueError(f"checkpoints: no whole checkpoint in {checkpoints}")
    step, tensors, state = found
    weights = {name: _light(value) for name, value in (tensors["model"] | tensors["ema"]).items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = shard_bytes - HEADER_BYTES
    for name, value in weights.items():
        size = value.numel() * value.element_size() + len(name) + HEADER_BYTES
        if size > shard_bytes - HEADER_BYTES:
            raise ValueError(f"shard_bytes: {shard_bytes} are too few for {name}, which takes {size}")
        if size > room:
            shards.append({})
            room = shard_bytes - HEADER_BYTES
        shards[-1][name] = value
        room -= size
    total = sum(value.numel() * value.element_size() for value in weights.values())
    if total > total_bytes:
        raise ValueError(f"total_bytes: {total_bytes} are too few for {total} bytes of weights in {checkpoints}")
    names = [f"weights-{number:05d}.safetensors" for number in range(1, len(shards) + 1)]
    with whole_folder(folder, replace=True) as temporary:
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, temporary / name)
        index = {
            "step": step,
            "averaged": sorted(tensors["ema"]),
            "state": {key: state[key] for key in KEPT if key in state},
            "sha256": {name: sha256(temporary / name) for name in names},
        }
        (temporary / INDEX).write_text(json.dumps(index, indent=1))
    return [folder / name for name in (*names, INDEX)]


def unpack_checkpoint(folder: Path, checkpoints: Path) -> int:
    """Make a checkpoint of what `pack_checkpoint` wrote, from which `train` goes on; returns its step.

    Raises:
        ValueError: a file is missing or is not the one that was written.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(f"folder: no {INDEX} in {folder}")
    index = json.loads((folder / INDEX).read_text())
    weights: dict[str, torch.Tensor] = {}
    for name, digest in index["sha256"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"folder: {folder / name} is missing or damaged")
        weights |= load_file(folder / name)
    whole = {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}
    tensors = {"model": whole, "ema": {name: whole[name].clone() for name in index["averaged"]}}
    save_checkpoint(checkpoints, index["step"], tensors, {**index["state"], "optimizer_groups": None})
    return index["step"]


def _light(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value
