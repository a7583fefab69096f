"""Guidance of two conditions, and guidance on the manifold: limits, closed forms, batches."""

import pytest
import torch
from pydantic import ValidationError

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.guidance import ALL, NOTHING, ClassifierFree, Guided
from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver, SchedulerSolver
from cmd_video.techniques.cfg_plus_plus import Settings as PlusPlus
from cmd_video.techniques.guidance_interval import Settings as Interval
from cmd_video.techniques.joint_guidance import FRAME, FrameDropout
from cmd_video.techniques.joint_guidance import Settings as Joint

STEP = Step(500.0, 0.5)
VALUES = {NOTHING: torch.tensor([1.0]), FRAME: torch.tensor([2.0]), ALL: torch.tensor([5.0])}


def chosen(settings, step=STEP):
    return settings.combine({name: VALUES[name] for name in settings.passes(step)}, step).item()


def test_one_scale_for_both_goes_from_nothing_to_everything():
    assert chosen(Joint(scale=1.0)) == 5
    assert chosen(Joint(scale=2.0)) == 1 + 2 * 4


def test_two_scales_go_by_the_frame():
    assert chosen(Joint(scale=3.0, frame=1.0)) == 2 + 3 * 3  # the usual guidance by text, given the frame
    assert chosen(Joint(scale=1.0, frame=2.0)) == 1 + 2 * 1 + 3
    assert len(Joint(frame=1.5).passes(STEP)) == 3


def test_joint_guidance_without_a_frame_is_the_usual_one():
    """Where nothing is left out but the text: bit for bit."""
    some, none = torch.randn(3, 4), torch.randn(3, 4)
    for scale in (1.5, 4.0):
        both = {ALL: some, NOTHING: none}
        assert torch.equal(Joint(scale=scale).combine(both, STEP), ClassifierFree(scale=scale).combine(both, STEP))


def test_an_interval_guides_inside_only():
    settings = Interval(scale=2.0, low=0.4, high=0.6)
    assert [len(settings.passes(Step(1000 * time, time))) for time in (0.3, 0.4, 0.6, 0.7)] == [1, 2, 2, 1]
    with pytest.raises(ValidationError, match=r"low: 0\.7 is above high = 0\.6"):
        Interval(low=0.7, high=0.6)


def conditional(process, levels):
    """Two Gaussians of spread 0.5: around 1 under a condition, around 0 under none; asked row by row."""

    def under(told):
        means = told["mean"]

        def ask(x, step):
            t = torch.full((len(x),), levels[step.t])
            a, g = process.at(t, x)
            return means + a * 0.25 / (a**2 * 0.25 + g**2) * (x - a * means)

        return ask

    return under


def denoise_with(guidance, process, rows):
    levels = {float(value): number for number, value in enumerate(process.timestep)}
    told = {name: Condition({"mean": torch.full((rows, 1), mean)}) for name, mean in ((ALL, 1.0), (NOTHING, 0.0))}
    return Guided(conditional(process, levels), told, guidance)


def test_cfg_plus_plus_with_scale_zero_samples_without_condition(process, scheduler):
    levels = list(range(999, 0, -20))
    solver, steps = EtaSolver(process, levels), steps_at([float(level) for level in levels], 1000)
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    nothing = sample(denoise_with(PlusPlus(scale=0.0), process, 2000), solver, steps, z)
    assert nothing.mean().item() == pytest.approx(0.0, abs=0.05)
    half = sample(denoise_with(PlusPlus(scale=0.5), process, 2000), solver, steps, z)
    whole = sample(denoise_with(PlusPlus(scale=1.0), process, 2000), solver, steps, z)
    assert nothing.mean() < half.mean() < whole.mean()


def test_cfg_plus_plus_adds_the_unconditional_noise(process):
    levels = [999, 500]
    solver, step = EtaSolver(process, levels), steps_at([999.0, 500.0], 1000)[0]
    denoise, x = denoise_with(PlusPlus(scale=0.5), process, 1), torch.tensor([[0.7]])
    t = torch.tensor([999])
    values = {name: denoise.ask_under(denoise.conditions[name])(x, step) for name in (ALL, NOTHING)}
    x_0 = values[NOTHING] + 0.5 * (values[ALL] - values[NOTHING])
    noise = process.noise_of(values[NOTHING], x, t)
    a, g = process.at(torch.tensor([500]), x)
    torch.testing.assert_close(solver.step(denoise, x, step, None), a * x_0 + g * noise)


def test_a_batch_is_its_clips(process):
    solver = EtaSolver(process, [999, 500])
    steps, z = steps_at([999.0, 500.0], 1000), torch.randn(3, 1)
    together = sample(denoise_with(PlusPlus(), process, 3), solver, steps, z)
    alone = [sample(denoise_with(PlusPlus(), process, 1), solver, steps, row[None]) for row in z]
    torch.testing.assert_close(together, torch.cat(alone))


def test_eta_zero_is_ddim_and_eta_one_samples_the_same_gaussian(process, scheduler, gaussian):
    scheduler.register_to_config(timestep_spacing="leading")
    plain = SchedulerSolver(scheduler, 50)
    steps, z = steps_at(plain.timesteps, 1000), torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    denoise = gaussian(process, 1.0, 0.5)
    levels = process.levels(plain.timesteps)
    torch.testing.assert_close(
        sample(denoise, EtaSolver(process, levels), steps, z), sample(denoise, plain, steps, z), atol=2e-3, rtol=0
    )
    noisy = sample(denoise, EtaSolver(process, levels, eta=1.0), steps, z, torch.Generator().manual_seed(1))
    assert noisy.mean().item() == pytest.approx(1.0, abs=0.05)
    assert noisy.std().item() == pytest.approx(0.5, abs=0.05)


def test_process_of_is_what_the_fixture_says(process, scheduler):
    assert torch.equal(process.signal, process_of(scheduler).signal)


def test_frames_are_left_out_as_often_as_asked():
    frames, numbers = torch.ones(4000, 1, 2, 2), torch.arange(4000)
    for share in (0.1, 0.5):
        found = FrameDropout(share=share).disturb(
            Condition({"content_frame": frames, "pooled": frames}), torch.zeros(4000), Draws.of(0, numbers)
        )
        kept = found["content_frame"].flatten(1).mean(dim=1)
        assert set(kept.tolist()) == {0.0, 1.0}  # whole frames
        assert 1 - kept.mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
        assert found["pooled"] is frames


def test_no_dropout_changes_nothing_and_a_batch_is_its_samples():
    frames, times = torch.randn(6, 1, 2, 2), torch.zeros(6)
    told = Condition({"content_frame": frames})
    assert FrameDropout(share=0.0).disturb(told, times, Draws.of(0, torch.arange(6))) is told
    together = FrameDropout(share=0.5).disturb(told, times, Draws.of(0, torch.arange(6)))["content_frame"]
    for number in range(6):
        one = Condition({"content_frame": frames[number : number + 1]})
        alone = FrameDropout(share=0.5).disturb(one, times[:1], Draws.of(0, torch.tensor([number])))
        assert torch.equal(alone["content_frame"], together[number : number + 1])
