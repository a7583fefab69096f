"""The content model: an image diffusion model, asked for content frames or single frames (CMD, equation 7).

denoiser = ContentDenoiser(pipe.components)
told = denoiser.encode(Condition({"prompt": ["a red ball"], "class": torch.tensor([-1])}))
prediction = denoiser.call(pipe.unet, x, timestep, told)
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmd_video.diffusion.condition import Condition

from .denoiser import Batch, Denoiser
from .labels import class_labels, null_label, with_null
from .latent_space import decode_video, encode_images, encode_video
from .prompts import encode_prompt_rows
from .references import ROW, ends_of_clips, unet_references, with_references


class ContentDenoiser(Denoiser):
    """Needs `unet` and `content_scheduler`; with prompts `text_encoder` and `tokenizer`; `vae` unless in pixels.

    Args:
        components: by name.
        learns_text: whether gradients reach the text encoder.
        single_frames: x_0 is the first frame of a clip (an image model), not the content frame by `autoencoder`.
    """

    component, scheduler = "unet", "content_scheduler"

    def __init__(self, components: Mapping[str, Any], learns_text: bool = False, single_frames: bool = False) -> None:
        super().__init__(components, learns_text)
        self.single_frames = single_frames

    def example(self, batch: Batch) -> tuple[Tensor, Condition]:
        condition = Condition({"prompt": batch["prompt"], "class": batch["class_label"]})
        vae, references = self.components.get("vae"), unet_references(self.components[self.component])
        if references:
            condition = condition.having(**{ROW: ends_of_clips(batch, vae, references)})
        if "content_frame" in batch:
            return batch["content_frame"], condition  # (B, C, h, w)
        if self.single_frames:
            return encode_images(vae, batch["video"][:, :, 0]), condition  # (B, C, h, w)
        clip = encode_video(vae, batch["video"])  # (B, C, F, h, w)
        return self.components["autoencoder"].encode(clip).content_frame, condition  # (B, C, h, w)

    def encode(self, condition: Condition) -> Condition:
        """`labels` (B,) for a class-conditional DiT, else `tokens` (B, S, D), and given frames as a row."""
        model = self.components[self.component]
        if null_label(model):
            labels = with_null(condition["class"], condition.is_absent("class"), null_label(model))
            return Condition({"labels": class_labels(model, labels)})
        if self.components.get("text_encoder") is None:
            return Condition({})
        features = encode_prompt_rows(self.components, "text_encoder", condition, self.learns_text)
        return Condition({"tokens": features.hidden_states, **condition.only([ROW]).rows})

    def told(self, model: Any) -> tuple[str, ...]:
        if null_label(model):
            return ("labels",)
        return ("tokens", ROW) if unet_references(model) else ("tokens",)

    def call(self, model: Any, x: Tensor, timestep: Tensor, told: Condition) -> Tensor:
        if "labels" in told:
            return model(x, timestep, class_labels=told["labels"]).sample  # (N, C, h, w)
        x = with_references(x, told.get(ROW), unet_references(model))  # (N, C + R (C + 1), h, w)
        return model(x, timestep, told.get("tokens")).sample  # (N, C, h, w)

    def pixels(self, x_0: Tensor, condition: Condition) -> Tensor:
        return decode_video(self.components.get("vae"), x_0[:, :, None])  # (B, 3, 1, H, W)

    def frames_dim(self, x_0: Tensor) -> int | None:
        return None


def content_shape(autoencoder: Any, ratio: int, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Of content frames for clips of H x W pixels, `ratio` pixels a latent: (B, C, h, w)."""
    return batch, autoencoder.config.in_channels, height // ratio, width // ratio
