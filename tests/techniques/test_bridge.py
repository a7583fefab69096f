"""Bridges: their ends, their published steps, what is aligned, and a Gaussian in closed form."""

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.denoisers.motion import MotionDenoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.plan import steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.models import CMDAutoencoder
from cmd_video.techniques.bridge import BETA, Settings


def scheduler(kind="v_prediction"):
    return DDIMScheduler(prediction_type=kind, clip_sample=False)


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    model = CMDAutoencoder(
        in_channels=3, sample_size=(8, 8), num_frames=4, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2,
        latent_channels=4,
    ).eval().requires_grad_(False)  # fmt: skip
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.2)
    return model


@pytest.fixture
def clips():
    return torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def framebridge(share):
    """sigma^2 and its complement at a share of time, from the paper's formulas."""
    low, high = BETA
    sigma = (high - low) * share**2 / 2 + low * share
    return sigma, (low + high) / 2 - sigma


@pytest.mark.parametrize("schedule", ["quadratic", "linear"])
def test_it_goes_from_the_clean_sample_to_the_source(schedule):
    process = Settings(schedule=schedule, kappa=2.0).process(scheduler())
    a, b, c = process.signal.double(), process.source.double(), process.noise.double()
    torch.testing.assert_close(a + b, torch.ones_like(a), atol=1e-6, rtol=0)
    torch.testing.assert_close(c.square(), 2.0 * a * b, atol=1e-5, rtol=1e-4)
    assert a[0] > 0.998 and b[-1] > 0.998
    assert (a.diff() < 0).all()


def test_the_published_bridge():
    process, (low, high) = Settings().process(scheduler()), BETA
    share = (torch.arange(1000, dtype=torch.float64) + 1) / 1001
    sigma, rest = framebridge(share)
    total = (low + high) / 2
    torch.testing.assert_close(process.signal.double(), rest / total, atol=1e-6, rtol=0)
    torch.testing.assert_close(process.noise.double(), (sigma * rest).sqrt() / total**0.5, atol=1e-5, rtol=0)
    assert process.noise.max().item() == pytest.approx(2.50, abs=0.01)


def test_a_step_is_the_published_one():
    """x_s = r x_t + (1 - r) x_0 + sigma_s sqrt(1 - r) z with r = sigma_s^2 / sigma_t^2, in mean and in deviation."""
    process = Settings().process(scheduler())
    x_0, x_1, x_t = (torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(n)) for n in range(3))
    x_1, x_0, x_t = x_1[:1].expand_as(x_t), x_0[:1].expand_as(x_t), x_t[:1].expand_as(x_t)
    solver = Settings().solver(process, None, 4, x_1)
    step = steps_at(solver.timesteps, 1000)[1]
    t, until = (int(level[0]) for level in solver.level(step, x_t))
    (sigma_t, _), (sigma_s, _) = (framebridge((level + 1) / 1001) for level in (t, until))
    r = sigma_s / sigma_t
    noise = process.noise_of(x_0, x_t, torch.full((4000,), t), x_1)
    moved = solver.move(x_0, noise, step, torch.Generator().manual_seed(9))
    expected = r * x_t[0] + (1 - r) * x_0[0]
    torch.testing.assert_close(moved.mean(dim=0), expected, atol=0.15, rtol=0)
    assert moved.std(dim=0).mean().item() == pytest.approx(sigma_s**0.5 * (1 - r) ** 0.5, rel=0.03)


@pytest.mark.parametrize("kappa", [25.005, 2.0])
def test_two_papers_steps_are_one(kappa):
    """FrameBridge's by r = sigma_s^2 / sigma_t^2, and the Brownian bridge's of TLB-VFI by its posterior deviation.

    x_s = (1 - m_s) x_0 + m_s y + sqrt((d_s - v) / d_t) (x_t - (1 - m_t) x_0 - m_t y) + sqrt(v) z, where d = kappa m
    (1 - m) and v = (d_t - d_s (1 - m_t)^2 / (1 - m_s)^2) d_s / d_t.
    """
    published = kappa == 25.005
    settings = Settings(kappa=kappa, schedule="quadratic" if published else "linear", aligned=False)
    process = settings.process(scheduler())
    x_0, x_1, x_t = (torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(n)).double() for n in range(3))
    solver = settings.solver(process, None, 5, x_1)
    for step in steps_at(solver.timesteps, 1000)[:-1]:
        t, until = (int(level[0]) for level in solver.level(step, x_t))
        fresh = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(9), dtype=x_t.dtype)
        noise = process.noise_of(x_0, x_t, torch.full((3,), t), x_1)
        found = solver.move(x_0, noise, step, torch.Generator().manual_seed(9))
        if published:
            (sigma_t, _), (sigma_s, _) = (framebridge((level + 1) / 1001) for level in (t, until))
            r = sigma_s / sigma_t
            expected = r * x_t + (1 - r) * x_0 + sigma_s**0.5 * (1 - r) ** 0.5 * fresh
        else:
            m_t, m_s = (t + 1) / 1001, (until + 1) / 1001
            d_t, d_s = 2 * m_t * (1 - m_t), 2 * m_s * (1 - m_s)
            v = (d_t - d_s * (1 - m_t) ** 2 / (1 - m_s) ** 2) * d_s / d_t
            kept = ((d_s - v) / d_t) ** 0.5 * (x_t - (1 - m_t) * x_0 - m_t * x_1)
            expected = (1 - m_s) * x_0 + m_s * x_1 + kept + v**0.5 * fresh
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_masked_clip_begins_with_the_first_frame_and_ends_with_the_last(clips, autoencoder):
    denoiser = MotionDenoiser({"autoencoder": autoencoder})
    content_frame, z = autoencoder.encode(clips, return_dict=False)
    z = autoencoder.normalize_latents(z)
    first, last = clips[:, :, 0], clips[:, :, -1]
    held = torch.stack([first, first, last, last], dim=2)
    expected = autoencoder.normalize_latents(autoencoder.encode(held).motion_latents)
    condition, masked = Condition({"content_frame": content_frame}), Settings(prior="masked")
    given = condition.having(given={0: first, 3: last})
    torch.testing.assert_close(masked.source(denoiser, given, z), expected)
    still = Settings().source(denoiser, given, z, z)
    assert torch.equal(masked.source(denoiser, condition, z), still)  # nothing given: the content frame for both
    assert not torch.allclose(masked.source(denoiser, condition.having(given={0: first}), z), still)


def test_in_training_the_two_frames_are_the_clips_own(clips, autoencoder):
    """They are decoded from the clean latents, so encoded clips will do."""
    denoiser = MotionDenoiser({"autoencoder": autoencoder})
    content_frame, z = autoencoder.encode(clips, return_dict=False)
    condition, masked = Condition({"content_frame": content_frame}), Settings(prior="masked")
    shown = autoencoder.decode(content_frame, z).sample
    given = condition.having(given={0: shown[:, :, 0], 3: shown[:, :, -1]})
    z = autoencoder.normalize_latents(z)
    torch.testing.assert_close(
        masked.source(denoiser, condition, z, z), masked.source(denoiser, given, z), atol=1e-4, rtol=1e-4
    )


def test_aligned_times_have_the_same_signal_to_noise_and_rise():
    process, base = Settings().process(scheduler()), process_of(scheduler())
    assert (process.timestep.diff() >= 0).all()
    ratio = process.signal / process.noise
    number = process.timestep[100:900].round().long()
    torch.testing.assert_close((base.signal / base.noise)[number], ratio[100:900], rtol=0.02, atol=0.01)


def test_an_aligned_network_sees_what_a_diffusion_model_sees():
    """(x_t - b x_1) / n is variance preserving, and free of the source."""
    process = Settings().process(scheduler())
    t = torch.tensor([10, 400, 900])
    x_0, z, x_1 = (torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    seen, _ = process.see(process.marginal(x_0, z, t, x_1), t, x_1)
    a, c = process.at(t, x_0)
    n = (a**2 + c**2).sqrt()
    torch.testing.assert_close(seen, a / n * x_0 + c / n * z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon"])
def test_the_clean_sample_is_found_again(kind):
    process = Settings().process(scheduler(kind))
    t = torch.tensor([10, 400, 900])
    x_0, z, x_1 = (torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    x_t = process.marginal(x_0, z, t, x_1)
    found = process.clean(process.target(x_0, z, t, x_1), x_t, t, x_1)
    torch.testing.assert_close(found, x_0, atol=2e-3, rtol=2e-3)


def test_it_samples_a_gaussian(gaussian):
    settings = Settings(kappa=4.0, aligned=False)
    process = settings.process(scheduler("sample"))
    x_1 = torch.full((4000, 1), 3.0)
    solver = settings.solver(process, None, 100, x_1)
    found = sample(
        gaussian(process, 1.0, 0.5, x_1), solver, steps_at(solver.timesteps, 1000), torch.randn(4000, 1),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.mean().item() == pytest.approx(1.0, abs=0.05)
    assert found.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("prior", ["still", "masked"])
def test_a_motion_model_learns_a_bridge_and_its_run_says_so(tiny_config, run_train, read_log, tmp_path, prior):
    objective = {"kind": "denoising", "process": {"kind": "bridge", "kappa": 2.0, "prior": prior}}
    config = tiny_config("motion", tmp_path, objective=objective, loop__steps=20, loop__validate_every=10)
    folder = run_train(config)
    losses = [line["loss"] for line in read_log(tmp_path, "train")]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert '"kind": "bridge"' in (folder / "sampling.json").read_text()
