"""All distances of one table of features from another, each beside what the real ones give among themselves.

values = measure(real_table, made_table);  values["frechet"]["value"]
"""

import math
from typing import Any

from .distribution import Estimate, coverage, frechet_estimate, kernel_distance
from .tables import FeatureTable

SAME = ("extractor", "extractor_sha256", "extractor_resize", "numbers", "frames")


def measure(real: FeatureTable, made: FeatureTable, neighbours: int = 5, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Fréchet and kernel distances, precision, recall, density, coverage, and how much the clips move.

    Args:
        real: the yardstick.
        made: what is judged.
        neighbours: of precision, recall, density and coverage.
        seed: of random subsets.

    Returns:
        name -> `value`, `standard_error` (None where it is not estimated) and `real_against_real`: the same number
        between the even and the odd real features, which are half as many, so its Fréchet distance is biased upwards;
        of `dynamic_degree`, that of the real clips. A distance can be small although nothing moves; this shows it.

    Raises:
        ValueError: the tables hold different features, or too few.
    """
    for field in SAME:
        mine, other = (table.protocol.get(field) for table in (real, made))
        if mine != other:
            raise ValueError(f"{field}: the reference has {mine}, the clips to judge have {other}")
    if min(len(real.features), len(made.features)) < 2:
        raise ValueError(f"clips: at least 2 of each, got {len(real.features)} and {len(made.features)}")
    halves = real.features[::2], real.features[1::2]
    values: dict[str, dict[str, Any]] = {}
    distances = {
        "frechet": frechet_estimate,
        "kernel_degree_3": lambda a, b: kernel_distance(a, b, 3, seed=seed),
        "kernel_degree_2": lambda a, b: kernel_distance(a, b, 2, seed=seed),
    }
    enough = min(len(halves[1]), len(halves[0])) >= 2
    for name, distance in distances.items():
        floor = distance(*halves).value if enough else None
        values[name] = _row(distance(real.features, made.features), floor)
    floors = coverage(*halves, neighbours) if min(map(len, halves)) > neighbours else {}
    for name, value in coverage(real.features, made.features, neighbours).items():
        values[name] = _row(Estimate(value, math.nan), floors.get(name))
    if len(made.dynamic) and len(real.dynamic):
        error = float(made.dynamic.std()) / math.sqrt(len(made.dynamic)) if len(made.dynamic) > 1 else math.nan
        values["dynamic_degree"] = _row(Estimate(float(made.dynamic.mean()), error), float(real.dynamic.mean()))
    return values


def _row(estimate: Estimate, floor: float | None) -> dict[str, Any]:
    error = None if math.isnan(estimate.error) else estimate.error
    return {"value": estimate.value, "standard_error": error, "real_against_real": floor}
