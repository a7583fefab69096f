"""Solvers: from one noise level to the next. Any scheduler of diffusers is one.

solver = SchedulerSolver(scheduler);  solver.ready(50);  steps = plan(solver.timesteps, ...)
"""

import inspect
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .guidance import Denoise
from .plan import Step
from .process import Process

OF_EQUAL_STEPS = (DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler)  # see SchedulerSolver
STEP_TAKES = {"model_output", "timestep", "sample"}
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Solver(Protocol):
    """Moves x along the steps of a plan."""

    def start(self, z: Tensor) -> Tensor:
        """Standard normal z (B, ...) -> x where the steps begin."""
        ...

    def noised(self, x_0: Tensor, z: Tensor, step: Step) -> Tensor:
        """Clean x_0 and standard normal z, (B, ...) both -> x where a step starts."""
        ...

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        """X at the step's level -> x where the next step starts."""
        ...


class SchedulerSolver:
    """A scheduler of diffusers, readied for a loop.

    Each step ends where the next one starts, and the last one where the schedule ends. DDIM's schedulers by themselves
    go num_train_timesteps // num_inference_steps down, which is somewhere else if that leaves a rest: they are told
    the share of the schedule that a step really takes.

    Args:
        scheduler: its state is that of one loop.
        num_inference_steps: how many steps; not with `starts`.
        starts: timesteps at which the steps start, from noise to clean, of a model that knows only these.
        device: where the timesteps lie.

    Raises:
        ValueError: its step asks for more than a prediction, a timestep and x.
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
        takes = inspect.signature(scheduler.step).parameters
        more = {name for name, each in takes.items() if each.default is each.empty and each.kind in NAMED} - STEP_TAKES
        more |= takes.keys() & {"prev_timestep"}  # without it one timestep is gone down, not one step
        if more:
            raise ValueError(f"scheduler: the step of {type(scheduler).__name__} asks for {', '.join(sorted(more))}")
        self.takes_generator = "generator" in takes
        self._timesteps = dict(zip(self.timesteps, scheduler.timesteps, strict=True))
        self._steps_as_long: dict[float, Fraction] = {}
        if isinstance(scheduler, OF_EQUAL_STEPS):
            total, begins = scheduler.config.num_train_timesteps, [int(t) for t in self.timesteps]
            lengths = (begin - end for begin, end in zip(begins, [*begins[1:], -1], strict=True))
            self._steps_as_long = {t: Fraction(total, length) for t, length in zip(self.timesteps, lengths)}

    @property
    def timesteps(self) -> list[float]:
        """At which the steps start."""
        return [float(timestep) for timestep in self.scheduler.timesteps]

    def start(self, z: Tensor) -> Tensor:
        return z * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def noised(self, x_0: Tensor, z: Tensor, step: Step) -> Tensor:
        return self.scheduler.add_noise(x_0, z, self._timesteps[step.t].expand(len(x_0)).to(x_0.device))

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        timestep = self._timesteps[step.t]
        scaled = self.scheduler.scale_model_input(x, timestep) if hasattr(self.scheduler, "scale_model_input") else x
        options = {"generator": rng} if self.takes_generator else {}
        if self._steps_as_long:
            self.scheduler.num_inference_steps = self._steps_as_long[step.t]
        return self.scheduler.step(denoise(scaled, step), timestep, x, **options).prev_sample


class EtaSolver:
    """DDIM with a share of new noise, for any process (arXiv 2010.02502, equations 12 and 16).

    x_s = a_s x_0 + b_s x_1 + sqrt(g_s^2 - n^2) e + n fresh, with n^2 = eta^2 g_s^2 (1 - (g_s a_t / (g_t a_s))^2),
    which at eta = 1 is DDPM's amount.

    Args:
        process: what the network undoes.
        levels: of the process, at which the steps start, from noise to clean.
        eta: 0 = no new noise, the same as DDIM; 1 = DDPM's amount.
        x_1: source of the process, if it has one.
    """

    def __init__(self, process: Process, levels: Sequence[int], eta: float = 0.0, x_1: Tensor | None = None) -> None:
        self.process, self.levels, self.eta, self.x_1 = process, [int(level) for level in levels], eta, x_1
        self._number = {float(process.timestep[level]): number for number, level in enumerate(self.levels)}

    @property
    def timesteps(self) -> list[float]:
        """At which the steps start, as the network is told."""
        return list(self._number)

    def start(self, z: Tensor) -> Tensor:
        return self.process.start(z, self.x_1)

    def noised(self, x_0: Tensor, z: Tensor, step: Step) -> Tensor:
        return self.process.marginal(x_0, z, self.level(step, x_0)[0], self.x_1)

    def level(self, step: Step, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where a step starts and where it ends: (B,) both, -1 = clean."""
        number = self._number[step.t]
        after = self.levels[number + 1] if number + 1 < len(self.levels) else -1
        return torch.full((len(x),), self.levels[number], device=x.device), torch.full(
            (len(x),), after, device=x.device
        )

    def estimate(self, denoise: Denoise, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Clean sample and noise that x stands for: (B, ...) both."""
        t, _ = self.level(step, x)
        pair = getattr(denoise, "pair", None)
        seen, _ = self.process.see(x, t, self.x_1)  # (B, ...), x itself but for a bridge
        prediction, other = (denoise(seen, step),) * 2 if pair is None else pair(seen, step)
        x_0 = self.process.clean(prediction, x, t, self.x_1)
        kept = x_0 if other is prediction else self.process.clean(other, x, t, self.x_1)
        return x_0, self.process.noise_of(kept, x, t, self.x_1)

    def move(self, x_0: Tensor, noise: Tensor, step: Step, rng: Any) -> Tensor:
        """From an estimate to x where the next step starts."""
        t, until = self.level(step, x_0)
        (a, g), (a_until, g_until) = self.process.at(t, x_0), self.process.at(until, x_0)
        keep = (g_until / g * a / a_until).square().clamp(max=1)
        new = self.eta * g_until * (1 - keep).sqrt()
        x = a_until * x_0 + (g_until.square() - new.square()).clamp(min=0).sqrt() * noise
        if self.x_1 is not None:
            x = x + self.process.of_source(until, x_0) * self.x_1
        return x + new * draw_like(x_0, rng) if self.eta else x

    def step(self, denoise: Denoise, x: Tensor, step: Step, rng: Any) -> Tensor:
        return self.move(*self.estimate(denoise, x, step), step, rng)


def draw_like(x: Tensor, rng: Any) -> Tensor:
    """Standard normal noise of the shape of x, from one generator, one for each sample, or torch's own."""
    return randn_tensor(x.shape, generator=rng, device=x.device, dtype=x.dtype)


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
