"""Losses and the quantities they rest on: pure functions of tensors.

    target = diffusion_target(scheduler, sample, noise, level)
    loss = diffusion_loss(scheduler, prediction, target, level)

A level is the number of an entry in the scheduler's table of noise levels, 0 the cleanest. For DDPM's schedule it is
the timestep; flow matching and EDM have timesteps of their own, `NoiseLevels.timestep`.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class NoiseLevels:
    """The levels T that a scheduler trains at: z = alpha x + sigma noise is what the denoiser sees.

    Attributes:
        alpha: (T,), falling.
        sigma: (T,), rising.
        timestep: (T,), what the denoiser is told.
        prediction_type: what it predicts: noise, alpha noise - sigma x, x, or noise - x ("flow").
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    timestep: torch.Tensor
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow"]

    def at(self, level: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and noise, alpha and sigma, at levels (B,), to multiply a tensor (B, ...) with."""
        shape = (-1, *[1] * (like.ndim - 1))
        alpha, sigma = (values.to(level.device)[level].to(like).view(shape) for values in (self.alpha, self.sigma))
        return alpha, sigma

    def add_noise(self, sample: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noisy sample z (B, ...) of x at levels (B,)."""
        alpha, sigma = self.at(level, sample)
        return alpha * sample + sigma * noise

    def signal_to_noise(self, level: torch.Tensor) -> torch.Tensor:
        """(alpha / sigma)^2 at levels (B,)."""
        return ((self.alpha / self.sigma).square()).to(level.device)[level]


def noise_levels(scheduler: Any) -> NoiseLevels:
    """The table that a scheduler of diffusers stands for.

    DDPM's variance-preserving schedule (all schedulers with `alphas_cumprod`); EDM's as Stable Video Diffusion has it
    (`EulerDiscreteScheduler` with timestep_type "continuous": arXiv 2206.00364, table 1; its input scaled by c_in is
    variance-preserving, its output a v-prediction, its timestep ln(sigma) / 4); flow matching
    (`FlowMatchEulerDiscreteScheduler`: arXiv 2403.03206, with a fixed shift).

    Raises:
        ValueError: the scheduler's noise depends on something that is not known here.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if scheduler.config.use_dynamic_shifting or scheduler.config.invert_sigmas:
            raise ValueError(
                "scheduler: use_dynamic_shifting and invert_sigmas are not known here; give a fixed `shift` "
                "(exp(max_shift) is that of the largest videos)"
            )
        return _flow_levels(scheduler.config.num_train_timesteps, scheduler.config.shift)
    kind = scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: {kind!r} is none of {', '.join(PREDICTION_TYPES)}")
    if isinstance(scheduler, EulerDiscreteScheduler) and scheduler.config.timestep_type == "continuous":
        return _edm_levels(json.dumps(dict(scheduler.config), default=str, sort_keys=True))
    alpha_bar = scheduler.alphas_cumprod
    return NoiseLevels(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.arange(len(alpha_bar)), kind)


@lru_cache(maxsize=8)
def _flow_levels(num_train_timesteps: int, shift: float) -> NoiseLevels:
    sigmas = FlowMatchEulerDiscreteScheduler(num_train_timesteps, shift).sigmas.flip(0)
    return NoiseLevels(1 - sigmas, sigmas, sigmas * num_train_timesteps, "flow")


@lru_cache(maxsize=8)
def _edm_levels(config: str) -> NoiseLevels:
    """Of a scheduler's configuration as JSON."""
    scheduler = EulerDiscreteScheduler.from_config(json.loads(config))
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    sigmas, timesteps = scheduler.sigmas[:-1].flip(0), scheduler.timesteps.flip(0)
    scale = (sigmas.square() + 1).rsqrt()  # c_in
    return NoiseLevels(scale, sigmas * scale, timesteps, scheduler.config.prediction_type)


def reconstruction_loss(prediction: torch.Tensor, target: torch.Tensor, kind: Literal["l2", "l1"]) -> torch.Tensor:
    """Mean squared or absolute difference of two tensors of any one shape (CMD, section 3.1: "e.g., l2 loss")."""
    return F.mse_loss(prediction, target) if kind == "l2" else F.l1_loss(prediction, target)


def diffusion_target(scheduler: Any, sample: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """What the network is to predict at levels (B,), by the scheduler's prediction type (CMD, eq. 7 and 8).

    Raises:
        ValueError: an unknown type, or epsilon with a schedule that ends in pure noise (arXiv 2305.08891).
    """
    levels = noise_levels(scheduler)
    if levels.prediction_type == "epsilon":
        if scheduler.config.get("rescale_betas_zero_snr"):
            raise ValueError(
                "prediction_type: epsilon says nothing of the sample where rescale_betas_zero_snr left none"
            )
        return noise
    if levels.prediction_type == "sample":
        return sample
    if levels.prediction_type == "flow":
        return noise - sample
    alpha, sigma = levels.at(level, sample)
    return alpha * noise - sigma * sample


def diffusion_loss(
    scheduler: Any,
    prediction: torch.Tensor,
    target: torch.Tensor,
    level: torch.Tensor,
    min_snr_gamma: float | None = None,
    snr_power: float = 0.0,
) -> torch.Tensor:
    """Squared error per sample (B,), averaged over all other dimensions, times SNR to the power `snr_power`.

    With `min_snr_gamma`, weighted by min(SNR, gamma) in terms of the clean sample (Min-SNR, arXiv 2303.09556, eq. 5),
    expressed for the scheduler's prediction type.
    """
    loss = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    if not snr_power and min_snr_gamma is None:
        return loss
    levels = noise_levels(scheduler)
    snr = levels.signal_to_noise(level)
    if snr_power:
        loss = loss * snr**snr_power
    if min_snr_gamma is None:
        return loss
    sigma = levels.sigma.to(level.device)[level]
    # how far the clean sample moves with the prediction, squared
    slope = {"epsilon": 1 / snr, "v_prediction": sigma**2, "sample": torch.ones_like(snr), "flow": sigma**2}
    return loss * snr.clamp(max=min_snr_gamma) * slope[levels.prediction_type]


def predicted_sample(
    scheduler: Any, prediction: torch.Tensor, noisy: torch.Tensor, level: torch.Tensor
) -> torch.Tensor:
    """The clean sample that a prediction at levels (B,) stands for; the inverse of `diffusion_target`."""
    levels = noise_levels(scheduler)
    alpha, sigma = levels.at(level, noisy)
    if levels.prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha
    if levels.prediction_type == "v_prediction":
        return alpha * noisy - sigma * prediction
    if levels.prediction_type == "flow":
        return noisy - sigma * prediction
    return prediction


def pseudo_huber(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.03) -> torch.Tensor:
    """sqrt(|d|^2 + c^2) - c of each value, averaged per sample (B,): after arXiv 2310.14189, eq. 8.

    Differs from paper: value by value, not of the vector's norm.
    """
    difference = prediction.float() - target.float()
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(dim=1)


def psnr(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of the whole batch: one mean squared error over all clips and frames."""
    return 10 * torch.log10(data_range**2 / (prediction.float() - target.float()).square().mean())
