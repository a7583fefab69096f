"""Joint text and image guidance (STIV, arXiv 2412.07730), for the motion model, which is told both, and for content
models that are told given frames (`reference_frames`).

    sampling: {motion: {guidance: {kind: joint_guidance, scale: 2.0}}}
    sampling: {motion: {guidance: {kind: joint_guidance, scale: 4.0, frame: 1.5}}}
    objective: {kind: denoising, disturb: {kind: frame_dropout, share: 0.1}}                       # in training

With one scale, f(nothing, nothing) + s (f(text, frame) - f(nothing, nothing)): the step away from nothing keeps text
and frame together, where guidance by text alone pushes the clip away from its frame. With `frame` the two have scales
of their own, f(nothing) + s_frame (f(frame) - f(nothing)) + s (f(text, frame) - f(frame)), as in InstructPix2Pix
(arXiv 2211.09800, equation 3); with s_frame = 1 and no frame left out in training, that is the usual guidance by text.

Two passes a step, three with `frame`. The network must have been trained with frames left out (`frame_dropout`: zeros
in place of the content frame) for its answer without one to mean something; the shipped model was not. Differs from
paper: its formula is inferred from its words, and its share of frames left out is not known here.

B batch.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section

FRAME = "frame"


class FrameDropout(Section):
    """Training without the content frame, for guidance that leaves it out."""

    kind: Literal["frame_dropout"] = "frame_dropout"
    share: float = Field(0.1, ge=0, le=1)
    """Of samples whose content frame is zeros, independent of their text's; 0 = none."""

    def disturb(self, told: Condition, t: Tensor, rng: Draws) -> Condition:
        """What the network is told, some samples' content frame left out; t does not matter."""
        if not self.share:
            return told
        frame = told["content_frame"]  # (B, C, h, w)
        kept = torch.tensor([number >= self.share for number in rng.uniform()]).to(frame)  # (B,)
        return told.having(content_frame=frame * kept.view(-1, 1, 1, 1))


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
        return {ALL: (), FRAME: ("text",), NOTHING: ("text", "content_frame", "reference", "first_frame")}

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
