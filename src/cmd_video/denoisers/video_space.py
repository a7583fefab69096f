"""The latents of autoencoders that compress time as well: what Wan, LTX-Video and HunyuanVideo diffuse.

latents = encode_clip(vae, video);  video = decode_clip(vae, latents)

B batch, F frames, f = 1 + (F - 1) / r latent frames; H, W pixels, h, w latents.
"""

from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo, AutoencoderKLWan

VideoAutoencoder: TypeAlias = AutoencoderKLHunyuanVideo | AutoencoderKLLTXVideo | AutoencoderKLWan


def encode_clip(vae: VideoAutoencoder, video: torch.Tensor) -> torch.Tensor:
    """(B, 3, F, H, W) in [-1, 1] -> the posterior's mode, normalized as the diffusion model sees it: (B, C, f, h, w).

    Raises:
        ValueError: F is not one more than a multiple of what the autoencoder makes one frame of.
    """
    frames, ratio = video.shape[2], compression(vae)[0]
    if (frames - 1) % ratio:
        raise ValueError(f"num_frames: {frames}; {type(vae).__name__} takes 1 more than a multiple of {ratio}")
    mean, std = _statistics(vae, video)
    return (vae.encode(video).latent_dist.mode() - mean) / std


def decode_clip(vae: VideoAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode_clip`: (B, C, f, h, w) -> (B, 3, F, H, W), around [-1, 1], not clamped."""
    mean, std = _statistics(vae, latents)
    raw: torch.Tensor = latents * std + mean
    if getattr(vae.config, "timestep_conditioning", False):  # LTX-Video's decoder denoises; its pipeline tells it 0
        return vae.decode(raw, raw.new_zeros(len(raw))).sample
    return vae.decode(raw).sample


def compression(vae: VideoAutoencoder) -> tuple[int, int]:
    """Frames per latent frame, after the first, and pixels per latent along each side."""
    if isinstance(vae, AutoencoderKLWan):
        return int(vae.config.scale_factor_temporal), int(vae.config.scale_factor_spatial)
    ratios = vae if isinstance(vae, AutoencoderKLLTXVideo) else vae.config
    return int(ratios.temporal_compression_ratio), int(ratios.spatial_compression_ratio)


def _statistics(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the autoencoder's latents, (C, 1, 1, 1) or one number for all channels."""
    if isinstance(vae, AutoencoderKLWan):
        values = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    elif isinstance(vae, AutoencoderKLLTXVideo):
        values = vae.latents_mean, vae.latents_std / vae.config.scaling_factor
    else:
        values = torch.zeros(1), torch.tensor([1 / vae.config.scaling_factor])
    mean, std = (value.to(like).view(-1, 1, 1, 1) for value in values)
    return mean, std
