"""Distribution matching: its gradient in closed form, whose turn it is, the sampler it trains, resume, learning."""

import pytest
import torch
from cmd_video.training.draws import draw_noise, generators

from cmd_video.pipelines.sampling import distilled_steps
from cmd_video.training.config import TrainConfig

SETTINGS = {
    "method": "distribution_matching",
    "guidance_scale": 1.0,
    "num_timesteps": 10,
    "num_segments": 2,
    "starts": [999, 699],
    "fake_score_steps": 2,
}
OBJECTIVE = {"objective": {"distillation": SETTINGS, "condition_dropout": 0.0}, "validation__num_inference_steps": 2}


def awake(name, build_tiny, batch_of, numbers=range(3), **changes):
    """A stage whose student, teacher and fake score differ, and a batch."""
    torch.manual_seed(5)
    stage, dataset = build_tiny(name, weights=0.2, **OBJECTIVE, **changes)
    for part in (stage.frozen["teacher"], stage.fake_score):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return stage, batch_of(dataset, numbers)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_what_is_trained_is_what_is_sampled(name, build_tiny, batch_of):
    """The sample that gets the gradient is the one that the pipeline's few-step sampler makes of the same noise."""
    stage, batch = awake(name, build_tiny, batch_of)
    noise = draw_noise(stage.sample(batch), generators(stage.config.seed + 2, batch["number"]))
    with torch.no_grad():
        torch.testing.assert_close(stage._generate(noise, batch), stage.draw_samples(batch), atol=2e-3, rtol=1e-3)


def gaussian(mean, spread, scheduler):
    """E[x_0 | z_t] of clean samples that are all N(mean, spread^2)."""

    def denoise(noisy, timestep, condition):
        level = scheduler.alphas_cumprod[timestep].view(-1, *[1] * (noisy.ndim - 1))
        gain = level.sqrt() * spread**2 / (level * spread**2 + 1 - level)
        return mean + gain * (noisy - level.sqrt() * mean)

    return denoise


@pytest.mark.parametrize(("real", "fake"), [(1.0, 0.0), (-0.5, 0.5), (0.3, 0.3)])
def test_the_gradient_leads_from_the_students_distribution_to_the_teachers(
    real, fake, build_tiny, batch_of, monkeypatch
):
    """Two Gaussians: x_0's estimates differ by (fake - real) times the share of noise, over the teacher's distance."""
    stage, batch = awake("content", build_tiny, batch_of)
    scheduler = stage.components["content_scheduler"]
    scheduler.register_to_config(prediction_type="sample")
    sample = (fake + 0.5 * torch.randn(3, *stage.sample(batch).shape[1:])).requires_grad_()
    monkeypatch.setattr(stage, "_generate", lambda noise, condition: sample)
    monkeypatch.setattr(stage, "_guided_teacher", gaussian(real, 0.5, scheduler))
    monkeypatch.setattr(stage, "_predicted_sample", gaussian(fake, 0.5, scheduler))
    timestep, draws = torch.tensor([0, 500, 999]), [torch.Generator().manual_seed(n) for n in range(3)]
    stage._student_loss(torch.zeros_like(sample), timestep, batch, draws).sum().backward()
    again = [torch.Generator().manual_seed(n) for n in range(3)]
    clamped = timestep.clamp(20, 980)  # DMD's limits
    noisy = scheduler.add_noise(sample.detach(), draw_noise(sample, again), clamped)
    level = scheduler.alphas_cumprod[clamped].view(-1, 1, 1, 1)
    share = (1 - level) / (level * 0.25 + 1 - level)
    scale = (sample - gaussian(real, 0.5, scheduler)(noisy, clamped, batch)).abs().mean((1, 2, 3), keepdim=True)
    expected = ((fake - real) * share / scale / sample[0].numel()).expand_as(sample)
    torch.testing.assert_close(sample.grad, expected.detach(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_student_and_fake_score_take_turns(name, build_tiny, batch_of):
    for first, student_learns in ((0, True), (4, False), (8, False), (12, True)):  # the tiny batch has 4 clips
        stage, batch = awake(name, build_tiny, batch_of, range(first, first + 4))
        assert stage.config.takes_turns and stage.config.loop.batch_size == 4
        stage(batch).backward()
        student = [value.grad for value in getattr(stage, stage.denoiser).parameters()]
        fake = [value.grad for value in stage.fake_score.parameters()]
        learns, rests = (student, fake) if student_learns else (fake, student)
        assert any(grad is not None and grad.abs().sum() > 0 for grad in learns)
        assert all(grad is None for grad in rests)
        assert all(value.grad is None for value in stage.frozen["teacher"].parameters())


@pytest.mark.parametrize("name", ["content", "motion"])
def test_both_scores_and_every_jump_count(name, build_tiny, batch_of):
    """Another fake score or teacher is another gradient; it reaches the weights through the first jump, too."""
    stage, batch = awake(name, build_tiny, batch_of)
    noise, timestep = draw_noise(stage.sample(batch), generators(0, batch["number"])), torch.tensor([100, 400, 800])

    def gradient():
        stage.zero_grad()
        stage._student_loss(noise, timestep, batch, generators(1, batch["number"])).sum().backward()
        return torch.cat([value.grad.flatten() for value in getattr(stage, stage.denoiser).parameters()])

    whole = gradient()
    for part in (stage.fake_score, stage.frozen["teacher"]):
        before = {key: value.clone() for key, value in part.state_dict().items()}
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(0.5)
        assert not torch.allclose(gradient(), whole, rtol=1e-2)
        part.load_state_dict(before)
    assert torch.equal(gradient(), whole)
    own = stage._predicted_sample

    def last_jump_only(noisy, time, condition):
        with torch.set_grad_enabled(torch.is_grad_enabled() and int(time[0]) != 999):
            return own(noisy, time, condition)

    stage._predicted_sample = last_jump_only
    assert not torch.allclose(gradient(), whole, rtol=1e-2)


def test_the_fake_score_learns_the_students_distribution(build_tiny, batch_of):
    stage, batch = awake("content", build_tiny, batch_of, range(8))
    optimizer = torch.optim.Adam(stage.fake_score.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        draws = generators(0, batch["number"])
        noise, timestep = draw_noise(stage.sample(batch), draws), torch.arange(60, 1000, 120)
        loss = stage._fake_score_loss(noise, timestep, batch, draws).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["content", "motion"])
def test_a_stopped_run_goes_on_as_if_it_had_not(name, tiny_config, forked_train, differences, tmp_path):
    whole, stopped = (tiny_config(name, tmp_path / run, **OBJECTIVE) for run in ("whole", "stopped"))
    assert forked_train(whole).codes == [0]
    assert forked_train(stopped, signal=[15, 3]).codes == [143]
    assert forked_train(stopped).codes == [0]
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    parts = {path.name for path in (tmp_path / "whole" / "pipeline").iterdir()}
    assert not parts & {"teacher", "fake_score"}  # what comes out is the student alone, with its sampler


def test_a_finished_run_has_the_few_step_sampler(build_tiny, batch_of):
    stage, _ = awake("content", build_tiny, batch_of)
    stage.finish([])
    assert distilled_steps(stage.components["content_scheduler"]) == 2


def test_its_setting_belongs_to_it_alone(tiny_config, tmp_path):
    objective = {"distillation": {**SETTINGS, "method": "backward"}}
    config = tiny_config("content", tmp_path, objective=objective, validation__num_inference_steps=2)
    with pytest.raises(ValueError, match="fake_score_steps: it belongs to distribution_matching, not to backward"):
        TrainConfig.model_validate(config)
