"""The loop and its solvers against Gaussians, whose denoisers are known in closed form."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import (
    EtaSolver,
    SchedulerSolver,
    check_starts,
    ddim,
    jumps,
    multistep,
    with_schedule,
)

MEAN, SPREAD = torch.tensor([-0.5, 2.0]).view(1, 2, 1), torch.tensor([0.3, 1.4]).view(1, 2, 1)


def draw(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 4, generator=torch.Generator().manual_seed(seed))


def exact(process, seen=None):
    """The right prediction for clean samples N(MEAN, SPREAD^2), of the process's type."""

    def denoise(x_t, step):
        if seen is not None:
            seen.append(step)
        t = torch.full((len(x_t),), process.levels([step.t])[0])
        a, g = process.at(t, x_t)
        x_0 = MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + g**2) * (x_t - a * MEAN)
        return process.target(x_0, process.noise_of(x_0, x_t, t), t)

    return denoise


def check_distribution(x_0, tolerance=0.03):
    torch.testing.assert_close(x_0.mean(dim=(0, 2)), MEAN.flatten(), atol=2 * tolerance, rtol=0)
    torch.testing.assert_close(x_0.std(dim=(0, 2)), SPREAD.flatten(), atol=tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_with_an_exact_denoiser_ddim_samples_the_gaussian(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    solver = SchedulerSolver(scheduler, 200)
    steps = steps_at(solver.timesteps, 1000)
    check_distribution(sample(exact(process_of(scheduler)), solver, steps, draw(2000)))


def test_flow_matching_and_edm_sample_the_gaussian_too():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    edm = EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        prediction_type="v_prediction",
    )  # fmt: skip
    for scheduler in (flow, edm):
        process = process_of(scheduler)
        solver = SchedulerSolver(type(scheduler).from_config(scheduler.config), 200)
        steps = steps_at(solver.timesteps, 1000)
        check_distribution(sample(exact(process), solver, steps, draw(2000)))


@pytest.mark.parametrize("make", [ddim, multistep], ids=["ddim", "multistep"])
def test_samplers_of_other_classes_sample_the_same_gaussian(make):
    scheduler = make(DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing"))
    solver = SchedulerSolver(scheduler, 100)
    check_distribution(sample(exact(process_of(scheduler)), solver, steps_at(solver.timesteps, 1000), draw(2000)))


def test_more_steps_of_multistep_are_not_needed_where_one_of_ddim_is_far():
    """A preset's reason: 20 steps of second order end nearer to the limit than 20 of DDIM."""
    scheduler, z = DDIMScheduler(prediction_type="sample", clip_sample=False), draw(200)
    process = process_of(scheduler)

    def ends(solver):
        return sample(exact(process), solver, steps_at(solver.timesteps, 1000), z)

    wide = {"timestep_spacing": "linspace"}
    limit = ends(SchedulerSolver(with_schedule(DDIMScheduler, scheduler, **wide), 999))
    off = {
        name: (ends(SchedulerSolver(make(with_schedule(DDIMScheduler, scheduler, **wide)), 20)) - limit).abs().mean()
        for name, make in (("ddim", ddim), ("multistep", multistep))
    }
    assert off["multistep"] < 0.5 * off["ddim"]


def test_steps_go_from_noise_to_clean_and_every_one_is_asked_once():
    scheduler, seen = DDIMScheduler(prediction_type="sample", clip_sample=False), []
    solver = SchedulerSolver(scheduler, 4)
    steps = steps_at(solver.timesteps, 1000)
    assert steps == [Step(750.0, 0.75), Step(500.0, 0.5), Step(250.0, 0.25), Step(0.0, 0.0)]
    sample(exact(process_of(scheduler), seen), solver, steps, draw(2))
    assert seen == steps


def test_who_watches_sees_every_step_and_may_change_x():
    scheduler, seen = DDIMScheduler(prediction_type="sample", clip_sample=False), []
    solver = SchedulerSolver(scheduler, 3)
    steps = steps_at(solver.timesteps, 1000)

    def watch(x, number, step):
        seen.append((number, step))
        return torch.full_like(x, 0.25) if number == 2 else x

    assert sample(exact(process_of(scheduler)), solver, steps, draw(2), watch=watch).eq(0.25).all()
    assert seen == list(enumerate(steps))


def test_a_loop_begins_with_the_scale_of_its_scheduler():
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading")
    solver = SchedulerSolver(scheduler, 5)
    assert torch.equal(solver.start(torch.ones(2, 3)), torch.full((2, 3), float(scheduler.init_noise_sigma)))
    assert scheduler.init_noise_sigma > 5


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_ddim_of_ones_own_without_new_noise_is_ddim(prediction_type):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=True)
    process, plain = process_of(scheduler), SchedulerSolver(scheduler, 20)
    own = EtaSolver(process, process.levels(plain.timesteps))
    assert own.timesteps == plain.timesteps
    steps, z = steps_at(plain.timesteps, 1000), draw(5)
    found, expected = (sample(exact(process), solver, steps, z) for solver in (own, plain))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_new_noise_is_as_much_as_diffusers_ddim_adds(eta):
    """Equation 16 of DDIM; the same numbers from the same source."""
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, set_alpha_to_one=True)
    process, plain = process_of(scheduler), SchedulerSolver(scheduler, 10)
    own, steps = EtaSolver(process, process.levels(plain.timesteps), eta), steps_at(plain.timesteps, 1000)
    x = draw(3, seed=3)
    for step in steps[:-1]:
        prediction = exact(process)(x, step)
        ours = own.step(lambda x, step, value=prediction: value, x, step, torch.Generator().manual_seed(1))
        theirs = scheduler.step(
            prediction, int(step.t), x, eta=eta, generator=torch.Generator().manual_seed(1)
        ).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
        x = ours


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_jumps_start_where_they_are_told_and_are_steps_of_ddim(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
    process, starts = process_of(scheduler), (999, 849, 399, 20)
    solver, own = SchedulerSolver(jumps(scheduler), starts=starts), EtaSolver(process, starts)
    assert solver.timesteps == own.timesteps == [999.0, 849.0, 399.0, 20.0]
    steps, z = steps_at(solver.timesteps, 1000), draw(5)
    found, expected = (sample(exact(process), each, steps, z) for each in (solver, own))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("starts", [[], [3, 3], [5, 10], [1000], [10, -1]])
def test_starts_that_do_not_fall_or_lie_outside_are_named(starts):
    with pytest.raises(ValueError, match=r"starts: \[.*\] are not falling timesteps in 0\.\.999"):
        check_starts("starts", starts, 1000)
    check_starts("starts", [999, 0], 1000)


def test_a_batch_with_a_source_for_each_sample_is_its_samples():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    process, z = process_of(scheduler), draw(3)
    solver = EtaSolver(process, [999, 500, 100], eta=1.0)
    steps = steps_at(solver.timesteps, 1000)

    def sources(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = sample(exact(process), solver, steps, z, sources(4, 5, 6))
    for number in range(3):
        alone = sample(exact(process), solver, steps, z[number : number + 1], sources(4 + number))
        torch.testing.assert_close(together[number], alone[0])
