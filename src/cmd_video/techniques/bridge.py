"""Bridges from a source to the clean sample, for the motion model: FrameBridge (arXiv 2410.15371) and, as their
general form, two-sided stochastic interpolants (arXiv 2303.08797).

    objective: {kind: denoising, process: {kind: bridge, kappa: 25.005}}
    sampling: {motion: {process: {kind: bridge, kappa: 25.005}}}

x_t = a x_0 + b x_1 + c z with a + b = 1 and c^2 = kappa a b. x_1 are the motion latents of the content frame standing
still. kappa 25.005 with the quadratic schedule is FrameBridge's, c^2 with the linear one the interpolant (1 - t) x_0 +
t x_1 + sqrt(kappa t (1 - t)) z; kappa 2 with it is TLB-VFI's masked Brownian bridge (arXiv 2507.04984), whose x_1 is
of a clip with its middle held (`prior: masked`), as for frames between a first and a last one: the first half of its
frames is the first, the other half the last. In training these two are decoded from x_0, while sampling they are the
given ones, and for what is not given the content frame stands. `aligned` (FrameBridge's SNR-aligned fine-tuning) shows
the network (x_t - b x_1) / n, n^2 = a^2 + c^2, at the diffusion time of the same a / c: what a pretrained diffusion
model knows, so that it can be sampled as a bridge without training. Then a step is DDIM's with eta = 1 on other times;
what differs from conditional diffusion is where sampling starts, and the times of training.

Costs one pass of the autoencoder's encoder a clip. Differs from paper: x_1 is not concatenated to the network's input
(the motion transformer is told the content frame), no neural prior; first-order sampler only. TLB-VFI's middle is
zero, not held, and its autoencoder's wavelets are not here.

B batch; levels 0 (clean) to T - 1 at shares (i + 1) / (T + 1) of the way to x_1.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.process import Process, process_of
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.section import Section

BETA = (0.01, 50.0)  # FrameBridge's b_0 and b_1


class Settings(Section):
    """How far a bridge swings between its ends, and what the network sees of it."""

    kind: Literal["bridge"] = "bridge"
    kappa: float = Field(25.005, gt=0)
    """c^2 / (a b); FrameBridge 25.005, TLB-VFI 2."""
    schedule: Literal["quadratic", "linear"] = "quadratic"
    """b as a function of time: FrameBridge's, or t itself."""
    aligned: bool = True
    """Show the network what a diffusion model of the same signal-to-noise ratio sees."""
    eta: float = Field(1.0, ge=0, le=1)
    """Share of new noise at each step of sampling; 1 = the paper's."""
    prior: Literal["still", "masked"] = "still"
    """Of which clip x_1 is: the content frame standing still, or the first frame and then the last."""

    def process(self, scheduler: Any) -> "BridgeProcess":
        """The bridge over a scheduler's number of levels."""
        return BridgeProcess(self, process_of(scheduler))

    def source(self, denoiser: Denoiser, condition: Condition, like: Tensor, x_0: Tensor | None = None) -> Tensor:
        """x_1: normalised motion latents (B, D, F, H' + W').

        Args:
            denoiser: of the motion model.
            condition: with `content_frame` (B, C, h, w), and `given`, frames (B, C, h, w) by number, or without.
            like: of x_1's shape.
            x_0: normalised motion latents of a clip whose own first and last frame are the given ones; None = as the
                condition says.
        """
        autoencoder, frames = denoiser.components["autoencoder"], like.shape[2]
        content_frame = condition["content_frame"]
        first, last = content_frame, content_frame
        with torch.no_grad():
            if self.prior == "masked" and x_0 is not None:
                shown = autoencoder.decode(content_frame, autoencoder.denormalize_latents(x_0), frames=[0, frames - 1])
                first, last = shown.sample.unbind(2)
            elif self.prior == "masked":
                given = condition.get("given") or {}
                first, last = given.get(0, first), given.get(frames - 1, last)
            held = torch.stack([first] * (frames // 2) + [last] * (frames - frames // 2), dim=2)  # (B, C, F, h, w)
            return autoencoder.normalize_latents(autoencoder.encode(held).motion_latents)

    def solver(self, process: Process, scheduler: Any, num_inference_steps: int, x_1: Tensor | None) -> EtaSolver:
        """The first-order sampler, from x_1, at equal distances of time."""
        assert isinstance(process, BridgeProcess)
        levels = torch.linspace(len(process) - 1, 0, num_inference_steps + 1)[:-1].round().long().tolist()
        return EtaSolver(process, levels, self.eta, x_1)


class BridgeProcess(Process):
    """A bridge whose network sees `base` where it is aligned.

    Args:
        settings: its section.
        base: the process of the scheduler.
    """

    def __init__(self, settings: Settings, base: Process) -> None:
        share = (torch.arange(len(base), dtype=torch.float64) + 1) / (len(base) + 1)
        low, high = BETA
        quadratic = ((high - low) * share.square() / 2 + low * share) / ((low + high) / 2)
        b = quadratic if settings.schedule == "quadratic" else share
        a, c = 1 - b, (settings.kappa * b * (1 - b)).sqrt()
        super().__init__(
            a.float(), c.float(), base.timestep.float(), base.prediction_type, source=b.float(),
            ends_in_noise=base.ends_in_noise,
        )  # fmt: skip
        self.aligned, self.base = settings.aligned, base
        if settings.aligned:
            self.timestep = _aligned_timesteps(a / c, base)
        self.norm = (a.square() + c.square()).sqrt().float()  # n, (T,)

    def target(self, x_0: Tensor, z: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """As of a variance-preserving process with signal a / n and noise c / n where v is predicted."""
        if self.prediction_type != "v_prediction":
            return super().target(x_0, z, t, x_1)
        (a, c), n = self.at(t, x_0), self._norm(t, x_0)
        return a / n * z - c / n * x_0

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor, x_1: Tensor | None = None) -> Tensor:
        """The inverse of `target`."""
        if self.prediction_type != "v_prediction":
            return super().clean(prediction, x_t, t, x_1)
        (a, c), n = self.at(t, x_t), self._norm(t, x_t)
        rest = x_t if x_1 is None else x_t - self.of_source(t, x_t) * x_1
        return a / n * (rest / n) - c / n * prediction

    def see(self, x_t: Tensor, t: Tensor, x_1: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x_t - b x_1) / n at the aligned time, or x_t as it is."""
        if not self.aligned or x_1 is None:
            return super().see(x_t, t, x_1)
        return (x_t - self.of_source(t, x_t) * x_1) / self._norm(t, x_t), self.timestep.to(t.device)[t]

    def _norm(self, t: Tensor, like: Tensor) -> Tensor:
        return self.norm.to(t.device)[t.clamp(min=0)].to(like).view(-1, *[1] * (like.ndim - 1))


def _aligned_timesteps(ratio: Tensor, base: Process) -> Tensor:
    """Timesteps (T,), between those of a table, where its signal over noise is this ratio (T,)."""
    known = (base.signal.double() / base.noise.double()).flip(0)  # rising
    times = base.timestep.double().flip(0)
    number = torch.searchsorted(known, ratio).clamp(1, len(known) - 1)
    low, high = known[number - 1], known[number]
    share = ((ratio - low) / (high - low)).clamp(0, 1)
    return (times[number - 1] + share * (times[number] - times[number - 1])).float()
