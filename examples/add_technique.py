"""A technique of one's own, in one file and one row: python examples/add_technique.py PROMPT -o tilted.png.

Guidance that fades: its scale falls from `scale` at pure noise to 1 at the clean end. The class below is what a file
in `cmd_video/techniques/` holds, `register` what its row in the table there is.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video import CMDPipeline
from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section
from cmd_video.techniques import TECHNIQUES, Technique


class Settings(Section):
    """How much guidance there is at the noisy end."""

    kind: Literal["fading_guidance"] = "fading_guidance"
    scale: float = Field(1.0, ge=1)
    """s at t = 1; 1 = no guidance."""

    @property
    def leaves_out(self) -> Mapping[str, tuple[str, ...]]:
        """The text, for the second of two predictions."""
        return {ALL: (), NOTHING: ("text",)}

    def passes(self, step: Step) -> tuple[str, ...]:
        """Two, but for s = 1."""
        return (NOTHING, ALL) if self.scale > 1 else (ALL,)

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """f(nothing) + (1 + (s - 1) t) (f(all) - f(nothing))."""
        if NOTHING not in predictions:
            return predictions[ALL]
        scale = 1 + (self.scale - 1) * step.time
        return predictions[NOTHING] + scale * (predictions[ALL] - predictions[NOTHING])

    def renoise(self, predictions: Mapping[str, Tensor], step: Step) -> None:
        """The combined one's noise."""


def register() -> None:
    """The row of the table; a file of the library has it in `cmd_video/techniques/__init__.py`."""
    TECHNIQUES["fading_guidance"] = Technique(
        __name__, "guidance that fades", "guidance", ("content", "motion"), "of nobody"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("tilted.png"))
    parser.add_argument("--model", help="folder or hub id; default: the model that ships")
    parser.add_argument("--scale", type=float, default=7.5)
    asked = parser.parse_args(arguments)

    register()
    pipe = CMDPipeline.from_pretrained(asked.model)
    fading = {"content": {"guidance": {"kind": "fading_guidance", "scale": asked.scale}}}
    sampling = pipe.sampling.laid_over(fading)
    out = pipe(asked.prompt, sampling=sampling, generator=torch.Generator().manual_seed(0))
    out.content_frames[0].save(asked.output)


if __name__ == "__main__":
    main()
