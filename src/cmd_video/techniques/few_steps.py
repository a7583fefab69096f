"""Few-step sampling without guidance: distillation of the content and the motion model.

    objective: {kind: consistency, guidance_scale: 7.5, num_timesteps: 20, num_segments: 4}

Three kinds. `guidance_distillation` teaches a student to predict in one pass what guidance makes of two (arXiv
2210.03142, stage 1). `consistency` teaches it to jump from any noise level to the end of its segment of diffusion time
(Multistep Consistency Models, arXiv 2403.06807), from where the next jump starts. With one segment every jump ends at
the clean sample, and new noise leads to the next (Latent Consistency Models, arXiv 2310.04378). Several segments are
easier to learn. `backward` trains the jumps that sampling makes and no others, from where the student's own jumps from
noise have led, so that a later one learns to repair what an earlier one spoiled (backward distillation, Imagine Flash,
arXiv 2405.05224). The teacher is the component `teacher`, or the network that the run starts from.

Differs from those papers: guidance has one fixed scale instead of being an input; the target of consistency is the
student itself, without gradient, instead of its running average (as arXiv 2310.14189 found better); backward
distillation is the plain distance to where the teacher's own steps lead, without a discriminator.

B batch; x_0 clean sample, x_t noisy one; levels -1 = clean.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import pseudo_huber
from cmd_video.diffusion.process import ddim_sample, ddim_step
from cmd_video.diffusion.segments import NUM_TIMESTEPS, SegmentSettings, Taught


class Settings(SegmentSettings):
    """Which of the three, and how diffusion time is cut. guidance_distillation has no jumps."""

    allows_any_steps: ClassVar[bool] = True

    kind: Literal["guidance_distillation", "consistency", "backward"]
    """guidance_distillation: one pass instead of two. consistency learns at all noise levels, backward only the jumps
    of sampling, from where they really start."""

    @property
    def passes_differ(self) -> bool:  # type: ignore[override]  # of one kind only
        """Whether the jumps and steps that lead to a segment are taken, which depends on the levels drawn."""
        return self.kind == "backward"

    @model_validator(mode="after")
    def _jumps(self) -> "Settings":
        if self.kind == "guidance_distillation" and self.starts is not None:
            raise ValueError("starts: guidance_distillation has no jumps, the other kinds have")
        return self

    def check_run(self, denoiser: str, num_inference_steps: int) -> None:
        """As `SegmentSettings`, but for the kind without jumps; one segment and any steps: of consistency only."""
        if self.kind == "guidance_distillation":
            super(SegmentSettings, self).check_run(denoiser, num_inference_steps)
            return
        if self.kind == "backward" and self.num_segments == 1 != num_inference_steps:
            raise ValueError(f"num_segments: 1 is not validation.num_inference_steps = {num_inference_steps}")
        super().check_run(denoiser, num_inference_steps)

    def build(self, denoiser: Any, model: nn.Module, teacher: Any = None, seed: int = 0) -> "FewSteps":
        """The objective of a run."""
        return FewSteps(self, denoiser, model, teacher, needs_grid=self.kind != "guidance_distillation")


class FewSteps(Taught):
    """A frozen teacher, and the distance of what the student does in one step to what the teacher does in several."""

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        t = self.draw_times(rng).to(x_0.device)  # (B,)
        condition = self.drop(condition, rng)
        told = self.denoiser.encode(condition)
        z = rng.normal(x_0)  # (B, ...)
        told = self.disturb(told, t, rng)  # once: student and teacher see the same
        return self.distance(model, x_0, z, t, condition, told)

    def validate(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, t: Tensor) -> dict[str, Tensor]:
        z, told = rng.normal(x_0), self.denoiser.encode(condition)
        return {"loss": self.distance(model, x_0, z, t.to(x_0.device), condition, told).mean()}

    def distance(self, model: Any, x_0: Tensor, z: Tensor, t: Tensor, condition: Condition, told: Condition) -> Tensor:
        """Loss of each sample (B,) at given levels and noise."""
        if self.settings.kind == "backward":
            return self.backward_distance(model, z, t, condition, told)
        loss = self.guidance_distance if self.settings.kind == "guidance_distillation" else self.consistency_distance
        return loss(model, x_0, z, t, condition, told)

    def guidance_distance(
        self, model: Any, x_0: Tensor, z: Tensor, t: Tensor, condition: Condition, told: Condition
    ) -> Tensor:
        """|student(x_t, c) - guided teacher(x_t, c)|^2, per sample (B,)."""
        x_t = self.process.marginal(x_0, z, t)  # (B, ...)
        taught = self.guided(self.teacher, x_t, t, condition, told, self.settings.guidance_scale)
        difference = self.denoiser.predict(model, x_t, t, told) - taught
        return difference.float().square().flatten(1).mean(dim=1)

    def consistency_distance(
        self, model: Any, x_0: Tensor, z: Tensor, t: Tensor, condition: Condition, told: Condition
    ) -> Tensor:
        """Per sample (B,): a jump of the student from t against a step of the teacher to s and its jump from there."""
        process, stride = self.process, NUM_TIMESTEPS // self.settings.num_timesteps
        high = (t // stride + 1) * stride - 1  # t: the upper end of the stretch that was drawn
        low, (_, end) = high - stride, self.segment(high)  # s, and where the jump leads
        x_t = process.marginal(x_0, z, high)
        with torch.no_grad():
            taught = self.guided(self.teacher, x_t, high, condition, told, self.settings.guidance_scale)
            earlier = ddim_step(process, x_t, process.clean(taught, x_t, high), high, low)
            clean = self.clean(model, earlier, low.clamp(min=0), told)
            reached = ddim_step(process, earlier, clean, low.clamp(min=0), end)
            reached = torch.where((low == end).view(-1, *[1] * (x_0.ndim - 1)), earlier, reached)
            target = ddim_sample(process, x_t, reached, high, end)
        return pseudo_huber(self.clean(model, x_t, high, told), target)

    def backward_distance(self, model: Any, z: Tensor, t: Tensor, condition: Condition, told: Condition) -> Tensor:
        """Per sample (B,): the student's jump over the segment of t against the teacher's steps over the same.

        No clean sample: with a schedule that keeps some signal to the end, one would leak into the first jump.
        """
        process, stride = self.process, NUM_TIMESTEPS // self.settings.num_timesteps
        high, end = self.segment(t)
        x_t = z.clone()  # at the last level
        with torch.no_grad():
            for start, after in pairwise(self.settings.segment_starts):  # the student's jumps to where it begins
                on = high < start
                if on.any():
                    now = torch.full_like(high[on], start)
                    clean = self.clean(model, x_t[on], now, told.chosen(on))
                    x_t[on] = ddim_step(process, x_t[on], clean, now, torch.full_like(now, after))
            reached, time = x_t.clone(), high.clone()
            while (on := time > end).any():  # the teacher's steps to where it ends
                now, scale = time[on], self.settings.guidance_scale
                taught = self.guided(self.teacher, reached[on], now, condition.chosen(on), told.chosen(on), scale)
                clean = process.clean(taught, reached[on], now)
                reached[on] = ddim_step(process, reached[on], clean, now, now - stride)
                time[on] -= stride
            target = ddim_sample(process, x_t, reached, high, end)
        return pseudo_huber(self.clean(model, x_t, high, told), target)

    def sampling(self) -> dict[str, Any]:
        """Without guidance; jumps from where they were learned, or Latent Consistency Models' sampler."""
        plain = {"guidance": {"kind": "classifier_free", "scale": 1.0}}
        if self.settings.kind == "guidance_distillation":
            return plain
        if self.settings.kind == "consistency" and self.settings.num_segments == 1:
            return {**plain, "sampler": "lcm", "original_inference_steps": self.settings.num_timesteps}
        return super().sampling()
