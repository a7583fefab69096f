"""Guidance: which conditions a step asks for, all in one batch, and how their predictions become one.

    guidance = ClassifierFree(scale=4.0)
    denoise = Guided(ask_under, {"all": condition, "nothing": empty}, guidance)          # (x, step) -> prediction

A prediction is affine in the clean sample, so predictions of any type are combined as they are.

B batch, N rows asked for: B times the conditions of a step.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.section import Section

from .condition import Condition, stacked
from .plan import Step

Ask = Callable[[Tensor, Step], Tensor]  # noisy rows (N, ...) to predictions, under conditions that are known
AskUnder = Callable[[Condition], Ask]  # a condition (N rows) to what asks the network under it
Denoise = Callable[[Tensor, Step], Tensor]  # x_t (B, ...) to one prediction
ALL, NOTHING = "all", "nothing"


class Guidance(Protocol):
    """What combines predictions under several conditions.

    Attributes:
        leaves_out: name of each condition that a step may ask for, and which rows it lacks: "text" (prompt or class),
            "content_frame", "first_frame".
    """

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]: ...

    def passes(self, step: Step) -> tuple[str, ...]:
        """Names of the conditions that a step asks for."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """One prediction (B, ...) of those, by name."""
        ...

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor | None:
        """The prediction whose noise a step adds again, if it is not the combined one; solvers of diffusers know none
        but that.
        """
        ...


class ClassifierFree(Section):
    """Classifier-free guidance (arXiv 2207.12598): f(nothing) + s (f(all) - f(nothing)), with the usual scale
    s = w + 1 of CMD's w.
    """

    kind: Literal["classifier_free"] = "classifier_free"
    scale: float = Field(1.0, ge=1, allow_inf_nan=False)
    """s; 1 = no guidance, one pass at each step."""

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]:
        """The text, and the first frame of models that are told one."""
        return {ALL: (), NOTHING: ("text", "first_frame")}

    def passes(self, step: Step) -> tuple[str, ...]:
        """Two, but for s = 1."""
        return (NOTHING, ALL) if self.scale > 1 else (ALL,)

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing) + s (f(all) - f(nothing))."""
        if NOTHING not in predictions:
            return predictions[ALL]
        return predictions[NOTHING] + self.scale * (predictions[ALL] - predictions[NOTHING])

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> None:
        """The combined one's."""


class Guided:
    """What a loop calls at each step, a `Denoise`.

    Args:
        ask_under: called once for each set of conditions that steps ask for, so it may compute what does not change
            from step to step, and remember.
        conditions: by name, of B rows each.
        guidance: which of them a step asks for.
    """

    def __init__(self, ask_under: AskUnder, conditions: Mapping[str, Condition], guidance: Guidance) -> None:
        self.ask_under, self.conditions, self.guidance = ask_under, conditions, guidance
        self.asks: dict[tuple[str, ...], Ask] = {}

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """One prediction (B, ...)."""
        return self.guidance.combine(self._predictions(x, step), step)  # (B, ...)

    def pair(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The prediction that says x_0, and the one whose noise is added again; (B, ...) both."""
        predictions = self._predictions(x, step)
        combined, renoise = self.guidance.combine(predictions, step), self.guidance.renoise(predictions, step)
        return combined, combined if renoise is None else renoise

    def _predictions(self, x: Tensor, step: Step) -> dict[str, Tensor]:
        names = self.guidance.passes(step)
        if names not in self.asks:
            self.asks[names] = self.ask_under(stacked([self.conditions[name] for name in names]))
        rows = torch.cat([x] * len(names)) if len(names) > 1 else x  # (N, ...)
        predictions = self.asks[names](rows, step)  # (N, ...)
        if len(names) == 1:
            predictions = predictions.clone()  # a solver may keep it, and a CUDA graph writes its next output there
        return dict(zip(names, predictions.chunk(len(names)), strict=True))
