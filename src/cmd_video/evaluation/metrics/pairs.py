"""Clips against the clips they should be, one pair at a time.

values, protocol = measure_pairs(FolderClips("reconstructed/"), FolderClips("clips/"), lpips)
"""

import math
import os
from typing import Any

import torch

from cmd_video.data.clip import ClipError
from cmd_video.data.transforms import to_float
from cmd_video.evaluation.metrics.paired import paired_metrics
from cmd_video.evaluation.networks.flow import dynamic_degree, optical_flow, visible_flow, warping_error
from cmd_video.evaluation.networks.lpips import LPIPS
from cmd_video.evaluation.protocol.clips import (
    ClipSource,
    FolderClips,
    as_problem,
    readable_rows,
    storage_facts,
    stored_as,
)
from cmd_video.evaluation.protocol.finite import check_finite
from cmd_video.evaluation.protocol.shared_work import Progress, Rows, every_row
from cmd_video.evaluation.protocol.tables import digest_all, digest_of

MAY_LACK = ("flicker_ratio", "warping_error", "warping_error_of_true")  # of a clip that stands still, or all covered


def measure_pairs(
    made: ClipSource,
    true: ClipSource,
    lpips: LPIPS | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    rows_of: Rows = every_row,
) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
    """Metrics of `metrics.paired_metrics`, and warping error and dynamic degree of made and of true clips.

    The warping error follows the motion of the true clip, so that a frozen clip has one. How many pairs a mean is
    over stands beside it where that is not all: a still true clip has no flicker.

    Args:
        made: what is judged.
        true: what it should be; as many, of the same names where both are files, and the same frames of them.
        lpips: for the distance in features.
        device: where metrics are computed.
        progress: called with (pairs done, all pairs).
        rows_of: how the pairs are gone through; see `shared_work`.

    Returns:
        name -> `value`, the mean over pairs, and its `standard_error`; and the protocol.

    Raises:
        ValueError: they are no pairs, or none can be read.
    """
    _check(made, true)

    def look(numbers: list[int]) -> list[dict[str, Any]]:
        return [_row(made, true, number, lpips, device) for number in numbers]

    rows, unreadable = readable_rows(rows_of(len(made), 1, look, progress))
    collected: dict[str, list[float]] = {}
    sides = {
        name: {
            **clips.recipe,
            **storage_facts([row["stored"][side] for row in rows]),
            "pixels_sha256": digest_all([row["digests"][side] for row in rows]),
        }
        for side, (name, clips) in enumerate((("made", made), ("real", true)))
    }
    for row in rows:
        for name, value in row["metrics"].items():
            collected.setdefault(name, []).append(value)
    protocol = {
        "clips": len(rows),
        "unreadable": unreadable,
        **sides,
    }
    counts = {name: {} if len(values) == len(rows) else {"pairs": len(values)} for name, values in collected.items()}
    return {name: mean_and_error(values) | counts[name] for name, values in collected.items()}, protocol


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """`value`, the mean, and `standard_error`, None for a single number.

    Raises:
        ValueError: one is NaN or infinite.
    """
    numbers = check_finite("clips: the metric", torch.tensor(values, dtype=torch.float64))
    error = float(numbers.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": float(numbers.mean()), "standard_error": error}


def _check(made: ClipSource, true: ClipSource) -> None:
    """Refuse what are no pairs: other numbers of clips or of frames, other clips or other frames of the same ones."""
    if len(made) != len(true):
        raise ValueError(f"clips: {len(made)} to judge, {len(true)} true ones; they must be pairs")
    drawn = [clips.recipe.get("chosen", "all") for clips in (made, true)]
    if drawn[0] != drawn[1]:
        raise ValueError(f"num_clips: those to judge are {drawn[0]}, the true ones {drawn[1]}; they must be pairs")
    lengths = [clips.recipe.get("frames") for clips in (made, true)]
    if lengths[0] != lengths[1]:
        raise ValueError(f"frames: those to judge have {lengths[0]}, the true ones {lengths[1]}; they must be pairs")
    judged, known = made.underneath, true.underneath
    if isinstance(judged, FolderClips) and isinstance(known, FolderClips):
        for mine, other, one, two in zip(judged.paths, known.paths, _names(judged), _names(known), strict=True):
            if one != two:
                raise ValueError(f"clips: {mine} stands where the true ones have {other}; pairs go by name")
    rate = true.recipe.get("fps")
    for number in range(len(made)):
        try:
            starts = made.start(number), true.start(number)
        except ClipError:  # told when it is read
            continue
        if abs(starts[0] - starts[1]) >= (1 / rate if rate else 1):
            where = [f"{start:.3g} s" if rate else f"frame {start:.0f}" for start in starts]
            raise ValueError(
                f"span: pair {_name_of(made, true, number)}: of the clip to judge what begins at {where[0]} would be "
                f"read, of the true one at {where[1]}, for they differ in length; allowed: span start, or clips of "
                "one length"
            )


def _names(clips: FolderClips) -> list[str]:
    """What clips are called: their names, below the folder that all lie in where two would be called the same."""
    names = [path.name if path.is_dir() else path.stem for path in clips.paths]
    if len(set(names)) == len(names):
        return names
    root = os.path.commonpath([path.parent for path in clips.paths])
    return [(path.relative_to(root).parent / name).as_posix() for path, name in zip(clips.paths, names, strict=True)]


def _name_of(made: ClipSource, true: ClipSource, number: int) -> str:
    """What a message calls a pair: the file of the true clip or of the other one, else its number."""
    files = [clips.underneath for clips in (true, made) if isinstance(clips.underneath, FolderClips)]
    return files[0].paths[number].name if files else str(number)


def _row(made: ClipSource, true: ClipSource, number: int, lpips: LPIPS | None, device: str) -> dict[str, Any]:
    """One pair as JSON: what was found, or why it cannot be read.

    Raises:
        ValueError: the two differ in size.
    """
    clips = []
    for source in (made, true):
        clip = source.read([number])[0]
        if isinstance(clip, ClipError):
            return as_problem(clip)
        clips.append(clip)
    if clips[0].shape != clips[1].shape:
        mine, other = ("x".join(map(str, clip.shape[1:3])) for clip in clips)
        raise ValueError(
            f"size: pair {_name_of(made, true, number)}: the clip to judge is {mine}, the true one {other}; "
            "give a size"
        )
    return {
        "digests": [digest_of(clip) for clip in clips],
        "stored": [stored_as(source, number, clip) for source, clip in zip((made, true), clips, strict=True)],
        "metrics": _measure(clips[0], clips[1], lpips, device),
    }


def _measure(made: torch.Tensor, true: torch.Tensor, lpips: LPIPS | None, device: str) -> dict[str, float]:
    """One pair, uint8 (F, H, W, 3) each."""
    prediction, target = (to_float(clip)[None].to(device) for clip in (made, true))
    found = {name: float(value) for name, value in paired_metrics(prediction, target, lpips).items()}
    if len(made) > 1:
        flow, seen = visible_flow(true)  # for both: what should move, and where it can be followed
        for suffix, clip in (("", made), ("_of_true", true)):
            found[f"warping_error{suffix}"] = warping_error(clip, flow, seen)
            found[f"dynamic_degree{suffix}"] = dynamic_degree(flow if clip is true else optical_flow(clip))
    return {name: value for name, value in found.items() if name not in MAY_LACK or not math.isnan(value)}
