"""What a prediction says of the clean sample, corrected between the network and the solver.

denoise = Corrected(denoise, process, lambda x_0, step: x_0.clamp(-1, 1))

A prediction is affine in the clean sample, so it moves by what `Process.target` makes of the clean sample's move and
the noise's that goes with it, x_t being what it is. Where a correction changes nothing, nothing changes, to the bit.
A solver that asks for a pair adds the noise that was said without correction: then more of the correction lasts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Denoise
from .plan import Step
from .process import Process

Correct = Callable[[Tensor, Step], Tensor]  # a clean estimate (B, ...) and the step, to a better one


class Corrected:
    """What a loop calls in place of a denoiser whose clean estimates are corrected; for a process without a source.

    Args:
        denoise: x_t and a step to a prediction, guidance included.
        process: what its network undoes.
        correct: a clean estimate and the step to the estimate to go on with.
    """

    def __init__(self, denoise: Denoise, process: Process, correct: Correct) -> None:
        self.denoise, self.process, self.correct = denoise, process, correct

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """One prediction (B, ...)."""
        return self._moved(self.denoise(x, step), x, step)

    def pair(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The corrected prediction, and the one whose noise is added again, which stays."""
        pair = getattr(self.denoise, "pair", None)
        prediction, renoise = (self.denoise(x, step),) * 2 if pair is None else pair(x, step)
        return self._moved(prediction, x, step), renoise

    def _moved(self, prediction: Tensor, x: Tensor, step: Step) -> Tensor:
        t = torch.full((len(x),), self.process.levels([step.t])[0], device=x.device)
        x_0 = self.process.clean(prediction, x, t)
        move = self.correct(x_0, step) - x_0
        return prediction + self.process.target(move, self.process.noise_of(move, torch.zeros_like(x), t), t)
