"""Distances between two tables of features: Fréchet, kernel distance, precision, recall, coverage; Inception score.

    frechet_estimate(real, made), kernel_distance(real, made, degree=3)           # value and standard error
    coverage(real, made)["precision"]

Tables are (N, d) of real and (M, d) of made clips or frames, `rows` consecutive rows from the same clip, which is left
out as a whole when a standard error is estimated. Everything is computed in float64.
"""

import math
from typing import NamedTuple

import torch

from cmd_video.evaluation.metrics.frechet import FeatureStatistics, frechet_distance

GROUPS = 10  # of a jackknife
CHUNK = 1024  # rows of a distance matrix at a time


class Estimate(NamedTuple):
    """A number and its standard error (NaN where there are too few clips to tell)."""

    value: float
    error: float


def frechet_estimate(real: torch.Tensor, made: torch.Tensor, rows: int = 1, correction: int = 1) -> Estimate:
    """Fréchet distance. Its standard error does not see the bias that too few features bring.

    Args:
        real: (N, d).
        made: (M, d).
        rows: of a clip.
        correction: of the covariances, see `frechet_distance`.
    """
    parts = [_groups(table, rows) for table in (real, made)]
    value = frechet_distance(_statistics([real]), _statistics([made]), correction)
    if min(map(len, parts)) < GROUPS:
        return Estimate(value, math.nan)
    without = []
    for out in range(GROUPS):
        left_real, left_made = (_statistics([*side[:out], *side[out + 1 :]]) for side in parts)
        without.append(frechet_distance(left_real, left_made, correction))
    return _jackknife(value, without)


def kernel_distance(real: torch.Tensor, made: torch.Tensor, degree: int = 3, rows: int = 1) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (a.b / d + 1)^degree (arXiv 1801.01401, section 3).

    Over whole tables, not over random subsets as KID is often computed, which has the same mean; pairs of rows of one
    clip, which are alike, are left out as a row's pair with itself is.

    Args:
        real: (N, d).
        made: (M, d).
        degree: of the polynomial; 3 is that of KID and KVD.
        rows: of a clip.

    Returns:
        the distance, which can be below zero, and its standard error.

    Raises:
        ValueError: a table has fewer than two clips.
    """
    clips = [len(table) // rows for table in (real, made)]
    if min(clips) < 2:
        raise ValueError(f"clips: a kernel distance needs 2 or more of each kind, got {clips[0]} and {clips[1]}")
    parts = [_groups(table.double(), rows) for table in (real, made)]
    sizes = [torch.tensor([float(len(part)) for part in side]) for side in parts]
    sums = {(i, j): _block_sums(parts[i], parts[j], degree) for i, j in ((0, 0), (1, 1), (0, 1))}
    own = [torch.stack([_own_kernel(part, degree, rows) for part in side]) for side in parts]

    def distance(out: int | None) -> float:
        keep = [torch.ones(len(side), dtype=torch.bool) for side in parts]
        if out is not None:
            for side in keep:
                side[out] = False
        counts = [float(size[kept].sum()) for size, kept in zip(sizes, keep, strict=True)]
        within = sum(
            (sums[i, i][keep[i]][:, keep[i]].sum() - own[i][keep[i]].sum()) / (counts[i] * (counts[i] - rows))
            for i in range(2)
        )
        between = sums[0, 1][keep[0]][:, keep[1]].sum() / (counts[0] * counts[1])
        return float(within - 2 * between)

    if min(map(len, parts)) < GROUPS or min(clips) < 2 * GROUPS:
        return Estimate(distance(None), math.nan)
    return _jackknife(distance(None), [distance(out) for out in range(GROUPS)])


def jedi(real: torch.Tensor, made: torch.Tensor, rows: int = 1) -> Estimate:
    """JEDi's number (arXiv 2410.05203): 100 times the squared maximum mean discrepancy with the kernel (a.b / d)^2.

    As its authors' code has it, over all pairs, a feature's with itself among them, so it is biased upwards. The mean
    of (a.b)^2 over pairs is the product of the second moments E[a a^T] and E[b b^T], so these are all that is needed.

    Args:
        real: (N, d), of V-JEPA.
        made: (M, d).
        rows: of a clip.

    Returns:
        the number, at least 0, and its standard error.
    """

    def number(first: torch.Tensor, second: torch.Tensor) -> float:
        moments = [table.T @ table / (len(table) * table.shape[1]) for table in (first, second)]
        return 100 * float((moments[0] - moments[1]).square().sum())

    real, made = real.double(), made.double()
    parts = [_groups(table, rows) for table in (real, made)]
    if min(map(len, parts)) < GROUPS:
        return Estimate(number(real, made), math.nan)
    without = [[torch.cat([*side[:out], *side[out + 1 :]]) for side in parts] for out in range(GROUPS)]
    return _jackknife(number(real, made), [number(*tables) for tables in without])


def coverage(real: torch.Tensor, made: torch.Tensor, neighbours: int = 5, rows: int = 1) -> dict[str, Estimate]:
    """Whether made features lie among the real ones, and real ones among the made (balls to the k-th neighbour).

    Where a clip has several rows, neighbours and hits are counted in clips, for rows of one clip are alike: a ball
    reaches to the k-th nearest other clip, by its nearest row.

    Args:
        real: (N, d), of more clips than neighbours.
        made: (M, d), likewise.
        neighbours: k.
        rows: of a clip.

    Returns:
        `precision` and `recall` (arXiv 1904.06991, section 3), `density` and `coverage` (arXiv 2002.09797, equations
        3 and 4).

    Raises:
        ValueError: there are not more clips than neighbours.
    """
    clips = [len(table) // rows for table in (real, made)]
    if min(clips) <= neighbours:
        raise ValueError(
            f"clips: coverage with {neighbours} neighbours needs more of each kind, got {clips[0]} and {clips[1]}"
        )
    real, made = real.double(), made.double()
    whole = _coverage(real, made, neighbours, rows)
    parts = [_groups(table, rows) for table in (real, made)]
    fewest_left = min(sum(map(len, side)) - max(map(len, side)) for side in parts) // rows
    if min(map(len, parts)) < GROUPS or fewest_left <= neighbours:
        return {name: Estimate(value, math.nan) for name, value in whole.items()}
    without = []
    for out in range(GROUPS):
        left_real, left_made = (torch.cat([*side[:out], *side[out + 1 :]]) for side in parts)
        without.append(_coverage(left_real, left_made, neighbours, rows))
    return {name: _jackknife(value, [part[name] for part in without]) for name, value in whole.items()}


def _coverage(real: torch.Tensor, made: torch.Tensor, neighbours: int, rows: int) -> dict[str, float]:
    real_radius, made_radius = (_radii(table, neighbours, rows) for table in (real, made))
    inside_real = torch.zeros(len(made), dtype=torch.float64)  # real clips in whose balls each made feature lies
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(made), CHUNK):
        part = slice(start, start + CHUNK)
        distance = torch.cdist(made[part], real)  # (chunk, N)
        within = distance <= real_radius
        inside_real[part] = within.unflatten(1, (-1, rows)).any(dim=2).double().sum(dim=1)
        covered |= within.any(dim=0)
        recalled |= (distance <= made_radius[part, None]).any(dim=0)
    return {
        "precision": float((inside_real > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(inside_real.mean() / neighbours),
        "coverage": float(covered.double().mean()),
    }


def inception_score(logits: torch.Tensor, rows: int = 1) -> Estimate:
    """The exponential of the mean divergence KL(p(y|x) || p(y)) of made clips' classes (arXiv 1606.03498, section 4).

    Over all clips at once; papers often give the mean over ten parts, which is lower.

    Args:
        logits: (M, classes).
        rows: of a clip.

    Returns:
        the score, from 1 to the number of classes, and its standard error.
    """
    log_probability = logits.double().log_softmax(dim=1)

    def score(log_p: torch.Tensor) -> float:
        log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))  # of p(y); finite where p itself underflows
        return math.exp(float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean()))

    parts = _groups(log_probability, rows)
    if len(parts) < GROUPS:
        return Estimate(score(log_probability), math.nan)
    without = [score(torch.cat([*parts[:out], *parts[out + 1 :]])) for out in range(GROUPS)]
    return _jackknife(score(log_probability), without)


def nearest_distance(real: torch.Tensor, made: torch.Tensor, rows: int = 1) -> Estimate:
    """Mean Euclidean distance of made features to the nearest real one; copies have 0."""
    known = real.double()
    found = torch.cat([torch.cdist(part.double(), known).min(dim=1).values for part in made.split(CHUNK)])
    by_clip = found.view(-1, rows).mean(dim=1)
    error = float(by_clip.std() / math.sqrt(len(by_clip))) if len(by_clip) > 1 else math.nan
    return Estimate(float(by_clip.mean()), error)


def nearest_pairs(real: torch.Tensor, made: torch.Tensor, rows: int = 1, count: int = 10) -> list[dict[str, float]]:
    """The made clips that are nearest to a real one, for a look at what may be a copy.

    Args:
        real: (N, d).
        made: (M, d).
        rows: of a clip; the distance of clips is the mean over rows of the distance to the other's nearest.
        count: at most so many.

    Returns:
        `made` and `real`, numbers of the clips in their tables, and `distance`, the nearest pair first.
    """
    known = real.double().unflatten(0, (-1, rows))  # (clips, rows, d)
    pairs = []
    for number, clip in enumerate(made.double().unflatten(0, (-1, rows))):
        apart = torch.cdist(clip, known.flatten(0, 1)).view(rows, -1, rows).min(dim=2).values.mean(dim=0)  # (clips,)
        distance, nearest = apart.min(dim=0)
        pairs.append({"made": number, "real": int(nearest), "distance": float(distance)})
    return sorted(pairs, key=lambda pair: pair["distance"])[:count]


def _block_sums(first: list[torch.Tensor], second: list[torch.Tensor], degree: int) -> torch.Tensor:
    """Sum of the kernel between each group of one table and each of the other: (groups, groups)."""
    return torch.stack([torch.stack([_kernel(a, b, degree).sum() for b in second]) for a in first])


def _own_kernel(part: torch.Tensor, degree: int, rows: int) -> torch.Tensor:
    """Sum of the kernel of each feature with those of its own clip, itself among them."""
    clips = part.unflatten(0, (-1, rows))  # (clips, rows, d)
    return _kernel(clips, clips, degree).sum()


def _kernel(a: torch.Tensor, b: torch.Tensor, degree: int) -> torch.Tensor:
    return (a @ b.mT / a.shape[-1] + 1) ** degree


def shuffled(count: int) -> torch.Tensor:
    """Numbers below count in a fixed random order: clips that stand together may be of one class or one prompt."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _groups(table: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """Clips dealt at random to ten groups of almost the same size, empty ones left out.

    Of two sides with as many clips the same numbers go together: they may be of the same prompts, or even the same
    clips and their reconstructions.
    """
    clips = table.unflatten(0, (-1, rows))
    order = shuffled(len(clips))
    return [clips[order[number::GROUPS]].flatten(0, 1) for number in range(min(GROUPS, len(clips)))]


def _radii(table: torch.Tensor, neighbours: int, rows: int) -> torch.Tensor:
    """Distance of each row to the k-th nearest clip, its own not counted: (N,)."""
    radii = []
    for start in range(0, len(table), CHUNK):
        part = table[start : start + CHUNK]
        to_clips = torch.cdist(part, table).unflatten(1, (-1, rows)).amin(dim=2)  # (chunk, clips)
        own = torch.arange(start, start + len(part)) // rows
        to_clips[torch.arange(len(part)), own] = math.inf
        radii.append(to_clips.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _statistics(parts: list[torch.Tensor]) -> FeatureStatistics:
    result = FeatureStatistics()
    for part in parts:
        result.update(part)
    return result


def _jackknife(value: float, without: list[float]) -> Estimate:
    """The standard error of a number from what it is without each of the ten groups."""
    values = torch.tensor(without, dtype=torch.float64)
    return Estimate(value, float(((GROUPS - 1) / GROUPS * (values - values.mean()).square().sum()).sqrt()))
