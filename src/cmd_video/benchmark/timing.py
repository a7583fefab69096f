"""Seconds and memory of a system on a real device.

timing = time_call(lambda: unet(x, t, tokens), device="cuda", runs=20);  timing.median, timing.p95
"""

import math
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .system import System

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: of all runs.
        p95: 95 of 100 runs were at most this long.
        runs: how many there were, after the warm-up.
    """

    median: float
    p95: float
    runs: int


def time_call(call: Callable[[], Any], device: str, runs: int) -> Timing:
    """Time a call, after a warm-up; the device has finished before each clock reading."""
    seconds = []
    with torch.inference_mode():
        for number in range(WARM_UP + runs):
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds)
    return Timing(statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))], runs)


def time_system(system: System, device: str, runs: int, longest: float = math.inf) -> dict[str, Any]:
    """Seconds of a batch of clips, part by part (median of a call times the number of calls) and as a whole.

    Args:
        system: on the device.
        device: where its models are.
        runs: of each part and of the whole, after the warm-up.
        longest: seconds that the runs of the whole may take; where they would take longer, the whole is not run and
            `end_to_end` is the sum of the parts.

    Returns:
        JSON-able: `parts` (name -> seconds), `denoiser` seconds (the sum of those parts), `end_to_end` and `p95`
        seconds of making the clips in one go, `estimated_from_steps` (whether `end_to_end` is a sum and `p95` None),
        `megapixels_per_second`, `peak_bytes` (of the device; on a CPU, of the process) and `joules` of one go where
        the device has a counter.
    """
    reset_peak_memory(device)
    parts: dict[str, float] = {}
    denoiser = 0.0
    for part in system.parts:
        seconds = time_call(part.run, device, runs).median * part.calls
        parts[part.name] = parts.get(part.name, 0.0) + seconds
        denoiser += seconds if part.role == "denoiser" else 0.0
    total = sum(parts.values())
    estimated = total * (WARM_UP + runs) > longest
    before = _joules(device)
    whole = None if estimated else time_call(system.run, device, runs)
    after = _joules(device)
    end_to_end = total if whole is None else whole.median
    pixels = system.size.height * system.size.width * system.size.frames * system.batch
    return {
        "parts": parts,
        "denoiser": denoiser,
        "end_to_end": end_to_end,
        "p95": None if whole is None else whole.p95,
        "estimated_from_steps": estimated,
        "megapixels_per_second": pixels / 1e6 / end_to_end,
        "peak_bytes": peak_memory(device),
        "joules": None if estimated or before is None or after is None else (after - before) / (WARM_UP + runs),
        "runs": runs,
    }


def compile_denoisers(system: System) -> None:
    """Compile what runs in the loops, with CUDA graphs on a GPU."""
    if system.compile is not None:
        system.compile()
        return
    modules = {id(module): module for part in system.parts if part.role == "denoiser" for module in part.modules}
    for module in modules.values():
        module.compile(mode="reduce-overhead")


def check_device(device: str) -> None:
    """Raise a ValueError unless a model can be put there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def reset_peak_memory(device: str) -> None:
    """Forget what `peak_memory` has seen; of a process on a CPU it cannot be forgotten."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Most bytes held so far: allocated on a GPU, resident on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_device(device: str) -> str:
    """The name of a device, with the number of threads on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def wait(device: str) -> None:
    """Until a device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def _joules(device: str) -> float | None:
    """The energy counter of an NVIDIA GPU, where its Python binding (nvidia-ml-py) is installed."""
    if not device.startswith("cuda"):
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.device(device).index or 0)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:  # no binding, or a device without a counter
        return None
