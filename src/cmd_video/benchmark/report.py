"""Benchmark results as JSON, as a markdown table and as a plot.

rows = [describe(system, measure_cost(system))];  print(markdown(rows));  plot_costs(rows, Path("cost.png"))
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmd_video.data.files import whole_file

from .memory import peak_bytes
from .system import System, SystemCost

Row = dict[str, Any]


def describe(system: System, cost: SystemCost, timing: Row | None = None, memory: bool = False) -> Row:
    """Everything about a system at one size, JSON-able.

    Args:
        system: its parts on the meta device if `memory` is wanted.
        cost: from `measure_cost`.
        timing: from `time_system`, where the system was run.
        memory: also compute the peak of weights and activations.
    """
    size = system.size
    row = {
        "name": system.name,
        "source": system.source,
        "sampling": system.sampling,
        "frames": size.frames,
        "height": size.height,
        "width": size.width,
        "batch": system.batch,
        "parameters": cost.parameters,
        "denoiser_parameters": cost.denoiser_parameters,
        "weight_bytes": cost.weight_bytes,
        "paper_layer_macs": cost.paper.layer_macs,
        "denoiser_flops": cost.denoiser.flops,
        "end_to_end_flops": cost.end_to_end.flops,
        "end_to_end_layer_macs": cost.end_to_end.layer_macs,
        "parts": {name: asdict(part) for name, part in cost.parts.items()},
        "computed_peak_bytes": None,
        "timing": timing,
    }
    if memory:
        clips = system.batch * size.frames * size.height * size.width * 3 * 4  # the result, in float32
        row["computed_peak_bytes"] = cost.weight_bytes + clips + max(peak_bytes(part.run) for part in system.parts)
    return row


def markdown(rows: Sequence[Row]) -> str:
    """A table, one row per system and size; seconds and memory only where something was run."""
    timed = any(row["timing"] for row in rows)
    head = ["system", "clip", "sampling", "parameters, all / denoiser", "paper's count", "denoiser", "end to end"]
    head += ["s denoiser", "s end to end", "p95", "GB", "Mpx/s"] if timed else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row["name"],
            ("" if row["batch"] == 1 else f"{row['batch']} of ") + f"{row['frames']}x{row['height']}x{row['width']}",
            row["sampling"],
            f"{_count(row['parameters'])} / {_count(row['denoiser_parameters'])}",
            f"{_tera(row['paper_layer_macs'])} TMAC",
            f"{_tera(row['denoiser_flops'])} TFLOP",
            f"{_tera(row['end_to_end_flops'])} TFLOP",
        ]
        if timed:
            timing = row["timing"]
            cells += ["-"] * 5 if timing is None else [
                f"{timing['denoiser']:.3g}",
                f"{timing['end_to_end']:.3g}",
                f"{timing['p95']:.3g}",
                f"{timing['peak_bytes'] / 1e9:.2f}",
                f"{timing['megapixels_per_second']:.3g}",
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_markdown(rows: Sequence[Row]) -> str:
    """A table of training steps, batch 1."""
    lines = ["| stage | parameters | forward | forward and backward | memory, computed | seconds |", "|" + "---|" * 6]
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.3g}"
        lines.append(
            f"| {row['name']} | {_count(row['parameters'])} | {_tera(row['forward']['layer_macs'])} TMAC | "
            f"{_tera(row['step']['flops'])} TFLOP | {row['memory_bytes'] / 1e9:.1f} GB | {seconds} |"
        )
    return "\n".join(lines)


def plot_costs(rows: Sequence[Row], path: Path) -> None:
    """Cost against resolution and against frames, a line per system, both axes logarithmic.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("plot: needs matplotlib: pip install 'cmd-video[plot]'") from error
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        for axes, across, fixed, choose in ((left, _pixels, _frames, min), (right, _frames, _pixels, max)):
            usual = choose(fixed(row) for row in mine)
            points = sorted({(across(row), row["end_to_end_flops"] / 1e12) for row in mine if fixed(row) == usual})
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    left.set(xlabel="resolution, at the fewest frames", ylabel="TFLOP end to end", xscale="log", yscale="log")
    right.set(xlabel="frames, at the largest resolution", xscale="log")
    sizes = {_pixels(row): f"{row['height']}x{row['width']}" for row in rows}
    left.set_xticks(list(sizes), labels=list(sizes.values()))
    first = sorted({_frames(row) for row in rows if row["name"] == rows[0]["name"]})
    right.set_xticks(first, labels=[str(number) for number in first])
    for axes in (left, right):
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _pixels(row: Row) -> int:
    return row["height"] * row["width"]


def _frames(row: Row) -> int:
    return row["frames"]


def _count(number: int) -> str:
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _tera(number: int) -> str:
    return f"{number / 1e12:.3g}" if number < 1e15 else f"{number / 1e12:.0f}"
