"""Guidance: how many passes a step takes, in which order, and what they are combined to."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import ALL, NOTHING, ClassifierFree, Guided
from cmd_video.diffusion.plan import Step
from cmd_video.techniques.guidance_interval import Settings as Interval

STEP = Step(500.0, 0.5)
ROWS = {ALL: torch.tensor([[1.0], [2.0], [3.0]]), NOTHING: torch.tensor([[-1.0], [0.0], [1.0]])}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def asked():
    """Batch sizes of all calls of the network, and how often it was readied for a condition."""
    return {"rows": [], "readied": 0}


@pytest.fixture
def denoise(asked):
    """`denoise(guidance)`: of a network that multiplies x with what it is told, sample by sample."""

    def ask_under(told):
        asked["readied"] += 1

        def ask(x, step):
            asked["rows"].append(len(x))
            return torch.sin(x * told["told"]) + step.time

        return ask

    def make(guidance, which=slice(None)):
        conditions = {name: Condition({"told": rows[which]}) for name, rows in ROWS.items()}
        return Guided(ask_under, conditions, guidance)

    return make


def test_scale_one_is_one_pass_and_equal_to_the_bit(denoise, asked):
    x = draw(3, 4)
    plain = torch.sin(x * ROWS[ALL]) + 0.5
    for guidance in (ClassifierFree(), Interval(), ClassifierFree(scale=1.0)):
        assert torch.equal(denoise(guidance)(x, STEP), plain)
    assert asked["rows"] == [3, 3, 3]


@pytest.mark.parametrize("scale", [1.5, 4.0, 100.0])
def test_a_guided_step_is_one_batch_of_both_and_equals_its_single_passes(denoise, asked, scale):
    x = draw(3, 4)
    with_condition, without = (torch.sin(x * ROWS[name]) + 0.5 for name in (ALL, NOTHING))
    found = denoise(ClassifierFree(scale=scale))(x, STEP)
    assert asked["rows"] == [6]
    assert torch.equal(found, without + scale * (with_condition - without))


def test_a_batch_equals_its_samples(denoise):
    x = draw(3, 4)
    together = denoise(ClassifierFree(scale=3.0))(x, STEP)
    for number in range(3):
        which = slice(number, number + 1)
        assert torch.equal(denoise(ClassifierFree(scale=3.0), which)(x[which], STEP), together[which])


@pytest.mark.parametrize("guidance", [ClassifierFree(scale=2.5), Interval(scale=2.5), Interval(scale=7.0)])
def test_combining_is_affine(guidance):
    """Shares sum to one, so that predictions of any type are combined as the clean samples they stand for."""
    one, two = ({ALL: draw(3, 4, seed=seed), NOTHING: draw(3, 4, seed=seed + 1)} for seed in (0, 2))
    combine = partial(guidance.combine, step=STEP)
    mixed = {name: 0.3 * one[name] + 0.7 * two[name] for name in one}
    torch.testing.assert_close(combine(mixed), 0.3 * combine(one) + 0.7 * combine(two))
    scaled = {name: 2.0 * value + 5.0 for name, value in one.items()}
    torch.testing.assert_close(combine(scaled), 2.0 * combine(one) + 5.0)
    same = {name: one[ALL] for name in one}
    torch.testing.assert_close(combine(same), one[ALL])


def test_what_is_readied_once_serves_all_steps(denoise, asked):
    guide = denoise(Interval(scale=2.0, low=0.3, high=0.6))
    for time in (0.9, 0.5, 0.4, 0.1, 0.0):
        guide(draw(3, 4), Step(1000 * time, time))
    assert asked["rows"] == [3, 6, 6, 3, 3] and asked["readied"] == 2


def test_the_interval_has_both_its_ends():
    interval = Interval(scale=2.0, low=0.25, high=0.5)
    assert [len(interval.passes(Step(0, time))) for time in (0.249, 0.25, 0.5, 0.501)] == [1, 2, 2, 1]
    assert [len(Interval(scale=2.0).passes(Step(0, time))) for time in (0.0, 0.999)] == [2, 2]


def test_a_kept_prediction_does_not_change_under_the_network(denoise):
    """A CUDA graph writes its next output where the last one lay."""
    buffer = torch.zeros(3, 4)
    guide = Guided(
        lambda told: lambda x, step: buffer.copy_(x), {ALL: Condition({"told": ROWS[ALL]})}, ClassifierFree()
    )
    first = guide(torch.ones(3, 4), STEP)
    guide(torch.zeros(3, 4), STEP)
    assert first.eq(1).all()


def test_the_noise_that_is_added_again_is_that_of_the_combined_prediction(denoise):
    combined, again = denoise(ClassifierFree(scale=3.0)).pair(draw(3, 4), STEP)
    assert again is combined


@pytest.mark.parametrize("scale", [0.5, float("nan"), float("inf"), -1])
def test_scales_below_one_and_no_numbers_are_refused(scale):
    for kind in (ClassifierFree, Interval):
        with pytest.raises(ValidationError, match="scale"):
            kind(scale=scale)
