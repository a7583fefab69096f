"""Solvers: from one noise level to the next. Any scheduler of diffusers is one.

    solver = SchedulerSolver(scheduler);  solver.ready(50);  steps = plan(solver.timesteps, ...)
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from .guidance import Denoise
from .plan import Step


class Solver(Protocol):
    """Moves x along the steps of a plan."""

    def start(self, z: Tensor) -> Tensor:
        """Standard normal z (B, ...) -> x where the steps begin."""
        ...

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        """x at the step's level -> x where the next step starts."""
        ...


class SchedulerSolver:
    """A scheduler of diffusers, readied for a loop.

    Args:
        scheduler: its state is that of one loop.
        num_inference_steps: how many steps; not with `starts`.
        starts: timesteps at which the steps start, from noise to clean, of a model that knows only these.
        device: where the timesteps lie.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int | None = None,
        starts: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.scheduler = scheduler
        if starts is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            scheduler.set_timesteps(timesteps=list(starts), device=device)
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._timesteps = dict(zip(self.timesteps, scheduler.timesteps, strict=True))

    @property
    def timesteps(self) -> list[float]:
        """At which the steps start."""
        return [float(timestep) for timestep in self.scheduler.timesteps]

    def start(self, z: Tensor) -> Tensor:
        return z * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        timestep = self._timesteps[step.t]
        scaled = self.scheduler.scale_model_input(x, timestep) if hasattr(self.scheduler, "scale_model_input") else x
        options = {"generator": rng} if self.takes_generator else {}
        return self.scheduler.step(denoise(scaled, step), timestep, x, **options).prev_sample


# --- schedulers with another one's noise -----------------------------------------------------------------------------


def with_schedule(kind: Any, scheduler: Any, **settings: Any) -> Any:
    """A scheduler of another class with the same noise schedule.

    What `from_config` alone would do is not enough: values that a scheduler has by default are not handed on, and
    another class has other defaults.
    """
    names = set(inspect.signature(kind.__init__).parameters)
    shared = {name: value for name, value in scheduler.config.items() if name in names}
    return kind.from_config(scheduler.config, **{**shared, **settings})


def ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM (arXiv 2010.02502), the paper's."""
    return with_schedule(DDIMScheduler, scheduler)


def multistep(scheduler: Any) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of second order (arXiv 2211.01095)."""
    settings = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    return with_schedule(DPMSolverMultistepScheduler, scheduler, **settings)


def jumps(scheduler: Any) -> DPMSolverMultistepScheduler:
    """What takes the steps of a few-step model from any timesteps: DPM-Solver++ of first order, which is DDIM."""
    settings = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero"}
    return with_schedule(DPMSolverMultistepScheduler, scheduler, **settings)


def check_starts(name: str, timesteps: Sequence[int], num_train_timesteps: int) -> None:
    """Raise a ValueError that names the argument unless the timesteps fall and lie in the schedule."""
    falls = all(before > after for before, after in zip(timesteps, timesteps[1:]))
    if not timesteps or not falls or not 0 <= timesteps[-1] <= timesteps[0] < num_train_timesteps:
        raise ValueError(f"{name}: {list(timesteps)} are not falling timesteps in 0..{num_train_timesteps - 1}")
