"""Sampling in both directions: Euler's step, what one frame in place is, and a Gaussian line between two frames."""

import diffusers
import pytest
import torch

from cmd_video.diffusion.guidance import ALL, NOTHING
from cmd_video.diffusion.plan import Step, steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.techniques.bidirectional import BidirectionalSolver, BothWays, Settings, ending_in
from cmd_video.techniques.cfg_plus_plus import Settings as Guidance


def edm():
    return diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        prediction_type="v_prediction",
    )  # fmt: skip


def ddpm():
    return diffusers.DDIMScheduler(prediction_type="epsilon")


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.fixture(params=[edm, ddpm, flow])
def solver(request):
    scheduler = request.param()
    return Settings().solver(process_of(scheduler), scheduler, 5, None)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan(solver):
    return steps_at(solver.timesteps, 1000)


def predicting(solver, estimate):
    """A network whose clean estimate at x_t is `estimate`(x_t / a, sigma), whatever the process predicts."""

    def denoise(x, step):
        t, _ = solver.level(step, x)
        a, g = solver.process.at(t, x)
        if not a.all():  # flow matching at its start
            x_0 = estimate(x, torch.full_like(g, 1000.0))
        else:
            x_0 = estimate(x / a, g / a)
        return solver.process.target(x_0, solver.process.noise_of(x_0, x, t), t)

    return denoise


class Pair:
    """Guidance by CFG++ of two networks."""

    def __init__(self, conditional, unconditional, scale):
        self.guidance, self.both = Guidance(scale=scale), {ALL: conditional, NOTHING: unconditional}

    def pair(self, x, step):
        found = {name: each(x, step) for name, each in self.both.items()}
        return self.guidance.combine(found, step), self.guidance.renoise(found, step)

    def __call__(self, x, step):
        return self.pair(x, step)[0]


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_one_direction_is_the_papers_step_in_sigma(scale):
    """x' = D_hat + (x - D_u) / sigma sigma_next, D_hat = D_u + s (D_c - D_u) with the last frame in place."""
    solver = Settings().solver(process_of(edm()), edm(), 5, None)
    last = noise(2, 3, 4, 4, seed=7)

    def conditional(x, sigma):
        return 0.3 * x / (1 + sigma) + 1.0

    def unconditional(x, sigma):
        return 0.1 * x / (1 + sigma)

    denoise = Pair(predicting(solver, conditional), predicting(solver, unconditional), scale)
    for step in plan(solver)[1:]:
        (t, until), x = solver.level(step, last), noise(2, 3, 6, 4, 4)
        (a, g), (a_until, g_until) = solver.process.at(t, x), solver.process.at(until, x)
        sigma, after, scaled = g / a, g_until / a_until, x / a
        d_u, d_c = unconditional(scaled, sigma), conditional(scaled, sigma)
        expected = ending_in(d_u + scale * (d_c - d_u), last) + (scaled - d_u) / sigma * after
        found = solver.down(denoise, x, step, last) / a_until
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_one_sided_without_a_frame_in_place_is_euler(solver):
    """With s = 1 and one network, where what is put in place is what was there."""
    denoise = predicting(solver, lambda x, sigma: 0.3 * x / (1 + sigma) + 1.0)
    euler, x = EtaSolver(solver.process, solver.levels), noise(2, 3, 6, 4, 4)
    for step in plan(solver):
        own = solver.estimate(denoise, x, step)[0][:, :, -1]
        assert torch.equal(solver.down(denoise, x, step, own), euler.step(denoise, x, step, None))
        x = euler.step(denoise, x, step, None)


def test_one_iteration_of_conjugate_gradients_on_a_mask_puts_the_frame_in_place():
    x_0, last = noise(2, 3, 5, 4, 4).double(), noise(2, 3, 4, 4, seed=1).double()
    mask = torch.zeros(5).double()
    mask[-1] = 1
    mask = mask.view(1, 1, 5, 1, 1)
    rest = mask * (last[:, :, None] - mask * x_0)  # A^T (y - A x)
    step = rest.square().sum() / (rest * (mask * rest)).sum()
    found = x_0 + step * rest
    torch.testing.assert_close(found, ending_in(x_0, last))
    assert not (mask * (last[:, :, None] - mask * found)).abs().max() > 1e-12  # a second would change nothing


def test_a_clip_turned_round_twice_is_the_clip():
    """The same network both ways, asked of clips that read alike from both ends: so does what comes out."""
    solver = Settings().solver(process_of(ddpm()), ddpm(), 4, None)
    half = noise(1, 2, 3, 4, 4)
    z, frame = torch.cat([half, half.flip(2)], dim=2), noise(1, 2, 4, 4, seed=3)
    assert torch.equal(z.flip(2).flip(2), z)
    denoise = predicting(solver, lambda x, sigma: x / (1 + sigma**2))
    ends = BothWays(denoise, denoise, frame, frame)
    found = sample(ends, solver, plan(solver), z, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, :, 0], frame) and torch.equal(found[:, :, -1], frame)
    swapped = BothWays(denoise, denoise, noise(1, 2, 4, 4, seed=4), frame)
    first = sample(swapped, solver, plan(solver), z, torch.Generator().manual_seed(0))
    assert torch.equal(first[:, :, 0], swapped.first) and torch.equal(first[:, :, -1], swapped.last)


def test_new_noise_leads_up_to_the_level_that_it_says():
    solver = Settings().solver(process_of(ddpm()), ddpm(), 4, None)
    x_0 = torch.full((4000, 1, 2, 1, 1), 2.0)
    for t, until in ((-1, 200), (100, 600), (600, 999)):
        low, high = (torch.full((4000,), level) for level in (t, until))
        a, g = solver.process.at(low, x_0)
        found = solver.up(a * x_0 + g * noise(*x_0.shape), low, high, torch.Generator().manual_seed(5))
        a, g = solver.process.at(high, x_0)
        assert found.mean().item() == pytest.approx(2 * float(a[0]), abs=0.05)
        assert found.std().item() == pytest.approx(float(g[0]), rel=0.03)


def test_both_given_frames_count_between_them():
    """A clip is a random walk: told its first frame, the best guess forward is that frame; told the last, that one.

    Alternating, the middle of the clip comes to lie between the two, and a sample has both ends.
    """
    solver = Settings().solver(process_of(ddpm()), ddpm(), 50, None)
    place = torch.arange(5.0)
    covariance = torch.minimum(place[:, None], place[None])[1:, 1:]  # of a walk that starts at a known frame

    def walk(start):
        def estimate(x, sigma):
            rest = x[:, 0, 1:, 0, 0] - start
            gain = covariance @ torch.linalg.inv(covariance + sigma.flatten()[0] ** 2 * torch.eye(4))
            guess = start + rest @ gain.T
            whole = torch.cat([torch.full_like(guess[:, :1], start), guess], dim=1)
            return whole[:, None, :, None, None]

        return predicting(solver, estimate)

    z = noise(500, 1, 5, 1, 1)
    ends = BothWays(walk(0.0), walk(8.0), torch.zeros(500, 1, 1, 1), torch.full((500, 1, 1, 1), 8.0))
    clips = sample(ends, solver, plan(solver), z, torch.Generator().manual_seed(0))[:, 0, :, 0, 0]
    assert not clips[:, 0].any() and (clips[:, -1] == 8).all()
    middle = clips.mean(dim=0)
    assert (middle.diff() > 0).all()
    assert middle[2].item() == pytest.approx(4.0, abs=0.8)


def test_another_denoise_is_an_error_of_ours():
    solver = BidirectionalSolver(process_of(ddpm()), [999, 500])
    with pytest.raises(AssertionError):
        solver.step(lambda x, step: x, noise(1, 1, 2, 1, 1), Step(999.0, 0.999), None)
