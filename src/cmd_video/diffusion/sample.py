"""The loop: noise in, clean sample out. The only one; pipeline, validation, distillation and benchmark run it.

x_0 = sample(denoise, solver, steps, z, rng)
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .guidance import Denoise
from .plan import Step
from .solvers import Solver

Watch = Callable[[Tensor, int, Step], Tensor]  # x after a step, its number and the step, to the x to go on with


def sample(
    denoise: Denoise, solver: Solver, steps: Sequence[Step], z: Tensor, rng: Any = None, watch: Watch | None = None,
    begin: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """CMD's algorithm 1, one of its two loops.

    Args:
        denoise: x_t and a step to a prediction, guidance included.
        solver: from one level to the next.
        steps: from noise to clean.
        z: (B, ...), standard normal.
        rng: source of what noise the solver adds: one generator, or one for each sample.
        watch: sees and may change x after each step.
        begin: x where the first step starts, (B, ...), such as a clip with noise on it (SDEdit, arXiv 2108.01073);
            None = what the solver makes of z.

    Returns:
        x_0 (B, ...), of the shape of z.
    """
    x = solver.start(z) if begin is None else begin
    # (B, ...): content frames (B, C, h, w), motion latents (B, D, F, H' + W')
    for number, step in enumerate(steps):
        x = solver.step(denoise, x, step, rng)  # (B, ...), nearer to clean
        if watch is not None:
            x = watch(x, number, step)
    return x  # (B, ...)
