"""Draws: timesteps uniform or log-normal and inside the schedule, all functions of seed and number."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.process import process_of


def many(logit_normal, count=4000):
    return Draws.of(0, torch.arange(count)).timesteps(1000, logit_normal)


def test_uniform_timesteps_fill_the_schedule():
    timesteps = many(None)
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert timesteps.float().mean() == pytest.approx(499.5, abs=15)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_timestep_comes_the_last_one_too(count):
    """The last one is what zero terminal SNR is about; all are equally likely."""
    drawn = Draws.of(0, torch.arange(2000)).timesteps(count).bincount(minlength=count)
    assert len(drawn) == count
    assert drawn / 2000 == pytest.approx(torch.full((count,), 1 / count), abs=0.05)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1.0), (-0.5, 0.3)])
def test_logit_normal_has_its_median_and_spread(mean, std):
    share = (many((mean, std)).double() + 0.5) / 1000
    logit = torch.log(share / (1 - share))
    assert logit.median().item() == pytest.approx(mean, abs=0.08)
    within = (logit - mean).abs().lt(std).double().mean().item()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.03)


def test_far_tails_stay_inside():
    assert many((50.0, 1.0), 10).eq(999).all() and many((-50.0, 1.0), 10).eq(0).all()


def test_the_same_sample_draws_the_same():
    assert torch.equal(many((1.0, 1.0), 20), many((1.0, 1.0), 20))


def test_a_level_by_its_noise_to_signal_ratio():
    process = process_of(DDIMScheduler())
    ratios = process.noise / process.signal
    drawn = Draws.of(0, torch.arange(2000)).nearest_log_normal(ratios, 0.7, 1.6)
    ratio = torch.log(ratios)[drawn].double()
    assert ratio.median().item() == pytest.approx(0.7, abs=0.1)
    assert (ratio - 0.7).abs().lt(1.6).double().mean().item() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.03)


def test_a_batch_draws_what_its_samples_draw_alone():
    together, like = Draws.of(5, torch.tensor([3, 11])), torch.zeros(2, 3, 4)
    alone = [Draws.of(5, torch.tensor([number])) for number in (3, 11)]
    assert len(together) == 2
    for draw in (
        lambda rng, like: rng.normal(like),
        lambda rng, like: torch.tensor(rng.uniform()),
        lambda rng, like: rng.timesteps(1000),
        lambda rng, like: rng.timesteps(1000, (0.0, 1.0)),
        lambda rng, like: rng.nearest_log_normal(torch.linspace(0.1, 9, 50), 0.0, 1.0),
    ):
        each = [draw(rng, like[:1]) for rng in alone]
        assert torch.equal(draw(together, like), torch.cat(each)) and not torch.equal(*each)
    other = Draws.of(6, torch.tensor([3, 11])).normal(like)
    assert not torch.equal(other, Draws.of(5, torch.tensor([3, 11])).normal(like))


def test_normal_noise_has_the_type_of_what_it_is_like():
    noise = Draws.of(0, torch.arange(2)).normal(torch.zeros(2, 3, dtype=torch.float16))
    assert noise.dtype == torch.float16 and noise.shape == (2, 3)


def test_what_is_drawn_inside_again_is_drawn_once_more():
    rng, like = Draws.of(0, torch.arange(3)), torch.zeros(3, 4)
    rng.normal(like)
    with rng.again():
        first = rng.normal(like), rng.uniform()
    assert torch.equal(rng.normal(like), first[0]) and rng.uniform() == first[1]
    with pytest.raises(RuntimeError), rng.again():  # also after an error
        third = rng.normal(like)
        raise RuntimeError
    assert torch.equal(rng.normal(like), third)
