"""The loop and its solvers against Gaussians, whose denoisers are known in closed form."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import (
    EtaSolver,
    SchedulerSolver,
    ddim,
    jumps,
    multistep,
    with_schedule,
)
from cmd_video.diffusion.timesteps import check_noise, check_starts, check_steps

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


def test_a_loop_that_begins_with_noise_is_not_started_where_signal_is_due():
    scheduler = DDIMScheduler()
    check_noise("starts", scheduler, 999)
    with pytest.raises(ValueError, match=r"starts: they start at timestep 500, no pure noise .* later"):
        check_noise("starts", scheduler, 500)


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


# --- where steps start and end ---------------------------------------------------------------------------------------

SPACINGS = ("leading", "trailing", "linspace")
X_0 = torch.tensor([0.5, -0.7, 0.2]).view(1, 1, 3)


def known(process):
    """The prediction of who knows X_0."""

    def denoise(x_t, step):
        t = torch.full((1,), process.levels([step.t])[0])
        return process.target(X_0, process.noise_of(X_0, x_t, t), t)

    return denoise


@pytest.mark.parametrize("steps", [1, 6, 7, 13, 19, 30, 43, 50, 334, 501, 700])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", [DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler])
def test_every_step_of_ddim_ends_where_the_next_one_starts_and_the_last_one_clean(kind, spacing, steps):
    """Who knows x_0 finds at every step the noise that it began with, if x is at the level that the step names."""
    scheduler = kind(timestep_spacing=spacing, **({} if kind is CogVideoXDDIMScheduler else {"clip_sample": False}))
    process, solver = process_of(scheduler), SchedulerSolver(scheduler, steps)
    z = draw(1)[:, :1, :3].double()
    t = torch.tensor(process.levels(solver.timesteps[:1]))
    x = process.marginal(X_0.double(), z, t)
    for step in steps_at(solver.timesteps, 1000):
        t = torch.tensor(process.levels([step.t]))
        if process.signal[t] < 1 and process.noise[t] > 0.05:  # below, the division by it is rough
            torch.testing.assert_close(process.noise_of(X_0.double(), x, t), z, atol=2e-3, rtol=0)
        x = solver.step(known(process), x, step, None)
    torch.testing.assert_close(x, X_0.double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [7, 13, 30, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "kind",
    [DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler,
     HeunDiscreteScheduler, LCMScheduler, PNDMScheduler],
)  # fmt: skip
def test_other_schedulers_end_clean_or_are_refused(kind, spacing, steps):
    settings = {"clip_sample": False} if kind in (DDPMScheduler, LCMScheduler) else {}
    scheduler = kind(timestep_spacing=spacing, **{"set_alpha_to_one": True} if kind is PNDMScheduler else settings)
    process = process_of(scheduler)
    try:
        check_steps("steps", scheduler, steps)
    except ValueError as error:
        few = spacing == "leading" and steps == 7 and kind in (HeunDiscreteScheduler,)
        uneven = kind is PNDMScheduler and spacing != "leading"
        assert few or uneven, error
        return
    solver = SchedulerSolver(scheduler, steps)
    rng = torch.Generator().manual_seed(0)
    x = sample(known(process), solver, steps_at(solver.timesteps, 1000), draw(1)[:, :1, :3], rng)
    torch.testing.assert_close(x, X_0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [5, 10, 25, 50])
def test_where_the_steps_divide_the_schedule_ddim_is_diffusers_own_to_the_bit(steps):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    process, solver = process_of(scheduler), SchedulerSolver(scheduler, steps)
    plan = steps_at(solver.timesteps, 1000)
    found = sample(exact(process), solver, plan, draw(2))
    scheduler.set_timesteps(steps)
    x = draw(2)
    for step, timestep in zip(plan, scheduler.timesteps, strict=True):
        x = scheduler.step(exact(process)(x, step), timestep, x).prev_sample
    assert torch.equal(found, x)


@pytest.mark.parametrize("steps", [1, 2, 334, 501, 700])
def test_steps_that_begin_where_signal_is_due_are_refused_with_what_is_allowed(steps):
    with pytest.raises(ValueError, match=rf"^motion: {steps}: .*leading' allows 4\.\.333, 363\.\.500, 724\.\.1000$"):
        check_steps("motion", DDIMScheduler(timestep_spacing="leading"), steps)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    check_steps("motion", scheduler, steps)
    assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize(
    "schedule", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}]
)
@pytest.mark.parametrize("steps", [20, 25, 50])
def test_usual_numbers_of_steps_are_allowed_with_every_spacing(kind, schedule, steps):
    for spacing in SPACINGS[: 2 if kind is PNDMScheduler else 3]:
        check_steps("steps", kind(timestep_spacing=spacing, **schedule), steps)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler])
def test_one_step_of_linspace_is_at_the_clean_end_and_refused(kind):
    if kind is LCMScheduler:
        check_steps("steps", kind(timestep_spacing="linspace"), 1)  # has timesteps of its own
        return
    with pytest.raises(ValueError, match="steps: 1: they start at timestep 0.*allows 2..1000$"):
        check_steps("steps", kind(timestep_spacing="linspace"), 1)


def test_timesteps_that_repeat_and_rise_are_refused():
    with pytest.raises(ValueError, match=r"steps: 1000: timesteps repeat;.*allows 1\.\.999$"):
        check_steps("steps", DPMSolverMultistepScheduler(timestep_spacing="linspace"), 1000)
    with pytest.raises(ValueError, match="do not fall"):
        check_steps("steps", DDIMInverseScheduler(), 50)


def test_schedulers_of_another_noise_or_another_step_are_refused_by_name():
    with pytest.raises(ValueError, match="scheduler: the noise of IPNDMScheduler is not known"):
        process_of(IPNDMScheduler())
    for kind in (CogVideoXDPMScheduler, UnCLIPScheduler):
        with pytest.raises(ValueError, match=f"scheduler: the step of {kind.__name__} asks for .*prev|old"):
            SchedulerSolver(kind(), 10)
