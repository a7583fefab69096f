"""Checkpoints that survive being killed: safetensors and JSON, a sha256 manifest written last, one atomic rename.

    save_checkpoint(folder, step, tensors={"model": {...}}, state={...});  step, tensors, state = load_latest(folder)

A checkpoint is a folder `step-00001000`. A folder without a manifest, or one whose files differ from it, is damaged:
the one before it counts. Where all are damaged nothing may begin anew in their place, and a checkpoint of another
format version is none that is damaged: both are errors.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmd_video.data.files import is_left_behind, sha256, whole_folder

Tensors = dict[str, dict[str, torch.Tensor]]
VERSION = 1


def save_checkpoint(folder: Path, step: int, tensors: Tensors | Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write one checkpoint; it appears under its name complete or not at all.

    Args:
        folder: where checkpoints lie.
        step: optimizer steps done.
        tensors: file stem -> tensors by name; or what writes such files into a folder.
        state: everything else, as JSON.

    Raises:
        OSError: no space or no permission; what was begun is removed and older checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    needed = "" if callable(tensors) else f", which takes {_bytes(tensors):,} bytes"
    try:
        with whole_folder(final, replace=True) as temporary:
            if callable(tensors):
                tensors(temporary)
            else:
                _write_files(tensors, temporary)
            (temporary / "state.json").write_text(json.dumps({"version": VERSION, "step": step, **state}, indent=1))
            files = sorted(temporary.iterdir())
            for path in files:
                _sync(path)
            manifest = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            _sync(temporary / "manifest.json")
        _sync(folder)
    except Exception as error:
        raise OSError(
            f"{final}: could not write the checkpoint{needed} ({error}); older ones are untouched"
        ) from error
    return final


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for named in tensors.values() for tensor in named.values())


def _write_files(tensors: Tensors, folder: Path) -> None:
    for stem, named in tensors.items():
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(contiguous, folder / f"{stem}.safetensors")


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have the size and sha256 of its manifest.

    Raises:
        ValueError: it is whole, as far as can be told, and of another format version.
    """
    version = _other_version(path)
    if version is not None:
        raise ValueError(
            f"{path}: a checkpoint of format version {version}, this program reads {VERSION}; go on with the version "
            "of cmd-video that wrote it, or choose a new folder"
        )
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in sorted({file.name for file in path.iterdir()} - {"manifest.json", *manifest}):
            return f"{name} is not in manifest.json"
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
                return f"{name} is damaged"
        json.loads((path / "state.json").read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "manifest.json or state.json is missing or damaged"
    return None


def _other_version(path: Path) -> str | None:
    """The format version that a checkpoint states, if it is not ours; None where the file that states it is damaged.

    Another version may have another manifest, or none.
    """
    try:
        stated = json.loads((path / "state.json").read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(stated) is int and stated == VERSION:
        return None
    try:
        entry = json.loads((path / "manifest.json").read_text())["state.json"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return repr(stated) if type(stated) is int else None
    return repr(stated) if entry == sha256(path / "state.json") else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def load_latest(
    folder: Path, read: Callable[[Path], dict[str, Any]] = load_file
) -> tuple[int, Tensors, dict[str, Any]] | None:
    """The newest checkpoint that is whole, None where there is none at all; a warning names the file that damages a
    newer one.

    Args:
        folder: where checkpoints lie.
        read: a safetensors file to what it holds, by name.

    Raises:
        ValueError: there are checkpoints but none can be read, or the newest is of another format version.
    """
    problems = []
    for path in reversed(list_checkpoints(folder)):
        problem = verify_checkpoint(path)
        if problem is None:
            state = json.loads((path / "state.json").read_text())
            try:
                tensors = {file.stem: read(file) for file in path.glob("*.safetensors")}
                return int(state["step"]), tensors, state
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                problem = f"what it holds is no checkpoint ({type(error).__name__}: {error})"
        problems.append(f"{path.name}: {problem}")
        warnings.warn(f"{path}: {problem}; trying the checkpoint before it", stacklevel=2)
    if problems:
        raise ValueError(
            f"{folder}: none of its {len(problems)} checkpoints can be read ({', '.join(problems[:3])}); bring a copy "
            "back, or remove the folder to train from the first step"
        )
    return None


def name_torn(folder: Path) -> None:
    """Warn of checkpoints that a killed process did not write to their end; they do not count."""
    for path in sorted(folder.glob(".step-*.tmp-*")):
        if is_left_behind(path):
            warnings.warn(f"{path}: a checkpoint that was not written to its end; it does not count", stacklevel=2)


def remove_old_checkpoints(folder: Path, step: int, keep_last: int, best_step: int | None) -> None:
    """Delete all up to `step` but the last `keep_last` and the best; also what dead processes left half-written.

    Checkpoints after `step` are damaged, or training would have gone on from there; they do not count.
    """
    checkpoints = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    for path in checkpoints[:-keep_last]:
        if step_of(path) != best_step:
            trash = path.with_name(f"{path.name}.tmp-delete")
            path.rename(trash)  # so that a kill in the middle does not leave half a checkpoint under its name
            shutil.rmtree(trash, ignore_errors=True)
    for path in folder.glob("*step-*.tmp-*"):
        if is_left_behind(path):
            shutil.rmtree(path, ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Optimizer state as named tensors and JSON-able parameter groups."""
    packed = optimizer.state_dict()
    tensors = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in packed["state"].items()
        for name, value in values.items()
    }
    return tensors, packed["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of `pack_optimizer`; settings like the weight decay stay those of `optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
