"""Precomputed content frames and motion latents, so that the diffusion stages do not run the autoencoder.

    write_latents("latents/", batches, autoencoder_digest);  dataset = LatentsDataset("latents/")

A folder holds `index.json` and shards `shard-00000.safetensors` with `content_frame` (N, C, H, W), in the scale that
the content model sees, and `motion_latents` (N, D, F, H' + W'), normalised; both float16 on disk.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from .files import whole_file, write_whole


def write_latents(
    folder: str | Path,
    batches: Iterable[dict[str, Any]],
    recipe: dict[str, Any],
    class_names: Sequence[str] | None = None,
) -> int:
    """Write shards, one per batch, then the index; shards that are there already are kept, so a second run goes on.

    Args:
        folder: where to write.
        batches: dicts with `content_frame`, `motion_latents`, `prompt`, `class_label`, drawn one at a time; what a
            batch holds does not matter where its shard is there already.
        recipe: what made them, JSON-able.
        class_names: name of each class label; empty where labels are numbers, None where that is not known.

    Returns:
        Number of clips.

    Raises:
        ValueError: the folder holds latents of another recipe.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stated, text = folder / "recipe.json", json.dumps(recipe, indent=1)
    if (stated.read_text() if stated.is_file() else None) != text:
        if stated.is_file() or any(folder.glob("shard-*")):
            raise ValueError(f"{folder}: holds latents of another recipe; choose a new folder")
        write_whole(stated, text)
    shards: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        path = shard_path(folder, number)
        if not path.is_file():
            labels = batch["class_label"].long()
            tensors = {name: batch[name].half().contiguous().cpu() for name in ("content_frame", "motion_latents")}
            metadata = {"prompts": json.dumps(batch["prompt"])}
            with whole_file(path) as temporary:
                save_file({**tensors, "class_label": labels.cpu()}, temporary, metadata=metadata)
        with safe_open(path, "pt") as shard:
            shards.append({"file": path.name, "clips": len(shard.get_tensor("class_label"))})
    total = sum(entry["clips"] for entry in shards)
    index = {"recipe": recipe, "clips": total, "class_names": class_names, "shards": shards}
    write_whole(folder / "index.json", json.dumps(index, indent=1))
    return total


def shard_path(folder: Path, number: int) -> Path:
    """File of shard `number`."""
    return folder / f"shard-{number:05d}.safetensors"


class LatentsDataset(Dataset):
    """Items: `content_frame` (C, H, W), `motion_latents` (D, F, H' + W'), float32; `prompt`, `class_label`.

    Item n for n >= len: the clips again, in a new order for each pass.

    Attributes:
        class_names: name of each class label; empty where labels are numbers, None in folders older than names.

    Args:
        path: folder written by `write_latents`.
        seed: orders the passes.

    Raises:
        ValueError: the folder has no finished index.
    """

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        folder = Path(path)
        if not (folder / "index.json").is_file():
            raise ValueError(f"{folder}: no index.json; `cmd-video data encode` writes it")
        index = json.loads((folder / "index.json").read_text())
        self.seed = seed
        self.class_names: list[str] | None = index.get("class_names")
        self.prompts: list[str] = []
        parts: dict[str, list[torch.Tensor]] = {"content_frame": [], "motion_latents": [], "class_label": []}
        for entry in index["shards"]:
            with safe_open(folder / entry["file"], "pt") as shard:
                for name, tensors in parts.items():
                    tensors.append(shard.get_tensor(name))
                self.prompts += json.loads(shard.metadata()["prompts"])
        self.content_frames, self.motion_latents, self.class_labels = (
            torch.cat(tensors) for tensors in parts.values()
        )
        self._order: tuple[int, np.ndarray] | None = None

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
