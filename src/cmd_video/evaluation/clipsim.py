"""CLIPSIM (arXiv 2104.14806): how well frames fit their caption, by CLIP.

    judge = ClipSim("openai/clip-vit-base-patch32")         # a hub id or a folder
    scores = judge(frames, ["a red ball", "a dog"])         # uint8 (B, F, H, W, 3) -> (B,), mean cosine over frames

B batch, F frames, H, W, d numbers of an embedding.
"""

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel

from .weights import digest_weights

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training


class ClipSim:
    """Frames are resized to the model's size (224 for ViT-B/32), antialiased bicubic, without a crop.

    Attributes:
        sha256: digest of the weights.
        size: height and width that frames are resized to.
        num_cut: captions so far that were longer than the text encoder reads.

    Args:
        path: folder or hub id of a CLIP model with its tokenizer.
        device: where it runs.

    Raises:
        ValueError: there is no CLIP model.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        try:
            self.model = CLIPModel.from_pretrained(path).to(device).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"clip: {path}: {str(error).splitlines()[0]}") from error
        self.device, self.size = device, self.model.config.vision_config.image_size
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.num_cut = 0
        self.sha256 = digest_weights(self.model)

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Mean over frames of the cosine of picture and caption: (B,) in [-1, 1].

        Args:
            frames: uint8 (B, F, H, W, 3).
            prompts: B captions; what is longer than the text encoder reads is cut, and counted.
        """
        tokens = self.tokenizer(prompts, add_special_tokens=True)["input_ids"]
        self.num_cut += sum(len(line) > self.max_length for line in tokens)
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


def _embedding(output: object) -> torch.Tensor:
    """The projected features, which newer releases of transformers wrap."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # type: ignore[attr-defined]
