"""The space that content frames live in: pixels, or the scaled latents of an image autoencoder.

latents = encode_images(vae, images);  images = decode_images(vae, latents)      # vae = None: pixels as they are
"""

from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderTiny

from cmd_video.models import AutoencoderPixelUnshuffle

from .video_space import VideoAutoencoder, compression, decode_clip, encode_clip

MAX_PIXELS = 2**19  # encoded or decoded at once: one frame of 512x1024, all frames of a small clip
ImageAutoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny | AutoencoderPixelUnshuffle


def encode_images(vae: ImageAutoencoder | None, images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) in [-1, 1] -> what diffusion models see; the mode of the posterior where there is one.

    In slices of bounded memory, whatever N is.
    """
    if vae is None:
        return images
    slices = images.split(max(1, MAX_PIXELS // (images.shape[-2] * images.shape[-1])))
    return torch.cat([_encode_slice(vae, pixels) for pixels in slices])


def decode_images(vae: ImageAutoencoder | None, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode_images`: (N, C, h, w) -> (N, 3, H, W), around [-1, 1], not clamped."""
    if vae is None:
        return latents
    mean, scale = _statistics(vae, latents)
    return vae.decode(latents / scale + mean).sample


def encode_video(vae: ImageAutoencoder | VideoAutoencoder | None, video: torch.Tensor) -> torch.Tensor:
    """`encode_images` on each frame: (B, 3, F, H, W) -> (B, C, F, h, w); or `encode_clip`, where time shrinks too."""
    if isinstance(vae, VideoAutoencoder):
        return encode_clip(vae, video)
    batch, _, frames = video.shape[:3]
    latents = encode_images(vae, video.transpose(1, 2).flatten(0, 1))
    return latents.unflatten(0, (batch, frames)).transpose(1, 2)


def decode_video(vae: ImageAutoencoder | VideoAutoencoder | None, latents: torch.Tensor) -> torch.Tensor:
    """`decode_images` on each frame, in slices of bounded memory: (B, C, F, h, w) -> (B, 3, F, H, W).

    Whole clips where the decoder looks across time: Stable Video Diffusion's, and those of `video_space`.
    """
    if isinstance(vae, VideoAutoencoder):
        return decode_clip(vae, latents)
    if isinstance(vae, AutoencoderKLTemporalDecoder):
        return torch.stack([_decode_across_time(vae, clip) for clip in latents])
    batch, _, frames, height, width = latents.shape
    per_slice = max(1, MAX_PIXELS // (height * width * spatial_ratio(vae) ** 2))
    slices = latents.transpose(1, 2).flatten(0, 1).split(per_slice)  # each (N, C, h, w)
    video = torch.cat([decode_images(vae, images) for images in slices])
    return video.unflatten(0, (batch, frames)).transpose(1, 2)


def latent_channels(vae: ImageAutoencoder | VideoAutoencoder | None) -> int:
    """Channels of what diffusion models see."""
    if vae is None:
        return 3
    if isinstance(vae, AutoencoderPixelUnshuffle):
        return 3 * vae.config.patch_size**2
    return int(vae.config.get("latent_channels") or vae.config["z_dim"])


def spatial_ratio(vae: ImageAutoencoder | VideoAutoencoder | None) -> int:
    """Pixels per latent, along each side."""
    if vae is None:
        return 1
    if isinstance(vae, VideoAutoencoder):
        return compression(vae)[1]
    if isinstance(vae, AutoencoderPixelUnshuffle):
        return vae.config.patch_size
    if isinstance(vae, AutoencoderTiny):
        return 2 ** (len(vae.config.encoder_block_out_channels) - 1)
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _encode_slice(vae: ImageAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, C, h, w)."""
    encoded = vae.encode(pixels)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    mean, scale = _statistics(vae, latents)
    return (latents - mean) * scale


def _decode_across_time(vae: AutoencoderKLTemporalDecoder, clip: torch.Tensor) -> torch.Tensor:
    """(C, F, h, w) -> (3, F, H, W)."""
    mean, scale = _statistics(vae, clip)
    frames = clip.transpose(0, 1) / scale + mean
    return vae.decode(frames, num_frames=len(frames)).sample.transpose(0, 1)


def _statistics(vae: ImageAutoencoder, like: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """What is taken from an autoencoder's latents, and what they are then multiplied by: numbers, or (C, 1, 1) each.

    Raises:
        ValueError: the configuration says it twice, or not for as many channels.
    """
    mean: float | torch.Tensor = vae.config.get("shift_factor") or 0.0
    scale: float | torch.Tensor = vae.config.scaling_factor
    own = {name: vae.config.get(name) for name in ("latents_mean", "latents_std") if vae.config.get(name) is not None}
    if mean and "latents_mean" in own:
        raise ValueError(
            "vae: its configuration has both shift_factor and latents_mean; which one counts is not known"
        )
    for name, values in own.items():
        if len(values) != latent_channels(vae):
            raise ValueError(f"vae: {len(values)} values of {name} for {latent_channels(vae)} channels")
        row = torch.tensor(values, dtype=torch.float32).to(like).view(-1, 1, 1)
        mean, scale = (row, scale) if name == "latents_mean" else (mean, scale / row)
    return mean, scale
