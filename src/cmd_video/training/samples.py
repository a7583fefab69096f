"""Samples of what a stage trains, for pictures and measurements.

latents = draw_samples(stage, batch);  clips = stage.pixels(batch, latents)
"""

from typing import TYPE_CHECKING, Any

import torch

from cmd_video.pipelines.sampling import set_timesteps

from .draws import draw_noise, generators

if TYPE_CHECKING:
    from .stages import DiffusionStage


def draw_samples(stage: "DiffusionStage", batch: dict[str, Any]) -> torch.Tensor:
    """Sample x_0 from the stage's denoiser by its `sampler` with guidance, noise by the samples' numbers."""
    validation = stage.config.validation
    scheduler = stage.sampler()
    set_timesteps(scheduler, validation.num_inference_steps)
    draws = generators(stage.config.seed + 2, batch["number"])
    x = draw_noise(stage.sample(batch), draws).to(stage._device())
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    unconditional = {**batch, **stage._drop(batch, [True] * len(x))}
    for step in scheduler.timesteps:
        timestep = step.to(x.device).expand(len(x))
        scaled = scheduler.scale_model_input(x, step) if hasattr(scheduler, "scale_model_input") else x
        guided = stage.denoise(scaled, timestep, batch)
        if validation.guidance_scale > 1 and not stage.guidance_built_in:
            plain = stage.denoise(scaled, timestep, unconditional)
            guided = plain + validation.guidance_scale * (guided - plain)
        x = scheduler.step(guided, step, x, generator=draws).prev_sample
    return x
