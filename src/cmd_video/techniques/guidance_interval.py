"""Guidance in an interval of noise levels (arXiv 2404.07724): elsewhere a step takes one pass instead of two.

    sampling: {content: {guidance: {kind: guidance_interval, scale: 4.0, low: 0.2}}}

Guidance at the noisiest levels costs variety, at the cleanest it does next to nothing. Saves up to half of the
operations of the steps outside. The paper gives the interval in sigma; differs from paper: here it is given in shares
of diffusion time, from 0 (clean) to 1 (noise).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section


class Settings(Section):
    """Classifier-free guidance with scale s where diffusion time lies in [low, high]."""

    kind: Literal["guidance_interval"] = "guidance_interval"
    scale: float = Field(1.0, ge=1, allow_inf_nan=False)
    """s; 1 = no guidance."""
    low: float = Field(0.0, ge=0, le=1)
    """Guide at this diffusion time and above."""
    high: float = Field(1.0, ge=0, le=1)
    """And up to this one."""

    @model_validator(mode="after")
    def _rising(self) -> "Settings":
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is above high = {self.high}")
        return self

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]:
        """As classifier-free guidance."""
        return {ALL: (), NOTHING: ("text", "first_frame")}

    def passes(self, step: Step) -> tuple[str, ...]:
        """Two inside the interval."""
        return (NOTHING, ALL) if self.scale > 1 and self.low <= step.time <= self.high else (ALL,)

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing) + s (f(all) - f(nothing)), outside f(all)."""
        if NOTHING not in predictions:
            return predictions[ALL]
        return predictions[NOTHING] + self.scale * (predictions[ALL] - predictions[NOTHING])

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> None:
        """The combined one's."""
