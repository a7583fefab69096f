"""CLIPSIM (arXiv 2104.14806): how well frames fit their caption, by CLIP.

    judge = ClipSim("openai/clip-vit-base-patch32")         # a hub id or a folder
    scores = judge(frames, ["a red ball", "a dog"])         # uint8 (B, F, H, W, 3) -> (B,), mean cosine over frames

B batch, F frames, H, W, d numbers of an embedding.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel

from cmd_video.data.clip import ClipError
from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.metrics.pairs import mean_and_error
from cmd_video.evaluation.networks.weights import digest_weights
from cmd_video.evaluation.protocol.clips import ClipSource, as_problem, readable_rows, storage_facts, stored_as
from cmd_video.evaluation.protocol.shared_work import Progress, Rows, every_row
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.models.whole import load_whole

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training


class ClipSim:
    """Frames are resized to the model's size (224 for ViT-B/32), antialiased bicubic, without a crop.

    Attributes:
        sha256: digest of the weights.
        size: height and width that frames are resized to.

    Args:
        path: folder or hub id of a CLIP model with its tokenizer.
        device: where it runs.

    Raises:
        ValueError: there is no CLIP model.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        try:
            model = load_whole(CLIPModel, path, "clip")
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except OSError as error:
            raise ValueError(f"clip: {path}: {str(error).splitlines()[0]}") from error
        self.model = model.to(device).eval()
        self.device, self.size = device, self.model.config.vision_config.image_size
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.sha256 = digest_weights(self.model)

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Mean over frames of the cosine of picture and caption: (B,) in [-1, 1].

        Args:
            frames: uint8 (B, F, H, W, 3).
            prompts: B captions; what is longer than the text encoder reads is cut, see `num_cut`.
        """
        padded = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        text = F.normalize(_embedding(self.model.get_text_features(**padded)), dim=-1)  # (B, d)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B * F, 3, H, W)
        size = (self.size, self.size)
        pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        pictures = ((pictures / 255 - mean) / std).to(self.device)
        images = F.normalize(_embedding(self.model.get_image_features(pixel_values=pictures)), dim=-1)  # (B * F, d)
        return torch.einsum("bfd,bd->bf", images.unflatten(0, frames.shape[:2]), text).mean(dim=1).cpu()

    def num_cut(self, prompts: list[str]) -> int:
        """How many captions are longer than the text encoder reads."""
        return sum(len(line) > self.max_length for line in self.tokenizer(prompts)["input_ids"])


def measure_captions(
    clips: ClipSource,
    prompts: list[str],
    judge: ClipSim,
    progress: Progress | None = None,
    rows_of: Rows = every_row,
) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
    """CLIPSIM of clips with their captions, and beside it with the next caption that is another one.

    Args:
        clips: what is judged.
        prompts: a caption for each.
        judge: the CLIP model.
        progress: called with (clips done, all clips).
        rows_of: how the clips are gone through; see `shared_work`.

    Returns:
        name -> `value` and `standard_error`; and the protocol.

    Raises:
        ValueError: no clip can be read.
    """

    def look(numbers: list[int]) -> list[dict[str, Any]]:
        return [_row(clips, number, _captions(prompts, number), judge) for number in numbers]

    rows, unreadable = readable_rows(rows_of(len(prompts), 1, look, progress))
    values = {"clipsim": mean_and_error([row["scores"][0] for row in rows])}
    others = [score for row in rows for score in row["scores"][1:]]
    if others:  # more than one caption
        values["clipsim_of_another_caption"] = mean_and_error(others)
    protocol = {
        "clips": len(rows),
        "unreadable": unreadable,
        "captions_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "captions_cut": judge.num_cut(prompts),
        "clip_sha256": judge.sha256,
        "clip_resize": f"antialiased bicubic to {judge.size}x{judge.size}",
        "made": {
            **clips.recipe,
            **storage_facts([row["stored"] for row in rows]),
            "pixels_sha256": digest_all([row["digest"] for row in rows]),
        },
    }
    return values, protocol


def _captions(prompts: list[str], number: int) -> list[str]:
    """A clip's caption, and the next one that is another, if there is one."""
    later = (prompts[(number + step) % len(prompts)] for step in range(1, len(prompts)))
    other = next((caption for caption in later if caption != prompts[number]), None)
    return [prompts[number]] if other is None else [prompts[number], other]


def _row(clips: ClipSource, number: int, captions: list[str], judge: ClipSim) -> dict[str, Any]:
    """One clip as JSON: its score with each caption, or why it cannot be read."""
    clip = clips.read([number])[0]
    if isinstance(clip, ClipError):
        return as_problem(clip)
    scores = judge(clip[None].expand(len(captions), *clip.shape), captions)
    return {"digest": digest_of(clip), "stored": stored_as(clips, number, clip), "scores": scores.tolist()}


def _embedding(output: object) -> torch.Tensor:
    """The projected features, which newer releases of transformers wrap."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # type: ignore[attr-defined]


def build_reward(path: str | None = None, device: str = "cpu") -> Callable[[torch.Tensor, list[str]], torch.Tensor]:
    """A reward for searches: pictures (K, 3, H, W) in [-1, 1] and their prompts to cosines (K,).

    Args:
        path: folder or hub id of a CLIP model.
        device: where it runs.

    Raises:
        ValueError: no path, or no CLIP model there.
    """
    if not path:
        raise ValueError("reward: clip needs a folder or hub id, such as clip:openai/clip-vit-base-patch32")
    judge = ClipSim(path, device)

    def reward(pictures: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        frames = torch.stack([to_uint8(picture[:, None]) for picture in pictures])  # (K, 1, H, W, 3)
        return judge(frames, prompts).to(pictures.device)

    return reward
