"""The steps of a denoising loop.

steps = steps_at([999.0, 749.0, 499.0, 249.0], num_train_timesteps=1000)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a denoising loop.

    Attributes:
        t: timestep at which it starts, as the network is told.
        time: the same as a share of diffusion time, from 0 (clean) to 1 (noise).
        fresh: whether everything is computed; otherwise deep features of an earlier step are taken (feature reuse).
    """

    t: float
    time: float
    fresh: bool = True


def steps_at(timesteps: Sequence[float], num_train_timesteps: int) -> list[Step]:
    """Steps that start at these timesteps, from noise to clean, each computed in full."""
    return [Step(t, t / num_train_timesteps) for t in timesteps]
