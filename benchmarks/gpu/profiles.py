"""Where the time of each preset goes: kernels of a clip by device time, idle time between them, share of each part.

python benchmarks/gpu/profiles.py -o benchmarks/results/gpu/profiles.json [--rehearse] [--device cuda] [--seconds 40]

Presets as they are, not compiled. A part is profiled once and counted as often as a clip calls it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from presets import ALL, Bench, Variant
from rows import Results, Row, parse
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cmd_video.benchmark.timing import wait

TOP = 25


@dataclass(frozen=True)
class Kernel:
    """One that ran; on a CPU, an operation. Times in microseconds, `own` without what it called."""

    name: str
    start: float
    end: float
    own: float


def kernels_of(call: Callable[[], Any], device: str) -> list[Kernel]:
    """What a call launches, by start."""
    cuda = device.startswith("cuda")
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with torch.inference_mode():
        call()
        wait(device)
        with profile(activities=[activity], acc_events=True) as profiler:
            call()
            wait(device)
    found = []
    for event in profiler.events() or ():
        if event.device_type == kind and not event.is_user_annotation:
            start, end = event.time_range.start, event.time_range.end
            found.append(Kernel(event.name, start, end, end - start if cuda else event.self_cpu_time_total))
    if not found:
        raise RuntimeError("the profiler has seen nothing")
    return sorted(found, key=lambda kernel: kernel.start)


def busy_seconds(kernels: Sequence[Kernel]) -> float:
    """Time in which at least one was running."""
    total, until = 0.0, 0.0
    for kernel in kernels:
        total += max(0.0, kernel.end - max(until, kernel.start))
        until = max(until, kernel.end)
    return total / 1e6


def top(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """The most costly ones by name."""
    names: dict[str, list[float]] = {}
    for kernel in kernels:
        names.setdefault(kernel.name[:160], []).append(kernel.own / 1e6)
    everything = sum(map(sum, names.values()))
    order = sorted(names, key=lambda name: -sum(names[name]))[:TOP]
    return [
        {"name": name, "calls": len(names[name]), "seconds": sum(names[name]), "share": sum(names[name]) / everything}
        for name in order
    ]


def measure(bench: Bench, preset: str) -> dict[str, Any]:
    system, device = bench.system(Variant(preset)), bench.at.device
    kernels = kernels_of(system.run, device)
    span = (max(kernel.end for kernel in kernels) - kernels[0].start) / 1e6
    parts: dict[str, dict[str, float]] = {}
    for part in system.parts:
        once = kernels_of(part.run, device)
        row = parts.setdefault(part.name, {"kernels": 0, "busy_seconds": 0.0})
        row["kernels"] += len(once) * part.calls
        row["busy_seconds"] += busy_seconds(once) * part.calls
    total = sum(row["busy_seconds"] for row in parts.values())
    busy = busy_seconds(kernels)
    return {
        "kernels": len(kernels),
        "busy_seconds": busy,
        "span_seconds": span,
        "idle_share": 1 - busy / span,
        "parts": {name: {**row, "share": row["busy_seconds"] / total} for name, row in parts.items()},
        "top": top(kernels),
    }


def main() -> None:
    arguments = parse(__doc__)
    bench = Bench(arguments.place, arguments.clip, arguments.rehearse)
    shown = ("kernels", "busy_seconds", "span_seconds", "idle_share")
    results = Results("profile of the presets", arguments, {"clip": str(arguments.clip), "base": "sd21"}, shown)
    raise SystemExit(results.run([Row(preset, partial(measure, bench, preset)) for preset in ALL]))


if __name__ == "__main__":
    main()
