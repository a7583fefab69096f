"""Few-step sampling by distribution matching: DMD (arXiv 2311.18828) as DMD2 improved it (arXiv 2405.14867).

    objective: {kind: distribution_matching, guidance_scale: 1.5, starts: [999, 849, 649, 399], fake_score_steps: 3}

The student's samples follow the difference of two scores: that of the guided teacher, and that of the student's own
distribution, which a second network, the fake score, keeps learning. The student need not repeat which sample the
teacher draws from a noise, only how such samples are distributed, so a jump from pure noise may commit to one layout
instead of a mean of several. Steps alternate: one updates the student, `fake_score_steps` the fake score.

Differs from those papers: a sample is made by all of the student's jumps, without new noise between them, and the
gradient passes through all of them; no discriminator; timesteps are drawn as in every objective, those outside of
NOISE_LEVELS moved to its ends.

B batch; x_0 clean sample, x_t noisy one.
"""

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import denoising_loss
from cmd_video.diffusion.segments import SegmentSettings, Taught

NOISE_LEVELS = (20, 980)  # timesteps at which scores are compared (DMD, section 3.2)


class Settings(SegmentSettings):
    """Two scores by turns; `num_timesteps` is only the grid on which `starts` lie."""

    takes_turns: ClassVar[bool] = True

    kind: Literal["distribution_matching"] = "distribution_matching"
    fake_score_steps: int = Field(5, gt=0)
    """Updates of the fake score for each one of the student (DMD2, section 4.2)."""

    def build(self, denoiser: Any, model: nn.Module, teacher: Any = None, seed: int = 0) -> "DistributionMatching":
        """The objective of a run."""
        return DistributionMatching(self, denoiser, model, teacher)


class DistributionMatching(Taught):
    """A frozen teacher, and a fake score that is trained in turn with the student."""

    def __init__(self, settings: Settings, denoiser: Any, student: Any, teacher: Any = None) -> None:
        super().__init__(settings, denoiser, student, teacher)
        self.fake_score = copy.deepcopy(self.teacher).requires_grad_(True)
        self.modules = {"fake_score": self.fake_score}

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        t = self.draw_times(rng).to(x_0.device)  # (B,)
        condition = self.drop(condition, rng)
        told = self.denoiser.encode(condition)
        z = rng.normal(x_0)  # (B, ...)
        told = self.disturb(told, t, rng)
        if turn % (self.settings.fake_score_steps + 1):
            return self.fake_score_loss(model, z, t, told, rng)
        return self.student_loss(model, z, t, condition, told, rng)

    def validate(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, t: Tensor) -> dict[str, Tensor]:
        """How far apart the scores are on the student's samples: half the squared difference, in units of `scale`."""
        z, told = rng.normal(x_0), self.denoiser.encode(condition)
        return {"loss": self.student_loss(model, z, t.to(z.device), condition, told, rng).mean()}

    def student_loss(
        self, model: Any, z: Tensor, t: Tensor, condition: Condition, told: Condition, rng: Draws
    ) -> Tensor:
        """Per sample (B,): half a square whose gradient is DMD's, equations 7 and 8 in terms of clean samples.

        Without the alpha_t that they leave over, as in DMD's algorithm 2.
        """
        x_0 = self.jump(model, z, told)  # (B, ...)
        with torch.no_grad():
            t = t.clamp(*NOISE_LEVELS)
            x_t = self.process.marginal(x_0, rng.normal(x_0), t)
            taught = self.guided(self.teacher, x_t, t, condition, told, self.settings.guidance_scale)
            real = self.process.clean(taught, x_t, t).float()
            fake = self.clean(self.fake_score, x_t, t, told).float()
            scale = (x_0 - real).abs().flatten(1).mean(dim=1).clamp(min=1e-6)  # (B,)
            target = x_0 - (fake - real) / scale.view(-1, *[1] * (x_0.ndim - 1))
        return 0.5 * (x_0 - target).float().square().flatten(1).mean(dim=1)

    def fake_score_loss(self, model: Any, z: Tensor, t: Tensor, told: Condition, rng: Draws) -> Tensor:
        """Per sample (B,): the denoising loss of the fake score on a sample of the student."""
        with torch.no_grad():
            x_0 = self.jump(model, z, told)
        z = rng.normal(x_0)
        x_t = self.process.marginal(x_0, z, t)
        prediction = self.denoiser.predict(self.fake_score, x_t, t, told)
        return denoising_loss(self.process, prediction, self.process.target(x_0, z, t), t)
