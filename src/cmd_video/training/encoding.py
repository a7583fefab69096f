"""Content frames and motion latents of a run's clips: what is encoded, with what, and a shard of it at a time.

encoding = Encoding(run, output, num_clips=10_000)
encoding.write(read_share("0/8"))            # several processes, on any number of machines, each its share
encoding.finish()                            # and one of them at last the index
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from cmd_video.data.files import sha256
from cmd_video.data.latent_shards import is_whole, shard_path
from cmd_video.data.latents import claim_latents, finish_latents, write_batch
from cmd_video.data.shares import WHOLE, Share
from cmd_video.denoisers.latent_space import ImageAutoencoder, encode_video
from cmd_video.models import CMDAutoencoder

from .classes import names_of
from .components import load_autoencoder
from .config import LatentsData, TrainConfig, VideoData, load_config
from .data import NumberedDataset, collate
from .digests import digest_of

Progress = Callable[[int], None]


class Encoding:
    """A folder of latents and what it is made from. Whole shards that are there are kept, so that a second process, or
    the same one again, goes on. Clips that cannot be read are named in a warning each, and left out.

    Args:
        run: a finished run that holds an autoencoder.
        output: folder for the shards.
        num_clips: how many clips; at most the whole set, as often as `passes` says.
        split: the run's training or validation data.
        batch_size: clips at a time.
        shard_size: clips per file.
        device: where to compute.
        overrides: fields of the run's data to change, "data.pairs=0.5": other clips than the run was trained on.
        passes: how often to go through a small set of videos: each time at other places, and mirrored where it flips.
        end_frames: whether to keep each clip's first and last frame as well, for models that are told them
            (`techniques.reference_frames`).

    Attributes:
        count: how many clips.
        shards: numbers of the clips of each shard.
        recipe: what the folder is made from, JSON-able.

    Raises:
        ValueError: the run is not finished, or its data are latents already, or an override is of something else, or
            another pass would give the same clips, or `output` holds latents of other clips, of these clips as they
            were before a file, caption or class changed, or of another autoencoder.
    """

    def __init__(
        self,
        run: Path,
        output: Path,
        num_clips: int,
        split: Literal["train", "validation"] = "train",
        batch_size: int = 16,
        shard_size: int = 256,
        device: str = "cpu",
        overrides: list[str] | None = None,
        passes: int = 1,
        end_frames: bool = False,
    ) -> None:
        config = _config_of(run, overrides)
        data = config.data if split == "train" else config.validation.data
        if isinstance(data, LatentsData):
            raise ValueError(f"{run}: its data are latents already ({data.path})")
        if passes > 1 and not (isinstance(data, VideoData) and data.train):
            raise ValueError(f"passes: {passes}, but these clips are the same in each pass; allowed: 1")
        self.output, self.batch_size, self.device, self.end_frames = output, batch_size, device, end_frames
        self._autoencoder, self._vae = load_autoencoder(run / "pipeline", device)
        self._dataset = data.open()
        self.count = min(num_clips, passes * len(self._dataset))
        firsts = range(0, self.count, shard_size)
        self.shards = [range(first, min(first + shard_size, self.count)) for first in firsts]
        files = getattr(self._dataset, "described", None)
        parts = {"autoencoder": self._autoencoder} | ({} if self._vae is None else {"vae": self._vae})
        self.recipe = {
            "run": run.name,
            "autoencoder_sha256": sha256(*sorted((run / "pipeline" / "autoencoder").glob("*.safetensors"))),
            "digests": {name: digest_of(part) for name, part in parts.items()},
            "data": data.model_dump(mode="json"),
            "files": None if files is None else _sha256_of(files(files=True)),
            "split": split,
            "clips": self.count,
            "shard_size": shard_size,
            **({"end_frames": True} if end_frames else {}),
        }
        claim_latents(output, self.recipe)

    @torch.no_grad()
    def write(self, share: Share = WHOLE, progress: Progress | None = None) -> None:
        """Write the shards of a share that are not there.

        Args:
            share: number of a shard -> whether it is one of these.
            progress: called with the number of clips done, of this share.

        Raises:
            ValueError: too many clips cannot be read.
            OSError: a shard cannot be written.
        """
        done = 0
        for number in range(share.first, len(self.shards), share.step):
            clips = self.shards[number]
            if not is_whole(shard_path(self.output, number), len(clips)):
                write_batch(self.output, number, self._encode(clips))
            done += len(clips)
            if progress is not None:
                progress(done)

    def finish(self) -> int:
        """Write the index, once all shards are there.

        Returns:
            Number of clips in the folder.

        Raises:
            ValueError: shards are missing, and the message names them, or one is damaged, or there is no clip.
        """
        names = names_of(self._dataset)
        return finish_latents(self.output, len(self.shards), self.recipe, None if names is None else list(names))

    def _encode(self, numbers: Iterable[int]) -> dict[str, Any]:
        """The batch of a shard."""
        items = NumberedDataset(self._dataset).readable(numbers)  # no other clip in the place of a damaged one
        parts = []
        while chunk := list(islice(items, self.batch_size)):
            batch = collate(chunk)
            video = batch["video"].to(self.device)
            parts.append({**batch, **_encode(self._autoencoder, self._vae, video, self.end_frames)})
        return _joined(parts)


def _config_of(run: Path, overrides: list[str] | None) -> TrainConfig:
    """The configuration of a run, whose clips may be changed."""
    if not (run / "config.json").is_file():
        raise ValueError(f"{run}: no config.json; give the folder of a training run")
    for override in overrides or []:
        if not override.startswith(("data.", "data=", "validation.data.", "validation.data=")):
            raise ValueError(f"overrides: {override!r}: encoding uses the fields of `data` and `validation.data` only")
    return load_config(run / "config.json", overrides)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several batches as one; of none, one without a prompt."""
    names = ("content_frame", "motion_latents", "end_frames", "class_label")
    tensors = [name for name in names if parts and name in parts[0]]
    prompts = [prompt for part in parts for prompt in part["prompt"]]
    return {"prompt": prompts, **{key: torch.cat([part[key] for part in parts]) for key in tensors}}


def _sha256_of(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _encode(
    autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, video: torch.Tensor, end_frames: bool
) -> dict[str, torch.Tensor]:
    """Content frames and normalised motion latents of clips (B, 3, F, H, W), and their ends if asked for."""
    clip = encode_video(vae, video)  # (B, C, F, h, w)
    content_frame, motion_latents = autoencoder.encode(clip, return_dict=False)
    ends = {"end_frames": clip[:, :, [0, -1]].transpose(1, 2)} if end_frames else {}  # (B, 2, C, h, w)
    return {"content_frame": content_frame, "motion_latents": autoencoder.normalize_latents(motion_latents), **ends}
