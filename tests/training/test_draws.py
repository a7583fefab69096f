"""Timesteps: uniform or logit-normal, functions of their generator, inside the schedule."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.losses import noise_levels
from cmd_video.training.draws import draw_level, draw_timestep, generators


def many(logit_normal, count=4000):
    draws = generators(0, torch.arange(count))
    return torch.cat([draw_timestep(1000, draw, logit_normal) for draw in draws])


def test_uniform():
    timesteps = many(None)
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert timesteps.float().mean() == pytest.approx(499.5, abs=15)


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
    levels = noise_levels(DDIMScheduler())
    drawn = torch.cat([draw_level(levels, 0.7, 1.6, draw) for draw in generators(0, torch.arange(2000))])
    ratio = torch.log(levels.sigma / levels.alpha)[drawn].double()
    assert ratio.median().item() == pytest.approx(0.7, abs=0.1)
    assert (ratio - 0.7).abs().lt(1.6).double().mean().item() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.03)
