"""Processes against closed forms, and against what the scheduler does with a right prediction."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.process import Process, ddim_sample, ddim_step, process_of

KINDS = ("epsilon", "v_prediction", "sample")
TIMESTEPS = torch.tensor([0, 137, 500, 999])


def scheduler_of(kind: str, **changes) -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type=kind, **changes)


def draw(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def signal_and_noise(scheduler: DDIMScheduler, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square roots of alpha bar and 1 - alpha bar from the betas themselves, shaped (B, 1, 1, 1)."""
    alpha_bar = torch.cumprod(1 - scheduler.betas.double(), 0)[timestep].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_targets_in_closed_form(kind):
    scheduler, (x_0, z) = scheduler_of(kind), draw(4, 3, 8, 6)
    signal, sigma = signal_and_noise(scheduler, TIMESTEPS)
    expected = {"epsilon": z, "sample": x_0, "v_prediction": signal * z - sigma * x_0}[kind]
    target = process_of(scheduler).target(x_0, z, TIMESTEPS)
    torch.testing.assert_close(target.double(), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_sample_is_in_the_target(kind):
    scheduler, (x_0, z) = scheduler_of(kind), draw(4, 3, 8, 6)
    signal, sigma = signal_and_noise(scheduler, TIMESTEPS)
    x_t = scheduler.add_noise(x_0, z, TIMESTEPS).double()
    target = process_of(scheduler).target(x_0, z, TIMESTEPS).double()
    recovered = {
        "epsilon": (x_t - sigma * target) / signal,
        "v_prediction": signal * x_t - sigma * target,
        "sample": target,
    }[kind]
    torch.testing.assert_close(recovered, x_0.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_sample_inverts_the_target(kind):
    scheduler, (x_0, z), t = DDIMScheduler(prediction_type=kind), draw(3, 2, 4, 4), torch.tensor([5, 500, 900])
    process = process_of(scheduler)
    x_t = scheduler.add_noise(x_0, z, t)
    torch.testing.assert_close(process.marginal(x_0, z, t), x_t)
    clean = process.clean(process.target(x_0, z, t), x_t, t)
    torch.testing.assert_close(clean, x_0, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(process.noise_of(x_0, x_t, t), z, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 8, 50])
def test_a_chain_of_right_predictions_ends_at_the_clean_sample(kind, spacing, num_steps):
    """What is trained is what the sampler expects."""
    scheduler, (x_0, z) = scheduler_of(kind, timestep_spacing=spacing), draw(2, 3, 4, 4)
    process = process_of(scheduler)
    scheduler.set_timesteps(num_steps)
    first = scheduler.timesteps[:1].expand(2)
    x_t = scheduler.add_noise(x_0, z, first)
    for timestep in scheduler.timesteps:
        signal, sigma = signal_and_noise(scheduler, timestep.expand(2))
        present = ((x_t.double() - signal * x_0) / sigma).float()  # the noise that is in it now
        step = scheduler.step(process.target(x_0, present, timestep.expand(2)), timestep, x_t)
        torch.testing.assert_close(step.pred_original_sample, x_0, rtol=1e-2, atol=1e-2)
        x_t = step.prev_sample
    torch.testing.assert_close(x_t, x_0, rtol=1e-2, atol=1e-2)


def test_an_unknown_prediction_type_is_named():
    scheduler = scheduler_of("epsilon")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type: 'flow' is none of epsilon, v_prediction, sample"):
        process_of(scheduler)


def test_epsilon_needs_signal_at_the_last_timestep():
    process = process_of(DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True))
    x_0 = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="prediction_type: epsilon says nothing of the sample"):
        process.target(x_0, x_0, torch.tensor([999]))
    velocity = process_of(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    velocity.target(x_0, x_0, torch.tensor([999]))


# --- schedules that are not DDPM's -----------------------------------------------------------------------------------


def edm(kind: str = "v_prediction") -> EulerDiscreteScheduler:
    """Stable Video Diffusion's."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=700.0, timestep_type="continuous", prediction_type=kind,
    )  # fmt: skip


OTHER_SCHEDULES = {"edm": edm(), "flow": FlowMatchEulerDiscreteScheduler(shift=7.0)}


@pytest.mark.parametrize("name", OTHER_SCHEDULES)
def test_other_schedules_also_end_at_the_clean_sample(name):
    """The sampler of diffusers, fed with what is trained for at the levels that it passes, arrives."""
    known, (x_0, z) = OTHER_SCHEDULES[name], draw(2, 3, 4, 4)
    scheduler = type(known).from_config(known.config)
    process = process_of(scheduler)
    scheduler.set_timesteps(20)
    x_t = z * getattr(scheduler, "init_noise_sigma", 1.0)
    x_t = x_t + x_0 if name == "edm" else x_t
    levels = process.levels([float(step) for step in scheduler.timesteps])
    for level, step in zip(levels, scheduler.timesteps, strict=True):
        t = torch.full((2,), level)
        scaled = scheduler.scale_model_input(x_t, step) if name == "edm" else x_t
        target = process.target(x_0, process.noise_of(x_0, scaled, t), t)
        x_t = scheduler.step(target, step, x_t).prev_sample
    torch.testing.assert_close(x_t, x_0, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", OTHER_SCHEDULES)
def test_levels_of_other_schedules(name):
    scheduler, (x_0, z) = OTHER_SCHEDULES[name], draw(4, 3, 8, 6)
    process, t = process_of(scheduler), torch.tensor([0, 137, 500, 998])
    assert len(process) == len(process.signal) == len(process.noise) == len(process.timestep) == 1000
    assert ((process.noise / process.signal).diff()[:-1] > 0).all() and (process.timestep.diff() > 0).all()
    x_t = process.marginal(x_0, z, t)
    clean = process.clean(process.target(x_0, z, t), x_t, t)
    torch.testing.assert_close(clean, x_0, rtol=1e-3, atol=1e-3)
    a, g = (values[t].double() for values in (process.signal, process.noise))
    torch.testing.assert_close(process.signal_to_noise(t).double(), (a / g) ** 2, rtol=1e-4, atol=0.0)
    assert process.see(x_t, t)[0] is x_t and torch.equal(process.see(x_t, t)[1], process.timestep[t])
    if name == "flow":  # as diffusers noises, and told a thousand times sigma
        torch.testing.assert_close(x_t, scheduler.scale_noise(x_0, process.timestep[t], z))
        torch.testing.assert_close(process.timestep[t].double(), 1000 * g, rtol=1e-4, atol=1e-2)
        share = (t + 1) / 1000
        torch.testing.assert_close(g, (7 * share / (1 + 6 * share)).double(), rtol=1e-4, atol=1e-5)
    else:  # variance-preserving once it is scaled, and told ln(sigma / alpha) / 4
        torch.testing.assert_close(a**2 + g**2, torch.ones_like(a), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(process.timestep[t].double(), 0.25 * torch.log(g / a), rtol=1e-3, atol=1e-3)


def test_schedules_that_are_not_known():
    for setting in ("use_dynamic_shifting", "invert_sigmas"):
        with pytest.raises(ValueError, match="give a fixed `shift`"):
            process_of(FlowMatchEulerDiscreteScheduler(**{setting: True}))
    table, fresh = process_of(OTHER_SCHEDULES["flow"]), FlowMatchEulerDiscreteScheduler(shift=7.0)
    fresh.set_timesteps(4)  # whoever samples with it in between does not change the table
    assert torch.equal(process_of(fresh).noise, table.noise)


# --- levels of their own for each frame, the clean level, a source ---------------------------------------------------


def processes(with_source: bool = False) -> dict[str, Process]:
    """One for each type of prediction; with a source as a bridge has one, from x_0 over noise to x_1."""
    if with_source:
        share = torch.arange(1, 1001) / 1001
        rows = {"signal": 1 - share, "noise": (share * (1 - share)).sqrt(), "source": share}
        # "flow" is z - x_0 where a = 1 - g and nothing else goes in, so a bridge predicts the other three
        return {kind: Process(**rows, timestep=torch.arange(1000), prediction_type=kind) for kind in KINDS}
    known = {kind: process_of(scheduler_of(kind)) for kind in KINDS}
    return known | {name: process_of(scheduler) for name, scheduler in OTHER_SCHEDULES.items()}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 3, 4, 7)], ids=["clips", "motion latents"])
@pytest.mark.parametrize("name", processes())
def test_a_level_for_each_frame_is_a_call_for_each_frame(name, shape):
    process, (x_0, z) = processes()[name], draw(*shape)
    t = torch.tensor([[0, 20, 998, 500], [999, 1, 500, 137]])  # (B, F)
    x_t, target = process.marginal(x_0, z, t), process.target(x_0, z, t)
    clean, noise = process.clean(target, x_t, t), process.noise_of(x_0, x_t, t)
    for frame in range(t.shape[1]):
        one, at = (lambda x, frame=frame: x[:, :, frame]), t[:, frame]
        assert torch.equal(one(x_t), process.marginal(one(x_0), one(z), at))
        assert torch.equal(one(target), process.target(one(x_0), one(z), at))
        assert torch.equal(one(clean), process.clean(one(target), one(x_t), at))
        assert torch.equal(one(noise), process.noise_of(one(x_0), one(x_t), at))
        assert torch.equal(process.signal_to_noise(t)[:, frame], process.signal_to_noise(at))
    with pytest.raises(RuntimeError):
        process.marginal(x_0, z, t[:, :3])  # one level is missing


def test_with_a_source_each_frame_may_have_a_level_too():
    process, (x_0, z), (x_1, _) = processes(True)["sample"], draw(2, 3, 4, 5), draw(2, 3, 4, 5)
    t = torch.tensor([[0, 20, 998, -1], [999, 1, 500, 137]])
    x_t = process.marginal(x_0, z, t, x_1)
    for frame in range(4):
        alone = process.marginal(x_0[:, :, frame], z[:, :, frame], t[:, frame], x_1[:, :, frame])
        assert torch.equal(x_t[:, :, frame], alone)


@pytest.mark.parametrize("with_source", [False, True])
def test_level_minus_one_is_the_clean_sample(with_source):
    for process in processes(with_source).values():
        (x_0, z), t = draw(3, 2, 4, 4), torch.tensor([-1, 500, -1])
        x_t = process.marginal(x_0, z, t, torch.ones_like(x_0) if with_source else None)
        assert torch.equal(x_t[[0, 2]], x_0[[0, 2]]) and not torch.equal(x_t[1], x_0[1])


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_source_clean_sample_and_noise_are_found_again(kind):
    process, (x_0, z) = processes(True)[kind], draw(4, 3, 8, 6)
    x_1, t = torch.flip(x_0, [0]) + 1, torch.tensor([20, 137, 500, 900])
    x_t = process.marginal(x_0, z, t, x_1)
    column = ((t + 1) / 1001).view(-1, 1, 1, 1)
    expected = (1 - column) * x_0 + column * x_1 + (column * (1 - column)).sqrt() * z
    torch.testing.assert_close(x_t, expected)
    torch.testing.assert_close(process.noise_of(x_0, x_t, t, x_1), z, atol=1e-4, rtol=1e-3)
    if kind != "v_prediction":  # whose inverse needs a^2 + g^2 = 1
        clean = process.clean(process.target(x_0, z, t, x_1), x_t, t, x_1)
        torch.testing.assert_close(clean, x_0, atol=1e-4, rtol=1e-3)
    assert process.start(z, x_1) is x_1 and processes()[kind].start(z) is z


def test_levels_are_found_by_the_timestep_that_is_told():
    for name, process in processes().items():
        chosen = [999, 500, 137, 0]
        assert process.levels([float(process.timestep[number]) for number in chosen]) == chosen, name
    assert process_of(scheduler_of("sample")).levels([998.6, 0.4, -7.0]) == [999, 0, 0]


def test_noise_of_a_process_is_what_each_samples_source_draws():
    process, like = process_of(scheduler_of("sample")), torch.zeros(3, 2, 4)
    numbers = torch.tensor([7, 8, 9])
    assert torch.equal(process.draw_noise(like, Draws.of(1, numbers)), Draws.of(1, numbers).normal(like))


# --- jumps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_a_step_of_ddim_and_its_sample_is_found_again(kind):
    config = {"prediction_type": kind, "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**config, rescale_betas_zero_snr=kind == "sample")
    process = process_of(scheduler)
    scheduler.set_timesteps(10)  # 999, 899, ..., 99
    for high in (999, 499, 99):
        (x_t, prediction), t = draw(3, 2, 4, 4), torch.full((3,), high)
        clean = process.clean(prediction, x_t, t)
        ours = ddim_step(process, x_t, clean, t, t - 100)
        torch.testing.assert_close(ours, scheduler.step(prediction, high, x_t).prev_sample, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(ddim_sample(process, x_t, ours, t, t - 100), clean, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", OTHER_SCHEDULES)
def test_jumps_of_other_schedules_keep_sample_and_noise(name):
    process, (x_0, z) = process_of(OTHER_SCHEDULES[name]), draw(3, 2, 4, 4)
    t, until = torch.tensor([900, 500, 20]), torch.tensor([300, 499, -1])
    reached = ddim_step(process, process.marginal(x_0, z, t), x_0, t, until)
    torch.testing.assert_close(reached, process.marginal(x_0, z, until), atol=1e-4, rtol=1e-3)
