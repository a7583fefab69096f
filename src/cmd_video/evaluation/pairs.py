"""Clips against the clips they should be, one pair at a time.

values, protocol = measure_pairs(FolderClips("reconstructed/"), FolderClips("clips/"), lpips)
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from cmd_video.data.clip import ClipError
from cmd_video.data.transforms import to_float

from .clips import ClipSource, FolderClips
from .flow import dynamic_degree, optical_flow, warping_error
from .lpips import LPIPS
from .metrics import paired_metrics
from .tables import digest_all, digest_of


def measure_pairs(
    made: ClipSource,
    true: ClipSource,
    lpips: LPIPS | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
    """Metrics of `metrics.paired_metrics`, and warping error and dynamic degree of made and of true clips.

    A frozen clip has no warping error at all: its dynamic degree tells.

    Args:
        made: what is judged.
        true: what it should be; as many, of the same names where both are files.
        lpips: for the distance in features.
        device: where metrics are computed.
        progress: called with (pairs done, all pairs).

    Returns:
        name -> `value`, the mean over pairs, and its `standard_error`; and the protocol.

    Raises:
        ValueError: they are no pairs, or none can be read.
    """
    _check(made, true)
    collected: dict[str, list[float]] = {}
    unreadable: list[str] = []
    digests: tuple[list[str], list[str]] = ([], [])
    for number in range(len(made)):
        pair = made.read([number])[0], true.read([number])[0]
        bad = [f"{clip.path.name}: {clip.reason}" for clip in pair if isinstance(clip, ClipError)]
        if bad:
            unreadable += bad[:1]
        else:
            for found, clip in zip(digests, pair, strict=True):
                found.append(digest_of(clip))  # type: ignore[arg-type]
            for name, value in _measure(*pair, lpips, device).items():  # type: ignore[arg-type]
                collected.setdefault(name, []).append(value)
        if progress is not None:
            progress(number + 1, len(made))
    if not collected:
        raise ValueError(f"clips: no pair can be read; the first: {unreadable[0]}")
    protocol = {
        "clips": len(made) - len(unreadable),
        "unreadable": unreadable,
        "real": {**true.recipe, "pixels_sha256": digest_all(digests[1])},
        "made": {**made.recipe, "pixels_sha256": digest_all(digests[0])},
    }
    return {name: mean_and_error(values) for name, values in collected.items()}, protocol


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """`value`, the mean, and `standard_error`, None for a single number."""
    numbers = torch.tensor(values, dtype=torch.float64)
    error = float(numbers.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": float(numbers.mean()), "standard_error": error}


def _check(made: ClipSource, true: ClipSource) -> None:
    if len(made) != len(true):
        raise ValueError(f"clips: {len(made)} to judge, {len(true)} true ones; they must be pairs")
    if isinstance(made, FolderClips) and isinstance(true, FolderClips):
        for mine, other in zip(made.paths, true.paths, strict=True):
            if mine.stem != other.stem:
                raise ValueError(f"clips: {mine.name} stands where the true ones have {other.name}; pairs go by name")


def _measure(made: torch.Tensor, true: torch.Tensor, lpips: LPIPS | None, device: str) -> dict[str, float]:
    """One pair, uint8 (F, H, W, 3) each."""
    prediction, target = (to_float(clip)[None].to(device) for clip in (made, true))
    found = {name: float(value) for name, value in paired_metrics(prediction, target, lpips).items()}
    if len(made) > 1:
        for suffix, clip in (("", made), ("_of_true", true)):
            flow = optical_flow(clip)
            found[f"warping_error{suffix}"] = warping_error(clip, flow)
            found[f"dynamic_degree{suffix}"] = dynamic_degree(flow)
    return {name: value for name, value in found.items() if not math.isnan(value)}  # where everything is covered
