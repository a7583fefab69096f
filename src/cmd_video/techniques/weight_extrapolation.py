"""Weights along a fine-tuning and beyond it: Extrapolating and Decoupling (arXiv 2503.00948), with DARE (arXiv
2311.03099).

    cmd-video merge BASE TUNED -o OUT --scale -0.25 --keep 0.3
    merged = merge(base, tuned, scale=0.5)

base + scale * DARE(tuned - base). scale 0 is the base, 1 the tuned model, between them a mixture, -0.25 the paper's
step back past the base, which brought back the motion that fine-tuning took. DARE keeps each entry of the difference
with probability `keep` and divides it by that, so that several differences can be laid over one another; vectors stay
whole. No training, no cost at sampling.

Differs from paper: its two models by noise level (one above t = 500, one below) are `two_models`; its text adapter is
not here.
"""

from typing import Any, Literal

import torch
from pydantic import Field

from cmd_video.section import Section


class Settings(Section):
    """How far to go."""

    kind: Literal["weight_extrapolation"] = "weight_extrapolation"
    scale: float = Field(0.0, allow_inf_nan=False)
    """0 = the base, 1 = the tuned model."""
    keep: float = Field(1.0, gt=0, le=1)
    """Share of the difference's entries that stay; 1 = all."""
    seed: int = Field(0, ge=0)
    """Of which."""

    def edit(self, base: Any, tuned: Any) -> Any:
        """The base with the merged weights, in place."""
        return merge(base, tuned, self.scale, self.keep, self.seed)


@torch.no_grad()
def merge(base: Any, tuned: Any, scale: float, keep: float = 1.0, seed: int = 0) -> Any:
    """Base + scale * DARE(tuned - base), written into `base`.

    Args:
        base: a model.
        tuned: one of the same layout.
        scale: 0 leaves the base, 1 with keep = 1 gives the tuned weights to the bit.
        keep: share of the entries of tensors of two or more dimensions that stay, divided by it.
        seed: of which stay.

    Raises:
        ValueError: the two differ in names or shapes of weights; or a number is out of range.
    """
    checked = Settings(scale=scale, keep=keep, seed=seed)
    mine, its = base.state_dict(), tuned.state_dict()
    odd = sorted(mine.keys() ^ its.keys()) or [name for name in mine if mine[name].shape != its[name].shape]
    if odd:
        raise ValueError(f"tuned: {odd[0]} is not in both models, or not of one shape; {len(odd)} such weights")
    source = torch.Generator().manual_seed(checked.seed)
    for name, weight in mine.items():
        if not weight.is_floating_point():
            continue
        difference = its[name].to(weight) - weight
        if checked.keep < 1 and weight.ndim > 1:
            stays = torch.rand(weight.shape, generator=source) < checked.keep
            difference = difference * stays.to(weight) / checked.keep
        elif checked.scale == 1:
            weight.copy_(its[name])  # to the bit
            continue
        weight.add_(checked.scale * difference)
    return base
