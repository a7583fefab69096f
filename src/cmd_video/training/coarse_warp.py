"""Teaching a flow to reach far: the content frame and the clip are blurred before the one is moved onto the other.

loss = coarse_warp_loss(content_frame, clip, flow, fold=4)

Where an object lies farther from its place in the content frame than its own size, a flow that is wrong samples flat
background: its gradient is zero and it stays wrong. In blurred frames objects reach farther, so the gradient points
home (coarse to fine, as in pyramids of optical flow, e.g. arXiv 1611.00850).

B batch, C channels, F frames, H, W of the autoencoder's space; fold as in `CMDWarpAutoencoder`.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F

from cmd_video.models.autoencoder_cmd import per_frame
from cmd_video.models.autoencoder_warp import warp

SIGMAS = (3.0, 6.0, 12.0)  # standard deviations of the blur, in pixels of the unfolded frame


def coarse_warp_loss(
    content_frame: torch.Tensor, clip: torch.Tensor, flow: torch.Tensor, fold: int = 1
) -> torch.Tensor:
    """Mean over SIGMAS of the squared difference of the blurred clip and the blurred content frame moved by the flow.

    The energy of a blurred spot falls with the square of sigma; each term is multiplied with it, so that all count.

    Args:
        content_frame: (B, C, H, W).
        clip: (B, C, F, H, W).
        flow: (B, 2 * fold^2, F, H, W), as `warp` takes it.
        fold: side of the folded grid of pixels in the channels; 1 = none.

    Returns:
        A scalar.
    """
    losses = []
    for sigma in SIGMAS:
        source = blur(content_frame, sigma, fold)
        target = per_frame(partial(blur, sigma=sigma, fold=fold), clip)  # (B, C, F, H, W)
        losses.append((sigma / SIGMAS[0]) ** 2 * F.mse_loss(warp(source, flow, fold), target))
    return torch.stack(losses).mean()


def blur(frames: torch.Tensor, sigma: float, fold: int = 1) -> torch.Tensor:
    """Gaussian blur of the unfolded pixels: (N, C, H, W) -> (N, C, H, W). Beyond the edges the frame goes on flat."""
    pixels = F.pixel_shuffle(frames, fold)  # (N, C / fold^2, H fold, W fold)
    reach = math.ceil(2.5 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=frames.device, dtype=frames.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(pixels.shape[1], 1, 1, -1)
    pixels = F.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    pixels = F.conv2d(pixels, weights, groups=pixels.shape[1])
    pixels = F.conv2d(pixels, weights.transpose(2, 3), groups=pixels.shape[1])
    return F.pixel_unshuffle(pixels, fold)
