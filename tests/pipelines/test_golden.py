"""Samples to the bit: every preset of tiny pipelines and of the models that ship, from text, class and given image."""

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video import CMDPipeline
from cmd_video.pipelines.presets import PRESETS
from cmd_video.pipelines.sampling import ModelSampling, Sampling
from cmd_video.pipelines.shipped import SHIPPED

PROMPTS = ("a red circle moves to the right", "a blue heart and a green star grow")


def numbers_of(out):
    """Mean and deviation of each frame: what a machine that differs in the last bit can still compare."""
    frames = out.frames[0].double()  # (F, 3, H, W)
    return [*frames.mean(dim=(1, 2, 3)).tolist(), *frames.std(dim=(1, 2, 3)).tolist()]


def draw(pipeline, **arguments):
    return pipeline(generator=torch.Generator().manual_seed(4), output_type="pt", **arguments)


def with_preset(pipeline, preset):
    for part in ("content_scheduler", "motion_scheduler"):  # as these samples were drawn first
        leading = DDIMScheduler.from_config(getattr(pipeline, part).config, timestep_spacing="leading")
        setattr(pipeline, part, leading)
    if PRESETS[preset].sampler == "distilled":
        jumps = ModelSampling(starts=(999, 749, 499, 249))
        pipeline.sampling = Sampling(content=jumps, motion=jumps)
    pipeline.use_preset(preset)
    return pipeline


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("what", ["text", "class", "image"])
def test_golden_samples_of_tiny_pipelines(what, preset, golden, request, make_image):
    pipeline = with_preset(request.getfixturevalue("class_pipeline" if what == "class" else "text_pipeline"), preset)
    given = {
        "text": {"prompt": ["a red ball", "a blue square"]},
        "class": {"class_labels": [1, 4]},
        "image": {"prompt": "a red ball", "content_frame": make_image()},
    }[what]
    out = draw(pipeline, **given)
    golden(f"samples/tiny {what}, {preset}", numbers_of(out), out.frames)


@pytest.mark.parametrize("name", [f"{model}, {preset}" for model in SHIPPED for preset in PRESETS])
def test_golden_samples_of_shipped_models(name, golden):
    model, preset = name.split(", ")
    if (model == "turbo") != (preset == "turbo"):
        pytest.skip("turbo is for the model turbo, and the others are not")
    pipe = CMDPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.use_preset(preset)
    steps = {"num_inference_steps": 10} if preset == "quality" else {}
    for number, prompt in enumerate(PROMPTS):
        out = draw(pipe, prompt=prompt, **steps)
        golden(f"samples/{name}, text {number}", numbers_of(out), out.frames)
    photo = out.frames[:, 8]  # (1, 3, H, W) in [0, 1]
    out = draw(pipe, prompt="a red ring moves up", content_frame=photo, **steps)
    golden(f"samples/{name}, image", numbers_of(out), out.frames)
