"""Variational restoration: operators and their adjoints, the paper's gradient, least squares, a Gaussian prior."""

import pytest
import torch

from cmd_video.diffusion.condition import Condition
from cmd_video.techniques.variational_restoration import TASKS, Operator, Settings

CLIP = (2, 3, 8, 16, 16)


def operator(task):
    mask = (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    return Operator(task, factor=2, mask=mask if task == "inpaint" else None)


@pytest.mark.parametrize("task", TASKS)
def test_operators_are_linear_and_have_an_adjoint(task):
    """<A x, y> = <x, A^T y>, with A^T by autograd."""
    x = torch.randn(CLIP, dtype=torch.float64, requires_grad=True)
    seen = operator(task)(x)
    y = torch.randn_like(seen)
    (adjoint,) = torch.autograd.grad((seen * y).sum(), x)
    assert (seen * y).sum().item() == pytest.approx((x * adjoint).sum().item(), rel=1e-9)
    torch.testing.assert_close(operator(task)(2 * x + 1) - operator(task)(torch.ones_like(x)), 2 * seen)


@pytest.mark.parametrize("task", TASKS)
def test_the_simplest_clip_has_the_right_size(task):
    damage = operator(task)
    simple = damage.simplest(damage(torch.rand(CLIP) * 2 - 1), 8)
    assert simple.shape == CLIP
    assert damage(simple).shape == damage(torch.zeros(CLIP)).shape


def test_frames_between_known_ones_are_linear():
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 3, 9, 4, 4) / 9
    damage = Operator("interpolate", factor=4)
    torch.testing.assert_close(damage.simplest(damage(ramp), 9), ramp)
    assert Operator("predict", factor=3).known(8) == [0, 1, 2]
    assert Operator("interpolate", factor=3).known(8) == [0, 3, 6, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharpen",), "task: 'sharpen' is none of superres, inpaint"),
        (("superres", 0), "factor: 0 is not a whole number"),
        (("inpaint",), "mask: goes with the task 'inpaint'"),
        (("inpaint", 1, torch.zeros(4, 4)), "mask: it hides everything"),
    ],
)
def test_what_cannot_be_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        Operator(*arguments)


class Gaussian:
    """A denoiser whose clean samples are N(mean, spread^2)."""

    component = "unet"

    def __init__(self, process, mean, spread):
        self.process, self.mean, self.spread = process, mean, spread

    def predict(self, model, x_t, t, told):
        a, g = self.process.at(t, x_t)
        gain = a * self.spread**2 / (a**2 * self.spread**2 + g**2)
        return self.mean + gain * (x_t - a * self.mean)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_pull_is_the_papers_weighed_residual(kind):
    """(g / a) (predicted noise - noise) = x - x_0(a x + g e), for any prediction type."""
    from diffusers import DDIMScheduler

    from cmd_video.diffusion.process import process_of

    process = process_of(DDIMScheduler(prediction_type=kind, clip_sample=False))
    x, e = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = torch.tensor([100, 500, 800])
    x_t = process.marginal(x, e, t)
    prediction = torch.randn_like(x)
    x_0 = process.clean(prediction, x_t, t)
    a, g = process.at(t, x)
    torch.testing.assert_close(g / a * (process.noise_of(x_0, x_t, t) - e), x - x_0, atol=1e-3, rtol=1e-3)


def restore(process, weight, observed, iterations=400, rows=2):
    told = Condition({"content_frame": torch.zeros(rows, 1, 1, 1)})
    parts = [(Gaussian(process, 0.3, 0.2), None, told) for _ in range(2)]
    start = torch.zeros(rows, 3, 4, 4), torch.zeros(rows, 1, 2, 2)
    how = Settings(iterations=iterations, learning_rate=0.02, prior_weight=weight)
    return how.restore(observed, lambda clip: clip, *parts, start, lambda frame, motion: frame[:, :, None])


def test_without_a_prior_it_is_least_squares(process):
    observed = torch.rand(2, 3, 1, 4, 4)
    frame, _ = restore(process, 0.0, observed)
    torch.testing.assert_close(frame, observed[:, :, 0], atol=0.02, rtol=0)


def test_a_prior_pulls_towards_its_mean(process):
    observed = torch.full((2, 3, 1, 4, 4), 1.0)
    found = [restore(process, weight, observed)[0].mean().item() for weight in (0.0, 0.2, 2.0)]
    assert found[0] > found[1] > found[2] > 0.25
    motion = restore(process, 0.2, observed)[1]
    assert motion.mean().item() == pytest.approx(0.3, abs=0.1)  # nothing is seen of it


def test_a_batch_is_its_clips(process):
    observed = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    together, _ = restore(process, 0.05, observed, iterations=20)
    alone, _ = restore(process, 0.05, observed[:1], iterations=20, rows=1)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
