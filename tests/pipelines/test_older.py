"""Folders that older versions saved: eight settings in model_index.json, two keys in schedulers' configurations."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from cmd_video.diffusion.solvers import jumps, multistep
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.older import SETTINGS, starts_of, upgrade_index, upgrade_schedulers
from cmd_video.pipelines.sampling import Sampling

EIGHT = {
    "guidance_scale": 3.0, "motion_guidance_scale": 2.0, "num_inference_steps": 5, "motion_num_inference_steps": 4,
    "guidance_from": 0.2, "guidance_until": 0.9, "reuse_interval": 2, "decode_content_frame": False,
}  # fmt: skip


@pytest.fixture
def old_folder(text_pipeline, tmp_path):
    """`old_folder(guidance_scale=3.0)`: the tiny pipeline as it was saved before there was `sampling`."""

    def save(pipeline: CMDPipeline = text_pipeline, **settings):
        pipeline.save_pretrained(tmp_path / "old")
        path = tmp_path / "old" / "model_index.json"
        index = json.loads(path.read_text())
        del index["sampling"]
        path.write_text(json.dumps({**index, **SETTINGS, **settings}))
        return tmp_path / "old"

    return save


def load(folder) -> CMDPipeline:
    pipeline = CMDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_eight_settings_become_one_sampling():
    index = {"_class_name": "CMDPipeline", "unet": ["diffusers", "UNet2DConditionModel"], **EIGHT}
    upgraded = upgrade_index(index)
    assert set(upgraded) == {"_class_name", "unet", "sampling"} and index["reuse_interval"] == 2
    interval = {"kind": "guidance_interval", "low": 0.2, "high": 0.9}
    wraps = [{"kind": "feature_reuse", "interval": 2}]
    assert Sampling.model_validate(upgraded["sampling"]) == Sampling.model_validate({
        "content": {"num_inference_steps": 5, "guidance": {**interval, "scale": 3.0}, "wraps": wraps},
        "motion": {"num_inference_steps": 4, "guidance": {**interval, "scale": 2.0}, "wraps": wraps},
        "decode_content_frame": False,
    })  # fmt: skip


def test_the_old_defaults_are_todays():
    assert Sampling.model_validate(upgrade_index(dict(SETTINGS))["sampling"]) == Sampling()
    assert Sampling.model_validate(upgrade_index({"guidance_scale": 7.5})["sampling"]) == Sampling()  # older still


@pytest.mark.parametrize("index", [{"sampling": {}, "guidance_scale": 3.0}, {"_class_name": "X"}, None, [1]])
def test_what_is_not_old_stays_as_it_is(index):
    assert upgrade_index(index) is index


def test_an_old_pipeline_generates_what_it_did(text_pipeline, old_folder, generate):
    given = {
        "num_inference_steps": 5, "motion_num_inference_steps": 4, "guidance_scale": 3.0, "motion_guidance_scale": 2.0,
        "guidance_interval": (0.2, 0.9), "reuse_interval": 2,
    }  # fmt: skip
    expected = generate(text_pipeline, "a red ball", **given)
    old = load(old_folder(**EIGHT))
    found = generate(old, "a red ball", num_inference_steps=None)
    torch.testing.assert_close(found.frames, expected.frames, rtol=0, atol=1e-5)  # elsewhere in memory: not to the bit
    assert found.content_frames is None
    assert not SETTINGS.keys() & old.config.keys()


def test_saved_again_it_is_todays(old_folder, tmp_path):
    old = load(old_folder(**EIGHT))
    old.save_pretrained(tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert "sampling" in index and not SETTINGS.keys() & index.keys()
    assert load(tmp_path / "new").sampling == old.sampling


def distil(pipeline: CMDPipeline, content: tuple[int, ...], motion: tuple[int, ...]) -> None:
    """Schedulers of a few-step model as they were exported."""
    for part, starts in (("content_scheduler", content), ("motion_scheduler", motion)):
        scheduler = jumps(getattr(pipeline, part))
        scheduler.register_to_config(_distilled_timesteps=list(starts))
        setattr(pipeline, part, scheduler)


def test_the_starts_of_a_few_step_model_are_found_in_its_schedulers(text_pipeline, old_folder, generate, tmp_path):
    steps = {"num_inference_steps": 3, "motion_num_inference_steps": 1}
    scales = {"guidance_scale": 1.0, "motion_guidance_scale": 1.0}
    today = {"content": {"starts": (999, 849, 399)}, "motion": {"starts": (999,)}}
    expected = generate(text_pipeline, "a red ball", num_inference_steps=None, sampling=today).frames
    distil(text_pipeline, (999, 849, 399), (999,))
    assert starts_of(text_pipeline.content_scheduler) == (999, 849, 399)
    old = load(old_folder(**steps, **scales))
    assert isinstance(old.content_scheduler, DPMSolverMultistepScheduler)
    assert old.sampling.content.starts == (999, 849, 399) and old.sampling.motion.starts == (999,)
    assert (old.sampling.content.num_inference_steps, old.sampling.motion.num_inference_steps) == (3, 1)
    found = generate(old, "a red ball", num_inference_steps=None).frames
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="num_inference_steps: 4, but the model was distilled for 3 steps"):
        generate(old, "a red ball", num_inference_steps=4)
    old.use_preset("turbo")
    assert old.sampling.content.starts == (999, 849, 399) and not old.sampling.decode_content_frame
    with pytest.raises(ValueError, match="only the preset turbo fits"):
        old.use_preset("fast")
    old.save_pretrained(tmp_path / "new")
    assert "_distilled" not in (tmp_path / "new" / "content_scheduler" / "scheduler_config.json").read_text()
    new = load(tmp_path / "new")
    assert new.sampling == old.sampling
    found = generate(new, "a red ball", num_inference_steps=None).frames
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def fast(pipeline: CMDPipeline) -> None:
    """Schedulers as the preset `fast` left them, with another spacing than their own."""
    for part in ("content_scheduler", "motion_scheduler"):
        scheduler = multistep(getattr(pipeline, part))
        own = scheduler.config.timestep_spacing
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="linspace")
        scheduler.register_to_config(_own_timestep_spacing=own)
        setattr(pipeline, part, scheduler)


def test_a_spacing_that_a_preset_gave_becomes_that_of_sampling(text_pipeline, old_folder, generate, tmp_path):
    plain = generate(text_pipeline, "a red ball").frames
    text_pipeline.use_preset("fast")
    todays = text_pipeline.sampling
    expected = generate(text_pipeline, "a red ball", num_inference_steps=None).frames
    text_pipeline.use_preset("quality")
    fast(text_pipeline)
    settings = {"num_inference_steps": 20, "motion_num_inference_steps": 20, "guidance_from": 0.2, "reuse_interval": 2}
    scales = {"guidance_scale": 3.0, "motion_guidance_scale": 2.0}
    old = load(old_folder(**settings, **scales, decode_content_frame=False))
    assert old.sampling == todays and old.sampling.content.spacing == "linspace"
    assert old.content_scheduler.config.timestep_spacing == "trailing"
    found = generate(old, "a red ball", num_inference_steps=None).frames
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    old.save_pretrained(tmp_path / "new")  # once more, and it is not upgraded twice
    new = load(tmp_path / "new")
    assert new.sampling == todays
    found = generate(new, "a red ball", num_inference_steps=None).frames
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    old.use_preset("quality")
    assert torch.equal(generate(old, "a red ball").frames, plain)


def test_schedulers_without_such_keys_change_nothing(text_pipeline):
    before, schedulers = text_pipeline.sampling, (text_pipeline.content_scheduler, text_pipeline.motion_scheduler)
    upgrade_schedulers(text_pipeline)
    assert text_pipeline.sampling == before
    assert (text_pipeline.content_scheduler, text_pipeline.motion_scheduler) == schedulers
    assert starts_of(DDIMScheduler()) is None
