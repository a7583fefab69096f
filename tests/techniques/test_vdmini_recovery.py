"""MCA's discriminator in closed form: who is real, and how steep it may be around what is."""

import pytest
import torch

from cmd_video.diffusion.draws import Draws
from cmd_video.techniques.vdmini_recovery import R1_NOISE, Recovery, Settings

WEIGHTS = torch.tensor([0.5, -2.0, 1.0])


def discriminator_with(bias: float = 0.0, **settings) -> Recovery:
    """Of a linear D(x) = w x + bias, with one head; nothing else of the objective is there."""
    recovery = object.__new__(Recovery)
    recovery.settings, recovery.terms = Settings(**settings), {}
    recovery.scores = lambda x_0, rng, told: (x_0 @ WEIGHTS + bias)[:, None]
    return recovery


def rng() -> Draws:
    return Draws.of(0, torch.arange(4))


def test_the_teachers_outputs_are_the_real_ones():
    """Scores of 5 for the teacher's and of -5 for the student's are right and cost nothing; the other way round 12."""
    right = torch.full((4, 1), 5 / WEIGHTS.square().sum()) * WEIGHTS
    recovery = discriminator_with(r1_weight=0.0)
    assert recovery.discriminator_loss(right, -right, rng(), None) == pytest.approx(0.0)
    assert recovery.discriminator_loss(-right, right, rng(), None) == pytest.approx(12.0)
    assert recovery.terms == {"discriminator": pytest.approx(12.0)}


def test_r1_is_the_squared_slope():
    """Of a linear D the finite difference is exact: (w e)^2 for noise e, however small its step."""
    real = torch.zeros(4, 3)
    recovery = discriminator_with(r1_weight=3.0)
    loss = recovery.discriminator_loss(real, real, rng(), None)
    slope = (rng().normal(real) @ WEIGHTS).square().mean().item()
    assert recovery.terms["r1"] == pytest.approx(slope, rel=1e-5)
    assert loss.item() == pytest.approx(2.0 + 0.5 * 3.0 * slope, rel=1e-5)  # hinge of scores 0: 1 + 1
    assert R1_NOISE != 1  # or the division would not be seen


def test_r1_is_the_expected_slope_over_many_samples():
    many = Draws.of(0, torch.arange(4000))
    recovery = discriminator_with()
    recovery.discriminator_loss(torch.zeros(4000, 3), torch.zeros(4000, 3), many, None)
    assert recovery.terms["r1"] == pytest.approx(WEIGHTS.square().sum().item(), rel=0.1)
