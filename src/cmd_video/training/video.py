"""Whole clips by one video diffusion model: a teacher for pruning, and what CMD competes with.

stage = VideoStage(config, components)
"""

from typing import Any

import torch
from transformers import CLIPTextModel

from cmd_video.losses import noise_levels
from cmd_video.pipelines.image_space import decode_video

from .config import TrainConfig
from .draws import draw_noise, generators
from .grids import evenly, tile
from .samples import draw_samples
from .stages import Batch, DiffusionStage
from .video_conditions import VideoCondition, frame_condition, text_condition
from .video_models import SVD_NOISE, call_video_model, check_clips, check_video_model


class VideoStage(DiffusionStage):
    """Trains a video diffusion model on whole clips: what VDMini prunes, and CMD's competition.

    The model is one of `training.video_models`: a UNet or a transformer, told a text or (Stable Video Diffusion) the
    first frame; its scheduler DDPM's, EDM's or flow matching's.
    """

    denoiser, scheduler = "video_model", "video_scheduler"

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        model = components["video_model"]
        check_video_model(model, components)
        for place, data in (("data", config.data), ("validation.data", config.validation.data)):
            check_clips(model, components.get("vae"), place, data)
        noise_levels(components["video_scheduler"])  # an unknown schedule is refused now
        learns = config.objective.train_text_encoder
        if learns and not isinstance(components.get("text_encoder"), CLIPTextModel):
            raise ValueError("objective.train_text_encoder: only a CLIPTextModel is trained here")
        super().__init__(config, components, trained=("video_model", *(("text_encoder",) if learns else ())))
        self.guidance_built_in = bool(model.config.get("guidance_embeds"))
        self._remembered: tuple[Any, VideoCondition] | None = None

    def sample(self, batch: Batch) -> torch.Tensor:
        return self._clip_latents(batch)  # (B, C, F, h, w)

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        levels = noise_levels(self.components["video_scheduler"])
        return self.denoise(noisy, levels.timestep.to(timestep.device)[timestep], condition)

    def denoise(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        told = self._condition(condition)
        if "dropped" in condition:
            told = told.without_image(condition["dropped"])
        fps = getattr(self.config.data, "fps", None)
        return call_video_model(self.components["video_model"], noisy, timestep, told, fps)

    def sampler(self) -> Any:
        scheduler = self.components["video_scheduler"]
        return type(scheduler).from_config(scheduler.config)

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        return decode_video(self.components.get("vae"), sample)

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        return tile([evenly(batch["video"]), evenly(self.pixels(batch, draw_samples(self, batch)))])

    def _drop(self, batch: Batch, dropped: list[bool]) -> Batch:
        return {**super()._drop(batch, dropped), "dropped": torch.tensor(dropped, device=batch["class_label"].device)}

    def _condition(self, batch: Batch) -> VideoCondition:
        """What the model is told of a batch; that of the last one is kept, for a step asks several times."""
        if "text_encoder" in self.trained:
            return text_condition(self.components, batch["prompt"])
        from_frame = "image_encoder" in self.components
        asked = batch["video"] if from_frame else batch["prompt"]
        known = self._remembered is not None and (
            self._remembered[0] is asked if from_frame else self._remembered[0] == asked
        )
        if not known:  # in the encoders' own precision: the same in training, in validation and after a resume
            with torch.no_grad(), torch.autocast(self._device().type, enabled=False):
                told = self._first_frame(batch) if from_frame else text_condition(self.components, asked)
            self._remembered = asked, told
        assert self._remembered is not None
        return self._remembered[1]

    def _first_frame(self, batch: Batch) -> VideoCondition:
        frames = batch["video"][:, :, 0]  # (B, 3, H, W)
        noise = SVD_NOISE * draw_noise(frames, generators(self.config.seed + 3, batch["number"]))
        return frame_condition(self.components, frames, noise)
