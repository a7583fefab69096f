"""Classifier-free guidance of both models: the formula, all channels, the negative prompt, its own scale for each."""

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.pipelines import CMDPipeline


class RecordingScheduler(DDIMScheduler):
    """Keeps what it is asked to step with."""

    def step(self, model_output, *arguments, **keywords):
        self.predictions.append(model_output.clone())
        return super().step(model_output, *arguments, **keywords)


@pytest.fixture
def record(generate):
    """`record(pipeline, model, prompt="a")`: the first prediction that the scheduler of "content" or "motion" sees."""

    def run(pipeline: CMDPipeline, model: str, **arguments) -> torch.Tensor:
        name = f"{model}_scheduler"
        recorder = RecordingScheduler.from_config(getattr(pipeline, name).config)
        recorder.predictions = []
        setattr(pipeline, name, recorder)
        generate(pipeline, **arguments)
        return recorder.predictions[0]

    return run


@pytest.fixture
def rows():
    """`rows(pipeline)`: batch sizes of the calls of both models, filled as they are called."""

    def attach(pipeline: CMDPipeline) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"content": [], "motion": []}
        for name, model in (("content", pipeline.unet), ("motion", pipeline.motion_transformer.latent_embed)):
            model.register_forward_pre_hook(lambda module, inputs, name=name: found[name].append(len(inputs[0])))
        return found

    return attach


def test_guidance_one_runs_no_unconditional_pass(pipeline, condition, generate, rows):
    found = rows(pipeline)
    generate(pipeline, **condition, guidance_scale=1.0, motion_guidance_scale=1.0, num_videos_per_prompt=3)
    assert found == {"content": [3, 3], "motion": [3, 3]}


@pytest.mark.parametrize(("scale", "motion_scale", "expected"), [(2.0, 1.0, (6, 3)), (1.0, 2.0, (3, 6))])
def test_each_model_has_its_own_guidance(pipeline, condition, generate, rows, scale, motion_scale, expected):
    found = rows(pipeline)
    scales = {"guidance_scale": scale, "motion_guidance_scale": motion_scale}
    generate(pipeline, **condition, **scales, num_videos_per_prompt=3, num_inference_steps=1)
    assert found == {"content": [expected[0]], "motion": [expected[1]]}


def test_each_model_has_its_own_steps(pipeline, condition, generate, rows):
    found = rows(pipeline)
    generate(pipeline, **condition, num_inference_steps=3, motion_num_inference_steps=5)
    assert (len(found["content"]), len(found["motion"])) == (3, 5)
    generate(pipeline, **condition, num_inference_steps=4)
    assert (len(found["content"]), len(found["motion"])) == (7, 9)


@pytest.mark.parametrize("model", ["content", "motion"])
@pytest.mark.parametrize("scale", [2.5, 9.0])
def test_the_formula(pipeline, kind, condition, record, make_image, model, scale):
    """Algorithm 1 with s = 1 + w: the first prediction equals u + s (c - u), in every channel."""
    side = 16 if kind == "text" else 8
    # the motion model's first prediction depends on the content frame too, so that is given
    fixed = {"content_frame": make_image(side, side)} if model == "motion" else {}
    name = "guidance_scale" if model == "content" else "motion_guidance_scale"
    conditional = record(pipeline, model, **fixed, **condition, **{name: 1.0})
    if kind == "text":
        unconditional = record(pipeline, model, **fixed, prompt="", **{name: 1.0})
    elif model == "motion":
        unconditional = record(pipeline, model, **fixed, **{name: 1.0})  # an image alone: the null label
    else:
        pipeline.num_classes += 1  # lets the null label through as if it were a class
        unconditional = record(pipeline, model, class_labels=5, guidance_scale=1.0, motion_guidance_scale=1.0)
        pipeline.num_classes -= 1
    guided = record(pipeline, model, **fixed, **condition, **{name: scale})
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-4)
    change = (guided - conditional).abs().transpose(0, 1).flatten(1).amax(dim=1)
    assert change.shape == ({"text": 12, "class": 3}[kind] if model == "content" else 5,)
    assert (change > 1e-5).all(), "guidance leaves a channel out"


@pytest.mark.parametrize("model", ["content", "motion"])
def test_the_negative_prompt_takes_the_place_of_the_empty_one(text_pipeline, record, make_image, model):
    fixed = {"content_frame": make_image()} if model == "motion" else {}
    name = "guidance_scale" if model == "content" else "motion_guidance_scale"
    plain = {prompt: record(text_pipeline, model, prompt=prompt, **fixed, **{name: 1.0}) for prompt in ("red", "blue")}
    guided = record(text_pipeline, model, prompt="red", negative_prompt="blue", **fixed, **{name: 4.0})
    torch.testing.assert_close(guided, plain["blue"] + 4 * (plain["red"] - plain["blue"]), rtol=1e-3, atol=1e-4)
    default = record(text_pipeline, model, prompt="red", **fixed, **{name: 4.0})
    empty = record(text_pipeline, model, prompt="red", negative_prompt="", **fixed, **{name: 4.0})
    assert torch.equal(default, empty) and (default - guided).abs().max() > 1e-4


def test_one_negative_prompt_for_all_or_one_for_each(text_pipeline, generate):
    prompts, seeds = ["red", "a ball"], [0, 1]
    shared = generate(text_pipeline, prompts, seed=seeds, negative_prompt="blue").frames
    assert torch.equal(shared, generate(text_pipeline, prompts, seed=seeds, negative_prompt=["blue", "blue"]).frames)
    mixed = generate(text_pipeline, prompts, seed=seeds, negative_prompt=["blue", "square"]).frames
    torch.testing.assert_close(mixed[0], shared[0], rtol=0, atol=1e-4)
    assert (mixed[1] - shared[1]).abs().max() > 1e-4


def test_a_negative_prompt_without_guidance_does_nothing(text_pipeline, generate):
    off = {"guidance_scale": 1.0, "motion_guidance_scale": 1.0}
    assert torch.equal(
        generate(text_pipeline, "red", **off).frames,
        generate(text_pipeline, "red", negative_prompt="blue", **off).frames,
    )


def test_guidance_keeps_the_content_frame_of_each_clip(class_pipeline, generate, make_image):
    """In a guided batch both halves see the content frames in the same order."""
    images, labels = [make_image(8, 8, seed=seed) for seed in (0, 1)], [1, 4]
    both = generate(class_pipeline, content_frame=images, class_labels=labels, seed=[0, 1], motion_guidance_scale=5.0)
    for number in range(2):
        one = generate(class_pipeline, content_frame=images[number], class_labels=labels[number], seed=number,
                       motion_guidance_scale=5.0)  # fmt: skip
        torch.testing.assert_close(both.frames[number], one.frames[0], rtol=0, atol=1e-4)
