"""Noise on the content frame that grows with time, and a later start: medians, limits, moments."""

import pytest
import torch

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.plan import steps_at
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.techniques.image_leakage import LaterStart, Settings


def levels_of_noise(settings, time, count=4000):
    """beta of many samples at one time, read off what was added to a frame of zeros."""
    told = Condition({"content_frame": torch.zeros(count, 1, 8, 8)})
    found = settings.disturb(told, torch.full((count,), time), Draws.of(0, torch.arange(count)))
    return found["content_frame"].flatten(1).std(dim=1)


@pytest.mark.parametrize("time", [0.1, 0.8, 1.0])
def test_the_median_is_that_of_the_paper(time):
    expected = 0.5 * torch.sigmoid(torch.tensor(2 * time**5 - 1)).item()
    assert levels_of_noise(Settings(maximum=0.5), time).median().item() == pytest.approx(expected, rel=0.05)


def test_noise_grows_with_time_and_later_with_a_larger_exponent():
    medians = [levels_of_noise(Settings(maximum=1.0), time, 500).median() for time in (0.2, 0.7, 0.9, 1.0)]
    assert medians == sorted(medians)
    assert levels_of_noise(Settings(exponent=20.0), 0.8, 500).median() < medians[1]


def test_no_noise_changes_nothing():
    told = Condition({"content_frame": torch.randn(2, 1, 4, 4)})
    assert Settings(maximum=0.0).disturb(told, torch.ones(2), Draws.of(0, torch.arange(2))) is told


def test_a_batch_is_its_samples():
    frames, time = torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    together = Settings().disturb(Condition({"content_frame": frames}), time, Draws.of(0, torch.arange(3)))
    for number in range(3):
        one = slice(number, number + 1)
        alone = Settings().disturb(
            Condition({"content_frame": frames[one]}), time[one], Draws.of(0, torch.tensor([number]))
        )
        assert torch.equal(alone["content_frame"], together["content_frame"][one])


def test_the_whole_time_with_moments_of_noise_is_the_plain_start(process):
    """M = T, mean 0, variance 1: the same start to a bit's rounding, the same steps."""
    solver = LaterStart().solver(process, None, 10, None)
    z = torch.randn(4, 1)
    torch.testing.assert_close(solver.start(z), z, atol=1e-6, rtol=1e-6)
    assert solver.levels == torch.linspace(999, 0, 11)[:-1].round().long().tolist()


def test_analytic_init_has_the_moments_of_a_gaussian(process):
    solver = LaterStart(share=0.6, mean=2.0, variance=0.25).solver(process, None, 10, None)
    start = solver.start(torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)))
    a, g = process.signal[599].item(), process.noise[599].item()
    assert start.mean().item() == pytest.approx(2 * a, abs=0.01)
    assert start.var().item() == pytest.approx(g**2 + a**2 * 0.25, rel=0.01)


def test_a_later_start_samples_a_gaussian(process, gaussian):
    how = LaterStart(share=0.6, mean=1.0, variance=0.25)
    solver = how.solver(process, None, 100, None)
    assert isinstance(solver, EtaSolver) and solver.levels[0] == 599
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    found = sample(gaussian(process, 1.0, 0.5), solver, steps_at(solver.timesteps, 1000), z)
    assert found.mean().item() == pytest.approx(1.0, abs=0.03)
    assert found.std().item() == pytest.approx(0.5, abs=0.03)


def test_training_with_it_learns_and_differs(tiny_config, run_train, read_log, tmp_path):
    first = []
    for name, disturb in (("plain", None), ("leakage", {"kind": "image_leakage", "maximum": 1.0})):
        objective = {"kind": "denoising", "disturb": disturb}
        config = tiny_config("motion", tmp_path / name, objective=objective, loop__steps=8, loop__validate_every=8)
        config["validation"]["num_samples"] = 0
        run_train(config)
        first.append([line["loss"] for line in read_log(tmp_path / name, "train")])
    assert first[0][0] == first[1][0]  # a fresh network ignores its frame
    assert first[0][1:] != first[1][1:]
