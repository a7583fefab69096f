"""What a video diffusion model is told besides its noisy clip: a text, or the clip's first frame.

condition = text_condition(components, ["a dog runs"]);  condition = frame_condition(components, frames, noise)

Each text encoder is used as the pipeline of diffusers does that ships with it. B batch, S tokens, D features, H, W.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoPipeline
from transformers import CLIPTextModel, LlamaModel, T5EncoderModel, UMT5EncoderModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .prompts import encode_prompts

TOKENS = {"T5EncoderModel": 128, "UMT5EncoderModel": 512}  # at most, as in the pipelines of LTX-Video and Wan


@dataclass(frozen=True)
class VideoCondition:
    """One of the two kinds; what is None is not told.

    Attributes:
        text: (B, S, D), features of the tokens.
        mask: (B, S), 1 for tokens, 0 for padding.
        pooled: (B, D), of the whole text.
        image: (B, 1, D), CLIP's embedding of the first frame.
        first_frame: (B, C, h, w), its latents, not scaled.
    """

    text: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    image: torch.Tensor | None = None
    first_frame: torch.Tensor | None = None

    def like(self, other: torch.Tensor) -> "VideoCondition":
        """The same in another tensor's type and on its device: a text encoder may be in half precision."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "mask"}
        return replace(self, **{name: value.to(other) for name, value in values.items() if value is not None})

    def without_image(self, dropped: torch.Tensor) -> "VideoCondition":
        """The first frame left out where `dropped` (B,) says so: zeros, as StableVideoDiffusionPipeline guides."""
        if self.image is None or self.first_frame is None:
            return self
        keep = (~dropped).to(self.image)
        image, first_frame = self.image * keep.view(-1, 1, 1), self.first_frame * keep.view(-1, 1, 1, 1)
        return replace(self, image=image, first_frame=first_frame)


def text_condition(components: Mapping[str, Any], prompts: list[str]) -> VideoCondition:
    """Features of B prompts by the components `text_encoder` and `tokenizer`.

    CLIP's text model gives tokens and their mean. T5 (LTX-Video) and UMT5 (Wan) give tokens; Llama gives tokens and
    needs CLIP's, `text_encoder_2` with `tokenizer_2`, for the whole text (HunyuanVideo).
    """
    text_encoder, tokenizer = components["text_encoder"], components["tokenizer"]
    if isinstance(text_encoder, CLIPTextModel):
        features = encode_prompts(tokenizer, text_encoder, prompts)
        return VideoCondition(features.hidden_states, features.mask, features.pooled)
    with torch.no_grad():
        if isinstance(text_encoder, LlamaModel):
            second = components["text_encoder_2"], components["tokenizer_2"]
            pipe = HunyuanVideoPipeline(text_encoder, tokenizer, None, None, None, *second)  # type: ignore[arg-type]
            text, pooled, mask = pipe.encode_prompt(prompts, device=text_encoder.device)
            return VideoCondition(text, mask, pooled)
        return _t5_condition(text_encoder, tokenizer, prompts)


def _t5_condition(
    text_encoder: T5EncoderModel | UMT5EncoderModel, tokenizer: Any, prompts: list[str]
) -> VideoCondition:
    most = TOKENS[type(text_encoder).__name__]
    tokens = tokenizer(prompts, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
    tokens = tokens.to(text_encoder.device)
    if isinstance(text_encoder, UMT5EncoderModel):  # Wan has no mask; padding is zero
        text = text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        text = text * tokens.attention_mask[..., None]
    else:  # LTX-Video's sees the padding, and the transformer masks it
        text = text_encoder(tokens.input_ids).last_hidden_state
    return VideoCondition(text, tokens.attention_mask)


def frame_condition(components: Mapping[str, Any], frames: torch.Tensor, noise: torch.Tensor) -> VideoCondition:
    """What Stable Video Diffusion is told of a first frame: CLIP's embedding, and latents of the slightly noisy frame.

    Differs from its pipeline: CLIP's picture is resized by torch's antialiased bicubic kernel.

    Args:
        components: `image_encoder` and `vae`.
        frames: (B, 3, H, W) in [-1, 1].
        noise: as `frames`, already scaled.
    """
    encoder, vae = components["image_encoder"], components["vae"]
    size = encoder.config.image_size
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    with torch.no_grad():
        small = F.interpolate(frames, (size, size), mode="bicubic", antialias=True, align_corners=False)
        picture = ((small + 1) / 2 - mean) / std
        image = encoder(picture.to(encoder.dtype)).image_embeds[:, None]  # (B, 1, D)
        return VideoCondition(image=image, first_frame=vae.encode((frames + noise).to(vae.dtype)).latent_dist.mode())
