"""CFG++ (arXiv 2406.08070): guidance that stays on the data's manifold.

    sampling: {content: {guidance: {kind: cfg_plus_plus, scale: 0.6}}}

The clean estimate is f(nothing) + s (f(all) - f(nothing)) with s in [0, 1], an interpolation; the noise that a step
adds again is that of f(nothing), x_s = a_s x_0(guided) + g_s e(nothing). Large usual scales extrapolate and add the
guided noise. Two passes a step, as the usual guidance; s = 1 renoises the conditional estimate. Sampled by DDIM with
`eta`, since a scheduler of diffusers knows only one prediction.

Differs from paper: nothing; prediction types other than noise are converted.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section


class Settings(Section):
    """How far the estimate goes from nothing to the condition."""

    needs_eta: ClassVar[bool] = True  # a solver that takes clean estimate and noise from two predictions

    kind: Literal["cfg_plus_plus"] = "cfg_plus_plus"
    scale: float = Field(0.6, ge=0, le=1)
    """lambda of the paper; 0 = no condition at all, 1 = the conditional estimate, with the unconditional noise."""

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]:
        """As classifier-free guidance."""
        return {ALL: (), NOTHING: ("text", "first_frame")}

    def passes(self, step: Step) -> tuple[str, ...]:
        """Always both."""
        return (NOTHING, ALL)

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing) + s (f(all) - f(nothing))."""
        return predictions[NOTHING] + self.scale * (predictions[ALL] - predictions[NOTHING])

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing)."""
        return predictions[NOTHING]
