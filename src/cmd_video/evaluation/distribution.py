"""Distances between two tables of features beyond Fréchet's: kernel distance, precision, recall, coverage.

    kernel_distance(real, made, degree=3).value         # KVD, KID; degree 2: JEDi's
    coverage(real, made)                                # {"precision": 0.71, "recall": 0.55, "density": ..., ...}

Tables are (N, d) of real and (M, d) of made clips or frames. Everything is computed in float64.
"""

import math
from typing import NamedTuple

import torch

from .frechet import FeatureStatistics, frechet_distance

GROUPS = 10  # of a jackknife
CHUNK = 1024  # rows of a distance matrix at a time


class Estimate(NamedTuple):
    """A number and its standard error (NaN where there are too few features to tell)."""

    value: float
    error: float


def frechet_estimate(real: torch.Tensor, made: torch.Tensor) -> Estimate:
    """Fréchet distance, and its standard error by a jackknife that leaves out a tenth of both tables at a time.

    Features are dealt to ten groups in turn, so the error is the same however they came. It does not see the bias that
    too few features bring.
    """
    value = frechet_distance(*(_statistics([table]) for table in (real, made)))
    if min(len(real), len(made)) < 2 * GROUPS:
        return Estimate(value, math.nan)
    groups = [[table[number::GROUPS] for number in range(GROUPS)] for table in (real, made)]
    without = [
        frechet_distance(*(_statistics([*parts[:number], *parts[number + 1 :]]) for parts in groups))
        for number in range(GROUPS)
    ]
    return Estimate(value, _jackknife_error(without))


def kernel_distance(
    real: torch.Tensor, made: torch.Tensor, degree: int = 3, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (a.b / d + 1)^degree (arXiv 1801.01401, section 3).

    Args:
        real: (N, d).
        made: (M, d).
        degree: of the polynomial: 3 for KID and KVD, 2 for JEDi (arXiv 2410.05203).
        subsets: how many pairs of random subsets are averaged.
        size: features in a subset, at most as many as there are.
        seed: of the subsets.

    Returns:
        the mean over subsets, and the standard error of that mean. Unbiased, so it can be below zero.

    Raises:
        ValueError: a table has fewer than two features.
    """
    size = min(size, len(real), len(made))
    if size < 2:
        raise ValueError(f"features: a kernel distance needs 2 or more of each kind, got {len(real)} and {len(made)}")
    draw = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        a, b = (table[torch.randperm(len(table), generator=draw)[:size]].double() for table in (real, made))
        within = sum(
            (kernel.sum() - kernel.diagonal().sum()) / (size * (size - 1))
            for kernel in (_kernel(a, a, degree), _kernel(b, b, degree))
        )
        values.append(float(within - 2 * _kernel(a, b, degree).mean()))
    spread = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(spread.mean()), float(spread.std() / math.sqrt(subsets)) if subsets > 1 else math.nan)


def coverage(real: torch.Tensor, made: torch.Tensor, neighbours: int = 5) -> dict[str, float]:
    """Whether made features lie among the real ones, and real ones among the made (balls to the k-th neighbour).

    Args:
        real: (N, d), N > neighbours.
        made: (M, d), M > neighbours.
        neighbours: k.

    Returns:
        `precision` and `recall` (arXiv 1904.06991, section 3), `density` and `coverage` (arXiv 2002.09797, equations
        3 and 4).

    Raises:
        ValueError: there are not more features than neighbours.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(
            f"features: coverage with {neighbours} neighbours needs more of each kind, got {len(real)} and {len(made)}"
        )
    real, made = real.double(), made.double()
    real_radius, made_radius = (_radii(table, neighbours) for table in (real, made))
    inside_real = torch.zeros(len(made), dtype=torch.float64)  # balls of real features around each made one
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(made), CHUNK):
        rows = slice(start, start + CHUNK)
        distance = torch.cdist(made[rows], real)  # (chunk, N)
        within = distance <= real_radius
        inside_real[rows] = within.double().sum(dim=1)
        covered |= within.any(dim=0)
        recalled |= (distance <= made_radius[rows, None]).any(dim=0)
    return {
        "precision": float((inside_real > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(inside_real.mean() / neighbours),
        "coverage": float(covered.double().mean()),
    }


def nearest(made: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The known feature next to each made one: indices (M,) and Euclidean distances (M,); to find copies."""
    found = [torch.cdist(part.double(), known.double()).min(dim=1) for part in made.split(CHUNK)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def _kernel(a: torch.Tensor, b: torch.Tensor, degree: int) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1) ** degree


def _radii(table: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Distance of each row to its k-th neighbour, itself not counted: (N,)."""
    parts = [torch.cdist(part, table).kthvalue(neighbours + 1, dim=1).values for part in table.split(CHUNK)]
    return torch.cat(parts)


def _statistics(parts: list[torch.Tensor]) -> FeatureStatistics:
    result = FeatureStatistics()
    for part in parts:
        result.update(part)
    return result


def _jackknife_error(without: list[float]) -> float:
    values = torch.tensor(without, dtype=torch.float64)
    count = len(without)
    return float(((count - 1) / count * (values - values.mean()).square().sum()).sqrt())
