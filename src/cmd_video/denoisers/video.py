"""Whole clips by one video diffusion model: a teacher for pruning, and what CMD competes with.

    denoiser = VideoDenoiser(components, seed=0)

The network is one of `denoisers.video_models`: a UNet or a transformer, told a text or (Stable Video Diffusion) the
first frame; its scheduler DDPM's, EDM's or flow matching's.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws

from .denoiser import Batch, Denoiser, without_autocast
from .latent_space import decode_video, encode_video
from .video_conditions import VideoCondition, frame_condition, text_condition
from .video_models import SVD_NOISE, call_video_model


class VideoDenoiser(Denoiser):
    """Needs `video_model`, `video_scheduler`, and what the model is told by (`check_video_model`).

    Args:
        components: by name.
        learns_text: whether gradients reach the text encoder.
        seed: of the noise on first frames.
        fps: frames per second of the clips, for the models that are told; None = their pipeline's default.
    """

    component, scheduler = "video_model", "video_scheduler"
    droppable = ("prompt", "first_frame")

    def __init__(
        self, components: Mapping[str, Any], learns_text: bool = False, seed: int = 0, fps: float | None = None
    ) -> None:
        super().__init__(components, learns_text)
        self.seed, self.fps = seed, fps
        self.guidance_built_in = bool(components["video_model"].config.get("guidance_embeds"))

    def example(self, batch: Batch) -> tuple[Tensor, Condition]:
        x_0 = encode_video(self.components.get("vae"), batch["video"])  # (B, C, F, h, w)
        if "image_encoder" not in self.components:
            return x_0, Condition({"prompt": batch["prompt"]})
        frames = batch["video"][:, :, 0]  # (B, 3, H, W)
        noise = SVD_NOISE * Draws.of(self.seed, batch["number"]).normal(frames)
        return x_0, Condition({"first_frame": frames, "first_frame_noise": noise})

    def encode(self, condition: Condition) -> Condition:
        """The rows of a `VideoCondition`, those that the network is told."""
        if self.learns_text:
            return _told(text_condition(self.components, _prompts(condition)))
        device = next(self.components["video_model"].parameters()).device
        with torch.no_grad(), without_autocast(device):  # in the encoders' own precision
            if "first_frame" not in condition:
                return _told(text_condition(self.components, _prompts(condition)))
            told = frame_condition(self.components, condition["first_frame"], condition["first_frame_noise"])
        return _told(told.without_image(condition.is_absent("first_frame").to(condition["first_frame"].device)))

    def told(self, model: Any) -> tuple[str, ...]:
        return tuple(field.name for field in fields(VideoCondition))

    def call(self, model: Any, x: Tensor, timestep: Tensor, told: Condition) -> Tensor:
        return call_video_model(model, x, timestep, VideoCondition(**told.rows), self.fps)  # (N, C, F, h, w)

    def pixels(self, x_0: Tensor, condition: Condition) -> Tensor:
        return decode_video(self.components.get("vae"), x_0)  # (B, 3, F, H, W)


def _prompts(condition: Condition) -> list[str]:
    absent = condition.is_absent("prompt").tolist()
    return ["" if left_out else prompt for prompt, left_out in zip(condition["prompt"], absent, strict=True)]


def _told(condition: VideoCondition) -> Condition:
    return Condition({name: value for name, value in vars(condition).items() if value is not None})
