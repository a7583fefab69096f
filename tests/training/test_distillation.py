"""Distillation: closed forms of its losses, and a student that follows its teacher."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel

from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import pseudo_huber
from cmd_video.diffusion.process import ddim_sample, ddim_step, process_of
from cmd_video.training.config import TrainConfig

DDIM = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


def distilled(kind, scale=3.0, segments=2, starts=None):
    settings = {"kind": kind, "guidance_scale": scale, "num_timesteps": 10, "num_segments": segments}
    return {**settings, "starts": starts}


def readied(stage):
    """The solver and the steps with which validation samples."""
    name = stage.denoiser.scheduler
    return stage.sampling().ready(SimpleNamespace(components={name: stage.sampler()}, scheduler=name))


@pytest.mark.parametrize("name", ["content", "motion"])
def test_guidance_loss_is_the_distance_to_the_guided_teacher(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name, objective=distilled("guidance_distillation", 1.0))
    x_0, condition = stage.denoiser.example(batch_of(dataset, range(4)))
    t, z = torch.tensor([10, 300, 600, 990]), Draws.of(0, torch.arange(4)).normal(x_0)
    loss = stage.objective.distance(stage.model, x_0, z, t, condition, stage.denoiser.encode(condition))
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-12, rtol=0)  # without guidance: itself


def awake(name, build_tiny, batch_of, kind, segments=2, starts=None, **changes):
    """A stage whose student and teacher differ, both with awake weights; a batch; x_0, and what may be told of it."""
    torch.manual_seed(5)
    objective = {**distilled(kind, 3.0, segments, starts), **changes}
    stage, dataset = build_tiny(name, weights=0.2, objective=objective, validation__num_inference_steps=segments)
    for parameter in stage.objective.teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of(dataset, range(3))
    return stage.eval(), batch, *stage.denoiser.example(batch)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_guidance_loss_in_closed_form(name, build_tiny, batch_of):
    stage, batch, x_0, condition = awake(name, build_tiny, batch_of, "guidance_distillation")
    t, z = torch.tensor([10, 500, 990]), torch.randn(x_0.shape)
    x_t = stage.components[stage.denoiser.scheduler].add_noise(x_0, z, t)
    told = stage.denoiser.encode(condition)
    empty = stage.denoiser.encode(stage.denoiser.example({**batch, "prompt": [""] * 3})[1])
    predict, teacher = stage.denoiser.predict, stage.objective.teacher
    with torch.no_grad():
        ours = predict(stage.model, x_t, t, told)
        conditional, unconditional = (predict(teacher, x_t, t, rows) for rows in (told, empty))
        expected = (ours - (3 * conditional - 2 * unconditional)).square().flatten(1).mean(1)
        loss = stage.objective.guidance_distance(stage.model, x_0, z, t, condition, told)
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize(
    ("kind", "segments"),
    [("consistency", 1), ("consistency", 2), ("consistency", 5), ("backward", 1), ("backward", 5)],
)
def test_the_sampler_jumps_from_segment_to_segment(name, kind, segments, build_tiny, batch_of):
    objective = distilled(kind, segments=segments)
    stage, dataset = build_tiny(name, objective=objective, validation__num_inference_steps=segments)
    solver, steps = readied(stage)
    scheduler = solver.scheduler
    assert [step.t for step in steps] == [1000 * part // segments - 1 for part in range(segments, 0, -1)]
    assert isinstance(scheduler, LCMScheduler) == ((kind, segments) == ("consistency", 1))
    x_0, condition = stage.denoiser.example(batch_of(dataset, range(3)))
    told, t = stage.denoiser.encode(condition), torch.full((3,), int(steps[-1].t))
    with torch.no_grad():
        scheduler._step_index = segments - 1
        prediction = stage.denoiser.predict(stage.model, x_0, t, told)
        reached = scheduler.step(prediction, t[0], x_0).prev_sample
        expected = stage.objective.clean(stage.model, x_0, t, told)
    torch.testing.assert_close(reached, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_the_consistency_loss_joins_neighbouring_times_of_a_segment(name, build_tiny, batch_of, monkeypatch):
    stage, _, x_0, condition = awake(name, build_tiny, batch_of, "consistency")
    seen, learned = [], stage.objective
    guided, own = learned.guided, learned.clean
    monkeypatch.setattr(learned, "guided", lambda m, x, t, *rest: seen.append(t) or guided(m, x, t, *rest))
    monkeypatch.setattr(learned, "clean", lambda m, x, t, told: seen.append(t) or own(m, x, t, told))
    t, told = torch.tensor([0, 100, 999]), stage.denoiser.encode(condition)
    learned.consistency_distance(stage.model, x_0, torch.randn(x_0.shape), t, condition, told)
    assert [time.tolist() for time in seen] == [[99, 199, 999], [0, 99, 899], [99, 199, 999]]


@pytest.mark.parametrize("name", ["content", "motion"])
def test_where_a_segment_ends_the_target_is_the_teachers(name, build_tiny, batch_of):
    """One stretch in each segment: what is learned is a step of the guided teacher, whatever the student says."""
    stage, _, x_0, condition = awake(name, build_tiny, batch_of, "consistency", segments=10)
    z, t, high = torch.randn(x_0.shape), torch.tensor([0, 450, 910]), torch.tensor([99, 499, 999])
    learned, told = stage.objective, stage.denoiser.encode(condition)
    with torch.no_grad():
        loss = learned.consistency_distance(stage.model, x_0, z, t, condition, told)
        x_t = stage.components[stage.denoiser.scheduler].add_noise(x_0, z, high)
        taught = learned.guided(learned.teacher, x_t, high, condition, told, 3.0)
        clean = learned.process.clean(taught, x_t, high)
        expected = pseudo_huber(learned.clean(stage.model, x_t, high, told), clean)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize(("starts", "times"), [(None, [700, 100, 499]), ((999, 799), [900, 100, 799])])
def test_backward_distillation_follows_the_teacher_from_where_sampling_led(name, starts, times, build_tiny, batch_of):
    """Both ways walked with diffusers' samplers: the student's jumps to the segment, the guided teacher's steps on."""
    stage, _, x_0, condition = awake(name, build_tiny, batch_of, "backward", starts=starts)
    learned, told, model = stage.objective, stage.denoiser.encode(condition), stage.model
    second = 499 if starts is None else 799
    z, scheduler = torch.randn(x_0.shape), stage.components[stage.denoiser.scheduler]
    high, end = torch.tensor([999, second, second]), torch.tensor([second, -1, -1])
    x_t = z.clone()  # also with this schedule, which leaves some signal at t = 999
    jumping, steps = readied(stage)[0].scheduler, DDIMScheduler.from_config(scheduler.config, **DDIM)
    steps.set_timesteps(10)
    with torch.no_grad():
        loss = learned.backward_distance(model, z, torch.tensor(times), condition, told)
        prediction = stage.denoiser.predict(model, x_t, torch.full((3,), 999), told)
        first = jumping.step(prediction, 999, x_t).prev_sample
        start = torch.stack([x_t[0], first[1], first[2]])
        ends = []
        for number in range(3):
            state = start.clone()
            for timestep in [t for t in steps.timesteps if end[number] < t <= high[number]]:
                taught = learned.guided(learned.teacher, state, timestep.expand(3), condition, told, 3.0)
                state = steps.step(taught, timestep, state).prev_sample
            ends.append(state[number])
        clean = ddim_sample(learned.process, start, torch.stack(ends), high, end)
        expected = pseudo_huber(learned.clean(model, start, high, told), clean)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "zero"), [("sample", True), ("v_prediction", True), ("sample", False), ("epsilon", False)]
)
def test_jumps_of_any_length_are_steps_of_ddim(kind, zero, build_tiny):
    """The few-step sampler against the closed form of each jump, also from a start without signal."""
    objective = distilled("backward", segments=3, starts=[999, 899, 399])
    stage, _ = build_tiny("content", objective=objective, validation__num_inference_steps=3)
    schedule = {"prediction_type": kind, "clip_sample": False, "rescale_betas_zero_snr": zero}
    stage.components["content_scheduler"] = scheduler = DDIMScheduler(**schedule)
    assert stage.denoiser.process.prediction_type == kind
    (solver, steps), process = readied(stage), process_of(scheduler)
    assert [step.t for step in steps] == [999, 899, 399] and stage.sampling().starts == (999, 899, 399)
    x = torch.randn(2, 3, 4, 4)
    for step, end in zip(steps, (899, 399, -1), strict=True):
        prediction, t = torch.randn(2, 3, 4, 4), torch.full((2,), int(step.t))
        clean = process.clean(prediction, x, t)
        expected = ddim_step(process, x, clean, t, torch.full((2,), end))
        x = solver.step(lambda x, step, value=prediction: value, x, step, None)
        torch.testing.assert_close(x, expected, atol=2e-3, rtol=1e-3)


def test_the_noise_schedule_must_have_as_many_timesteps_as_the_settings_assume(build_tiny):
    schedule = {"components__content_scheduler": {"class": "DDIMScheduler", "config": {"num_train_timesteps": 500}}}
    with pytest.raises(
        ValueError, match="components.content_scheduler.num_train_timesteps: 500, distillation needs 1000"
    ):
        build_tiny("content", objective=distilled("backward"), **schedule)


def test_a_teacher_of_its_own_teaches(build_tiny, tiny_config, tmp_path):
    """Where the student starts from another one's weights, as from an earlier student's."""
    stage, _ = build_tiny("content", objective=distilled("backward"))
    teacher = stage.components["unet"]
    torch.nn.init.constant_(teacher.conv_in.weight, 0.125)
    teacher.save_pretrained(tmp_path / "unet")
    components = {"components__teacher": {"path": str(tmp_path / "unet")}}
    stage, _ = build_tiny("content", objective=distilled("backward"), **components)
    assert stage.frozen["teacher"] is stage.objective.teacher
    assert torch.equal(stage.objective.teacher.conv_in.weight, teacher.conv_in.weight)
    assert not torch.equal(stage.components["unet"].conv_in.weight, teacher.conv_in.weight)
    other = UNet2DConditionModel.from_config(teacher.config, in_channels=3)
    other.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"components\.teacher\.in_channels: 3, the student has"):
        build_tiny("content", objective=distilled("backward"), **components)
    with pytest.raises(ValueError, match=r"components\.teacher: it belongs to"):
        TrainConfig.model_validate(tiny_config("content", tmp_path, **components))


def test_noise_on_the_content_frame_is_the_same_for_student_and_teacher(build_tiny, batch_of, monkeypatch):
    stage, batch, _, condition = awake(
        "motion", build_tiny, batch_of, "guidance_distillation", content_frame_noise=0.5
    )
    stage.train()
    seen = []
    predict = stage.denoiser.predict
    monkeypatch.setattr(
        stage.denoiser, "predict", lambda m, x, t, told: seen.append(told["content_frame"]) or predict(m, x, t, told)
    )
    stage(batch)
    assert len(seen) == 3 and all(torch.equal(frame, seen[0]) for frame in seen)
    assert not torch.equal(seen[0], condition["content_frame"])
    seen.clear()
    stage.validate(batch)
    assert len(seen) == 3 and all(torch.equal(frame, condition["content_frame"]) for frame in seen)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("kind", ["guidance_distillation", "consistency", "backward"])
def test_the_sampler_has_the_teachers_noise_schedule(kind, segments, build_tiny, tmp_path):
    """Also where the recipe leaves values out: the few-step sampler's own defaults are others."""
    objective = distilled(kind, segments=segments)
    stage, _ = build_tiny("content", objective=objective, validation__num_inference_steps=segments)
    stage.components["content_scheduler"] = DDIMScheduler(clip_sample=False)
    sampler = readied(stage)[0].scheduler
    sampler.save_pretrained(tmp_path)
    for scheduler in (sampler, type(sampler).from_pretrained(tmp_path)):
        assert torch.equal(scheduler.alphas_cumprod, DDIMScheduler().alphas_cumprod)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_consistency_loss_of_a_perfect_model_is_zero(name, build_tiny, batch_of, monkeypatch):
    """One clip in the world: the true denoiser always says that clip, so f is constant along every path."""
    stage, dataset = build_tiny(name, objective=distilled("consistency"))
    x_0, condition = stage.denoiser.example(batch_of(dataset, [0, 1, 2, 3]))
    scheduler = stage.components[stage.denoiser.scheduler]

    def perfect(model, x_t, t, told):
        column = scheduler.alphas_cumprod[t].view(-1, *[1] * (x_t.ndim - 1))
        noise = (x_t - column.sqrt() * x_0) / (1 - column).sqrt()
        return process_of(scheduler).target(x_0, noise, t)

    monkeypatch.setattr(stage.denoiser, "predict", perfect)
    z, t = Draws.of(0, torch.arange(4)).normal(x_0), torch.tensor([0, 150, 640, 999])
    told = stage.denoiser.encode(condition)
    loss = stage.objective.distance(stage.model, x_0, z, t, condition, told)
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-4, rtol=0)


def test_a_run_from_before_a_field_was_added_goes_on(tiny_config, run_train, read_log, tmp_path):
    objective = distilled("guidance_distillation")
    run_train(tiny_config("content", tmp_path / "run", objective=objective, loop__steps=2))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for newer in ("starts", "disturb"):
        del config["objective"][newer]
    path.write_text(json.dumps(config))
    run_train(tiny_config("content", tmp_path / "run", objective=objective, loop__steps=4))
    assert [line["step"] for line in read_log(tmp_path / "run", "train")] == [1, 2, 3, 4]
    for other, message in (
        ({**objective, "guidance_scale": 5.0}, "another objective.guidance_scale .*choose a new folder"),
        ({**objective, "kind": "consistency"}, "another .*objective.kind .*choose a new folder"),
        ({}, "another .*objective.kind .*choose a new folder"),
    ):
        with pytest.raises(ValueError, match=message):
            run_train(tiny_config("content", tmp_path / "run", objective=other, loop__steps=6))


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize("kind", ["guidance_distillation", "consistency", "backward"])
def test_the_student_learns_and_the_teacher_stays(name, kind, build_tiny, batch_of):
    stage, dataset = build_tiny(name, weights=0.1, objective={**distilled(kind), "condition_dropout": 0.0})
    batch = batch_of(dataset, range(8))
    before = {key: value.clone() for key, value in stage.frozen["teacher"].state_dict().items()}
    optimizer = torch.optim.Adam(stage.learning().values(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = stage(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in stage.frozen["teacher"].state_dict().items())
    assert not any("teacher" in key for key in stage.state_dict())


@pytest.mark.parametrize(
    ("stage", "objective", "message"),
    [
        (
            "image",
            distilled("guidance_distillation"),
            r"objective\.kind: 'guidance_distillation' is not for the stage 'image'",
        ),
        ("autoencoder", distilled("backward"), r"objective\.kind: 'backward' is not for the stage 'autoencoder'"),
        (
            "motion",
            {**distilled("guidance_distillation"), "train_text_encoder": True},
            r"objective\.train_text_encoder\s+Extra inputs are not permitted",
        ),
        (
            "motion",
            {"kind": "magic"},
            "'magic' is none of guidance_distillation, consistency, backward, distribution_matching",
        ),
        (
            "motion",
            {"kind": "consistency", "num_timesteps": 64},
            r"objective\.num_timesteps: 64 is no divisor of 1000",
        ),
        ("motion", {"kind": "consistency", "num_timesteps": 1}, "1 is no divisor of 1000 that is"),
        ("motion", distilled("consistency", segments=3), "num_segments: 3 does not divide num_timesteps = 10"),
        ("motion", distilled("backward", starts=[999, 449]), r"\[999, 449\] does not fall from 999 by multiples of"),
        (
            "motion",
            distilled("guidance_distillation", starts=[999, 499]),
            "starts: guidance_distillation has no jumps",
        ),
        ("motion", distilled("backward", starts=[]), "starts"),
        ("motion", distilled("backward", starts=[899, 499]), "does not fall from 999"),
        ("motion", distilled("backward", starts=[999, 499, 499]), "does not fall from 999"),
        ("motion", distilled("backward", starts=[999, 499, 99]), "starts: 3 of them, but num_segments is 2"),
        ("motion", distilled("consistency", segments=5), "5 is not validation.num_inference_steps = 2"),
        ("motion", distilled("backward", segments=1), "1 is not validation.num_inference_steps = 2"),
        ("content", {**distilled("backward"), "content_frame_noise": 0.1}, "content_frame_noise: only the motion"),
    ],
)
def test_wrong_settings_are_refused(stage, objective, message, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(tiny_config(stage, tmp_path, objective=objective))
