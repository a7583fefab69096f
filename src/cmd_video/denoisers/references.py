"""Given frames as a network's further input channels: each picture behind the noisy or content frame, with a mask.

    a network for R given frames takes C + R (C + 1) channels: the frame itself, the first frame and its mask, the last
    row = reference_row({0: first}, count=2)                     # (B, 2, C + 1, h, w), zeros where nothing is given
    x = with_references(x, row, count=2)                         # (B, C + 2 (C + 1), h, w)

`techniques.reference_frames` makes such networks. B batch, C channels of a frame, h, w its sides, R references: 1 is
the first frame, 2 the first and the last.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .denoiser import Batch
from .labels import config_of
from .latent_space import encode_images

ROW = "reference"  # of a condition
POSITIONS = (0, -1)  # frames of a clip that the references are


def references_of(channels: int, own: int) -> int:
    """R of a network with so many input channels for frames of which C = `own` are the frame's own.

    Raises:
        ValueError: the others are no whole number of references, or more than there are positions for.
    """
    count, rest = divmod(channels - own, own + 1)
    if rest or not 0 <= count <= len(POSITIONS):
        one, two = (own + number * (own + 1) for number in (1, 2))
        raise ValueError(f"{channels}, must be {own} here, or {one} or {two} where frames are given")
    return count


def unet_references(unet: Any) -> int:
    """R of a content model; 0 for one of classes."""
    config = config_of(unet)
    if "cross_attention_dim" not in config:
        return 0
    return references_of(config.in_channels, config.out_channels)


def told_frames(model: Any) -> int:
    """R of a content or a motion model."""
    config = config_of(model)
    return int(config.num_references) if "num_references" in config else unet_references(model)


def has_adapters(model: Any) -> bool:
    """Whether a UNet is told given frames by adapters around it, in place of channels of its own."""
    layer = getattr(model, "conv_in", None)
    return layer is not None and layer.in_channels != config_of(model).in_channels


def reference_row(given: Mapping[int, Tensor], count: int) -> Tensor:
    """What a network is told of given frames: (B, R, C + 1, h, w), a mask of ones behind each that is given.

    Args:
        given: frames (B, C, h, w), one at least, by their number in POSITIONS.
        count: R of the network.
    """
    like = next(iter(given.values()))
    with_masks = {number: torch.cat([frame, torch.ones_like(frame[:, :1])], dim=1) for number, frame in given.items()}
    nothing = like.new_zeros(len(like), like.shape[1] + 1, *like.shape[2:])
    return torch.stack([with_masks.get(number, nothing) for number in range(count)], dim=1)


def with_references(frame: Tensor, row: Tensor | None, count: int) -> Tensor:
    """A frame (N, C, h, w) and the first `count` = R of a row of given ones as a network takes them:
    (N, C + R (C + 1), h, w); zeros where there is no row.
    """
    if not count:
        return frame
    if row is None:
        row = frame.new_zeros(len(frame), count, frame.shape[1] + 1, *frame.shape[2:])
    return torch.cat([frame, row[:, :count].to(frame).flatten(1, 2)], dim=1)


def ends_of_clips(batch: Batch, vae: Any, count: int) -> Tensor:
    """The row of a training batch, with all of its references: (B, R, C + 1, h, w).

    Raises:
        ValueError: its latents were encoded without first and last frames.
    """
    if "video" in batch:
        ends = [encode_images(vae, batch["video"][:, :, place]) for place in POSITIONS[:count]]  # (B, C, h, w) each
    elif "end_frames" in batch:
        ends = list(batch["end_frames"].unbind(dim=1)[:count])
    else:
        raise ValueError("data: these latents hold no first and last frames; encode them with end_frames")
    return reference_row(dict(enumerate(ends)), count)
