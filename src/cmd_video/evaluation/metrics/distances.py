"""All distances of one table of features from another, each beside what the real ones give among themselves.

check(real_table, extractor, clips)                       # before hours of work: would they go together?
values = measure(real_table, made_table);  values["frechet"]["value"]
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from cmd_video.evaluation.metrics.distribution import (
    Estimate,
    coverage,
    frechet_estimate,
    inception_score,
    jedi,
    kernel_distance,
    nearest_distance,
    nearest_pairs,
    shuffled,
)
from cmd_video.evaluation.networks.extractors import Classify, Extractor
from cmd_video.evaluation.protocol.clips import ClipSource
from cmd_video.evaluation.protocol.finite import check_finite
from cmd_video.evaluation.protocol.tables import FeatureTable

SAME = ("extractor", "extractor_sha256", "extractor_resize", "frames")


def check(real: FeatureTable, extractor: Extractor, clips: ClipSource, neighbours: int = 5) -> None:
    """Whether clips can be compared with a reference.

    Raises:
        ValueError: another extractor, other numbers of frames, or fewer clips than neighbours.
    """
    mine = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "extractor_resize": extractor.resize,
        "frames": clips.recipe.get("frames"),
    }
    for field in SAME:
        if real.protocol.get(field) != mine[field]:
            raise ValueError(
                f"{field}: the reference has {real.protocol.get(field)}, the clips to judge have {mine[field]}"
            )
    fewest = min(int(real.protocol["clips"]), len(clips))
    if fewest <= neighbours:
        raise ValueError(f"neighbours: {neighbours}, must be less than the {fewest} clips of the smaller set")


def measure(
    real: FeatureTable,
    made: FeatureTable,
    neighbours: int = 5,
    classify: Classify | None = None,
    correction: int = 1,
) -> dict[str, dict[str, Any]]:
    """Fréchet and kernel distances, the nearest real clip, precision, recall, density, coverage, and how much moves.

    With `classify`, the extractor's, also the Inception score.

    Args:
        real: the yardstick.
        made: what is judged.
        neighbours: of precision, recall, density and coverage.
        classify: logits of features.
        correction: of the Fréchet distance's covariances: 1 = over N - 1, 0 = over N.

    Returns:
        name -> `value`, `standard_error` (None where there are fewer than ten clips) and `real_against_real`: the same
        number between two random halves of the real clips; of `dynamic_degree` and `inception_score`, that
        of the real clips. `nearest` also has `pairs`, see `nearest_pairs`.

    Raises:
        ValueError: the tables hold different features, or too few, or a number that comes out is NaN.
    """
    for field in (*SAME, "numbers"):
        mine, other = (table.protocol.get(field) for table in (real, made))
        if mine != other:
            raise ValueError(f"{field}: the reference has {mine}, the clips to judge have {other}")
    rows = _rows(real)
    clips = real.features.unflatten(0, (-1, rows))  # frames of one clip are alike
    order = shuffled(len(clips))
    halves = clips[order[0::2]].flatten(0, 1), clips[order[1::2]].flatten(0, 1)
    values: dict[str, dict[str, Any]] = {}
    distances: dict[str, Callable[[torch.Tensor, torch.Tensor], Estimate]] = {
        "frechet": lambda a, b: frechet_estimate(a, b, rows, correction),
        "kernel_degree_3": lambda a, b: kernel_distance(a, b, 3, rows),
        "kernel_degree_2": lambda a, b: kernel_distance(a, b, 2, rows),
        "nearest": lambda a, b: nearest_distance(a, b, rows),
    }
    if str(real.protocol["extractor"]).startswith("vjepa2"):
        distances["jedi"] = lambda a, b: jedi(a, b, rows)
    for name, distance in distances.items():
        floor = distance(*halves).value if min(map(len, halves)) >= 2 * rows else None
        values[name] = _row(distance(real.features, made.features), floor)
    values["nearest"]["pairs"] = nearest_pairs(real.features, made.features, rows)
    floors = coverage(*halves, neighbours, rows) if min(map(len, halves)) > neighbours * rows else {}
    for name, estimate in coverage(real.features, made.features, neighbours, rows).items():
        values[name] = _row(estimate, floors[name].value if floors else None)
    if classify is not None:
        scores = [inception_score(classify(table.features), rows) for table in (made, real)]
        values["inception_score"] = _row(scores[0], scores[1].value)
    if len(made.dynamic) and len(real.dynamic):
        error = float(made.dynamic.std()) / math.sqrt(len(made.dynamic)) if len(made.dynamic) > 1 else math.nan
        values["dynamic_degree"] = _row(Estimate(float(made.dynamic.mean()), error), float(real.dynamic.mean()))
    for name, row in values.items():
        check_finite(f"features: {name}", torch.tensor([row["value"], row["real_against_real"] or 0.0]))
    return values


def _rows(table: FeatureTable) -> int:
    """Features of one clip."""
    return len(table.features) // int(table.protocol["clips"])


def _row(estimate: Estimate, floor: float | None) -> dict[str, Any]:
    error = None if math.isnan(estimate.error) else estimate.error
    return {"value": estimate.value, "standard_error": error, "real_against_real": floor}
