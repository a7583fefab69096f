"""What lies between a clean sample and its start, and what a network is asked on the way. The only place that knows a
schedule.

    process = process_of(scheduler)                            # DDPM, EDM or flow matching, by a scheduler of
    diffusers x_t = process.marginal(x_0, z, t)                          # a(t) x_0 + b(t) x_1 + g(t) z
    loss = prediction - process.target(x_0, z, t)

`t` numbers the entries of a table of noise levels, 0 the cleanest and -1 the clean sample itself; it is (B,), or (B,
F) where each frame has its own. What the network is told is `process.timestep[t]`. x_1 is where a process starts
besides noise (a bridge); most have none.

B batch, F frames; x_0, x_1, z and x_t have one shape (B, ...).
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from .draws import Draws

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


class Process:
    """x_t = a(t) x_0 + b(t) x_1 + g(t) z at T levels.

    Args:
        signal: a, (T,).
        noise: g, (T,).
        timestep: (T,), what the network is told.
        prediction_type: what it predicts: z, a z - g x_0, x_0, or z - x_0 ("flow").
        source: b, (T,); None = no x_1.
        ends_in_noise: whether nothing of x_0 is left at the last level, so that z says nothing of it there.
    """

    def __init__(
        self,
        signal: Tensor,
        noise: Tensor,
        timestep: Tensor,
        prediction_type: PredictionType,
        source: Tensor | None = None,
        ends_in_noise: bool = False,
    ) -> None:
        self.signal, self.noise, self.timestep, self.source = signal, noise, timestep, source
        self.prediction_type, self.ends_in_noise = prediction_type, ends_in_noise

    def __len__(self) -> int:
        return len(self.signal)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """A and g at levels (B,) or (B, F), -1 = clean, shaped to multiply a tensor (B, ...), or (B, C, F, ...)."""
        shape = (-1, *[1] * (like.ndim - 1)) if t.ndim == 1 else (len(t), 1, t.shape[1], *[1] * (like.ndim - 3))
        number = t.clamp(min=0)
        a, g = (values.to(t.device)[number] for values in (self.signal, self.noise))
        clean = t < 0
        a, g = torch.where(clean, torch.ones_like(a), a), torch.where(clean, torch.zeros_like(g), g)
        return a.to(like).view(shape), g.to(like).view(shape)

    def marginal(self, x_0: Tensor, z: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """x_t, of the shape of x_0."""
        a, g = self.at(t, x_0)
        x_t = a * x_0 + g * z
        return x_t if x_1 is None else x_t + self.of_source(t, x_0) * x_1

    def target(self, x_0: Tensor, z: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """What the network is to predict (CMD, equations 7 and 8).

        Raises:
            ValueError: epsilon where the last level is pure noise (arXiv 2305.08891).
        """
        if self.prediction_type == "epsilon":
            if self.ends_in_noise:
                raise ValueError(
                    "prediction_type: epsilon says nothing of the sample where rescale_betas_zero_snr left none"
                )
            return z
        if self.prediction_type == "sample":
            return x_0
        if self.prediction_type == "flow":
            return z - x_0
        a, g = self.at(t, x_0)
        return a * z - g * x_0

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """The x_0 that a prediction at x_t stands for; the inverse of `target`."""
        if self.prediction_type == "sample":
            return prediction
        a, g = self.at(t, x_t)
        if x_1 is not None:
            x_t = x_t - self.of_source(t, x_t) * x_1
        if self.prediction_type == "epsilon":
            return (x_t - g * prediction) / a
        if self.prediction_type == "v_prediction":
            return a * x_t - g * prediction
        return x_t - g * prediction

    def noise_of(self, x_0: Tensor, x_t: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """The z that leads from x_0 to x_t."""
        a, g = self.at(t, x_t)
        if x_1 is not None:
            x_t = x_t - self.of_source(t, x_t) * x_1
        return (x_t - a * x_0) / g

    def levels(self, timesteps: Sequence[float]) -> list[int]:
        """Numbers of the levels whose timesteps are nearest to these."""
        return [int((self.timestep - timestep).abs().argmin()) for timestep in timesteps]

    def signal_to_noise(self, t: Tensor) -> Tensor:
        """(a / g)^2 at levels (B,) or (B, F)."""
        return ((self.signal / self.noise).square()).to(t.device)[t]

    def draw_noise(self, like: Tensor, rng: Draws) -> Tensor:
        """z: standard normal."""
        return rng.normal(like)

    def start(self, z: Tensor, x_1: Tensor | None = None) -> Tensor:
        """Where sampling begins: x at the last level, as if nothing of x_0 were left."""
        return z if x_1 is None else x_1

    def of_source(self, t: Tensor, like: Tensor) -> Tensor:
        """B at levels (B,) or (B, F), shaped as in `at`; 0 where clean."""
        assert self.source is not None
        shape = (-1, *[1] * (like.ndim - 1)) if t.ndim == 1 else (len(t), 1, t.shape[1], *[1] * (like.ndim - 3))
        b = self.source.to(t.device)[t.clamp(min=0)]
        return torch.where(t < 0, torch.zeros_like(b), b).to(like).view(shape)

    def see(self, x_t: Tensor, t: Tensor, x_1: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network gets: x (B, ...) and the timesteps (B,) it is told."""
        return x_t, self.timestep.to(t.device)[t]


def process_of(scheduler: Any) -> Process:
    """The process that a scheduler of diffusers stands for.

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
        return _flow(scheduler.config.num_train_timesteps, scheduler.config.shift)
    kind = scheduler.config.get("prediction_type")
    if kind is None or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"scheduler: the noise of {type(scheduler).__name__} is not known here; DDIMScheduler's is")
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: {kind!r} is none of {', '.join(PREDICTION_TYPES)}")
    if isinstance(scheduler, EulerDiscreteScheduler) and scheduler.config.timestep_type == "continuous":
        return _edm(json.dumps(dict(scheduler.config), default=str, sort_keys=True))
    alpha_bar = scheduler.alphas_cumprod
    ends = bool(scheduler.config.get("rescale_betas_zero_snr"))
    steps = torch.arange(len(alpha_bar))
    return Process(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), steps, kind, ends_in_noise=ends)


@lru_cache(maxsize=8)
def _flow(num_train_timesteps: int, shift: float) -> Process:
    sigmas = FlowMatchEulerDiscreteScheduler(num_train_timesteps, shift).sigmas.flip(0)
    return Process(1 - sigmas, sigmas, sigmas * num_train_timesteps, "flow")


@lru_cache(maxsize=8)
def _edm(config: str) -> Process:
    """Of a scheduler's configuration as JSON."""
    scheduler = EulerDiscreteScheduler.from_config(json.loads(config))
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    sigmas, timesteps = scheduler.sigmas[:-1].flip(0), scheduler.timesteps.flip(0)
    scale = (sigmas.square() + 1).rsqrt()  # c_in
    return Process(scale, sigmas * scale, timesteps, scheduler.config.prediction_type)


# --- jumps between levels, without new noise -------------------------------------------------------------------------


def ddim_step(process: Process, x_t: Tensor, x_0: Tensor, t: Tensor, until: Tensor) -> Tensor:
    """From level `t` (B,) to level `until` (B,), -1 = clean (DDIM, arXiv 2010.02502, equation 12)."""
    a, g = process.at(t, x_t)
    a_until, g_until = process.at(until, x_t)
    return a_until * x_0 + g_until / g * (x_t - a * x_0)


def ddim_sample(process: Process, x_t: Tensor, reached: Tensor, t: Tensor, until: Tensor) -> Tensor:
    """The x_0 with which `ddim_step` leads from x_t to `reached`."""
    a, g = process.at(t, x_t)
    a_until, g_until = process.at(until, x_t)
    return (reached - g_until / g * x_t) / (a_until - a * g_until / g)
