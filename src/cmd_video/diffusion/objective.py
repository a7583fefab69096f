"""What a network learns: the loss of a batch, and what else learns with it.

    objective = Denoising(settings, denoiser, model)
    loss = objective.loss(model, x_0, condition, rng, turn=0).mean()

A technique that trains is another `Objective`. B batch; x_0, z and x_t have one shape (B, ...).
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmd_video.section import Section, by_technique

from .condition import Condition
from .draws import Draws
from .process import Process

VALIDATION_TIMESTEPS = (20, 100, 250, 400, 550, 700, 850, 980)  # of 1000
Positive = Annotated[float, Field(gt=0)]


class DiffusionSettings(Section):
    """What every objective of a denoiser has."""

    needs_teacher: ClassVar[bool] = False
    takes_turns: ClassVar[bool] = False  # a step updates only a part of what learns
    passes_differ: ClassVar[bool] = False  # how often a network is passed through depends on what is drawn

    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """How often the prompt or label is left out, for guidance."""
    content_frame_noise: float = Field(0.0, ge=0)
    """Motion model: differs from paper: noise added to the true content frame, so that a generated one does not
    surprise."""
    logit_normal: tuple[float, Positive] | None = None
    """Differs from paper: draw t / T as the sigmoid of a normal variable of this mean and standard deviation (arXiv
    2403.03206, section 3.1); null = uniform."""
    log_sigma_normal: tuple[float, Positive] | None = None
    """Draw the logarithm of noise over signal from a normal distribution of this mean and standard deviation (EDM,
    arXiv 2206.00364, table 1; Stable Video Diffusion's are 0.7 and 1.6); null = see logit_normal."""
    disturb: Annotated[Any, by_technique("disturbance")] | None = None
    """A technique's noise on what the network is told, by `kind`; null = see content_frame_noise."""

    @model_validator(mode="after")
    def _one_distribution(self) -> "DiffusionSettings":
        if self.log_sigma_normal is not None and self.logit_normal is not None:
            raise ValueError("log_sigma_normal: not together with logit_normal")
        return self

    def check_run(self, denoiser: str, num_inference_steps: int) -> None:
        """Raise a ValueError where the objective does not fit the denoiser ("content", "motion", "video") or the steps
        that validation samples with.
        """
        if self.content_frame_noise and denoiser != "motion":
            raise ValueError("content_frame_noise: only the motion model is told a content frame")


class DenoisingSettings(DiffusionSettings):
    """The plain loss of a diffusion model (CMD, equations 7 and 8)."""

    kind: Literal["denoising"] = "denoising"
    train_text_encoder: bool = False
    """Train the text encoder along; with a motion model its own."""
    snr_power: float = Field(0.0, ge=0)
    """Differs from paper: weight the loss by the signal-to-noise ratio to this power, so that no noise level drowns
    the others; 0 = the plain loss. For a model that predicts the sample, 1 is the loss on the noise."""
    process: Annotated[Any, by_technique("process")] | None = None
    """What the network learns to undo, by `kind` of a technique; null = the scheduler's noise."""

    def build(self, denoiser: Any, model: nn.Module, teacher: Any = None, seed: int = 0) -> "Denoising":
        """The objective of a run."""
        denoiser.learns = self.process
        return Denoising(self, denoiser)


class Objective:
    """Base of what is learned.

    Args:
        settings: its section.
        denoiser: how networks are asked; see `denoisers.denoiser`.

    Attributes:
        terms: what the last loss consisted of, for the log; empty where it is one thing.
        modules: what learns besides the network, by name; saved in checkpoints, not exported.
        lr_scales: what the learning rate is multiplied with for each of them.
    """

    def __init__(self, settings: Any, denoiser: Any) -> None:
        self.settings, self.denoiser = settings, denoiser
        self.terms: dict[str, float] = {}
        self.modules: dict[str, nn.Module] = {}
        self.lr_scales: dict[str, float] = {}

    @property
    def process(self) -> Process:
        """Of the network that learns."""
        return self.denoiser.process

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        """Loss of each sample (B,), or their mean.

        Args:
            model: the network.
            x_0: clean samples (B, ...).
            condition: what it may be told of them, of B rows.
            rng: source of all that is drawn.
            turn: number of the optimizer step, for objectives that train two networks by turns.
        """
        raise NotImplementedError

    def validate(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, t: Tensor) -> dict[str, Tensor]:
        """Metrics at given levels t (B,); "loss" decides which checkpoint is best."""
        raise NotImplementedError

    def sampling(self) -> dict[str, Any]:
        """How the weights are sampled, as far as it differs from the plain way: fields of `ModelSampling`."""
        return {}

    def source(self, condition: Condition, x_0: Tensor) -> Tensor | None:
        """x_1 (B, ...) of the process, if it has one."""
        if self.process.source is None:
            return None
        return self.denoiser.learns.source(self.denoiser, condition, x_0, x_0)

    def draw_times(self, rng: Draws) -> Tensor:
        """Levels (B,) as the settings distribute them."""
        process, settings = self.process, self.settings
        if settings.log_sigma_normal is not None:
            return rng.nearest_log_normal(process.noise / process.signal, *settings.log_sigma_normal)
        return rng.timesteps(len(process), settings.logit_normal)

    def validation_times(self, numbers: Tensor) -> Tensor:
        """Levels (B,) that depend on nothing but the samples' numbers (B,)."""
        chosen = [VALIDATION_TIMESTEPS[int(number) % len(VALIDATION_TIMESTEPS)] for number in numbers]
        return torch.tensor(chosen) * len(self.process) // 1000

    def drop(self, condition: Condition, rng: Draws) -> Condition:
        """The condition without what chance leaves out."""
        dropped = [number < self.settings.condition_dropout for number in rng.uniform()]
        return condition.dropped(dropped, self.denoiser.droppable)

    def disturb(self, told: Condition, t: Tensor, rng: Draws) -> Condition:
        """Noise on what the network is told at levels t (B,)."""
        level = self.settings.content_frame_noise
        if self.settings.disturb is not None:
            return self.settings.disturb.disturb(told, t.to("cpu") / len(self.process), rng)
        if not level:
            return told
        frame = told["content_frame"]  # (B, C, h, w)
        return told.having(content_frame=frame + level * rng.normal(frame))

    def guided(
        self, model: Any, x_t: Tensor, t: Tensor, condition: Condition, told: Condition, scale: float
    ) -> Tensor:
        """A teacher's prediction (B, ...) with classifier-free guidance, without gradient."""
        with torch.no_grad():
            conditional = self.denoiser.predict(model, x_t, t, told)
            if scale == 1:
                return conditional
            empty = self.denoiser.encode(condition.without(*self.denoiser.droppable))
            nothing = told.having(**{name: empty[name] for name in empty.rows if name != "content_frame"})
            unconditional = self.denoiser.predict(model, x_t, t, nothing)
        return unconditional + scale * (conditional - unconditional)


class Denoising(Objective):
    """|f(x_t, t, c) - target|^2, averaged over a sample, times SNR to the power `snr_power`."""

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        t = self.draw_times(rng).to(x_0.device)  # (B,)
        told = self.denoiser.encode(self.drop(condition, rng))
        z = self.process.draw_noise(x_0, rng)  # (B, ...)
        return self.at(model, x_0, z, t, self.disturb(told, t, rng), self.source(condition, x_0))

    def validate(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, t: Tensor) -> dict[str, Tensor]:
        z = self.process.draw_noise(x_0, rng)
        told, x_1 = self.denoiser.encode(condition), self.source(condition, x_0)
        return {"loss": self.at(model, x_0, z, t.to(x_0.device), told, x_1).mean()}

    def at(self, model: Any, x_0: Tensor, z: Tensor, t: Tensor, told: Condition, x_1: Tensor | None = None) -> Tensor:
        """Loss of each sample (B,) at given levels (B,), noise and source."""
        process = self.process
        x_t = process.marginal(x_0, z, t, x_1)  # (B, ...)
        prediction = self.denoiser.predict(model, x_t, t, told, x_1)  # (B, ...)
        return denoising_loss(process, prediction, process.target(x_0, z, t, x_1), t, self.settings.snr_power)

    def sampling(self) -> dict[str, Any]:
        """By the process that was learned."""
        return {} if self.settings.process is None else {"process": self.settings.process.model_dump(mode="json")}


def denoising_loss(process: Process, prediction: Tensor, target: Tensor, t: Tensor, snr_power: float = 0.0) -> Tensor:
    """Squared error per sample (B,), averaged over all other dimensions, times SNR to the power `snr_power`."""
    loss = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return loss * process.signal_to_noise(t) ** snr_power if snr_power else loss


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.03) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each value, averaged per sample (B,): after arXiv 2310.14189, eq. 8.

    Differs from paper: value by value, not of the vector's norm.
    """
    difference = prediction.float() - target.float()
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(dim=1)
