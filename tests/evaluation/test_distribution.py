"""Distances between tables of features: by definition, against closed forms, and what they must not see."""

import math

import pytest
import torch

from cmd_video.evaluation.metrics.distances import measure
from cmd_video.evaluation.metrics.distribution import (
    coverage,
    frechet_estimate,
    inception_score,
    jedi,
    kernel_distance,
    nearest_distance,
    nearest_pairs,
)
from cmd_video.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from cmd_video.evaluation.protocol.tables import FeatureTable


def table(count, numbers, seed=0, shift=0.0):
    return torch.randn(count, numbers, generator=torch.Generator().manual_seed(seed)) + shift


def test_frechet_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = table(60, 5), table(70, 5, 1, 0.5) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]))
    covariances = [torch.cov(part.double().T).numpy() for part in (first, second)]
    gap = (first.double().mean(0) - second.double().mean(0)).square().sum().item()
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = gap + covariances[0].trace() + covariances[1].trace() - 2 * root.trace()
    assert frechet_estimate(first, second).value == pytest.approx(expected, rel=1e-8)


def test_frechet_estimate_is_the_distance_of_the_whole_tables():
    first, second = table(50, 4), table(40, 4, 1)
    whole = [FeatureStatistics(), FeatureStatistics()]
    for statistics, part in zip(whole, (first, second), strict=True):
        statistics.update(part)
    assert frechet_estimate(first, second).value == pytest.approx(frechet_distance(*whole), rel=1e-9)
    assert math.isnan(frechet_estimate(first[:9], second).error)


def values(estimates):
    return {name: estimate.value for name, estimate in estimates.items()}


@pytest.mark.parametrize(
    "distance", [frechet_estimate, kernel_distance, lambda a, b: coverage(a, b)["density"]], ids=["F", "K", "density"]
)
def test_the_standard_error_is_the_spread_over_draws(distance):
    draws = [distance(table(300, 3, 2 * n, 0.5), table(300, 3, 2 * n + 1)) for n in range(30)]
    spread = torch.tensor([draw.value for draw in draws]).std().item()
    mean_error = sum(draw.error for draw in draws) / len(draws)
    assert 0.6 * spread < mean_error < 1.8 * spread


def mean_error(distance, draws):
    """A jackknife of ten groups is off by a quarter by itself."""
    return sum(distance(*draw).error for draw in draws) / len(draws)


@pytest.mark.parametrize("order", ["in turn", "in rows"])
def test_the_order_of_clips_does_not_decide_the_error(order):
    """Ten classes in turn, dealt in turn to ten groups, would leave out a class at a time."""
    classes = (3 * table(10, 3, 5)).repeat(30, 1)
    draws = [(classes + table(300, 3, 2 * n, 1.0), classes + table(300, 3, 2 * n + 1)) for n in range(30)]
    if order == "in rows":
        draws = [tuple(part.unflatten(0, (30, 10)).transpose(0, 1).flatten(0, 1) for part in pair) for pair in draws]
    spread = torch.tensor([frechet_estimate(*draw).value for draw in draws]).std().item()
    assert 0.6 * spread < mean_error(frechet_estimate, draws) < 1.8 * spread


def test_the_error_of_reconstructions_knows_that_they_are_of_the_same_clips():
    draws = [
        (real, real + 0.3 * table(300, 3, 2 * n + 1, 1.0)) for n in range(30) for real in [3 * table(300, 3, 2 * n)]
    ]
    spread = torch.tensor([frechet_estimate(*draw).value for draw in draws]).std().item()
    assert 0.6 * spread < mean_error(frechet_estimate, draws) < 1.8 * spread


def test_frames_of_one_clip_leave_together():
    """Repeating every feature, as frames that hardly change do, must not make the error smaller."""
    draws = [(table(100, 3, 2 * n, 0.5), table(100, 3, 2 * n + 1)) for n in range(10)]
    repeated = [tuple(part.repeat_interleave(4, dim=0) for part in pair) for pair in draws]
    for distance in (frechet_estimate, kernel_distance):
        error = mean_error(distance, draws)
        assert mean_error(lambda a, b, d=distance: d(a, b, rows=4), repeated) == pytest.approx(error, rel=0.1)
        assert mean_error(distance, repeated) < 0.7 * error


@pytest.mark.parametrize("degree", [2, 3])
def test_kernel_distance_is_its_definition(degree):
    a, b = table(6, 4).double(), table(6, 4, 1).double()

    def k(x, y):
        return (x @ y / 4 + 1) ** degree

    within = sum(k(t[i], t[j]) for t in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    expected = within - 2 * sum(k(x, y) for x in a for y in b) / 36
    assert kernel_distance(a, b, degree).value == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Zero on average for equal distributions however few the features are, where Fréchet's distance is not."""
    values = [kernel_distance(table(20, 4, 2 * n), table(20, 4, 2 * n + 1)).value for n in range(200)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 200**0.5
    assert abs(mean) < 3 * error
    assert kernel_distance(table(200, 4), table(200, 4, 1, 1.0)).value > 0.5


def test_jedi_is_its_definition():
    real, made = table(40, 6), table(30, 6, 1, 0.3)

    def kernel(a, b):
        return ((a.double() @ b.double().T / 6) ** 2).mean().item()

    expected = 100 * (kernel(real, real) + kernel(made, made) - 2 * kernel(real, made))
    assert jedi(real, made).value == pytest.approx(expected, rel=1e-9) and jedi(real, made).error > 0
    assert jedi(real, real).value == pytest.approx(0, abs=1e-12)


def test_v_jepa_brings_jedi():
    protocol = {"extractor": "vjepa2:x", "clips": 20, "numbers": 6}
    tables = [FeatureTable(table(20, 6, seed), torch.zeros(0), protocol) for seed in range(2)]
    assert measure(*tables)["jedi"]["value"] == pytest.approx(jedi(*(part.features for part in tables)).value)
    other = [FeatureTable(part.features, part.dynamic, {**protocol, "extractor": "i3d"}) for part in tables]
    assert "jedi" not in measure(*other)


def frames(clips, rows, seed):
    """Rows of one clip lie close together."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(clips, 1, 4, generator=generator)
    return (middle + 0.01 * torch.randn(clips, rows, 4, generator=generator)).flatten(0, 1)


def test_kernel_distance_of_frames_is_unbiased():
    values = [kernel_distance(frames(12, 8, 2 * n), frames(12, 8, 2 * n + 1), rows=8).value for n in range(100)]
    error = torch.tensor(values).std() / 10
    assert abs(sum(values) / 100) < 3 * error


def test_coverage_of_frames_is_that_of_their_clips():
    """Many frames of a clip, nearly alike, say what one says."""
    real, made = frames(60, 16, 0), frames(60, 16, 1)
    many, one = coverage(real, made, rows=16), coverage(real[::16], made[::16])
    for name, estimate in many.items():
        assert estimate.value == pytest.approx(one[name].value, abs=0.06)
    apart = coverage(real, made + 20, rows=16)
    assert all(estimate.value == 0 for estimate in apart.values())


def test_order_does_not_matter_and_neither_do_batches():
    first, second = table(100, 4), table(100, 4, 1, 0.3)
    shuffled = first[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    assert frechet_estimate(shuffled, second).value == pytest.approx(frechet_estimate(first, second).value, rel=1e-9)
    assert kernel_distance(shuffled, second).value == pytest.approx(kernel_distance(first, second).value, rel=1e-6)
    assert values(coverage(shuffled, second)) == pytest.approx(values(coverage(first, second)))


def test_coverage_of_a_drawn_example():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    made = torch.tensor([[0.5], [1.5], [1.6]])  # near the left half of the real ones only
    found = values(coverage(real, made, neighbours=1))
    assert found["precision"] == 1 and found["coverage"] == pytest.approx(3 / 6)
    assert found["recall"] == pytest.approx(2 / 6)  # balls of 1, 0.1 and 0.1 around the made ones hold 0 and 1
    assert values(coverage(real, made + 100, neighbours=1)) == {
        "precision": 0,
        "recall": 0,
        "density": 0,
        "coverage": 0,
    }
    same = values(coverage(real, real.clone(), neighbours=1))
    assert same["precision"] == same["recall"] == same["coverage"] == 1


def test_nearest_finds_copies():
    known = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    made = torch.tensor([[0.0, 0.0], [10.0, 3.0], [4.0, 0.0]])  # a copy, one 3 away and one 4 away
    assert nearest_distance(known, made).value == pytest.approx(7 / 3)
    assert nearest_distance(known, known).value == 0


def test_nearest_pairs_say_which_clip_is_a_copy_of_which():
    generator = torch.Generator().manual_seed(0)
    known, made = (torch.randn(5 * rows, 6, generator=generator) for rows in (3, 3))
    made[6:9] = known[[11, 9, 10]]  # the third clip has the frames of the fourth, in another order
    pairs = nearest_pairs(known, made, rows=3, count=2)
    assert [pairs[0][side] for side in ("made", "real")] == [2, 3] and len(pairs) == 2
    assert pairs[0]["distance"] == pytest.approx(0, abs=1e-6) and pairs[1]["distance"] > 0.1
    (single,) = nearest_pairs(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0]]))
    assert single == {"made": 0, "real": 1, "distance": 1.0}


def test_too_few():
    with pytest.raises(ValueError, match="a kernel distance needs 2 or more of each kind, got 1 and 5"):
        kernel_distance(table(1, 3), table(5, 3))
    with pytest.raises(ValueError, match="coverage with 5 neighbours needs more of each kind, got 5 and 9"):
        coverage(table(5, 3), table(9, 3))


def test_inception_score_in_closed_form():
    """Sure and even over k classes: k. Unsure, or always the same: 1. Half sure: the divergence of two coins."""
    sure = 2000 * torch.eye(5).repeat(20, 1)
    assert inception_score(sure).value == pytest.approx(5)
    assert inception_score(torch.zeros(100, 5)).value == pytest.approx(1)
    assert inception_score(sure[::5]).value == pytest.approx(1)
    coins = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log().repeat(50, 1)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert inception_score(coins).value == pytest.approx(math.exp(divergence))
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert inception_score(coins[shuffled] + 7).value == pytest.approx(math.exp(divergence))
    assert math.isnan(inception_score(sure[:9]).error) and inception_score(table(400, 5)).error < 0.2
