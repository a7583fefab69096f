"""Losses against closed forms, and against what the scheduler does with a right prediction."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from cmd_video.losses import (
    diffusion_loss,
    diffusion_target,
    noise_levels,
    predicted_sample,
    psnr,
    reconstruction_loss,
)

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
    scheduler, (sample, noise) = scheduler_of(kind), draw(4, 3, 8, 6)
    signal, sigma = signal_and_noise(scheduler, TIMESTEPS)
    expected = {"epsilon": noise, "sample": sample, "v_prediction": signal * noise - sigma * sample}[kind]
    target = diffusion_target(scheduler, sample, noise, TIMESTEPS)
    torch.testing.assert_close(target.double(), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_sample_is_in_the_target(kind):
    scheduler, (sample, noise) = scheduler_of(kind), draw(4, 3, 8, 6)
    signal, sigma = signal_and_noise(scheduler, TIMESTEPS)
    noisy = scheduler.add_noise(sample, noise, TIMESTEPS).double()
    target = diffusion_target(scheduler, sample, noise, TIMESTEPS).double()
    recovered = {
        "epsilon": (noisy - sigma * target) / signal,
        "v_prediction": signal * noisy - sigma * target,
        "sample": target,
    }[kind]
    torch.testing.assert_close(recovered, sample.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 8, 50])
def test_a_chain_of_right_predictions_ends_at_the_clean_sample(kind, spacing, num_steps):
    """What is trained is what the sampler expects."""
    scheduler, (sample, noise) = scheduler_of(kind, timestep_spacing=spacing), draw(2, 3, 4, 4)
    scheduler.set_timesteps(num_steps)
    first = scheduler.timesteps[:1].expand(2)
    latents = scheduler.add_noise(sample, noise, first)
    for timestep in scheduler.timesteps:
        signal, sigma = signal_and_noise(scheduler, timestep.expand(2))
        present = ((latents.double() - signal * sample) / sigma).float()  # the noise that is in it now
        prediction = diffusion_target(scheduler, sample, present, timestep.expand(2))
        step = scheduler.step(prediction, timestep, latents)
        torch.testing.assert_close(step.pred_original_sample, sample, rtol=1e-2, atol=1e-2)
        latents = step.prev_sample
    torch.testing.assert_close(latents, sample, rtol=1e-2, atol=1e-2)


def test_an_unknown_prediction_type():
    scheduler = scheduler_of("epsilon")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type: 'flow' is none of epsilon, v_prediction, sample"):
        diffusion_target(scheduler, *draw(1, 3, 4, 4), torch.tensor([3]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_loss_is_a_mean_per_sample(kind):
    prediction, target = draw(4, 3, 8, 6)
    loss = diffusion_loss(scheduler_of(kind), prediction, target, TIMESTEPS)
    expected = [(prediction[i] - target[i]).pow(2).sum() / (3 * 8 * 6) for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(expected))


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights(kind, gamma):
    scheduler, (prediction, target) = scheduler_of(kind), draw(4, 3, 8, 6)
    snr = compute_snr(scheduler, TIMESTEPS)
    weight = torch.minimum(snr, torch.full_like(snr, gamma))
    weight = {"epsilon": weight / snr, "v_prediction": weight / (snr + 1), "sample": weight}[kind]
    plain = diffusion_loss(scheduler, prediction, target, TIMESTEPS)
    weighted = diffusion_loss(scheduler, prediction, target, TIMESTEPS, min_snr_gamma=gamma)
    torch.testing.assert_close(weighted, weight * plain, rtol=1e-3, atol=0)
    if kind == "epsilon":  # the clearest reading of the paper: never more than the plain loss
        assert (weighted <= plain * (1 + 1e-4)).all()


def test_min_snr_weighs_one_error_the_same_whatever_is_predicted():
    """One wrong guess of the clean sample, written as noise, velocity and sample."""
    sample, noise = draw(4, 3, 8, 6)
    guess = sample + 0.3 * torch.randn(4, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([50, 137, 500, 900])
    losses = []
    for kind in KINDS:
        scheduler = scheduler_of(kind)
        signal, sigma = signal_and_noise(scheduler, timestep)
        guessed_noise = (signal * sample + sigma * noise - signal * guess) / sigma  # of the same noisy sample
        prediction = diffusion_target(scheduler, guess.double(), guessed_noise, timestep)
        target = diffusion_target(scheduler, sample.double(), noise.double(), timestep)
        losses.append(diffusion_loss(scheduler, prediction, target, timestep, min_snr_gamma=5.0))
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses[1], losses[2], rtol=1e-3, atol=1e-6)


def test_weighting_by_snr_to_the_power_of_one_turns_the_loss_on_the_sample_into_that_on_the_noise():
    """x_0 - x_0' = -(sigma / alpha) (eps - eps') for the same noisy input, so the squares differ by the SNR."""
    sample, noise = draw(4, 3, 8, 6)
    scheduler, timestep = scheduler_of("epsilon"), torch.tensor([50, 137, 500, 900])
    signal, sigma = (part.float() for part in signal_and_noise(scheduler, timestep))
    noisy, guess = signal * sample + sigma * noise, noise + 0.1
    clean = (noisy - sigma * guess) / signal
    on_noise = diffusion_loss(scheduler, guess, noise, timestep)
    on_sample = diffusion_loss(scheduler_of("sample"), clean, sample, timestep, snr_power=1.0)
    torch.testing.assert_close(on_sample, on_noise, rtol=1e-3, atol=1e-6)
    plain, half = (diffusion_loss(scheduler, guess, noise, timestep, snr_power=power) for power in (0.0, 0.5))
    torch.testing.assert_close(half / plain, (signal / sigma).flatten(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_alone(kind):
    scheduler, (sample, noise), timestep = scheduler_of(kind), draw(4, 3, 8, 6), TIMESTEPS.clone()
    alphas, copies = scheduler.alphas_cumprod.clone(), (sample.clone(), noise.clone())
    diffusion_target(scheduler, sample, noise, timestep)
    diffusion_loss(scheduler, sample, noise, timestep, min_snr_gamma=5.0)
    reconstruction_loss(sample, noise, "l2"), psnr(sample, noise)
    assert torch.equal(sample, copies[0]) and torch.equal(noise, copies[1])
    assert torch.equal(timestep, TIMESTEPS) and torch.equal(scheduler.alphas_cumprod, alphas)


def test_losses_of_half_precision_are_computed_in_float32():
    prediction, target = torch.full((2, 3, 64, 64), 1.0), torch.full((2, 3, 64, 64), 1.0 + 2**-7)
    loss = diffusion_loss(scheduler_of("epsilon"), prediction.bfloat16(), target.bfloat16(), TIMESTEPS[:2])
    assert loss.dtype == torch.float32 and loss.tolist() == pytest.approx([2**-14] * 2, rel=1e-5)


def test_reconstruction_losses():
    prediction, target = torch.zeros(2, 3), torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, -6.0]])
    assert reconstruction_loss(prediction, target, "l1").item() == pytest.approx(2.0)
    assert reconstruction_loss(prediction, target, "l2").item() == pytest.approx(50 / 6)


def test_psnr_of_known_errors():
    target = torch.zeros(2, 3, 4, 4)
    assert psnr(target + 0.2, target).item() == pytest.approx(20.0, abs=1e-3)
    assert psnr(target + 0.2, target, data_range=1.0).item() == pytest.approx(20 - 20 * math.log10(2), abs=1e-3)
    uneven = target.clone()
    uneven[0] = 0.2  # one mean squared error over the batch, not a mean of two values, one of them infinite
    assert psnr(uneven, target).item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    assert psnr(target, target).item() == math.inf


def test_epsilon_needs_signal_at_the_last_timestep():
    scheduler = DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True)
    sample = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="prediction_type: epsilon says nothing of the sample"):
        diffusion_target(scheduler, sample, sample, torch.tensor([999]))


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
    known, (sample, noise) = OTHER_SCHEDULES[name], draw(2, 3, 4, 4)
    scheduler = type(known).from_config(known.config)
    levels = noise_levels(scheduler)
    scheduler.set_timesteps(20)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    latents = latents + sample if name == "edm" else latents
    for step in scheduler.timesteps:
        level = (levels.timestep - step).abs().argmin().expand(2)
        scaled = scheduler.scale_model_input(latents, step) if name == "edm" else latents
        alpha, sigma = levels.at(level, sample)
        target = diffusion_target(scheduler, sample, (scaled - alpha * sample) / sigma, level)
        latents = scheduler.step(target, step, latents).prev_sample
    torch.testing.assert_close(latents, sample, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", OTHER_SCHEDULES)
def test_levels_of_other_schedules(name):
    scheduler, (sample, noise) = OTHER_SCHEDULES[name], draw(4, 3, 8, 6)
    levels, level = noise_levels(scheduler), torch.tensor([0, 137, 500, 998])
    assert len(levels.alpha) == len(levels.sigma) == len(levels.timestep) == 1000
    assert ((levels.sigma / levels.alpha).diff()[:-1] > 0).all() and (levels.timestep.diff() > 0).all()
    noisy = levels.add_noise(sample, noise, level)
    target = diffusion_target(scheduler, sample, noise, level)
    torch.testing.assert_close(predicted_sample(scheduler, target, noisy, level), sample, rtol=1e-3, atol=1e-3)
    alpha, sigma = (values[level].double() for values in (levels.alpha, levels.sigma))
    torch.testing.assert_close(levels.signal_to_noise(level).double(), (alpha / sigma) ** 2, rtol=1e-4, atol=0.0)
    if name == "flow":  # as diffusers noises, and told a thousand times sigma
        scaled = scheduler.scale_noise(sample, levels.timestep[level], noise)
        torch.testing.assert_close(noisy, scaled)
        torch.testing.assert_close(levels.timestep[level].double(), 1000 * sigma, rtol=1e-4, atol=1e-2)
        share = (level + 1) / 1000
        torch.testing.assert_close(sigma, (7 * share / (1 + 6 * share)).double(), rtol=1e-4, atol=1e-5)
    else:  # variance-preserving once it is scaled, and told ln(sigma / alpha) / 4
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-5, atol=1e-5)
        expected = 0.25 * torch.log(sigma / alpha)
        torch.testing.assert_close(levels.timestep[level].double(), expected, rtol=1e-3, atol=1e-3)


def test_min_snr_of_flow_matching_is_that_of_the_clean_sample():
    scheduler, (sample, noise) = OTHER_SCHEDULES["flow"], draw(4, 3, 8, 6)
    level, guess = torch.tensor([3, 137, 500, 990]), sample + 0.1
    levels = noise_levels(scheduler)
    alpha, sigma = levels.at(level, sample)
    noisy = levels.add_noise(sample, noise, level)
    prediction = (noisy - guess) / sigma  # whose clean sample is the guess
    target = diffusion_target(scheduler, sample, noise, level)
    loss = diffusion_loss(scheduler, prediction, target, level, min_snr_gamma=5.0)
    expected = 0.01 * levels.signal_to_noise(level).clamp(max=5.0)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-6)


def test_schedules_that_are_not_known():
    for setting in ("use_dynamic_shifting", "invert_sigmas"):
        with pytest.raises(ValueError, match="give a fixed `shift`"):
            noise_levels(FlowMatchEulerDiscreteScheduler(**{setting: True}))
    table, fresh = noise_levels(OTHER_SCHEDULES["flow"]), FlowMatchEulerDiscreteScheduler(shift=7.0)
    fresh.set_timesteps(4)  # whoever samples with it in between does not change the table
    assert torch.equal(noise_levels(fresh).sigma, table.sigma)
