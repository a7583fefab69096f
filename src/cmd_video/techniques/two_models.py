"""Two sets of weights along diffusion time: Extrapolating and Decoupling (arXiv 2503.00948), as Wan 2.2's two experts.

    pair = CMDPipeline.from_pretrained("dynamic", motion_transformer_2=consistent.motion_transformer)
    pair.sampling = pair.sampling.laid_over({"motion": {"wraps": [{"kind": "two_models", "boundary_ratio": 0.5}]}})

From noise down to the boundary a step asks `motion_transformer` (or `unet`), below it `motion_transformer_2`
(`unet_2`): parts of the pipeline, saved and loaded with it. The names are those of WanPipeline in diffusers. The
paper's two models, one that moves much for the layout and one that is consistent for the details, are two merges of
one fine-tuning: `cmd-video merge` (`weight_extrapolation`). Costs the memory of a second model, no operation.

Differs from paper: the models' weights are whatever they are given; a shared text adapter is not here. No other
technique goes around the network at the same time.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask, AskUnder, Guidance
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section


class Settings(Section):
    """Where one model hands over to the other."""

    kind: Literal["two_models"] = "two_models"
    boundary_ratio: float = Field(0.0, ge=0, le=1)
    """Share of diffusion time below which the second model is asked: 0 = never, 1 = always; the paper: 0.5."""
    rows: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Any, denoiser: Denoiser, sampling: Any) -> None:
        """Raise a ValueError unless there is a second model, like the first in all but its weights."""
        if not self.boundary_ratio:
            return
        name = second(denoiser)
        other = denoiser.components.get(name)
        if other is None:
            raise ValueError(f"{name}: not given, but below boundary_ratio = {self.boundary_ratio} it is asked")
        if len(sampling.wraps) > 1:
            others = ", ".join(wrap.kind for wrap in sampling.wraps if wrap is not self)
            raise ValueError(f"wraps: {self.kind} asks two networks, {others} knows of one; leave one of them out")
        if type(other) is not type(model):
            raise ValueError(f"{name}: a {type(other).__name__}, the first model is a {type(model).__name__}")
        own, its = _layout(model), _layout(other)
        odd = sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key))
        if odd:
            raise ValueError(
                f"{name}: {odd[0]} is {its.get(odd[0])}, that of the first model {own.get(odd[0])}; needed are "
                "models of one layout"
            )

    def steps(self, steps: Sequence[Step], guidance: Guidance) -> list[Step]:
        """The plan as it is."""
        return list(steps)

    def ask_under(self, ask_under: AskUnder, denoiser: Denoiser, model: Any) -> AskUnder:
        """Ask the first model above the boundary, the second below."""
        if not self.boundary_ratio:
            return ask_under
        other = denoiser.components[second(denoiser)]

        def both_under(told: Condition) -> Ask:
            above, below = ask_under(told), denoiser.ask(other, told)

            def ask(x: Tensor, step: Step) -> Tensor:
                is_below = step.time < self.boundary_ratio or self.boundary_ratio == 1
                return (below if is_below else above)(x, step)

            return ask

        return both_under


def second(denoiser: Denoiser) -> str:
    """Name of the component with a denoiser's second weights."""
    return f"{denoiser.component}_2"


def _layout(model: Any) -> Mapping[str, str]:
    """What a model's configuration says of its networks, as text, so that tuples and lists are alike."""
    return {key: json.dumps(value, default=str) for key, value in model.config.items() if not key.startswith("_")}
