"""Few-step sampling without guidance: distillation of the content and the motion model, by the stages' own loop.

Two methods, one after the other: "guidance" teaches a student to predict in one pass what guidance makes of two
(arXiv 2210.03142, stage 1); "consistency" teaches it to jump from any noise level to the clean sample (Latent
Consistency Models, arXiv 2310.04378). The teacher is the component that the run starts from.

Differs from those papers: guidance has one fixed scale instead of being an input; the target of consistency is the
student itself, without gradient, instead of its running average (as arXiv 2310.14189 found better).

B batch; x_0 clean sample, z_t noisy one, alpha_t and sigma_t the scheduler's.
"""

import copy
from typing import Any

import torch
from diffusers import LCMScheduler

from cmd_video.losses import predicted_sample, pseudo_huber
from cmd_video.pipelines.sampling import with_schedule

from .config import DistillationConfig, TrainConfig
from .stages import Batch, ContentStage, DiffusionStage, MotionStage

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # boundary condition, as in LCMScheduler


class Distillation(DiffusionStage):
    """Mixed into a diffusion stage: a frozen teacher, and another loss."""

    settings: DistillationConfig
    guidance_built_in = True

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        super().__init__(config, components)  # type: ignore[call-arg]  # of the stage that this is mixed into
        assert config.objective.distillation is not None
        self.settings = config.objective.distillation
        teacher = copy.deepcopy(components[self.denoiser]).eval().requires_grad_(False)
        self.frozen["teacher"] = teacher  # not registered: neither trained nor saved

    def _loss(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        with torch.no_grad():
            sample = self.sample(batch)
        noise = torch.stack([torch.randn(sample.shape[1:], generator=draw) for draw in draws]).to(sample)
        condition = self._disturb({**batch, **condition}, draws)  # once: student and teacher see the same
        if self.settings.method == "guidance":
            return self._guidance_loss(sample, noise, timestep.to(sample.device), condition)
        return self._consistency_loss(sample, noise, timestep.to(sample.device), condition)

    def _guidance_loss(
        self, sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        """|student(z_t, c) - guided teacher(z_t, c)|^2, per sample (B,)."""
        noisy = self._scheduler().add_noise(sample, noise, timestep)
        difference = self.predict(noisy, timestep, condition) - self._guided_teacher(noisy, timestep, condition)
        return difference.float().square().flatten(1).mean(dim=1)

    def _consistency_loss(
        self, sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        """d(f(z_t), f(z_s)), per sample (B,): one step of the teacher's sampler, from t to s, must not change f."""
        scheduler, total = self._scheduler(), self._scheduler().config.num_train_timesteps
        stride = total // self.settings.num_timesteps
        high = (timestep // stride + 1) * stride - 1  # t: the upper end of the stretch that was drawn
        low = high - stride  # s; below 0 it is the clean sample
        noisy = scheduler.add_noise(sample, noise, high)
        with torch.no_grad():
            earlier = self._teacher_step(noisy, high, low, condition)
            target = self._consistency_function(earlier, low.clamp(min=0), condition)
            target = torch.where(_as_column(low < 0, target), earlier, target)
        return pseudo_huber(self._consistency_function(noisy, high, condition), target)

    @torch.no_grad()
    def _teacher_step(
        self, noisy: torch.Tensor, high: torch.Tensor, low: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        """One step of the guided teacher by DDIM (arXiv 2010.02502, eq. 12), from t to s; below 0 to x_0."""
        scheduler = self._scheduler()
        clean = predicted_sample(scheduler, self._guided_teacher(noisy, high, condition), noisy, high)
        alpha, sigma = _levels(scheduler, high, noisy)
        direction = (noisy - alpha * clean) / sigma
        alpha, sigma = _levels(scheduler, low.clamp(min=0), noisy)
        return torch.where(_as_column(low < 0, clean), clean, alpha * clean + sigma * direction)

    def _consistency_function(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        """f(z_t, t) = c_skip(t) z_t + c_out(t) x_0(z_t, t), which is the identity at t = 0."""
        prediction = self.predict(noisy, timestep, condition)
        clean = predicted_sample(self._scheduler(), prediction, noisy, timestep)
        scaled = _as_column(timestep * TIMESTEP_SCALING, noisy)
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        return skip * noisy + out * clean

    @torch.no_grad()
    def _guided_teacher(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        student = self.components[self.denoiser]
        self.components[self.denoiser] = self.frozen["teacher"]
        try:
            conditional = self.predict(noisy, timestep, condition)
            if self.settings.guidance_scale == 1:
                return conditional
            nothing = {**condition, **self._drop(condition, [True] * len(noisy))}
            unconditional = self.predict(noisy, timestep, nothing)
        finally:
            self.components[self.denoiser] = student
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)

    def _scheduler(self) -> Any:
        return self.components[self.scheduler]

    def sampler(self) -> Any:
        """The few-step sampler for a student of consistency distillation."""
        if self.settings.method == "guidance":
            return super().sampler()
        steps = self.settings.num_timesteps
        return with_schedule(LCMScheduler, self._scheduler(), original_inference_steps=steps)

    def finish(self, batches: list[Batch]) -> None:
        """Save the sampler that goes with the weights."""
        super().finish(batches)
        self.components[self.scheduler] = self.sampler()


class ContentDistillation(Distillation, ContentStage):
    """Distils the content model."""


class MotionDistillation(Distillation, MotionStage):
    """Distils the motion model."""


def _levels(scheduler: Any, timestep: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha_t and sigma_t of each sample, to be multiplied with `like`."""
    squared = scheduler.alphas_cumprod.to(timestep.device)[timestep]
    return _as_column(squared.sqrt(), like), _as_column((1 - squared).sqrt(), like)


def _as_column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
