"""Metrics of clips against the clips they should be.

values = paired_metrics(prediction, target)["psnr"]              # (B,)
"""

import math
from typing import Any

import torch

from cmd_video.evaluation.networks.lpips import LPIPS
from cmd_video.evaluation.protocol.finite import check_finite

STILL = 1e-3  # mean change between frames, of 2, below which a clip stands still


def ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Gaussian window 11, sigma 1.5), mean over frames: (B, 3, F, H, W) -> (B,).

    Of values from 0 on, as the formula's product of means needs. The border counts, mirrored, as in torchmetrics 1.9;
    scikit-image leaves five pixels on each side out, and is by up to 0.006 higher for smooth pictures of 64x80.
    """
    frames = [_from_zero(video) for video in (prediction, target)]
    values = _image_metrics().structural_similarity_index_measure(*frames, data_range=1.0, reduction="none")
    return values.view(len(prediction), -1).mean(dim=1)


def _image_metrics() -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise ValueError("SSIM needs torchmetrics: pip install 'cmd-video[eval]'") from error
    return image


def _from_zero(video: torch.Tensor) -> torch.Tensor:
    """Frames in [0, 1]: (B, 3, F, H, W) in [-1, 1] -> (B * F, 3, H, W)."""
    return video.transpose(1, 2).flatten(0, 1).float() / 2 + 0.5


def flicker(video: torch.Tensor) -> torch.Tensor:
    """Mean absolute change from one frame to the next: (B, 3, F, H, W) in [-1, 1], F >= 2 -> (B,)."""
    return video.float().diff(dim=2).abs().flatten(1).mean(dim=1)


@torch.no_grad()
def paired_metrics(
    prediction: torch.Tensor, target: torch.Tensor, lpips: LPIPS | None = None
) -> dict[str, torch.Tensor]:
    """Metrics of clips against the clips they should be.

    Args:
        prediction: (B, 3, F, H, W) in [-1, 1].
        target: the same shape.
        lpips: for the distance in features.

    Returns:
        (B,) each: `psnr` (dB, at most 60), `ssim`, `ms_ssim` (only where H and W are at least 176, which its five
        scales need), `lpips` (only if given), and with two or more frames `flicker_ratio`: the mean change between
        frames over the target's, 1 where equal, NaN where the target stands still. `flow.warping_error` tells flicker
        from motion.

    Raises:
        ValueError: the shapes differ, or there is a NaN.
    """
    if prediction.shape != target.shape or prediction.ndim != 5:
        raise ValueError(f"clips: expected two (B, 3, F, H, W), got {tuple(prediction.shape)}, {tuple(target.shape)}")
    if min(prediction.shape[-2:]) < 11:
        height, width = prediction.shape[-2:]
        raise ValueError(f"clips: frames of {height}x{width}, SSIM's window needs 11x11 or more")
    for name, video in (("prediction", prediction), ("target", target)):
        check_finite(f"clips: the {name}", video)
    prediction = prediction.float().clamp(-1, 1)
    squared = (prediction - target).square().flatten(1).mean(dim=1)
    values = {"psnr": 10 * torch.log10(4 / squared.clamp(min=4e-6)), "ssim": ssim(prediction, target)}
    if min(prediction.shape[-2:]) >= 176:
        pictures = [_from_zero(video) for video in (prediction, target)]  # (B * F, 3, H, W)
        by_frame = _image_metrics().multiscale_structural_similarity_index_measure(
            *pictures, data_range=1.0, reduction="none"
        )
        values["ms_ssim"] = by_frame.view(len(prediction), -1).mean(dim=1)
    if lpips is not None:
        frames = [video.transpose(1, 2).flatten(0, 1) for video in (prediction, target)]  # (B * F, 3, H, W)
        values["lpips"] = lpips(*frames).view(len(prediction), -1).mean(dim=1)
    if prediction.shape[2] > 1:
        change = flicker(target)
        values["flicker_ratio"] = torch.where(change > STILL, flicker(prediction) / change, math.nan)
    return values
