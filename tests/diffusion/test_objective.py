"""Losses of denoisers against closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import (
    VALIDATION_TIMESTEPS,
    Denoising,
    DenoisingSettings,
    denoising_loss,
    pseudo_huber,
)
from cmd_video.diffusion.process import process_of

KINDS = ("epsilon", "v_prediction", "sample")
TIMESTEPS = torch.tensor([0, 137, 500, 999])


def process(kind: str = "sample"):
    return process_of(DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type=kind))


def draw(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_loss_is_a_mean_per_sample(kind):
    prediction, target = draw(4, 3, 8, 6)
    loss = denoising_loss(process(kind), prediction, target, TIMESTEPS)
    expected = [(prediction[i] - target[i]).pow(2).sum() / (3 * 8 * 6) for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(expected))


@pytest.mark.parametrize("power", [0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_power_of_the_signal_to_noise_ratio_weighs_each_sample(kind, power):
    prediction, target = draw(4, 3, 8, 6)
    alpha_bar = DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod[TIMESTEPS]
    plain = denoising_loss(process(kind), prediction, target, TIMESTEPS)
    weighted = denoising_loss(process(kind), prediction, target, TIMESTEPS, snr_power=power)
    torch.testing.assert_close(weighted, plain * (alpha_bar / (1 - alpha_bar)) ** power, rtol=1e-3, atol=0)


def test_weighting_by_snr_to_the_power_of_one_turns_the_loss_on_the_sample_into_that_on_the_noise():
    """x_0 - x_0' = -(sigma / alpha) (eps - eps') for the same noisy input, so the squares differ by the SNR."""
    (x_0, z), t = draw(4, 3, 8, 6), torch.tensor([50, 137, 500, 900])
    noise, sample = process("epsilon"), process("sample")
    x_t, guess = noise.marginal(x_0, z, t), z + 0.1
    on_noise = denoising_loss(noise, guess, z, t)
    on_sample = denoising_loss(sample, noise.clean(guess, x_t, t), x_0, t, snr_power=1.0)
    torch.testing.assert_close(on_sample, on_noise, rtol=1e-3, atol=1e-6)


def test_a_velocity_of_flow_matching_is_off_by_its_clean_sample_over_the_noise():
    flow, (x_0, z) = process_of(FlowMatchEulerDiscreteScheduler(shift=7.0)), draw(4, 3, 8, 6)
    t, guess = torch.tensor([3, 137, 500, 990]), x_0 + 0.1
    _, g = flow.at(t, x_0)
    prediction = (flow.marginal(x_0, z, t) - guess) / g  # whose clean sample is the guess
    loss = denoising_loss(flow, prediction, flow.target(x_0, z, t), t)
    torch.testing.assert_close(loss * g.flatten() ** 2, torch.full((4,), 0.01), rtol=1e-2, atol=1e-6)


def test_pseudo_huber_is_square_near_zero_and_linear_far_away():
    zero = torch.zeros(1, 4)
    near, far = (pseudo_huber(torch.full((1, 4), value), zero).item() for value in (1e-3, 50.0))
    assert near == pytest.approx(1e-6 / 0.06, rel=0.01)
    assert far == pytest.approx(50 - 0.03, rel=1e-3)


class Plain:
    """A denoiser that says c x_t, without anything behind it; what it was told is noted."""

    component, droppable = "unet", ("prompt",)
    learns = None

    def __init__(self, scheduler) -> None:
        self.scheduler, self.seen = scheduler, []

    @property
    def process(self):
        return process_of(self.scheduler)

    def encode(self, condition: Condition) -> Condition:
        absent = condition.is_absent("prompt")
        return Condition({"told": torch.where(absent, torch.zeros(len(absent)), condition["prompt"])})

    def predict(self, model, x_t, t, told, x_1=None):
        self.seen.append((x_t, t, told["told"]))
        return model(x_t)


def objective(**settings) -> Denoising:
    denoiser = Plain(DDIMScheduler(beta_schedule="scaled_linear", prediction_type="sample"))
    return DenoisingSettings(**settings).build(denoiser, torch.nn.Identity())


def test_the_denoising_loss_is_the_distance_to_the_target_at_drawn_levels():
    learned, (x_0, _), numbers = objective(condition_dropout=0.5), draw(8, 3, 4, 5), torch.arange(8)
    condition = Condition({"prompt": torch.arange(1.0, 9.0)})
    loss = learned.loss(lambda x: 0.5 * x, x_0, condition, Draws.of(3, numbers), turn=0)
    again = Draws.of(3, numbers)
    t, dropped, z = again.timesteps(1000), torch.tensor(again.uniform()) < 0.5, again.normal(x_0)
    x_t = learned.process.marginal(x_0, z, t)
    torch.testing.assert_close(loss, (0.5 * x_t - x_0).square().flatten(1).mean(1))
    (seen,) = learned.denoiser.seen
    assert torch.equal(seen[0], x_t) and torch.equal(seen[1], t)
    assert 0 < dropped.sum() < 8
    assert torch.equal(seen[2], torch.where(dropped, torch.zeros(8), torch.arange(1.0, 9.0)))


def test_a_perfect_denoiser_has_no_loss():
    learned, (x_0, _) = objective(), draw(4, 3, 4, 5)
    condition, numbers = Condition({"prompt": torch.ones(4)}), torch.arange(4)
    assert learned.loss(lambda x: x_0, x_0, condition, Draws.of(0, numbers), turn=0).abs().max() == 0
    found = learned.validate(lambda x: x_0, x_0, condition, Draws.of(0, numbers), learned.validation_times(numbers))
    assert found["loss"] == 0


def test_levels_of_validation_depend_on_the_numbers_alone():
    learned = objective()
    assert learned.validation_times(torch.arange(10)).tolist() == [*VALIDATION_TIMESTEPS, *VALIDATION_TIMESTEPS[:2]]
    learned.denoiser.scheduler = DDIMScheduler(num_train_timesteps=100)
    assert learned.validation_times(torch.arange(8)).tolist() == [t // 10 for t in VALIDATION_TIMESTEPS]


@pytest.mark.parametrize(
    ("settings", "mean"),
    [({}, 499.5), ({"logit_normal": (50.0, 1.0)}, 999.0), ({"log_sigma_normal": (-50.0, 1.0)}, 0.0)],
)
def test_levels_are_drawn_as_the_settings_say(settings, mean):
    drawn = objective(**settings).draw_times(Draws.of(0, torch.arange(2000)))
    assert drawn.float().mean() == pytest.approx(mean, abs=20)


def test_noise_on_the_content_frame_has_the_given_level():
    frame = torch.zeros(4, 3, 16, 16)
    told = Condition({"content_frame": frame, "pooled": torch.ones(4, 2)})
    t, rng = torch.zeros(4), Draws.of(0, torch.arange(4))
    assert objective().disturb(told, t, rng) is told
    noisy = objective(content_frame_noise=0.5).disturb(told, t, rng)
    assert noisy["content_frame"].std() == pytest.approx(0.5, rel=0.1) and noisy["pooled"] is told["pooled"]
    assert not told["content_frame"].any()


def test_guidance_of_a_teacher_in_closed_form():
    learned, (x_t, _) = objective(), draw(3, 2, 4, 4)
    condition = Condition({"prompt": torch.tensor([1.0, 2.0, 3.0])})
    told, t = learned.denoiser.encode(condition), torch.tensor([1, 2, 3])
    learned.denoiser.predict = lambda model, x_t, t, told, x_1=None: x_t + told["told"].view(-1, 1, 1, 1)
    column = torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(learned.guided(None, x_t, t, condition, told, 1.0), x_t + column)
    torch.testing.assert_close(learned.guided(None, x_t, t, condition, told, 3.0), x_t + 3 * column)
