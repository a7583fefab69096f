"""Joint text and image guidance (STIV, arXiv 2412.07730), for the motion model, which is told both.

    sampling: {motion: {guidance: {kind: joint_guidance, scale: 2.0}}}
    sampling: {motion: {guidance: {kind: joint_guidance, scale: 4.0, frame: 1.5}}}

With one scale, f(nothing, nothing) + s (f(text, frame) - f(nothing, nothing)): the step away from nothing keeps text
and frame together, where guidance by text alone pushes the clip away from its frame. With `frame` the two have scales
of their own, f(nothing) + s_frame (f(frame) - f(nothing)) + s (f(text, frame) - f(frame)), as in InstructPix2Pix
(arXiv 2211.09800, equation 3); with s_frame = 1 and no frame left out in training, that is the usual guidance by text.

Two passes a step, three with `frame`. The network must have been trained with frames left out for its answer without
one to mean something; the shipped model was not. Differs from paper: the paper's formula is inferred from its words.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section

FRAME = "frame"


class Settings(Section):
    """Scales of the two conditions."""

    kind: Literal["joint_guidance"] = "joint_guidance"
    scale: float = Field(1.0, ge=1, allow_inf_nan=False)
    """s; 1 = no guidance, but for `frame`."""
    frame: float | None = Field(None, ge=0, allow_inf_nan=False)
    """s_frame; null = one scale for both."""

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]:
        """Both, or the text alone."""
        return {ALL: (), FRAME: ("text",), NOTHING: ("text", "content_frame", "first_frame")}

    def passes(self, step: Step) -> tuple[str, ...]:
        """One, two or three."""
        if self.frame is not None:
            return (NOTHING, FRAME, ALL)
        return (NOTHING, ALL) if self.scale > 1 else (ALL,)

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing) + s (f(all) - f(nothing)), or with a scale each."""
        everything = predictions[ALL]
        if NOTHING not in predictions:
            return everything
        nothing = predictions[NOTHING]
        if FRAME not in predictions or self.frame is None:
            return nothing + self.scale * (everything - nothing)
        framed = predictions[FRAME]
        return nothing + self.frame * (framed - nothing) + self.scale * (everything - framed)

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> None:
        """The combined one's."""
