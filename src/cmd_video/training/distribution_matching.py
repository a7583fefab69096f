"""Few-step sampling by distribution matching: DMD (arXiv 2311.18828) as DMD2 improved it (arXiv 2405.14867).

The student's samples follow the difference of two scores: that of the guided teacher, and that of the student's own
distribution, which a second network, the fake score, keeps learning. The student need not repeat which sample the
teacher draws from a noise, only how such samples are distributed, so a jump from pure noise may commit to one layout
instead of a mean of several. Steps alternate: one updates the student, `fake_score_steps` the fake score.

Differs from those papers: a sample is made by all of the student's jumps, without new noise between them, and the
gradient passes through all of them; no discriminator; timesteps are drawn as in every stage, those outside of
NOISE_LEVELS moved to its ends.

B batch; x_0 clean sample, z_t noisy one.
"""

import copy
from itertools import pairwise
from typing import Any

import torch

from cmd_video.losses import predicted_sample

from .config import TrainConfig
from .distillation import Distillation, ddim_step
from .draws import draw_noise
from .stages import Batch, ContentStage, MotionStage

NOISE_LEVELS = (20, 980)  # timesteps at which scores are compared (DMD, section 3.2)


class DistributionMatching(Distillation):
    """Mixed into a diffusion stage: a frozen teacher, and a fake score that is trained in turn with the student."""

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        super().__init__(config, components)
        self.fake_score = copy.deepcopy(self.frozen["teacher"]).requires_grad_(True)  # trained, but not exported
        self.trained = (*self.trained, "fake_score")

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """How far apart the scores are on the student's samples: half the squared difference, in units of `scale`."""
        draws, timestep = self._validation_draws(batch)
        noise = draw_noise(self.sample(batch), draws)
        return {"loss": self._student_loss(noise, timestep.to(noise.device), batch, draws).mean()}

    def _loss(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        with torch.no_grad():
            noise = draw_noise(self.sample(batch), draws)
        condition = self._disturb({**batch, **condition}, draws)
        turn = int(batch["number"][0]) // self.config.loop.batch_size % (self.settings.fake_score_steps + 1)
        loss = self._fake_score_loss if turn else self._student_loss
        return loss(noise, timestep.to(noise.device), condition, draws)

    def _student_loss(
        self, noise: torch.Tensor, timestep: torch.Tensor, condition: Batch, draws: list[torch.Generator]
    ) -> torch.Tensor:
        """Per sample (B,): half a square whose gradient is DMD's, equations 7 and 8 in terms of clean samples.

        Without the alpha_t that they leave over, as in DMD's algorithm 2.
        """
        scheduler = self._scheduler()
        sample = self._generate(noise, condition)
        with torch.no_grad():
            timestep = timestep.clamp(*NOISE_LEVELS)
            noisy = scheduler.add_noise(sample, draw_noise(sample, draws), timestep)
            guided = self._guided_teacher(noisy, timestep, condition)
            real = predicted_sample(scheduler, guided, noisy, timestep).float()
            with self.using(self.fake_score):
                fake = self._predicted_sample(noisy, timestep, condition).float()
            scale = (sample - real).abs().flatten(1).mean(dim=1).clamp(min=1e-6)
            target = sample - (fake - real) / scale.view(-1, *[1] * (sample.ndim - 1))
        return 0.5 * (sample - target).float().square().flatten(1).mean(dim=1)

    def _fake_score_loss(
        self, noise: torch.Tensor, timestep: torch.Tensor, condition: Batch, draws: list[torch.Generator]
    ) -> torch.Tensor:
        """Per sample (B,): the denoising loss of the fake score on a sample of the student."""
        with torch.no_grad():
            sample = self._generate(noise, condition)
        noise = draw_noise(sample, draws)
        noisy = self._scheduler().add_noise(sample, noise, timestep)
        with self.using(self.fake_score):
            return self._task_loss(self.predict(noisy, timestep, condition), sample, noise, timestep)

    def _generate(self, noise: torch.Tensor, condition: Batch) -> torch.Tensor:
        """The student's sample x_0, by its own jumps from z_T."""
        state, ends = noise, (*self.settings.segment_starts, -1)
        for start, end in pairwise(ends):
            time = torch.full((len(noise),), start, device=noise.device)
            clean = self._predicted_sample(state, time, condition)
            state = ddim_step(self._scheduler(), state, clean, time, torch.full_like(time, end))
        return state


class ContentMatching(DistributionMatching, ContentStage):
    """Distils the content model."""


class MotionMatching(DistributionMatching, MotionStage):
    """Distils the motion model."""
