"""Against the leak of the condition image (arXiv 2406.15735): a network that is told a clean frame learns to copy it
where x_t is mostly noise, and its clips hardly move.

    objective: {kind: denoising, disturb: {kind: image_leakage, maximum: 0.5, exponent: 5}}       # in training
    sampling: {motion: {solver: {kind: later_start, share: 0.9}}}                                 # without training

*Training*: noise beta n on the content frame, beta = maximum sigmoid(N(mu, 1)), mu = 2 t^exponent - 1 with t in [0,
1]: most where the network would copy. *Inference*: sampling starts at a share M of diffusion time, where the leak is
less, from the mean and spread that data have there (Analytic-Init): a E[x_0], g^2 + a^2 tr Cov(x_0) / d. Neither
costs an operation; a later start saves steps. More noise or a smaller exponent: more motion, less agreement with the
frame.

Differs from paper: nothing in the formulas; the mean and the variance of clean samples are numbers (the motion latents
are normalised to 0 and 1), not pictures.

B batch; t (B,) as a share of diffusion time.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.process import Process
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.section import Section


class Settings(Section):
    """Noise on the content frame that grows with time."""

    kind: Literal["image_leakage"] = "image_leakage"
    maximum: float = Field(0.1, ge=0)
    """beta_m, in units of the content frame (the paper, for latents of another scale: 100 and 15); 0 = none."""
    exponent: float = Field(5.0, gt=0)
    """a of mu(t) = 2 t^a - 1: the larger, the later noise comes."""

    def disturb(self, told: Condition, t: Tensor, rng: Draws) -> Condition:
        """What the network is told, with a noisy content frame, at diffusion times t (B,)."""
        if not self.maximum:
            return told
        frame = told["content_frame"]  # (B, C, h, w)
        center = rng.normal(torch.zeros(len(t), 1)).flatten() + 2 * t.float() ** self.exponent - 1  # (B,)
        beta = self.maximum * center.sigmoid().to(frame)
        return told.having(content_frame=frame + beta.view(-1, 1, 1, 1) * rng.normal(frame))


class LaterStart(Section):
    """Sampling from a share of diffusion time, with Analytic-Init."""

    kind: Literal["later_start"] = "later_start"
    share: float = Field(1.0, gt=0, le=1)
    """M / T: where sampling starts."""
    mean: float = 0.0
    """E[x_0], of normalised latents 0."""
    variance: float = Field(1.0, ge=0)
    """tr Cov(x_0) / d, of normalised latents 1."""
    eta: float = Field(0.0, ge=0, le=1)
    """Share of new noise at each step."""

    def solver(self, process: Process, scheduler: Any, num_inference_steps: int, x_1: Tensor | None) -> EtaSolver:
        """DDIM at equal distances of time from there."""
        last = max(round(self.share * len(process)) - 1, 0)
        levels = torch.linspace(last, 0, num_inference_steps + 1)[:-1].round().long().tolist()
        return LaterSolver(process, levels, self.eta, self.mean, self.variance)


class LaterSolver(EtaSolver):
    """Starts from the moments of x_t at its first level."""

    def __init__(self, process: Process, levels: list[int], eta: float, mean: float, variance: float) -> None:
        super().__init__(process, levels, eta)
        self.mean, self.variance = mean, variance

    def start(self, z: Tensor) -> Tensor:
        """N(a E[x_0], g^2 + a^2 tr Cov(x_0) / d)."""
        first = torch.full((len(z),), self.levels[0], device=z.device)
        a, g = self.process.at(first, z)
        return a * self.mean + (g.square() + a.square() * self.variance).sqrt() * z
