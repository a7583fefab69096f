"""What the command line shows where it is given nothing: clips and captions of combinations never trained on.

data, name = held_out(256);  ask, name = captions(seed=0);  ask([0, 1])      # ["a red ball moves up", ...]
"""

from collections.abc import Callable, Sequence

from .scenes import sample_scene
from .section import SpritesData

NAME = "held-out sprites"  # in protocols


def held_out(num_clips: int) -> tuple[SpritesData, str]:
    """Clips as data of a run, and what they are called."""
    return SpritesData(split="held_out", length=num_clips, seed=7), NAME


def captions(seed: int) -> tuple[Callable[[Sequence[int]], list[str]], str]:
    """Numbers to captions of a world of scenes, and what they are called."""
    return lambda numbers: [sample_scene(number, seed, "held_out").prompt for number in numbers], NAME
