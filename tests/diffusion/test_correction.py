"""Corrections of clean estimates: what they leave alone, and what they say goes, for every process and solver."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from cmd_video.diffusion.correction import Corrected
from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver, SchedulerSolver

SPACED = {"timestep_spacing": "trailing", "clip_sample": False}
SCHEDULERS = {
    **{kind: DDIMScheduler(prediction_type=kind, **SPACED) for kind in ("epsilon", "v_prediction", "sample")},
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0, timestep_type="continuous",
        prediction_type="v_prediction",
    ),
    "multistep": DPMSolverMultistepScheduler(prediction_type="v_prediction", final_sigmas_type="zero"),
}  # fmt: skip
EXACT = ("epsilon", "v_prediction", "sample", "flow", "edm")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(x, step):
    """Some prediction."""
    return (0.7 * x + step.time).sin()


class Pair:
    """One that has another prediction for the noise."""

    def __call__(self, x, step):
        return network(x, step)

    def pair(self, x, step):
        return network(x, step), network(x + 1, step)


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    kept = SCHEDULERS[request.param]
    return type(kept).from_config(kept.config)


def solvers(scheduler, steps):
    process = process_of(scheduler)
    yield SchedulerSolver(scheduler, steps)
    if not isinstance(scheduler, EulerDiscreteScheduler):
        yield EtaSolver(process, torch.linspace(len(process) - 1, 0, steps + 1)[:-1].long().tolist())


def clean(z, solver, denoise, scheduler):
    return sample(denoise, solver, steps_at(solver.timesteps, scheduler.config.num_train_timesteps), z)


@pytest.mark.parametrize("denoise", [network, Pair()], ids=["one", "pair"])
def test_what_changes_nothing_changes_nothing(scheduler, denoise):
    z = draw(3, 2, 4)
    same = Corrected(denoise, process_of(scheduler), lambda x_0, step: x_0)
    for plain, other in zip(solvers(scheduler, 7), solvers(type(scheduler).from_config(scheduler.config), 7)):
        assert torch.equal(clean(z, plain, denoise, scheduler), clean(z, other, same, scheduler))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_correction_that_knows_the_truth_gives_it(kind, steps):
    if kind == "edm" and steps == 1:
        pytest.skip("Karras' levels are two or more")
    scheduler = type(SCHEDULERS[kind]).from_config(SCHEDULERS[kind].config)
    z, truth = draw(3, 2, 4), draw(3, 2, 4, seed=1)
    for solver in solvers(scheduler, steps):
        knows = Corrected(network, process_of(scheduler), lambda x_0, step: truth)
        torch.testing.assert_close(clean(z, solver, knows, scheduler), truth, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("level", [5, 400, 990])
def test_the_prediction_says_what_the_correction_said(kind, level):
    process = process_of(SCHEDULERS[kind])
    x, step = draw(3, 2, 4), Step(float(process.timestep[level]), 0.5)
    t = torch.full((3,), level)
    before = process.clean(network(x, step), x, t)
    after = process.clean(Corrected(network, process, lambda x_0, _: 2 * x_0 + 1)(x, step), x, t)
    torch.testing.assert_close(after, 2 * before + 1, rtol=1e-3, atol=1e-3)


def test_noise_that_another_prediction_says_stays():
    scheduler = SCHEDULERS["v_prediction"]
    process, x, step = process_of(scheduler), draw(3, 2, 4), Step(400.0, 0.4)
    prediction, renoise = Corrected(Pair(), process, lambda x_0, _: x_0 + 1).pair(x, step)
    assert torch.equal(renoise, network(x + 1, step))
    assert not torch.equal(prediction, network(x, step))
    assert torch.equal(Corrected(network, process, lambda x_0, _: x_0 + 1).pair(x, step)[1], network(x, step))
