"""Distribution matching: its gradient in closed form, whose turn it is, the sampler it trains, resume, learning."""

import json

import pytest
import torch

from cmd_video.diffusion.draws import Draws
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.training.config import TrainConfig
from cmd_video.training.stages import SAMPLING

SETTINGS = {
    "kind": "distribution_matching",
    "guidance_scale": 1.0,
    "num_timesteps": 10,
    "num_segments": 2,
    "starts": [999, 699],
    "fake_score_steps": 2,
}
OBJECTIVE = {"objective": {**SETTINGS, "condition_dropout": 0.0}, "validation__num_inference_steps": 2}


def awake(name, build_tiny, batch_of, numbers=range(3), **changes):
    """A stage whose student, teacher and fake score differ, and a batch."""
    torch.manual_seed(5)
    stage, dataset = build_tiny(name, weights=0.2, **OBJECTIVE, **changes)
    for part in (stage.objective.teacher, stage.objective.fake_score):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return stage, {**batch_of(dataset, numbers), "step": numbers[0] // 4}


def example(stage, batch):
    """x_0, what may be told of it, and that encoded."""
    x_0, condition = stage.denoiser.example(batch)
    return x_0, condition, stage.denoiser.encode(condition)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_what_is_trained_is_what_is_sampled(name, build_tiny, batch_of):
    """The sample that gets the gradient is the one that the pipeline's few-step sampler makes of the same noise."""
    stage, batch = awake(name, build_tiny, batch_of)
    x_0, _, told = example(stage, batch)
    z = Draws.of(stage.config.seed + 2, batch["number"]).normal(x_0)
    with torch.no_grad():
        jumped = stage.objective.jump(stage.model, z, told)
        torch.testing.assert_close(jumped, stage.draw_samples(batch), atol=2e-3, rtol=1e-3)


def gaussian(mean, spread, scheduler):
    """E[x_0 | x_t] of clean samples that are all N(mean, spread^2), in the places of both networks."""

    def denoise(model, x_t, t, *told):
        level = scheduler.alphas_cumprod[t].view(-1, *[1] * (x_t.ndim - 1))
        gain = level.sqrt() * spread**2 / (level * spread**2 + 1 - level)
        return mean + gain * (x_t - level.sqrt() * mean)

    return denoise


@pytest.mark.parametrize(("real", "fake"), [(1.0, 0.0), (-0.5, 0.5), (0.3, 0.3)])
def test_the_gradient_leads_from_the_students_distribution_to_the_teachers(
    real, fake, build_tiny, batch_of, monkeypatch
):
    """Two Gaussians: x_0's estimates differ by (fake - real) times the share of noise, over the teacher's distance."""
    stage, batch = awake("content", build_tiny, batch_of)
    learned, scheduler = stage.objective, stage.components["content_scheduler"]
    scheduler.register_to_config(prediction_type="sample")
    x_0, condition, told = example(stage, batch)
    sample = (fake + 0.5 * torch.randn(3, *x_0.shape[1:])).requires_grad_()
    monkeypatch.setattr(learned, "jump", lambda model, z, told: sample)
    monkeypatch.setattr(learned, "guided", gaussian(real, 0.5, scheduler))
    monkeypatch.setattr(learned, "clean", gaussian(fake, 0.5, scheduler))
    t, numbers = torch.tensor([0, 500, 999]), torch.arange(3)
    z = torch.zeros_like(sample)
    learned.student_loss(stage.model, z, t, condition, told, Draws.of(0, numbers)).sum().backward()
    clamped = t.clamp(20, 980)  # DMD's limits
    x_t = scheduler.add_noise(sample.detach(), Draws.of(0, numbers).normal(sample), clamped)
    level = scheduler.alphas_cumprod[clamped].view(-1, 1, 1, 1)
    share = (1 - level) / (level * 0.25 + 1 - level)
    scale = (sample - gaussian(real, 0.5, scheduler)(None, x_t, clamped)).abs().mean((1, 2, 3), keepdim=True)
    expected = ((fake - real) * share / scale / sample[0].numel()).expand_as(sample)
    torch.testing.assert_close(sample.grad, expected.detach(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_student_and_fake_score_take_turns(name, build_tiny, batch_of):
    for first, student_learns in ((0, True), (4, False), (8, False), (12, True)):  # the tiny batch has 4 clips
        stage, batch = awake(name, build_tiny, batch_of, range(first, first + 4))
        assert stage.config.objective.takes_turns and stage.config.loop.batch_size == 4
        stage(batch).backward()
        student = [value.grad for value in stage.model.parameters()]
        fake = [value.grad for value in stage.fake_score.parameters()]
        learns, rests = (student, fake) if student_learns else (fake, student)
        assert any(grad is not None and grad.abs().sum() > 0 for grad in learns)
        assert all(grad is None for grad in rests)
        assert all(value.grad is None for value in stage.objective.teacher.parameters())
        assert stage.fake_score is stage.objective.fake_score
        names = set(stage.learning())
        assert any(name.startswith("fake_score.") for name in names)
        assert not any("teacher" in name for name in {*names, *stage.state_dict()})


@pytest.mark.parametrize("name", ["content", "motion"])
def test_both_scores_and_every_jump_count(name, build_tiny, batch_of):
    """Another fake score or teacher is another gradient; it reaches the weights through the first jump, too."""
    stage, batch = awake(name, build_tiny, batch_of)
    learned, (x_0, condition, told) = stage.objective, example(stage, batch)
    z, t = Draws.of(0, batch["number"]).normal(x_0), torch.tensor([100, 400, 800])

    def gradient():
        stage.zero_grad()
        rng = Draws.of(1, batch["number"])
        learned.student_loss(stage.model, z, t, condition, told, rng).sum().backward()
        return torch.cat([value.grad.flatten() for value in stage.model.parameters()])

    whole = gradient()
    for part in (learned.fake_score, learned.teacher):
        before = {key: value.clone() for key, value in part.state_dict().items()}
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(0.5)
        assert not torch.allclose(gradient(), whole, rtol=1e-2)
        part.load_state_dict(before)
    assert torch.equal(gradient(), whole)
    own = learned.clean

    def last_jump_only(model, x_t, t, told):
        with torch.set_grad_enabled(torch.is_grad_enabled() and int(t[0]) != 999):
            return own(model, x_t, t, told)

    learned.clean = last_jump_only
    assert not torch.allclose(gradient(), whole, rtol=1e-2)


def test_the_fake_score_learns_the_students_distribution(build_tiny, batch_of):
    stage, batch = awake("content", build_tiny, batch_of, range(8))
    learned, (x_0, _, told) = stage.objective, example(stage, batch)
    optimizer = torch.optim.Adam(learned.fake_score.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        rng = Draws.of(0, batch["number"])
        z, t = rng.normal(x_0), torch.arange(60, 1000, 120)
        loss = learned.fake_score_loss(stage.model, z, t, told, rng).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_validated_is_the_students_distance_at_given_levels(build_tiny, batch_of):
    stage, batch = awake("motion", build_tiny, batch_of)
    learned, (x_0, condition, told) = stage.objective, example(stage, batch)
    rng, t = Draws.of(stage.config.seed + 1, batch["number"]), learned.validation_times(batch["number"])
    with torch.no_grad():
        found = stage.eval().validate(batch)["loss"]
        expected = learned.student_loss(stage.model, rng.normal(x_0), t, condition, told, rng).mean()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_a_stopped_run_goes_on_as_if_it_had_not(name, tiny_config, forked_train, differences, tmp_path):
    whole, stopped = (tiny_config(name, tmp_path / run, **OBJECTIVE) for run in ("whole", "stopped"))
    assert forked_train(whole).codes == [0]
    assert forked_train(stopped, signal=[15, 3]).codes == [143]
    assert forked_train(stopped).codes == [0]
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []
    parts = {path.name for path in (tmp_path / "whole" / "pipeline").iterdir()}
    assert not parts & {"teacher", "fake_score"}  # what comes out is the student alone, with its sampler


def test_a_finished_run_has_the_few_step_sampler(build_tiny, batch_of, tmp_path):
    stage, _ = awake("content", build_tiny, batch_of)
    stage.finish(iter(()))
    stage.save_extras(tmp_path)
    how = ModelSampling.model_validate(json.loads((tmp_path / SAMPLING).read_text())["content"])
    assert how.starts == (999, 699) and how.num_inference_steps == 2 and how.guidance_scale == 1.0


def test_its_setting_belongs_to_it_alone(tiny_config, tmp_path):
    objective = {**SETTINGS, "kind": "backward"}
    config = tiny_config("content", tmp_path, objective=objective, validation__num_inference_steps=2)
    with pytest.raises(ValueError, match=r"objective\.fake_score_steps\s+Extra inputs are not permitted"):
        TrainConfig.model_validate(config)
