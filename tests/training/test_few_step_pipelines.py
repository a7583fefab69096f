"""What a distillation leaves behind: how its student is sampled, and pipelines made of such runs."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from cmd_video.diffusion.solvers import jumps
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.presets import is_distilled
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.training.export import export_pipeline
from cmd_video.training.stages import SAMPLING


def distilled(kind, segments=2, starts=None):
    settings = {"kind": kind, "guidance_scale": 3.0, "num_timesteps": 10, "num_segments": segments}
    return {**settings, "starts": starts}


def test_a_run_says_how_its_student_is_sampled(build_tiny, tmp_path):
    """Beside the weights; the scheduler stays the teacher's, whose noise the student has."""
    plain = {"kind": "classifier_free", "scale": 1.0}
    for kind, segments, starts in (("backward", 2, [999, 799]), ("consistency", 5, None), ("consistency", 1, None)):
        objective = distilled(kind, segments=segments, starts=starts)
        stage, _ = build_tiny("motion", objective=objective, validation__num_inference_steps=segments)
        stage.finish(iter(()))
        stage.save_extras(tmp_path)
        (part, how), *others = json.loads((tmp_path / SAMPLING).read_text()).items()
        assert part == "motion" and not others and how["guidance"] == plain
        found = ModelSampling.model_validate(how)
        scheduler = stage.components["motion_scheduler"]
        if segments == 1:  # Latent Consistency Models: any number of steps
            assert isinstance(scheduler, LCMScheduler) and found.starts is None
            assert scheduler.config.original_inference_steps == 10
        else:
            assert isinstance(scheduler, DDIMScheduler)
            assert found.starts == (tuple(starts) if starts else (999, 799, 599, 399, 199))
            assert found.num_inference_steps == segments
        assert is_distilled(found, scheduler)
    stage, _ = build_tiny("motion", objective=distilled("guidance_distillation"))
    stage.save_extras(tmp_path)
    found = ModelSampling.model_validate(json.loads((tmp_path / SAMPLING).read_text())["motion"])
    assert found.guidance_scale == 1.0 and not is_distilled(found, stage.components["motion_scheduler"])
    (tmp_path / SAMPLING).unlink()
    stage, _ = build_tiny("motion")
    stage.save_extras(tmp_path)
    assert not (tmp_path / SAMPLING).exists()


def test_distilled_runs_become_a_turbo_pipeline(tiny_config, run_train, tmp_path):
    run_train(tiny_config("autoencoder", tmp_path / "autoencoder"))
    for name in ("content", "motion"):
        run_train(tiny_config(name, tmp_path / name, objective=distilled("consistency")))
    folder = export_pipeline([tmp_path / name for name in ("autoencoder", "content", "motion")], tmp_path / "out")
    pipe = CMDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    how = pipe.sampling
    assert is_distilled(how.content, pipe.content_scheduler) and is_distilled(how.motion, pipe.motion_scheduler)
    assert how.content.guidance_scale == how.motion.guidance_scale == 1.0 and not how.decode_content_frame
    assert how.content.num_inference_steps == how.motion.num_inference_steps == 2
    with pytest.raises(ValueError, match="motion_num_inference_steps: 3, but the model was distilled for 2 steps"):
        pipe("a red ball", motion_num_inference_steps=3)
    frames = pipe("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert frames.shape == (1, 4, 3, 16, 16)
    small = tmp_path / "half"
    export_pipeline([folder], small, dtype=torch.float16)
    assert _weight_bytes(small) < 0.6 * _weight_bytes(folder)
    half = CMDPipeline.from_pretrained(small)  # in float32 again, text encoders too
    half.set_progress_bar_config(disable=True)
    assert half.sampling == pipe.sampling
    again = half("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    assert torch.equal(half.unet.conv_in.weight, pipe.unet.conv_in.weight.half().float())
    torch.testing.assert_close(again, frames, atol=0.05, rtol=0)


def test_a_sampler_of_an_older_student_is_exported_and_not_trained_with(tiny_config, run_train, tmp_path):
    """It says in its configuration where its steps start."""
    run_train(tiny_config("autoencoder", tmp_path / "autoencoder"))
    for name in ("content", "motion"):
        folder = run_train(tiny_config(name, tmp_path / name, loop__steps=1))
        sampler = jumps(DDIMScheduler.from_pretrained(folder / f"{name}_scheduler"))
        sampler.register_to_config(_distilled_timesteps=[999, 499])
        sampler.save_pretrained(folder / f"{name}_scheduler")
    schedule = {"components__content_scheduler": {"path": str(tmp_path / "content" / "pipeline")}}
    with pytest.raises(ValueError, match="components.content_scheduler: it samples a distilled model"):
        run_train(tiny_config("content", tmp_path / "again", **schedule))
    runs = [tmp_path / name for name in ("autoencoder", "content", "motion")]
    pipe = CMDPipeline.from_pretrained(export_pipeline(runs, tmp_path / "out"))
    for part in ("content", "motion"):
        how = getattr(pipe.sampling, part)
        assert how.starts == (999, 499) and how.num_inference_steps == 2 and how.guidance_scale == 1.0


def test_latent_consistency_models_become_a_pipeline_of_any_number_of_steps(tiny_config, run_train, tmp_path):
    run_train(tiny_config("autoencoder", tmp_path / "autoencoder"))
    for name in ("content", "motion"):
        run_train(tiny_config(name, tmp_path / name, objective=distilled("consistency", segments=1), loop__steps=1))
    runs = [tmp_path / name for name in ("autoencoder", "content", "motion")]
    pipe = CMDPipeline.from_pretrained(export_pipeline(runs, tmp_path / "out"))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.content_scheduler, LCMScheduler) and isinstance(pipe.motion_scheduler, LCMScheduler)
    assert pipe.sampling.content.guidance_scale == 1.0 and pipe.sampling.content.num_inference_steps == 4
    for steps in (1, 3):
        frames = pipe("a red ball", num_inference_steps=steps, output_type="pt").frames
        assert frames.shape == (1, 4, 3, 16, 16)


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
    assert (pipe.sampling.content.num_inference_steps, pipe.sampling.motion.num_inference_steps) == (2, 1)
    assert pipe.sampling.motion.starts == (999,) and isinstance(pipe.motion_scheduler, DDIMScheduler)
    assert pipe("a red ball", output_type="pt").frames.shape == (1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match="motion_starts: for an undistilled motion model beside a distilled content"):
        export_pipeline([tmp_path / "out"], tmp_path / "again", motion_starts=[999])


def _weight_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
