"""Whole clips by one video diffusion model: a teacher for pruning, and what CMD competes with.

stage = VideoStage(config, components)
"""

from typing import Any

import torch
from diffusers import UNetMotionModel

from cmd_video.pipelines.image_space import decode_video

from .config import TrainConfig
from .grids import evenly, tile
from .stages import Batch, DiffusionStage, draw_samples


class VideoStage(DiffusionStage):
    """Trains a video diffusion model on whole clips: what VDMini prunes, and CMD's competition.

    The model is a UNet (`UNet3DConditionModel`, `UNetMotionModel`) or a transformer (`WanTransformer3DModel`), told of
    noise by the scheduler's timesteps.
    """

    denoiser, scheduler = "video_model", "video_scheduler"

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        text = ("text_encoder",) if config.objective.train_text_encoder else ()
        super().__init__(config, components, trained=("video_model", *text))

    def sample(self, batch: Batch) -> torch.Tensor:
        return self._clip_latents(batch)  # (B, C, F, H, W)

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        model = self.components["video_model"]
        text, _ = self._text(condition["prompt"])
        if isinstance(model, UNetMotionModel) and text is not None:  # a copy of the text for each frame
            text = text.repeat_interleave(noisy.shape[2], dim=0)
        return model(noisy, timestep, text).sample

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        return decode_video(self.components.get("vae"), sample)

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        return tile([evenly(batch["video"]), evenly(self.pixels(batch, draw_samples(self, batch)))])
