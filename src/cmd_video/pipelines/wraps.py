"""Techniques around the content model that are told more than the network is: rows of a condition.

how = taking("structure", pipe.sampling);  told = told_to(told, denoiser, model, how.content)
"""

from typing import Any

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.techniques import of_seam, technique

from .sampling import ModelSampling, Sampling


def taking(row: str, how: Sampling) -> Sampling:
    """The same with a wrap of the content model that takes a row: the first technique that does, if none is there."""
    wraps = how.content.wraps
    if any(row in wrap.rows for wrap in wraps):
        return how
    sections = (technique(kind).settings for kind in of_seam("wrap"))
    first = next(section for section in sections if row in section.rows)
    return how.model_copy(update={"content": how.content.model_copy(update={"wraps": (*wraps, first())})})


def told_to(told: Condition, denoiser: Denoiser, model: Any, how: ModelSampling) -> Condition:
    """Of what is told, what the network and the wraps around it take."""
    return told.only([*denoiser.told(model), *(row for wrap in how.wraps for row in wrap.rows)])
