"""Precomputed content frames and motion latents, so that the diffusion stages do not run the autoencoder.

    write_latents("latents/", batches, recipe);  dataset = LatentsDataset("latents/")

A folder holds `index.json` and shards `shard-00000.safetensors` with `content_frame` (N, C, H, W), in the scale that
the content model sees, and `motion_latents` (N, D, F, H' + W'), normalised; both float16 on disk. A shard says in its
metadata what its tensors and prompts hash to.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from .files import whole_file, write_whole

TENSORS = {"content_frame": 4, "motion_latents": 4, "class_label": 1}  # name -> dimensions


class Shard(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, of N clips each.
        prompts: N texts.
    """

    tensors: dict[str, torch.Tensor]
    prompts: list[str]


def write_latents(
    folder: str | Path,
    batches: Iterable[dict[str, Any]],
    recipe: dict[str, Any],
    class_names: Sequence[str] | None = None,
) -> int:
    """Write shards, one per batch, then the index.

    Args:
        folder: where to write.
        batches: dicts with `content_frame`, `motion_latents`, `prompt`, `class_label`, drawn one at a time; an empty
            one where the shard is there already and whole (`is_whole`), so that a second run goes on. One without a
            prompt, where no clip could be read, makes no shard.
        recipe: what made them, JSON-able.
        class_names: name of each class label; empty where labels are numbers, None where that is not known.

    Returns:
        Number of clips.

    Raises:
        ValueError: the folder holds latents of another recipe, or there is no clip.
    """
    folder = Path(folder)
    claim_latents(folder, recipe)
    shards: list[dict[str, Any]] = []
    empty: list[int] = []
    for number, batch in enumerate(batches):
        path = shard_path(folder, number)
        if batch and not batch["prompt"]:
            empty.append(number)
            continue
        if batch:
            tensors = {name: batch[name].half().contiguous().cpu() for name in ("content_frame", "motion_latents")}
            shard = Shard({**tensors, "class_label": batch["class_label"].long().cpu()}, list(batch["prompt"]))
            metadata = {"prompts": json.dumps(shard.prompts), "sha256": _digest(shard)}
            with whole_file(path) as temporary:
                save_file(shard.tensors, temporary, metadata=metadata)
        shards.append({"file": path.name, "clips": len(read_shard(path).prompts)})
    if not shards:
        raise ValueError(f"{folder}: no clip to write")
    total = sum(entry["clips"] for entry in shards)
    index = {"recipe": recipe, "clips": total, "class_names": class_names, "shards": shards}
    if empty:
        index["without_clips"] = empty
    write_whole(folder / "index.json", json.dumps(index, indent=1))
    return total


def claim_latents(folder: Path, recipe: dict[str, Any]) -> None:
    """Make a folder for latents, or go on in one of the same recipe.

    Raises:
        ValueError: it holds latents of another recipe; the message names what is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = folder / "recipe.json"
    known: Any = None
    if stated.is_file():
        try:
            known = json.loads(stated.read_text())
        except ValueError as error:
            raise ValueError(f"{stated}: not JSON ({error}); remove {folder} to encode anew") from error
    if known == json.loads(json.dumps(recipe)):
        return
    if stated.is_file() or any(folder.glob("shard-*")):
        found = known if isinstance(known, dict) else {}
        other = [name for name in recipe if found.get(name) != json.loads(json.dumps(recipe[name]))]
        if other == ["files"] and "files" in found:
            raise ValueError(
                f"{folder}: holds latents of these clips as they were; files, captions or classes have changed since. "
                "Remove the folder to encode anew, or choose a new one"
            )
        raise ValueError(
            f"{folder}: holds latents of another recipe ({', '.join(other) or 'it says more'}); choose a new folder"
        )
    write_whole(stated, json.dumps(recipe, indent=1))


def shard_path(folder: Path, number: int) -> Path:
    """File of shard `number`."""
    return folder / f"shard-{number:05d}.safetensors"


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
            tensors = {name: file.get_tensor(name) for name in TENSORS}
            metadata = file.metadata() or {}
        shard = Shard(tensors, json.loads(metadata["prompts"]))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; `cmd-video data encode` again writes it") from error
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); `cmd-video data encode` again mends it") from error
    counts = [len(shard.prompts), *(len(tensor) if tensor.ndim else 0 for tensor in tensors.values())]
    if set(counts) != {counts[0]} or not counts[0]:
        numbers = ", ".join(f"{count} {name}" for name, count in zip(("prompts", *TENSORS), counts, strict=True))
        raise ValueError(f"{path}: holds {numbers}; there must be as many of each, and one at least")
    if any(tensors[name].ndim != dimensions for name, dimensions in TENSORS.items()):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{path}: shapes {shapes} are not those of latents")
    if "sha256" in metadata and metadata["sha256"] != _digest(shard):  # those of earlier versions have none
        raise ValueError(f"{path}: damaged, it is not what was written; `cmd-video data encode` again mends it")
    return shard


def _digest(shard: Shard) -> str:
    total = hashlib.sha256(json.dumps(shard.prompts).encode())
    for name, tensor in sorted(shard.tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class LatentsDataset(Dataset):
    """Items: `content_frame` (C, H, W), `motion_latents` (D, F, H' + W'), float32; `prompt`, `class_label`.

    Item n for n >= len: the clips again, in a new order for each pass.

    Attributes:
        class_names: name of each class label; empty where labels are numbers, None in folders older than names.

    Args:
        path: folder written by `write_latents`.
        seed: orders the passes.

    Attributes:
        path: the folder.
        recipe: what made the latents.

    Raises:
        ValueError: the folder has no finished index, or its shards are not those of the index.
    """

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        self.path, self.seed = Path(path), seed
        index = _read_index(self.path)
        self.recipe: dict[str, Any] = index.get("recipe") or {}
        self.class_names: list[str] | None = index.get("class_names")
        self.prompts: list[str] = []
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in TENSORS}
        for entry in index["shards"]:
            shard = read_shard(self.path / entry["file"])
            if len(shard.prompts) != entry["clips"]:
                raise ValueError(
                    f"{self.path / entry['file']}: holds {len(shard.prompts)} clips, index.json says {entry['clips']}"
                )
            for name, tensors in parts.items():
                tensor = shard.tensors[name]
                if tensors and tensors[0].shape[1:] != tensor.shape[1:]:
                    shapes = f"{tuple(tensor.shape[1:])}, {tuple(tensors[0].shape[1:])} in the first shard"
                    raise ValueError(f"{self.path / entry['file']}: {name} of shape {shapes}")
                tensors.append(tensor)
            self.prompts += shard.prompts
        self.content_frames, self.motion_latents, self.class_labels = (
            torch.cat(tensors) for tensors in parts.values()
        )
        self._order: tuple[int, np.ndarray] | None = None

    def described(self) -> list[Any]:
        """Which clips these are: what made them, and their captions and classes."""
        return [self.recipe, self.prompts, self.class_labels.tolist()]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str | int]:
        turn, place = divmod(index, len(self))
        if self._order is None or self._order[0] != turn:
            self._order = (turn, np.random.default_rng([self.seed, turn]).permutation(len(self)))
        clip = int(self._order[1][place])
        return {
            "content_frame": self.content_frames[clip].float(),
            "motion_latents": self.motion_latents[clip].float(),
            "prompt": self.prompts[clip],
            "class_label": int(self.class_labels[clip]),
        }


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of latents: each shard once, in order, and as many clips as they hold together."""
    path = folder / "index.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no index.json; `cmd-video data encode` writes it")
    again = "`cmd-video data encode` again writes it"
    try:
        index = json.loads(path.read_text())
        names = [str(entry["file"]) for entry in index["shards"]]
        counts = [int(entry["clips"]) for entry in index["shards"]]
        total, empty = int(index["clips"]), {int(number) for number in index.get("without_clips", [])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not an index of latents ({type(error).__name__}: {error}); {again}") from error
    if not names:
        raise ValueError(f"{path}: no shards; {again}")
    numbers = (number for number in count() if number not in empty)
    for place, (number, name) in enumerate(zip(numbers, names)):
        expected = shard_path(folder, number).name
        if name != expected:
            raise ValueError(f"{path}: {name!r} at place {place}, must be {expected!r}; {again}")
    if sum(counts) != total:
        raise ValueError(f"{path}: {total} clips, its shards have {sum(counts)}; {again}")
    return dict(index)
