"""Few-step sampling without guidance: distillation of the content and the motion model, by the stages' own loop.

Three methods. "guidance" teaches a student to predict in one pass what guidance makes of two (arXiv 2210.03142,
stage 1). "consistency" teaches it to jump from any noise level to the end of its segment of diffusion time (Multistep
Consistency Models, arXiv 2403.06807), from where the next jump starts. With one segment every jump ends at the clean
sample, and new noise leads to the next (Latent Consistency Models, arXiv 2310.04378). Several segments are easier to
learn. "backward" trains the jumps that sampling makes and no others, from where the student's own jumps from noise
have led, so that a later one learns to repair what an earlier one spoiled (backward distillation, Imagine Flash,
arXiv 2405.05224). The teacher is the component `teacher`, or the one that the run starts from.

Differs from those papers: guidance has one fixed scale instead of being an input; the target of consistency is the
student itself, without gradient, instead of its running average (as arXiv 2310.14189 found better); backward
distillation is the plain distance to where the teacher's own steps lead, without a discriminator.

B batch; x_0 clean sample, z_t noisy one, alpha_t and sigma_t the scheduler's, 1 and 0 at timestep -1, which is clean.
"""

import copy
from itertools import pairwise
from typing import Any

import torch
from diffusers import LCMScheduler

from cmd_video.losses import predicted_sample, pseudo_huber
from cmd_video.pipelines.sampling import jumps_from, with_schedule

from .config import TrainConfig
from .config_teacher import NUM_TIMESTEPS, DistillationConfig
from .draws import draw_noise
from .labels import config_of
from .stages import Batch, ContentStage, DiffusionStage, MotionStage

INTERFACE = (  # fields of a denoiser's configuration that its inputs and outputs depend on
    "in_channels", "out_channels", "cross_attention_dim",
    "latent_channels", "content_channels", "autoencoder_patch_size", "num_classes", "text_dim",
)  # fmt: skip


class Distillation(DiffusionStage):
    """Mixed into a diffusion stage: a frozen teacher, and another loss."""

    settings: DistillationConfig
    guidance_built_in = True

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        components = dict(components)
        teacher = components.pop("teacher", None) or copy.deepcopy(components[self.denoiser])
        _check_teacher(components[self.denoiser], teacher)
        super().__init__(config, components)  # type: ignore[call-arg]  # of the stage that this is mixed into
        assert config.objective.distillation is not None
        self.settings = config.objective.distillation
        total = self._scheduler().config.num_train_timesteps
        if self.settings.method != "guidance" and total != NUM_TIMESTEPS:
            raise ValueError(
                f"components.{self.scheduler}.num_train_timesteps: {total}, distillation needs {NUM_TIMESTEPS}"
            )
        self.frozen["teacher"] = teacher.eval().requires_grad_(False)  # not registered: neither trained nor saved

    def _loss(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        with torch.no_grad():
            sample = self.sample(batch)
        noise = draw_noise(sample, draws)
        condition = self._disturb({**batch, **condition}, draws)  # once: student and teacher see the same
        timestep = timestep.to(sample.device)
        if self.settings.method == "backward":
            return self._backward_loss(noise, timestep, condition)
        loss = self._guidance_loss if self.settings.method == "guidance" else self._consistency_loss
        return loss(sample, noise, timestep, condition)

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
        """Per sample (B,): a jump of the student from t against a step of the teacher to s and its jump from there."""
        scheduler, stride = self._scheduler(), NUM_TIMESTEPS // self.settings.num_timesteps
        high = (timestep // stride + 1) * stride - 1  # t: the upper end of the stretch that was drawn
        low, (_, end) = high - stride, self._segment(high)  # s, and where the jump leads
        noisy = scheduler.add_noise(sample, noise, high)
        with torch.no_grad():
            guided = predicted_sample(scheduler, self._guided_teacher(noisy, high, condition), noisy, high)
            earlier = ddim_step(scheduler, noisy, guided, high, low)
            clean = self._predicted_sample(earlier, low.clamp(min=0), condition)
            reached = ddim_step(scheduler, earlier, clean, low.clamp(min=0), end)
            reached = torch.where(_as_column(low == end, reached), earlier, reached)
            target = ddim_sample(scheduler, noisy, reached, high, end)
        return pseudo_huber(self._predicted_sample(noisy, high, condition), target)

    def _backward_loss(self, noise: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        """Per sample (B,): the student's jump over the segment of t against the teacher's steps over the same.

        No clean sample: with a schedule that keeps some signal to the end, one would leak into the first jump.
        """
        scheduler, starts = self._scheduler(), self.settings.segment_starts
        stride = NUM_TIMESTEPS // self.settings.num_timesteps
        high, end = self._segment(timestep)
        noisy = noise.clone()  # z_T
        with torch.no_grad():
            for start, after in pairwise(starts):  # the student's jumps, as in sampling, to where the segment begins
                on = high < start
                if on.any():
                    time = torch.full_like(high[on], start)
                    clean = self._predicted_sample(noisy[on], time, _rows(condition, on))
                    noisy[on] = ddim_step(scheduler, noisy[on], clean, time, torch.full_like(time, after))
            reached, time = noisy.clone(), high.clone()
            while (on := time > end).any():  # the teacher's steps to where it ends
                now = time[on]
                guided = self._guided_teacher(reached[on], now, _rows(condition, on))
                clean = predicted_sample(scheduler, guided, reached[on], now)
                reached[on] = ddim_step(scheduler, reached[on], clean, now, now - stride)
                time[on] -= stride
            target = ddim_sample(scheduler, noisy, reached, high, end)
        return pseudo_huber(self._predicted_sample(noisy, high, condition), target)

    def _segment(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the segment of each timestep begins and where it ends, -1 = clean; both (B,)."""
        starts = torch.tensor(self.settings.segment_starts[::-1], device=timestep.device)  # rising
        number = torch.searchsorted(starts, timestep)
        return starts[number], torch.cat([starts.new_tensor([-1]), starts])[number]

    def _predicted_sample(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        return predicted_sample(self._scheduler(), self.predict(noisy, timestep, condition), noisy, timestep)

    @torch.no_grad()
    def _guided_teacher(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        with self.using(self.frozen["teacher"]):
            conditional = self.predict(noisy, timestep, condition)
            if self.settings.guidance_scale == 1:
                return conditional
            nothing = {**condition, **self._drop(condition, [True] * len(noisy))}
            unconditional = self.predict(noisy, timestep, nothing)
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)

    def _scheduler(self) -> Any:
        return self.components[self.scheduler]

    def sampler(self) -> Any:
        """The few-step sampler for a student that jumps."""
        settings = self.settings
        if settings.method == "guidance":
            return super().sampler()
        if settings.method == "consistency" and settings.num_segments == 1:
            return with_schedule(LCMScheduler, self._scheduler(), original_inference_steps=settings.num_timesteps)
        return jumps_from(settings.segment_starts, self._scheduler())

    def finish(self, batches: list[Batch]) -> None:
        """Save the sampler that goes with the weights."""
        super().finish(batches)
        self.components[self.scheduler] = self.sampler()


class ContentDistillation(Distillation, ContentStage):
    """Distils the content model."""


class MotionDistillation(Distillation, MotionStage):
    """Distils the motion model."""


def _check_teacher(student: Any, teacher: Any) -> None:
    """Student and teacher may differ in size, not in what goes in and comes out."""
    for name in INTERFACE:
        mine, its = (config_of(model).get(name) for model in (student, teacher))
        if mine != its:
            raise ValueError(f"components.teacher.{name}: {its}, the student has {mine}")


def ddim_step(
    scheduler: Any, noisy: torch.Tensor, clean: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """From z at timestep `start` (B,) to z at `end` (B,), -1 = clean, without new noise (arXiv 2010.02502, eq. 12)."""
    alpha, sigma = _levels(scheduler, start, noisy)
    alpha_end, sigma_end = _levels(scheduler, end, noisy)
    return alpha_end * clean + sigma_end / sigma * (noisy - alpha * clean)


def ddim_sample(
    scheduler: Any, noisy: torch.Tensor, reached: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """The x_0 with which `ddim_step` leads from `noisy` to `reached`."""
    alpha, sigma = _levels(scheduler, start, noisy)
    alpha_end, sigma_end = _levels(scheduler, end, noisy)
    return (reached - sigma_end / sigma * noisy) / (alpha_end - alpha * sigma_end / sigma)


def _rows(batch: Batch, chosen: torch.Tensor) -> Batch:
    """Some samples of a batch: tensors (B, ...) and lists of B."""
    numbers = chosen.nonzero().flatten().tolist()
    return {
        name: value[chosen] if isinstance(value, torch.Tensor) else [value[number] for number in numbers]
        for name, value in batch.items()
    }


def _levels(scheduler: Any, timestep: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha_t and sigma_t of each sample, to be multiplied with `like`."""
    squared = scheduler.alphas_cumprod.to(timestep.device)[timestep.clamp(min=0)]
    squared = torch.where(timestep < 0, torch.ones_like(squared), squared)
    return _as_column(squared.sqrt(), like), _as_column((1 - squared).sqrt(), like)


def _as_column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
