"""Runs a trained autoencoder over clips once, so that the diffusion stages do not have to.

encode_run(Path("runs/sprites/autoencoder"), Path("latents/sprites/train"), num_clips=10_000)
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from cmd_video.data.files import sha256
from cmd_video.data.latent_shards import is_whole, shard_path
from cmd_video.data.latents import write_latents
from cmd_video.denoisers.latent_space import ImageAutoencoder, encode_video
from cmd_video.models import CMDAutoencoder

from .classes import names_of
from .components import load_autoencoder
from .config import LatentsData, VideoData, load_config
from .data import NumberedDataset, collate
from .digests import digest_of


@torch.no_grad()
def encode_run(
    run: Path,
    output: Path,
    num_clips: int,
    split: Literal["train", "validation"] = "train",
    batch_size: int = 16,
    shard_size: int = 256,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    overrides: list[str] | None = None,
    passes: int = 1,
) -> int:
    """Encode the first clips of a run's data with its autoencoder; whole shards are kept, so a second call goes on.
    Clips that cannot be read are named in a warning each, and left out.

    Args:
        run: a finished run that holds an autoencoder.
        output: folder for the shards.
        num_clips: how many clips; at most the whole set, as often as `passes` says.
        split: the run's training or validation data.
        batch_size: clips at a time.
        shard_size: clips per file.
        device: where to compute.
        progress: called with the number of clips done.
        overrides: fields of the run's data to change, "data.pairs=0.5": other clips than the run was trained on.
        passes: how often to go through a small set of videos: each time at other places, and mirrored where it flips.

    Returns:
        Number of clips in `output`.

    Raises:
        ValueError: the run is not finished, or its data are latents already, or an override is of something else, or
            another pass would give the same clips, or `output` holds latents of other clips, of these clips as they
            were before a file, caption or class changed, or of another autoencoder.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run}: no config.json; give the folder of a training run")
    for override in overrides or []:
        if not override.startswith(("data.", "data=", "validation.data.", "validation.data=")):
            raise ValueError(f"overrides: {override!r}: encoding uses the fields of `data` and `validation.data` only")
    config = load_config(run / "config.json", overrides)
    data = config.data if split == "train" else config.validation.data
    if isinstance(data, LatentsData):
        raise ValueError(f"{run}: its data are latents already ({data.path})")
    if passes > 1 and not (isinstance(data, VideoData) and data.train):
        raise ValueError(f"passes: {passes}, but these clips are the same in each pass; allowed: 1")
    autoencoder, vae = load_autoencoder(run / "pipeline", device)
    dataset = data.open()
    count = min(num_clips, passes * len(dataset))

    readable = NumberedDataset(dataset).readable

    def encode(numbers: range) -> dict[str, Any]:
        items = readable(numbers)  # no other clip in the place of a damaged one
        parts = []
        while chunk := list(islice(items, batch_size)):
            batch = collate(chunk)
            parts.append({**batch, **_encode(autoencoder, vae, batch["video"].to(device))})
        return _joined(parts)

    def shards() -> Iterator[dict[str, Any]]:
        for number, first in enumerate(range(0, count, shard_size)):
            numbers = range(first, min(first + shard_size, count))
            yield {} if is_whole(shard_path(output, number), len(numbers)) else encode(numbers)
            if progress is not None:
                progress(numbers.stop)

    names = names_of(dataset)
    files = getattr(dataset, "described", None)
    parts = {"autoencoder": autoencoder} if vae is None else {"autoencoder": autoencoder, "vae": vae}
    recipe = {
        "run": run.name,
        "autoencoder_sha256": sha256(*sorted((run / "pipeline" / "autoencoder").glob("*.safetensors"))),
        "digests": {name: digest_of(part) for name, part in parts.items()},
        "data": data.model_dump(mode="json"),
        "files": None if files is None else _sha256_of(files(files=True)),
        "split": split,
        "clips": count,
        "shard_size": shard_size,
    }
    return write_latents(output, shards(), recipe, None if names is None else list(names))


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several batches as one; of none, one without a prompt."""
    tensors = ("content_frame", "motion_latents", "class_label") if parts else ()
    prompts = [prompt for part in parts for prompt in part["prompt"]]
    return {"prompt": prompts, **{key: torch.cat([part[key] for part in parts]) for key in tensors}}


def _sha256_of(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _encode(autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, video: torch.Tensor) -> dict[str, torch.Tensor]:
    """Content frames and normalised motion latents of clips (B, 3, F, H, W)."""
    content_frame, motion_latents = autoencoder.encode(encode_video(vae, video), return_dict=False)
    return {"content_frame": content_frame, "motion_latents": autoencoder.normalize_latents(motion_latents)}
