"""Losses and the quantities they rest on: pure functions of tensors.

target = diffusion_target(scheduler, sample, noise, timestep);  loss = diffusion_loss(scheduler, prediction, target, t)
"""

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler


def reconstruction_loss(prediction: torch.Tensor, target: torch.Tensor, kind: Literal["l2", "l1"]) -> torch.Tensor:
    """Mean squared or absolute difference of two tensors of any one shape (CMD, section 3.1: "e.g., l2 loss")."""
    return F.mse_loss(prediction, target) if kind == "l2" else F.l1_loss(prediction, target)


def diffusion_target(
    scheduler: DDIMScheduler, sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """What the network is to predict at `timestep` (B,), by the scheduler's prediction type (CMD, eq. 7 and 8).

    Raises:
        ValueError: an unknown type, or epsilon with a schedule that ends in pure noise (arXiv 2305.08891).
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        if scheduler.config.get("rescale_betas_zero_snr"):
            raise ValueError(
                "prediction_type: epsilon says nothing of the sample where rescale_betas_zero_snr left none"
            )
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(sample, noise, timestep)
    if kind == "sample":
        return sample
    raise ValueError(f"prediction_type: {kind!r} is none of epsilon, v_prediction, sample")


def diffusion_loss(
    scheduler: DDIMScheduler,
    prediction: torch.Tensor,
    target: torch.Tensor,
    timestep: torch.Tensor,
    min_snr_gamma: float | None = None,
    snr_power: float = 0.0,
) -> torch.Tensor:
    """Squared error per sample (B,), averaged over all other dimensions, times SNR to the power `snr_power`.

    With `min_snr_gamma`, weighted by min(SNR, gamma) in terms of the clean sample (Min-SNR, arXiv 2303.09556, eq. 5),
    expressed for the scheduler's prediction type.
    """
    loss = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    alpha_bar = scheduler.alphas_cumprod.to(timestep.device)[timestep]
    snr = alpha_bar / (1 - alpha_bar)
    if snr_power:
        loss = loss * snr**snr_power
    if min_snr_gamma is None:
        return loss
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[scheduler.config.prediction_type]
    return loss * snr.clamp(max=min_snr_gamma) / divisor


def predicted_sample(
    scheduler: DDIMScheduler, prediction: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """The clean sample that a prediction at `timestep` (B,) stands for; the inverse of `diffusion_target`."""
    shape = (-1, *[1] * (noisy.ndim - 1))
    alpha_bar = scheduler.alphas_cumprod.to(timestep.device)[timestep].view(shape)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (noisy - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
    if kind == "v_prediction":
        return alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * prediction
    if kind == "sample":
        return prediction
    raise ValueError(f"prediction_type: {kind!r} is none of epsilon, v_prediction, sample")


def pseudo_huber(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.03) -> torch.Tensor:
    """sqrt(|d|^2 + c^2) - c of each value, averaged per sample (B,): after arXiv 2310.14189, eq. 8.

    Differs from paper: value by value, not of the vector's norm.
    """
    difference = prediction.float() - target.float()
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(dim=1)


def psnr(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of the whole batch: one mean squared error over all clips and frames."""
    return 10 * torch.log10(data_range**2 / (prediction.float() - target.float()).square().mean())
