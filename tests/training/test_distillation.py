"""Distillation: closed forms of its losses, a student that follows its teacher, and the pipeline that comes out."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel

from cmd_video.losses import diffusion_target, predicted_sample, pseudo_huber
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import distilled_steps, is_distilled, set_timesteps
from cmd_video.training.config import TrainConfig
from cmd_video.training.distillation import ddim_sample, ddim_step
from cmd_video.training.export import export_pipeline


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predicted_sample_inverts_the_target(kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    sample, noise, timestep = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([5, 500, 900])
    noisy = scheduler.add_noise(sample, noise, timestep)
    target = diffusion_target(scheduler, sample, noise, timestep)
    torch.testing.assert_close(predicted_sample(scheduler, target, noisy, timestep), sample, atol=1e-4, rtol=1e-3)


def test_pseudo_huber_is_square_near_zero_and_linear_far_away():
    zero = torch.zeros(1, 4)
    near, far = (pseudo_huber(torch.full((1, 4), value), zero).item() for value in (1e-3, 50.0))
    assert near == pytest.approx(1e-6 / 0.06, rel=0.01)
    assert far == pytest.approx(50 - 0.03, rel=1e-3)


DDIM = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


def distilled(method, scale=3.0, segments=2, starts=None):
    settings = {"method": method, "guidance_scale": scale, "num_timesteps": 10, "num_segments": segments}
    return {"distillation": {**settings, "starts": starts}}


@pytest.mark.parametrize("name", ["content", "motion"])
def test_guidance_loss_is_the_distance_to_the_guided_teacher(name, build_tiny, batch_of):
    stage, dataset = build_tiny(name, objective=distilled("guidance", 1.0))
    batch = batch_of(dataset, range(4))
    timestep, draws = torch.tensor([10, 300, 600, 990]), [torch.Generator().manual_seed(n) for n in range(4)]
    loss = stage._loss(batch, draws, timestep, batch)
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-12, rtol=0)  # without guidance: itself


def awake(name, build_tiny, batch_of, method, segments=2, starts=None, **changes):
    """A stage whose student and teacher differ, both with awake weights; a batch, its noise and its sample."""
    torch.manual_seed(5)
    objective = {**distilled(method, 3.0, segments, starts), **changes}
    stage, dataset = build_tiny(name, weights=0.2, objective=objective, validation__num_inference_steps=segments)
    for parameter in stage.frozen["teacher"].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of(dataset, range(3))
    return stage.eval(), batch, stage.sample(batch)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_guidance_loss_in_closed_form(name, build_tiny, batch_of):
    stage, batch, sample = awake(name, build_tiny, batch_of, "guidance")
    timestep, noise = torch.tensor([10, 500, 990]), torch.randn(sample.shape)
    noisy = stage.components[stage.scheduler].add_noise(sample, noise, timestep)
    with torch.no_grad():
        ours = stage.predict(noisy, timestep, batch)
        stage.components[stage.denoiser] = stage.frozen["teacher"]
        conditional = stage.predict(noisy, timestep, batch)
        unconditional = stage.predict(noisy, timestep, {**batch, "prompt": [""] * 3})
        stage.components[stage.denoiser] = getattr(stage, stage.denoiser)
        expected = (ours - (3 * conditional - 2 * unconditional)).square().flatten(1).mean(1)
        loss = stage._guidance_loss(sample, noise, timestep, batch)
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_is_a_step_of_ddim_and_its_sample_is_found_again(kind):
    config = {"prediction_type": kind, "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**config, rescale_betas_zero_snr=kind == "sample")
    scheduler.set_timesteps(10)  # 999, 899, ..., 99
    for high in (999, 499, 99):
        noisy, prediction, time = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.full((3,), high)
        clean = predicted_sample(scheduler, prediction, noisy, time)
        ours = ddim_step(scheduler, noisy, clean, time, time - 100)
        torch.testing.assert_close(ours, scheduler.step(prediction, high, noisy).prev_sample, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(ddim_sample(scheduler, noisy, ours, time, time - 100), clean, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize(
    ("method", "segments"),
    [("consistency", 1), ("consistency", 2), ("consistency", 5), ("backward", 1), ("backward", 5)],
)
def test_the_sampler_jumps_from_segment_to_segment(name, method, segments, build_tiny, batch_of):
    objective = distilled(method, segments=segments)
    stage, dataset = build_tiny(name, objective=objective, validation__num_inference_steps=segments)
    scheduler = stage.sampler()
    set_timesteps(scheduler, segments)
    assert scheduler.timesteps.tolist() == [1000 * part // segments - 1 for part in range(segments, 0, -1)]
    assert isinstance(scheduler, LCMScheduler) == ((method, segments) == ("consistency", 1))
    batch, last = batch_of(dataset, range(3)), scheduler.timesteps[-1]
    sample = stage.sample(batch)
    with torch.no_grad():
        scheduler._step_index = segments - 1
        reached = scheduler.step(stage.predict(sample, last.expand(3), batch), last, sample).prev_sample
        expected = stage._predicted_sample(sample, last.expand(3), batch)
    torch.testing.assert_close(reached, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_the_consistency_loss_joins_neighbouring_times_of_a_segment(name, build_tiny, batch_of, monkeypatch):
    stage, batch, sample = awake(name, build_tiny, batch_of, "consistency")
    seen = []
    guided, own = stage._guided_teacher, stage._predicted_sample
    monkeypatch.setattr(stage, "_guided_teacher", lambda noisy, time, c: seen.append(time) or guided(noisy, time, c))
    monkeypatch.setattr(stage, "_predicted_sample", lambda noisy, time, c: seen.append(time) or own(noisy, time, c))
    stage._consistency_loss(sample, torch.randn(sample.shape), torch.tensor([0, 100, 999]), batch)
    assert [time.tolist() for time in seen] == [[99, 199, 999], [0, 99, 899], [99, 199, 999]]


@pytest.mark.parametrize("name", ["content", "motion"])
def test_where_a_segment_ends_the_target_is_the_teachers(name, build_tiny, batch_of):
    """One stretch in each segment: what is learned is a step of the guided teacher, whatever the student says."""
    stage, batch, sample = awake(name, build_tiny, batch_of, "consistency", segments=10)
    noise, timestep = torch.randn(sample.shape), torch.tensor([0, 450, 910])
    high = torch.tensor([99, 499, 999])
    scheduler = stage.components[stage.scheduler]
    with torch.no_grad():
        loss = stage._consistency_loss(sample, noise, timestep, batch)
        noisy = scheduler.add_noise(sample, noise, high)
        clean = predicted_sample(scheduler, stage._guided_teacher(noisy, high, batch), noisy, high)
        expected = pseudo_huber(stage._predicted_sample(noisy, high, batch), clean)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize(("starts", "times"), [(None, [700, 100, 499]), ((999, 799), [900, 100, 799])])
def test_backward_distillation_follows_the_teacher_from_where_sampling_led(name, starts, times, build_tiny, batch_of):
    """Both ways walked with diffusers' samplers: the student's jumps to the segment, the guided teacher's steps on."""
    stage, batch, sample = awake(name, build_tiny, batch_of, "backward", starts=starts)
    second = 499 if starts is None else 799
    noise, scheduler = torch.randn(sample.shape), stage.components[stage.scheduler]
    high, end = torch.tensor([999, second, second]), torch.tensor([second, -1, -1])
    noisy = noise.clone()  # also with this schedule, which leaves some signal at t = 999
    jumps, steps = stage.sampler(), DDIMScheduler.from_config(scheduler.config, **DDIM)
    set_timesteps(jumps, 2)
    steps.set_timesteps(10)
    with torch.no_grad():
        loss = stage._backward_loss(noise, torch.tensor(times), batch)
        first = jumps.step(stage.predict(noisy, torch.full((3,), 999), batch), 999, noisy).prev_sample
        start = torch.stack([noisy[0], first[1], first[2]])
        ends = []
        for number in range(3):
            state = start.clone()
            for timestep in [t for t in steps.timesteps if end[number] < t <= high[number]]:
                guided = stage._guided_teacher(state, timestep.expand(3), batch)
                state = steps.step(guided, timestep, state).prev_sample
            ends.append(state[number])
        clean = ddim_sample(scheduler, start, torch.stack(ends), high, end)
        expected = pseudo_huber(stage._predicted_sample(start, high, batch), clean)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "zero"), [("sample", True), ("v_prediction", True), ("sample", False), ("epsilon", False)]
)
def test_jumps_of_any_length_are_steps_of_ddim(kind, zero, build_tiny):
    """The few-step sampler against the closed form of each jump, also from a start without signal."""
    objective = {"distillation": {**distilled("backward", segments=3)["distillation"], "starts": [999, 899, 399]}}
    stage, _ = build_tiny("content", objective=objective, validation__num_inference_steps=3)
    schedule = {"prediction_type": kind, "clip_sample": False, "rescale_betas_zero_snr": zero}
    stage.components["content_scheduler"] = scheduler = DDIMScheduler(**schedule)
    sampler = stage.sampler()
    set_timesteps(sampler, 3)
    assert sampler.timesteps.tolist() == [999, 899, 399] and distilled_steps(sampler) == 3
    state = torch.randn(2, 3, 4, 4)
    for start, end in ((999, 899), (899, 399), (399, -1)):
        prediction, time = torch.randn(2, 3, 4, 4), torch.full((2,), start)
        clean = predicted_sample(scheduler, prediction, state, time)
        expected = ddim_step(scheduler, state, clean, time, torch.full((2,), end))
        state = sampler.step(prediction, start, state).prev_sample
        torch.testing.assert_close(state, expected, atol=2e-3, rtol=1e-3)


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
    assert torch.equal(stage.frozen["teacher"].conv_in.weight, teacher.conv_in.weight)
    assert not torch.equal(stage.components["unet"].conv_in.weight, teacher.conv_in.weight)
    other = UNet2DConditionModel.from_config(teacher.config, in_channels=3)
    other.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"components\.teacher\.in_channels: 3, the student has"):
        build_tiny("content", objective=distilled("backward"), **components)
    with pytest.raises(ValueError, match=r"components\.teacher: it belongs to"):
        TrainConfig.model_validate(tiny_config("content", tmp_path, **components))


def test_noise_on_the_content_frame_is_the_same_for_student_and_teacher(build_tiny, batch_of, monkeypatch):
    stage, batch, _ = awake("motion", build_tiny, batch_of, "guidance", content_frame_noise=0.5)
    stage.train()
    seen = []
    predict = stage.predict
    monkeypatch.setattr(
        stage, "predict", lambda n, t, condition: seen.append(condition["content_frame"]) or predict(n, t, condition)
    )
    stage(batch)
    assert len(seen) == 3 and all(torch.equal(frame, seen[0]) for frame in seen)
    assert not torch.equal(seen[0], batch["content_frame"])


@pytest.mark.parametrize("method", ["guidance", "consistency", "backward"])
def test_the_sampler_has_the_teachers_noise_schedule(method, build_tiny, tmp_path):
    """Also where the recipe leaves values out: the few-step sampler's own defaults are others."""
    stage, _ = build_tiny("content", objective=distilled(method))
    stage.components["content_scheduler"] = DDIMScheduler(clip_sample=False)
    sampler = stage.sampler()
    sampler.save_pretrained(tmp_path)
    for scheduler in (sampler, type(sampler).from_pretrained(tmp_path)):
        assert torch.equal(scheduler.alphas_cumprod, DDIMScheduler().alphas_cumprod)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_consistency_loss_of_a_perfect_model_is_zero(name, build_tiny, batch_of, monkeypatch):
    """One clip in the world: the true denoiser always says that clip, so f is constant along every path."""
    stage, dataset = build_tiny(name, objective=distilled("consistency"))
    batch = batch_of(dataset, [0, 1, 2, 3])
    sample = stage.sample(batch)
    scheduler = stage.components[stage.scheduler]

    def perfect(noisy, timestep, condition):
        column = scheduler.alphas_cumprod[timestep].view(-1, *[1] * (noisy.ndim - 1))
        noise = (noisy - column.sqrt() * sample) / (1 - column).sqrt()
        return diffusion_target(scheduler, sample, noise, timestep)

    monkeypatch.setattr(stage, "predict", perfect)
    draws = [torch.Generator().manual_seed(n) for n in range(4)]
    loss = stage._loss(batch, draws, torch.tensor([0, 150, 640, 999]), batch)
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-4, rtol=0)


def test_a_run_from_before_a_field_was_added_goes_on(tiny_config, run_train, read_log, tmp_path):
    objective = distilled("guidance")
    run_train(tiny_config("content", tmp_path / "run", objective=objective, loop__steps=2))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["objective"]["distillation"]["fake_score_steps"]
    path.write_text(json.dumps(config))
    run_train(tiny_config("content", tmp_path / "run", objective=objective, loop__steps=4))
    assert [line["step"] for line in read_log(tmp_path / "run", "train")] == [1, 2, 3, 4]
    other = {"distillation": {**objective["distillation"], "guidance_scale": 5.0}}
    with pytest.raises(ValueError, match="another objective.distillation"):
        run_train(tiny_config("content", tmp_path / "run", objective=other, loop__steps=6))


@pytest.mark.parametrize("name", ["content", "motion"])
@pytest.mark.parametrize("method", ["guidance", "consistency", "backward"])
def test_the_student_learns_and_the_teacher_stays(name, method, build_tiny, batch_of):
    stage, dataset = build_tiny(name, weights=0.1, objective={**distilled(method), "condition_dropout": 0.0})
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


def test_distilled_runs_become_a_turbo_pipeline(tiny_config, run_train, tmp_path):
    run_train(tiny_config("autoencoder", tmp_path / "autoencoder"))
    for name in ("content", "motion"):
        run_train(tiny_config(name, tmp_path / name, objective=distilled("consistency")))
    folder = export_pipeline([tmp_path / name for name in ("autoencoder", "content", "motion")], tmp_path / "out")
    pipe = CMDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert is_distilled(pipe.content_scheduler) and is_distilled(pipe.motion_scheduler)
    assert pipe.config.guidance_scale == pipe.config.motion_guidance_scale == 1.0
    schedule = {"components__content_scheduler": {"path": str(folder)}}
    with pytest.raises(ValueError, match="components.content_scheduler: it samples a distilled model"):
        run_train(tiny_config("content", tmp_path / "again", **schedule))
    assert pipe.config.num_inference_steps == pipe.config.motion_num_inference_steps == 2
    with pytest.raises(ValueError, match="motion_num_inference_steps: 3, but the model was distilled for 2 steps"):
        pipe("a red ball", motion_num_inference_steps=3)
    frames = pipe("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert frames.shape == (1, 4, 3, 16, 16)
    small = tmp_path / "half"
    export_pipeline([folder], small, dtype=torch.float16)
    assert _weight_bytes(small) < 0.6 * _weight_bytes(folder)
    half = CMDPipeline.from_pretrained(small)  # in float32 again, text encoders too
    half.set_progress_bar_config(disable=True)
    again = half("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert torch.equal(half.unet.conv_in.weight, pipe.unet.conv_in.weight.half().float())
    torch.testing.assert_close(again, frames, atol=0.05, rtol=0)


def test_an_undistilled_motion_model_beside_a_distilled_content_model(tiny_config, run_train, tmp_path):
    run_train(tiny_config("autoencoder", tmp_path / "autoencoder"))
    run_train(tiny_config("content", tmp_path / "content", objective=distilled("consistency")))
    run_train(tiny_config("motion", tmp_path / "motion"))
    runs = [tmp_path / name for name in ("autoencoder", "content", "motion")]
    with pytest.raises(ValueError, match="runs: only the content model is distilled for few steps; give both, or mot"):
        export_pipeline(runs, tmp_path / "out")
    for starts in ([], [3, 3], [1000], [-1]):
        with pytest.raises(ValueError, match=r"motion_starts: \[.*\] are not falling timesteps in 0\.\.999"):
            export_pipeline(runs, tmp_path / "out", motion_starts=starts)
    assert not (tmp_path / "out").exists()
    pipe = CMDPipeline.from_pretrained(export_pipeline(runs, tmp_path / "out", motion_starts=[999]))
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.config.num_inference_steps, pipe.config.motion_num_inference_steps) == (2, 1)
    assert pipe("a red ball", output_type="pt").frames.shape == (1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match="motion_starts: for an undistilled motion model beside a distilled content"):
        export_pipeline([tmp_path / "out"], tmp_path / "again", motion_starts=[999])


def _weight_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("stage", "objective", "message"),
    [
        ("image", distilled("guidance"), "it belongs to content, motion, not to the stage 'image'"),
        (
            "motion",
            {**distilled("guidance"), "train_text_encoder": True},
            "train_text_encoder: has no meaning in a distillation",
        ),
        (
            "motion",
            {"distillation": {"method": "magic"}},
            "'guidance', 'consistency', 'backward' or 'distribution_matching'",
        ),
        ("motion", {"distillation": {"method": "consistency", "num_timesteps": 64}}, "64 is no divisor of 1000"),
        ("motion", {"distillation": {"method": "consistency", "num_timesteps": 1}}, "1 is no divisor of 1000 that is"),
        ("motion", distilled("consistency", segments=3), "num_segments: 3 does not divide num_timesteps = 10"),
        ("motion", distilled("backward", starts=[999, 449]), r"\[999, 449\] does not fall from 999 by multiples of"),
        ("motion", distilled("guidance", starts=[999, 499]), "starts: guidance has no jumps"),
        ("motion", distilled("backward", starts=[]), "starts"),
        ("motion", distilled("backward", starts=[899, 499]), "does not fall from 999"),
        ("motion", distilled("backward", starts=[999, 499, 499]), "does not fall from 999"),
        ("motion", distilled("backward", starts=[999, 499, 99]), "starts: 3 of them, but num_segments is 2"),
        ("motion", distilled("consistency", segments=5), "5 is not validation.num_inference_steps = 2"),
    ],
)
def test_wrong_settings_are_refused(stage, objective, message, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(tiny_config(stage, tmp_path, objective=objective))
