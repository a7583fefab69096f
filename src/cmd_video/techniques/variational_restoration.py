"""Restoration of damaged clips without training: RED-diff (arXiv 2305.04391), over content frame and motion latents.

    cmd-video restore CLIP --task superres -o out.mp4
    restored = pipe.restore(damaged, Operator("superres", factor=4), prompt="a red ball moves up")

A clip that explains what is seen and that the model holds to be clean: content frame and motion latents descend, by
Adam, the squared difference of A(D(x_c, z_m)) to what was observed, A being what was done to the clip, and at a
falling list of noise levels they are pulled towards what the model would denoise them to. The pull of the paper, the
residual of noise weighed by g / a, is x - x_0(a x + g e), which needs no division by a and holds for any prediction
type. Gradients pass through the decoder, never through the denoisers.

Costs a pass of each denoiser and one of the decoder there and back per iteration. A maximum a posteriori estimate: one
answer, the most likely; not for what is open, such as how a clip goes on. Nothing finer than what the decoder can
show. Differs from paper: two variables at once, the motion model being told the content frame of the moment.

B batch, C channels, F frames, H, W pixels; h, w latents.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.section import Section

TASKS = ("superres", "inpaint", "interpolate", "predict", "deblur")
Pull = Callable[[Tensor, int], Tensor]  # a variable and a share of the iterations to where the model would have it


class Settings(Section):
    """How the descent goes."""

    kind: Literal["variational"] = "variational"
    iterations: int = Field(60, ge=1)
    """Steps of Adam, one noise level each, falling."""
    learning_rate: float = Field(0.1, gt=0)
    """Of Adam with betas 0.9 and 0.99, as in the paper."""
    prior_weight: float = Field(0.05, ge=0)
    """lambda of the pull; 0 = fit what is seen, nothing else."""
    seed: int = Field(0, ge=0)
    """Of the noise."""

    def restore(
        self,
        observed: Tensor,
        operator: "Operator",
        content: tuple[Denoiser, Any, Condition],
        motion: tuple[Denoiser, Any, Condition],
        start: tuple[Tensor, Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Content frame (B, C, h, w) and normalised motion latents (B, D, F, H' + W').

        Args:
            observed: what is left of a clip, as `operator` leaves it.
            operator: what was done to it.
            content: denoiser, network and what it is told, for the content frame.
            motion: the same for the motion latents; it is told the content frame of the moment.
            start: where the two variables begin.
            decode: the two to clips (B, 3, F, H, W) in [-1, 1].
        """
        variables = [value.detach().clone().requires_grad_() for value in start]
        adam = torch.optim.Adam(variables, lr=self.learning_rate, betas=(0.9, 0.99))
        rng = Draws.of(self.seed, torch.arange(len(observed)))
        for iteration in range(self.iterations):
            share = 1 - iteration / self.iterations  # of diffusion time, falling
            x_c, z_m = variables
            adam.zero_grad()
            misfit = (operator(decode(x_c, z_m)) - observed).square().flatten(1).mean(dim=1)  # (B,)
            (0.5 * misfit.sum() * x_c[0].numel()).backward()  # a batch descends as its clips alone
            if self.prior_weight:
                told = motion[2].having(content_frame=x_c.detach())
                for value, (denoiser, model, known) in ((x_c, content), (z_m, (*motion[:2], told))):
                    clean = clean_estimate(denoiser, model, known, value.detach(), share, rng)
                    pull = self.prior_weight * x_c[0].numel() / value[0].numel() * (value.detach() - clean)
                    value.grad = pull if value.grad is None else value.grad + pull
            adam.step()
        return variables[0].detach(), variables[1].detach()


@torch.no_grad()
def clean_estimate(denoiser: Denoiser, model: Any, told: Condition, x: Tensor, share: float, rng: Draws) -> Tensor:
    """What a model makes of x (B, ...) after noise at a share of diffusion time: x_0(a x + g e)."""
    process = denoiser.process
    t = torch.full((len(x),), min(round(share * len(process)), len(process) - 1), device=x.device)
    x_t = process.marginal(x, rng.normal(x), t)
    return process.clean(denoiser.predict(model, x_t, t, told), x_t, t)


class Operator:
    """What was done to a clip, linear: (B, 3, F, H, W) to what is left of it.

    Args:
        task: "superres": each `factor` x `factor` pixels became their mean; "inpaint": pixels where `mask` (H, W) or
            (F, H, W) is 0 are not known; "interpolate": every `factor`-th frame is known, and the last; "predict": the
            first `factor` frames are; "deblur": a Gaussian blur of `factor` pixels deviation.
        factor: of the task.
        mask: for "inpaint".

    Raises:
        ValueError: an unknown task, a factor that is none, or a mask where none is due or that hides everything.
    """

    def __init__(self, task: str, factor: int = 4, mask: Tensor | None = None) -> None:
        if task not in TASKS:
            raise ValueError(f"task: {task!r} is none of {', '.join(TASKS)}")
        if factor < 1:
            raise ValueError(f"factor: {factor} is not a whole number of at least 1")
        if (mask is not None) != (task == "inpaint"):
            raise ValueError("mask: goes with the task 'inpaint', and only with it")
        if mask is not None and not mask.any():
            raise ValueError("mask: it hides everything")
        self.task, self.factor, self.mask = task, factor, mask

    def __call__(self, clip: Tensor) -> Tensor:
        """What is left of a clip (B, 3, F, H, W)."""
        if self.task == "superres":
            return F.avg_pool3d(clip, (1, self.factor, self.factor))
        if self.task == "deblur":
            return self._blur(clip)
        if self.mask is not None:
            return clip * self.mask.to(clip)
        return clip[:, :, self.known(clip.shape[2])]

    def known(self, frames: int) -> list[int]:
        """Numbers of the frames that are known, of so many."""
        if self.task == "predict":
            return list(range(min(self.factor, frames)))
        if self.task == "interpolate":
            return sorted({*range(0, frames, self.factor), frames - 1})
        return list(range(frames))

    def simplest(self, observed: Tensor, frames: int) -> Tensor:
        """A clip (B, 3, F, H, W) by the plainest means: bicubic, linear in time, gray, the last frame held."""
        if self.task == "superres":
            batch, count = len(observed), observed.shape[2]
            flat = observed.transpose(1, 2).flatten(0, 1)
            large = F.interpolate(flat, scale_factor=self.factor, mode="bicubic", align_corners=False)
            return large.unflatten(0, (batch, count)).transpose(1, 2).clamp(-1, 1)
        if self.task not in ("interpolate", "predict"):
            return observed
        known = torch.tensor(self.known(frames))
        moments = torch.arange(frames).clamp(max=int(known[-1]))
        after = torch.searchsorted(known, moments).clamp(max=len(known) - 1)
        before = (after - 1).clamp(min=0)
        gap = (known[after] - known[before]).clamp(min=1)
        share = ((moments - known[before]) / gap).to(observed).view(1, 1, -1, 1, 1)
        return observed[:, :, before] * (1 - share) + observed[:, :, after] * share

    def _blur(self, clip: Tensor) -> Tensor:
        reach = 3 * self.factor
        places = torch.arange(-reach, reach + 1, device=clip.device, dtype=clip.dtype)
        weights = torch.exp(-places.square() / (2 * self.factor**2))
        weights = (weights / weights.sum()).view(1, 1, 1, 1, -1).expand(3, 1, 1, 1, -1)
        along_x = F.conv3d(clip, weights, padding=(0, 0, reach), groups=3)
        return F.conv3d(along_x, weights.transpose(3, 4), padding=(0, reach, 0), groups=3)
