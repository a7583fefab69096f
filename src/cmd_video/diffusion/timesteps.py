"""Where the steps of a loop may start.

check_steps("num_inference_steps", scheduler, 50);  check_starts("starts", (999, 749, 499, 249), 1000)
check_noise("starts", scheduler, 999)
"""

from collections.abc import Iterator, Sequence
from typing import Any

from diffusers import PNDMScheduler

from .process import process_of

MAX_SIGNAL = 1 / 200  # see check_steps


def check_starts(name: str, timesteps: Sequence[int], num_train_timesteps: int) -> None:
    """Raise a ValueError that names the argument unless the timesteps fall and lie in the schedule."""
    falls = all(before > after for before, after in zip(timesteps, timesteps[1:]))
    if not timesteps or not falls or not 0 <= timesteps[-1] <= timesteps[0] < num_train_timesteps:
        raise ValueError(f"{name}: {list(timesteps)} are not falling timesteps in 0..{num_train_timesteps - 1}")


def check_noise(name: str, scheduler: Any, timestep: float) -> None:
    """Raise a ValueError that names the argument unless a timestep is one where a loop may begin with pure noise."""
    if reason := _not_noise(scheduler, timestep):
        raise ValueError(f"{name}: {reason}; the loop begins with pure noise, start it later in the schedule")


def check_steps(name: str, scheduler: Any, num_inference_steps: int) -> None:
    """Raise a ValueError unless a scheduler's steps, which begin with pure noise, start where nothing else is due.

    The share of x_t's variance that is signal, a^2 / (a^2 + g^2), may be 1/200 where they start, about what Stable
    Diffusion's schedule leaves at its very end (0.0047), or twice what the schedule itself leaves there. With
    timestep_spacing "leading" few steps start lower, one at t = 0, and so do 334 or 501 of 1000, whose length is
    rounded down. As many timesteps as steps must differ.

    Args:
        name: of the argument, for the message.
        scheduler: of diffusers; readied for other steps hereafter.
        num_inference_steps: how many.
    """
    total, spacing = scheduler.config.num_train_timesteps, scheduler.config.get("timestep_spacing")

    def wrong(steps: int) -> str:
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ZeroDivisionError) as error:  # as the scheduler says it, or fails at it
            return str(error).splitlines()[0].rstrip(".") or "not possible"
        timesteps = [float(t) for t in scheduler.timesteps.tolist()]
        if len(set(timesteps)) < steps:
            return "timesteps repeat"
        if any(before < after for before, after in zip(timesteps, timesteps[1:])):
            return "the timesteps do not fall"
        if isinstance(scheduler, PNDMScheduler) and spacing != "leading" and (total % steps or spacing == "linspace"):
            return "the steps are not of equal length, as this scheduler takes them"
        return _not_noise(scheduler, timesteps[0])

    if reason := wrong(num_inference_steps):
        fits = [steps for steps in range(1, total + 1) if not wrong(steps)]
        allowed = ", ".join(f"{low}..{high}" if high > low else str(low) for low, high in _runs(fits)) or "none"
        under = "" if spacing is None else f" with timestep_spacing {spacing!r}"
        raise ValueError(
            f"{name}: {num_inference_steps}: {reason}; {type(scheduler).__name__}{under} allows {allowed}"
        )


def _not_noise(scheduler: Any, timestep: float) -> str:
    """Why a timestep is no pure noise, "" where it is, see `check_steps`."""
    process = process_of(scheduler)
    signal, noise = process.signal.square(), process.noise.square()
    share = signal / (signal + noise)
    first = float(share[process.levels([timestep])[0]])
    if first <= max(MAX_SIGNAL, 2 * float(share[-1])):
        return ""
    return f"they start at timestep {timestep:g}, no pure noise ({first:.2g} of its variance is signal)"


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as (first, last) of what follows without a gap."""
    for number, value in enumerate(numbers):
        if number == 0 or numbers[number - 1] != value - 1:
            first = value
        if number + 1 == len(numbers) or numbers[number + 1] != value + 1:
            yield first, value
