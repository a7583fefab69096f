"""Two sets of weights along diffusion time: the ends are either model, in between each is asked where it is due."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.plan import steps_at
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.techniques.two_models import Settings


class Both:
    """What a denoiser is to the technique: its components, and how each network is asked."""

    component = "motion_transformer"

    def __init__(self) -> None:
        self.components: Mapping[str, Any] = {"motion_transformer_2": "second"}
        self.told: list[tuple[str, float]] = []

    def ask(self, model: str, told: Condition) -> Any:
        def ask(x: torch.Tensor, step: Any) -> torch.Tensor:
            self.told.append((model, step.time))
            return x

        return ask


@pytest.mark.parametrize(
    ("ratio", "of_first"), [(0.0, 4), (0.2, 4), (0.25, 4), (0.3, 3), (0.5, 3), (0.99, 1), (1.0, 0)]
)
def test_each_step_asks_the_model_that_it_is_for(ratio, of_first):
    """Steps at 1, 0.75, 0.5 and 0.25 of diffusion time: at the boundary itself the first one."""
    denoiser, told = Both(), Condition({"content_frame": torch.zeros(1, 1)})
    under = Settings(boundary_ratio=ratio).ask_under(lambda told: denoiser.ask("first", told), denoiser, "first")
    ask = under(told)
    for step in steps_at([1000, 750, 500, 250], 1000):
        ask(torch.zeros(1), step)
    asked = [name for name, _ in denoiser.told]
    assert asked == ["first"] * of_first + ["second"] * (4 - of_first)


def test_never_is_the_model_as_it_was():
    def under(told):
        return None

    settings = Settings()
    assert settings.ask_under(under, Both(), "first") is under
    settings.check("first", Both(), (settings,))
    assert ModelSampling(wraps=({"kind": "two_models"},)).wraps == (settings,)
