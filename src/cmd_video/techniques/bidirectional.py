"""Clips between two given frames by sampling in both directions: ViBiDSampler (arXiv 2410.05651), for models that
continue a first frame.

    clips = interpolate_video(components, first, last)            # Stable Video Diffusion; pipelines/interpolation.py

Each step goes down twice. Forward, the network is told the first frame; in its clean estimate the last frame is put in
place, and by CFG++ the noise of the estimate without a condition is added again. New noise of sqrt(sigma_t^2 -
sigma_s^2) leads back up from level s to level t. Backward, the clip is turned round in time, the network is told the
last frame, the first one is put in place, and the clip is turned back. In the process's own terms, with sigma = g / a:
x_t = a_t / a_s x_s + sqrt(g_t^2 - (a_t / a_s)^2 g_s^2) z.

The paper's DDS, conjugate gradients on |y - A x_0|^2, is for a mask A the frame itself in place after one iteration.
Costs two passes of the network at each step, each with and without condition: four evaluations. No training.

Differs from paper: noise levels are the nearest of the scheduler's table, 1,000 for Stable Video Diffusion; after the
last step the last frame, too, is put in place, so that the clip holds both.

B batch, C channels, F frames, h, w latents.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from cmd_video.diffusion.guidance import Denoise
from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.process import Process
from cmd_video.diffusion.solvers import EtaSolver, SchedulerSolver, draw_like
from cmd_video.section import Section


class Settings(Section):
    """Both directions at each step; there is nothing to set."""

    kind: Literal["bidirectional"] = "bidirectional"

    def solver(
        self, process: Process, scheduler: Any, num_inference_steps: int, x_1: Tensor | None
    ) -> "BidirectionalSolver":
        """At the scheduler's levels."""
        return BidirectionalSolver(process, process.levels(SchedulerSolver(scheduler, num_inference_steps).timesteps))


class BothWays:
    """What a bidirectional solver asks: two networks, or one under two conditions, and the frames between which it is.

    Args:
        forward: x_t (B, C, F, h, w) and a step to a prediction, told the first frame.
        backward: the same for clips turned round in time, told the last frame, which comes first there.
        first: (B, C, h, w), as clean samples are scaled.
        last: likewise.
    """

    def __init__(self, forward: Denoise, backward: Denoise, first: Tensor, last: Tensor) -> None:
        self.forward, self.backward, self.first, self.last = forward, backward, first, last

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Forward."""
        return self.forward(x, step)


class BidirectionalSolver(EtaSolver):
    """Down forward, up by new noise, down backward."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        assert isinstance(denoise, BothWays)
        t, until = self.level(step, x)
        x = self.down(denoise.forward, x, step, denoise.last)  # (B, C, F, h, w) at `until`
        x = self.up(x, until, t, rng)  # (B, C, F, h, w) at t
        x = self.down(denoise.backward, x.flip(2), step, denoise.first).flip(2)  # (B, C, F, h, w) at `until`
        return ending_in(x, denoise.last) if until[0] < 0 else x

    def down(self, denoise: Denoise, x: Tensor, step: Step, last: Tensor) -> Tensor:
        """One direction: Euler's step with the last frame put in place, (B, C, F, h, w)."""
        x_0, noise = self.estimate(denoise, x, step)
        return self.move(ending_in(x_0, last), noise, step, None)

    def up(self, x: Tensor, t: Tensor, until: Tensor, rng: Any) -> Tensor:
        """From level t (B,) to a noisier one by new noise alone, as if x_0 had been noised there at once."""
        (a, g), (a_until, g_until) = self.process.at(t, x), self.process.at(until, x)
        more = (g_until.square() - (a_until / a * g).square()).clamp(min=0).sqrt()
        return a_until / a * x + more * draw_like(x, rng)


def ending_in(x: Tensor, last: Tensor) -> Tensor:
    """Clips (B, C, F, h, w) with another last frame (B, C, h, w)."""
    return torch.cat([x[:, :, :-1], last[:, :, None].to(x)], dim=2)
