"""How a clip is sampled: presets, and the plan of a denoising loop that they stand for.

pipe.use_preset("fast")                                       # or cmd-video generate --preset fast
plan = plan_steps(timesteps, num_train_timesteps=1000, guided=True, guidance_interval=(0.1, 0.9), reuse_interval=2)
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

OWN_SPACING = "_own_timestep_spacing"  # in the configuration of a sampler that replaced another: that one's spacing
DISTILLED_TIMESTEPS = "_distilled_timesteps"  # in a sampler's configuration: where a distilled model's jumps start


@dataclass(frozen=True)
class Preset:
    """How to sample.

    Attributes:
        solver: "ddim" as in the paper; "multistep": DPM-Solver++ of second order (arXiv 2211.01095); "distilled": what
            a model that was distilled for few steps came with, and only for such.
        num_inference_steps: steps of the content model.
        motion_num_inference_steps: steps of the motion model.
        guidance_from: guide only where diffusion time, from 0 (clean) to 1 (noise), is at least this (arXiv
            2404.07724); elsewhere a step costs half.
        guidance_until: and at most this.
        reuse_interval: compute the deep features of both denoisers at every n-th step only and use them again in
            between (DeepCache, arXiv 2312.00858; A-SDM, arXiv 2406.00210); 1 = at every step.
        guided: whether guidance applies at all; distilled models have it built in.
        decode_content_frame: decode the content frame to look at, too; it costs as much as a frame of the clip.
    """

    solver: Literal["ddim", "multistep", "distilled"]
    num_inference_steps: int
    motion_num_inference_steps: int
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    reuse_interval: int = 1
    guided: bool = True
    decode_content_frame: bool = True


PRESETS: dict[str, Preset] = {
    "quality": Preset("ddim", 50, 50),
    "fast": Preset("multistep", 20, 20, guidance_from=0.2, reuse_interval=2, decode_content_frame=False),
    "turbo": Preset("distilled", 4, 4, guided=False, decode_content_frame=False),
}


@dataclass(frozen=True)
class Sampling:
    """How one of the two models is sampled: as in `Preset`; guidance_scale 1 = none."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse_interval: int = 1

    def plan(self, scheduler: SchedulerMixin) -> list["Step"]:
        """`plan_steps` for a scheduler whose timesteps are set."""
        timesteps = [float(timestep) for timestep in scheduler.timesteps]
        guided = self.guidance_scale > 1
        total = scheduler.config.num_train_timesteps
        return plan_steps(timesteps, total, guided, self.guidance_interval, self.reuse_interval)

    def check(self, prefix: str, scheduler: SchedulerMixin) -> None:
        """Raise a ValueError that names the argument, its value and what is allowed."""
        steps, most = self.num_inference_steps, scheduler.config.num_train_timesteps
        if not isinstance(steps, int) or not 1 <= steps <= most:
            raise ValueError(f"{prefix}num_inference_steps: {steps!r} is not a whole number in 1..{most}")
        distilled = distilled_steps(scheduler)
        if distilled is not None and steps != distilled:
            raise ValueError(
                f"{prefix}num_inference_steps: {steps}, but the model was distilled for {distilled} steps"
            )
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(f"{prefix}guidance_scale: {self.guidance_scale} is not a number of at least 1 (1 = none)")
        interval = self.guidance_interval
        if not isinstance(interval, Sequence) or len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"guidance_interval: {interval} is not a pair of rising numbers in 0..1")
        if not isinstance(self.reuse_interval, int) or self.reuse_interval < 1:
            raise ValueError(f"reuse_interval: {self.reuse_interval!r} is not a whole number of at least 1")


def resolve(
    defaults: Mapping[str, Any],
    steps: int | None,
    motion_steps: int | None,
    guidance: float | None,
    motion_guidance: float | None,
    guidance_interval: tuple[float, float] | None,
    reuse_interval: int | None,
) -> tuple[Sampling, Sampling]:
    """How the content and the motion model are sampled: what a caller gave, where None the pipeline's defaults."""

    def given(value: Any, name: str) -> Any:
        return defaults[name] if value is None else value

    motion_steps = given(steps if motion_steps is None else motion_steps, "motion_num_inference_steps")
    interval = (defaults["guidance_from"], defaults["guidance_until"])
    if guidance_interval is not None:
        interval = guidance_interval
    shared = interval, given(reuse_interval, "reuse_interval")
    return (
        Sampling(given(steps, "num_inference_steps"), given(guidance, "guidance_scale"), *shared),
        Sampling(motion_steps, given(motion_guidance, "motion_guidance_scale"), *shared),
    )


@dataclass(frozen=True)
class Step:
    """One step of a denoising loop.

    Attributes:
        guided: with and without condition, in one batch; otherwise with condition only.
        reuse: take the deep features of the step before.
    """

    guided: bool
    reuse: bool


def plan_steps(
    timesteps: Sequence[float],
    num_train_timesteps: int,
    guided: bool,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    reuse_interval: int = 1,
) -> list[Step]:
    """Decide for each step whether it is guided and whether it takes the deep features of the step before.

    Args:
        timesteps: diffusion times of the steps, in 0..num_train_timesteps - 1, from noise to clean.
        num_train_timesteps: number of diffusion times.
        guided: whether guidance is wanted at all.
        guidance_interval: `guidance_from` and `guidance_until` of `Preset`.
        reuse_interval: see `Preset`. The first step, and every first one of a guided or unguided stretch, is computed
            in full.
    """
    low, high = guidance_interval
    steps: list[Step] = []
    since = 0  # steps since the deep features were computed
    for timestep in timesteps:
        now = guided and low <= timestep / num_train_timesteps <= high
        fresh = not steps or steps[-1].guided != now or since + 1 >= reuse_interval
        since = 0 if fresh else since + 1
        steps.append(Step(guided=now, reuse=not fresh))
    return steps


def is_distilled(scheduler: SchedulerMixin) -> bool:
    """Whether a sampler belongs to a model distilled for few steps: here, or by Latent Consistency Models."""
    return isinstance(scheduler, LCMScheduler) or DISTILLED_TIMESTEPS in scheduler.config


def distilled_steps(scheduler: SchedulerMixin) -> int | None:
    """How many steps a model was distilled for, and no others; None where any number will do."""
    timesteps = scheduler.config.get(DISTILLED_TIMESTEPS)
    return None if timesteps is None else len(timesteps)


def set_timesteps(scheduler: Any, num_inference_steps: int, device: torch.device | None = None) -> None:
    """Ready a sampler for a loop: so many steps, or those the model was distilled for."""
    distilled = scheduler.config.get(DISTILLED_TIMESTEPS)
    if distilled is None:
        scheduler.set_timesteps(num_inference_steps, device=device)
    else:
        scheduler.set_timesteps(timesteps=list(distilled), device=device)


def make_solver(solver: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A sampler with the noise schedule and the prediction type of another one.

    Raises:
        ValueError: the model was distilled for few steps and the solver is not for that, or the other way round.
    """
    distilled = is_distilled(scheduler)
    if distilled != (solver == "distilled"):
        fits = "only the preset turbo fits" if distilled else "turbo needs one that is, such as --model turbo"
        raise ValueError(f"preset: this model was {'' if distilled else 'not '}distilled for few steps; {fits}")
    if solver == "distilled":
        return scheduler
    spacing = scheduler.config.get(OWN_SPACING, scheduler.config.timestep_spacing)
    if solver == "ddim":
        return with_schedule(DDIMScheduler, scheduler, timestep_spacing=spacing)
    settings = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    multistep = with_schedule(DPMSolverMultistepScheduler, scheduler, timestep_spacing="linspace", **settings)
    multistep.register_to_config(**{OWN_SPACING: spacing})
    return multistep


def jumps_from(timesteps: Sequence[int], scheduler: SchedulerMixin) -> SchedulerMixin:
    """A sampler of the same noise schedule whose steps start at these timesteps, from noise to clean.

    DPM-Solver++ of first order, which is DDIM.
    """
    settings = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero"}
    sampler = with_schedule(DPMSolverMultistepScheduler, scheduler, **settings)
    sampler.register_to_config(**{DISTILLED_TIMESTEPS: list(timesteps)})
    return sampler


def check_starts(name: str, timesteps: Sequence[int], scheduler: SchedulerMixin) -> None:
    """Raise a ValueError that names the argument unless the timesteps fall and lie in the schedule."""
    last = scheduler.config.num_train_timesteps - 1
    falls = all(before > after for before, after in zip(timesteps, timesteps[1:]))
    if not timesteps or not falls or not 0 <= timesteps[-1] <= timesteps[0] <= last:
        raise ValueError(f"{name}: {list(timesteps)} are not falling timesteps in 0..{last}")


def with_schedule(kind: Any, scheduler: SchedulerMixin, **settings: Any) -> Any:
    """A sampler of another class with the same noise schedule.

    What `from_config` alone would do is not enough: values that a scheduler has by default are not handed on, and
    another class has other defaults.
    """
    names = set(inspect.signature(kind.__init__).parameters)
    shared = {name: value for name, value in scheduler.config.items() if name in names}
    return kind.from_config(scheduler.config, **{**shared, **settings})
