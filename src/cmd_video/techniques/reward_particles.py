"""Search while sampling, guided by a reward: rollover budget forcing (RBF, arXiv 2503.19385).

    pipe(prompt, sampling={"content": {"eta": 1.0, "search": {"kind": "reward_particles", "budget": 32}}}, reward=f)

A number of start noises is tried, and the best by the reward of its clean estimate goes on. Then each step proposes:
one stochastic step and the network at its end, whose estimate is rewarded. A proposal that is better than the best so
far is taken at once, and what the step had left of its quota of evaluations rolls over to the next; if none is, the
best of the step's proposals goes on. In the last step the rest of the budget is spent. The estimate with the highest
reward that was seen is returned. The reward is a function of clean samples, such as `pipe.reward(...)` makes of one
of pictures.

Costs `budget` evaluations of the network a clip instead of one a step, and as many rewards. Early rewards mean
something where clean estimates are sharp: a model of few steps. A reward that is a network can be hacked: look at
clips, and judge them by another one. Differs from paper: no conversion between interpolants (the noise comes of
`eta`); equal times; each clip of a batch searches for itself, one after the other.

B batch, K candidates.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver, draw_like
from cmd_video.section import Section, named

Reward = Callable[[Tensor], Tensor]  # clean samples (K, ...) to how good they are (K,)
REWARDS: dict[str, str] = {  # name -> function of a path and a device: pictures and prompts to rewards
    "sprites": "cmd_video.sprites.reward:build",
    "clip": "cmd_video.evaluation.metrics.clipsim:build_reward",
}


def reward_named(name: str, device: str = "cpu") -> Callable[[Tensor, list[str]], Tensor]:
    """A reward by name, `clip:PATH` for one whose network lies at a path.

    Raises:
        ValueError: there is none of that name, or its path is not due or missing.
    """
    kind, _, path = name.partition(":")
    if kind not in REWARDS:
        raise ValueError(f"reward: {name!r} is none of {', '.join(REWARDS)}")
    return named(REWARDS[kind])(path or None, device)


class Settings(Section):
    """How much is spent on a clip."""

    kind: Literal["reward_particles"] = "reward_particles"
    budget: int = Field(1, ge=1)
    """Evaluations of the network for one clip; 1 = no search, the plain sample."""
    starts: int = Field(1, ge=1)
    """Start noises among them (the paper: 25 of 500)."""

    def search(
        self,
        denoise: Callable[..., Tensor],
        solver: Any,
        steps: Sequence[Step],
        z: Tensor,
        rng: Any,
        reward: Reward,
    ) -> Tensor:
        """Clean samples (B, ...) for noise z (B, ...).

        Args:
            denoise: network and guidance, for one row.
            solver: an `EtaSolver` with eta > 0.
            steps: of the loop.
            z: standard normal; of each sample the first start noise.
            rng: one generator, or one for each sample.
            reward: what to look for.

        Raises:
            ValueError: the solver adds no noise, or the budget does not reach.
        """
        if self.budget == 1:
            return sample(denoise, solver, steps, z, rng)
        if not isinstance(solver, EtaSolver) or not solver.eta:
            raise ValueError("search: proposals are steps with new noise; give `eta` above 0")
        if self.budget < self.starts + len(steps) - 1:
            needed = self.starts + len(steps) - 1
            raise ValueError(
                f"budget: {self.budget} evaluations, {self.starts} starts and {len(steps)} steps take {needed}"
            )
        raise_for_rows(denoise, len(z))
        return self.one(denoise, solver, steps, z, rng[0] if isinstance(rng, list) else rng, reward)

    def one(
        self, denoise: Callable[..., Tensor], solver: EtaSolver, steps: Sequence[Step], z: Tensor, rng: Any,
        reward: Reward,
    ) -> Tensor:  # fmt: skip
        """The search for one clip: (1, ...)."""
        spent, best = 0, _Found()
        current = _Found()
        for number in range(self.starts):
            x = solver.start(z if number == 0 else draw_like(z, rng))
            x_0, noise = solver.estimate(denoise, x, steps[0])
            current.take(x_0, noise, float(reward(x_0)))
        spent += self.starts
        best.take(*current)
        quota = rolled = (self.budget - self.starts) // max(len(steps) - 1, 1)
        for step, after in zip(steps, steps[1:]):
            last = after is steps[-1]
            allowed = self.budget - spent if last else rolled
            proposals, used = _Found(), 0
            while used < allowed:
                x = solver.move(current.sample[0], current.sample[1], step, rng)  # (1, ...)
                x_0, noise = solver.estimate(denoise, x, after)
                used += 1
                proposals.take(x_0, noise, float(reward(x_0)))
                if proposals.reward > best.reward and not last:
                    break
            spent += used
            rolled = quota + (allowed - used)  # what is left rolls over
            best.take(*proposals)
            current = proposals
        assert spent <= self.budget and best.sample is not None
        return best.sample[0]


class _Found:
    """The best of what was offered: estimate and noise, and their reward."""

    def __init__(self) -> None:
        self.sample: Any = None
        self.reward = -torch.inf

    def take(self, x_0: Tensor, noise: Tensor, reward: float) -> None:
        if self.sample is None or reward > self.reward:
            self.sample, self.reward = (x_0, noise), reward

    def __iter__(self) -> Any:
        return iter((*self.sample, self.reward))


def raise_for_rows(denoise: Any, rows: int) -> None:
    """A search is of one clip; a pipeline goes through a batch."""
    if rows != 1:
        raise ValueError(f"search: {rows} clips at once, but each searches for itself; give them one by one")
