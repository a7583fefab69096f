"""Shapes of what a pipeline handles, from its models' configurations.

height, width = default_size(pipe, None, None)
"""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .pipeline_cmd import CMDPipeline


def default_size(pipe: "CMDPipeline", height: int | None, width: int | None) -> tuple[int, int]:
    """H and W in pixels: what is given, where None what the autoencoder was trained for."""
    rows, columns = pipe.autoencoder.config.sample_size
    return (rows * pipe.ratio if height is None else height, columns * pipe.ratio if width is None else width)


def size_unit(pipe: "CMDPipeline") -> int:
    """H and W in pixels must be multiples of this: every patch layer and the UNet's halvings must fit."""
    motion = pipe.motion_transformer.config
    units = [motion.autoencoder_patch_size * motion.patch_size, motion.content_patch_size]
    content = pipe.unet.config
    units.append(content.patch_size if pipe.num_classes else 2 ** (len(content.block_out_channels) - 1))
    return pipe.ratio * math.lcm(*units)


def content_shape(pipe: "CMDPipeline", batch: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Of content frames for clips of H x W pixels: (B, C, h, w)."""
    return batch, pipe.autoencoder.config.in_channels, height // pipe.ratio, width // pipe.ratio


def motion_shape(pipe: "CMDPipeline", content_frame: torch.Tensor, num_frames: int) -> tuple[int, int, int, int]:
    """Of motion latents for content frames (B, C, h, w): (B, D, F, H' + W')."""
    places = sum(side // pipe.autoencoder.config.patch_size for side in content_frame.shape[-2:])
    return len(content_frame), pipe.autoencoder.config.latent_channels, num_frames, places
