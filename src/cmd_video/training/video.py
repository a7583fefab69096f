"""Whole clips by one video diffusion model: a teacher for pruning, and what CMD competes with.

stage = VideoStage(config, components)
"""

from typing import Any

import torch

from cmd_video.pipelines.image_space import decode_video

from .config import TrainConfig
from .grids import evenly, tile
from .stages import Batch, DiffusionStage, draw_samples


class VideoStage(DiffusionStage):
    """Trains a video diffusion model on whole clips: what VDMini prunes, and CMD's competition."""

    denoiser, scheduler = "video_unet", "video_scheduler"

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        text = ("text_encoder",) if config.objective.train_text_encoder else ()
        super().__init__(config, components, trained=("video_unet", *text))

    def sample(self, batch: Batch) -> torch.Tensor:
        return self._clip_latents(batch)  # (B, C, F, H, W)

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        return self.components["video_unet"](noisy, timestep, self._text(condition["prompt"])[0]).sample

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        return decode_video(self.components.get("vae"), sample)

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        return tile([evenly(batch["video"]), evenly(self.pixels(batch, draw_samples(self, batch)))])
