"""What a user says of the motion of a clip, and what is said to him: tracks, and the flow.

flow = read_flow(pipe, content_frame, motion_latents, "pt")  # (B, F, H, W, 2), in pixels
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from cmd_video.models.autoencoder_warp import check_flow, unfolded

from .sampling import Sampling


def read_control(
    pipe: Any, tracks: Sequence[Any] | None, how: Sampling, clips: Sequence[int], size: tuple[int, int, int],
    num_clips: int,
) -> Any:  # fmt: skip
    """What makes clips follow tracks, None without any.

    Args:
        pipe: whose autoencoder and motion model it is for.
        tracks: as in a call.
        how: the sampling, of which the technique for tracks counts.
        clips: for each clip the number of its prompt, class or picture.
        size: F, H and W of the clips, in pixels.
        num_clips: how many are made in a row.

    Raises:
        ValueError: they do not fit; the message names them.
    """
    if tracks is None:
        return None
    if num_clips > 1:
        raise ValueError(f"num_clips: {num_clips}, but tracks are of one clip")
    last = how.motion.ready(pipe.motion)[1][-1].time
    return how.for_control.control(tracks, clips, size, pipe.autoencoder, last)


def read_flow(
    pipe: Any, content_frame: torch.Tensor, motion_latents: torch.Tensor, output_type: str
) -> torch.Tensor | np.ndarray:
    """Where in the content frame each pixel of a clip comes from, relative to itself.

    Where the autoencoder moves latents, each of which is several pixels wide, what lies between them is interpolated.

    Args:
        pipe: whose autoencoder predicts a flow.
        content_frame: (B, C, h, w).
        motion_latents: (B, D, F, H' + W'), normalised.
        output_type: as in a call.

    Returns:
        float32 (B, F, H, W, 2), as (x, y) in pixels of the clip; an array where the clip is one or pictures.
    """
    latents = pipe.autoencoder.denormalize_latents(motion_latents)
    _, flow = pipe.autoencoder.decode_with_flow(content_frame, latents)
    offsets = unfolded(flow, pipe.autoencoder.config.fold)  # (B, F, 2, h fold, w fold), in half widths
    height, width = (side * pipe.ratio for side in content_frame.shape[-2:])
    if offsets.shape[-2:] != (height, width):
        larger = interpolate(offsets.flatten(0, 1), size=(height, width), mode="bilinear")
        offsets = larger.unflatten(0, offsets.shape[:2])
    flow = offsets.movedim(2, -1) * offsets.new_tensor([width / 2, height / 2])
    return flow.cpu().numpy() if output_type in ("pil", "np") else flow


def check_output_flow(asked: bool, num_clips: int, autoencoder: Any) -> None:
    """Raise a ValueError if a flow is asked for that an autoencoder or clips in a row do not have."""
    if not asked:
        return
    if num_clips > 1:
        raise ValueError(f"output_flow: {num_clips} clips in a row have as many content frames; allowed: one clip")
    check_flow("output_flow", autoencoder)
