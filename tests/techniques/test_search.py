"""Reward-guided particles: budgets to the last evaluation, rollover, what a reward of nothing leaves alone."""

import pytest
import torch

from cmd_video.diffusion.plan import steps_at
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.techniques.reward_particles import Settings

LEVELS = [999, 749, 499, 249]
STEPS = steps_at([float(level) for level in LEVELS], 1000)


def counted(denoise):
    calls = []

    def count(x, step):
        calls.append(step.t)
        return denoise(x, step)

    return count, calls


def search(settings, process, denoise, reward, seed=0, eta=1.0):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(1, 1, generator=rng)
    return settings.search(denoise, EtaSolver(process, LEVELS, eta=eta), STEPS, z, rng, reward)


def test_a_budget_of_one_is_the_plain_sample(process, gaussian):
    denoise = gaussian(process, 1.0, 0.5)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(1, 1, generator=rng)
    plain = sample(denoise, EtaSolver(process, LEVELS, eta=1.0), STEPS, z, rng)
    assert torch.equal(search(Settings(budget=1), process, denoise, lambda x_0: x_0[:, 0]), plain)


@pytest.mark.parametrize(("budget", "starts"), [(5, 1), (16, 4), (33, 8)])
def test_the_budget_is_spent_to_the_last_evaluation(budget, starts, process, gaussian):
    denoise, calls = counted(gaussian(process, 1.0, 0.5))
    search(Settings(budget=budget, starts=starts), process, denoise, lambda x_0: -(x_0[:, 0] - 2).abs())
    assert len(calls) == budget


def test_what_a_step_leaves_rolls_over(process, gaussian):
    """Rewards in a fixed order: the first proposal is better and ends its step, the second step then has more."""
    denoise, calls = counted(gaussian(process, 0.0, 1.0))
    script = iter([0.0, 1.0, *[0.0] * 30])  # one start, one better proposal, no other
    search(Settings(budget=13, starts=1), process, denoise, lambda x_0: torch.tensor([next(script)]))
    per_step = [calls.count(step.t) for step in STEPS]
    assert per_step == [1, 1, 4 + 3, 13 - 1 - 1 - 7]


def test_the_best_estimate_that_was_seen_comes_back(process, gaussian):
    seen = []

    def reward(x_0):
        seen.append(x_0.clone())
        return -(x_0[:, 0] - 2).abs()

    found = search(Settings(budget=24, starts=6), process, gaussian(process, 1.0, 0.5), reward)
    best = max(seen, key=lambda x_0: -(x_0[0, 0] - 2).abs())
    assert torch.equal(found, best)


def test_a_constant_reward_leaves_the_distribution_alone(process, gaussian):
    denoise = gaussian(process, 1.0, 0.5)
    settings = Settings(budget=4, starts=1)
    samples = torch.cat([search(settings, process, denoise, lambda x_0: x_0[:, 0] * 0, seed) for seed in range(300)])
    assert samples.isfinite().all()


def test_searching_moves_samples_where_the_reward_is(process, gaussian):
    denoise = gaussian(process, 1.0, 0.5)
    means = []
    for budget, starts in ((1, 1), (16, 8), (64, 32)):
        settings = Settings(budget=budget, starts=starts)
        found = [search(settings, process, denoise, lambda x_0: x_0[:, 0], seed) for seed in range(60)]
        means.append(torch.cat(found).mean().item())
    assert means[0] < means[1] < means[2]


def test_what_cannot_be_is_said(process, gaussian):
    denoise = gaussian(process, 1.0, 0.5)
    with pytest.raises(ValueError, match="search: proposals are steps with new noise; give `eta` above 0"):
        search(Settings(budget=9), process, denoise, lambda x_0: x_0[:, 0], eta=0.0)
    with pytest.raises(ValueError, match="budget: 3 evaluations, 1 starts and 4 steps take 4"):
        search(Settings(budget=3), process, denoise, lambda x_0: x_0[:, 0])
    with pytest.raises(ValueError, match="search: 2 clips at once"):
        Settings(budget=9).search(
            denoise, EtaSolver(process, LEVELS, eta=1.0), STEPS, torch.zeros(2, 1), None, lambda x_0: x_0[:, 0]
        )
