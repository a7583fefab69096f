"""The denoising loop: other schedulers, callbacks, interruption; components stay as they are."""

import hashlib

import diffusers
import pytest
import torch

from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import Sampling

SCHEDULERS = [
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
]


def swap(pipeline: CMDPipeline, name: str, **changes) -> None:
    kind = getattr(diffusers, name)
    pipeline.content_scheduler = kind.from_config(pipeline.content_scheduler.config, **changes)
    pipeline.motion_scheduler = kind.from_config(pipeline.motion_scheduler.config, **changes)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_schedulers(pipeline, condition, generate, name):
    before = generate(pipeline, **condition, num_inference_steps=3).frames
    swap(pipeline, name)
    clips = [generate(pipeline, **condition, num_inference_steps=3).frames for _ in range(2)]
    assert clips[0].isfinite().all() and not torch.equal(clips[0], before)
    assert torch.equal(*clips), "the generator does not reach every draw"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_scale_of_the_first_noise_does_not_remember_an_earlier_call(text_pipeline, generate, spacing):
    """Euler's first sigma is known only when the number of steps is."""
    swap(text_pipeline, "EulerDiscreteScheduler", timestep_spacing=spacing)
    first = generate(text_pipeline, "a ball", num_inference_steps=10).frames
    generate(text_pipeline, "a ball", num_inference_steps=20)
    assert torch.equal(generate(text_pipeline, "a ball", num_inference_steps=10).frames, first)


def test_models_see_noise_of_unit_variance_at_the_start(text_pipeline, generate):
    """Whatever the scale of a scheduler's own latents (Euler's begin at about 80)."""
    swap(text_pipeline, "EulerDiscreteScheduler")
    seen = {}
    for model in (text_pipeline.unet, text_pipeline.motion_transformer.latent_embed):
        model.register_forward_pre_hook(
            lambda module, inputs: seen.setdefault(module, inputs[0].std().item()) and None
        )
    generate(text_pipeline, "a ball", num_inference_steps=10)
    assert text_pipeline.content_scheduler.init_noise_sigma > 5
    assert list(seen.values()) == pytest.approx([1.0, 1.0], abs=0.15)


def test_one_object_says_what_the_arguments_say(pipeline, condition, generate):
    arguments = {"num_inference_steps": 3, "motion_num_inference_steps": 2, "guidance_scale": 4.0,
                 "motion_guidance_scale": 1.5, "guidance_interval": (0.2, 0.9)}  # fmt: skip
    interval = {"kind": "guidance_interval", "low": 0.2, "high": 0.9}
    how = Sampling.model_validate({
        "content": {"num_inference_steps": 3, "guidance": {**interval, "scale": 4.0}},
        "motion": {"num_inference_steps": 2, "guidance": {**interval, "scale": 1.5}},
    })  # fmt: skip
    expected = generate(pipeline, **condition, **arguments)
    before = pipeline.sampling
    for given in (how, how.model_dump()):
        found = generate(pipeline, **condition, num_inference_steps=None, sampling=given)
        assert torch.equal(found.frames, expected.frames)
    more = generate(pipeline, **condition, num_inference_steps=None, sampling=how, motion_guidance_scale=3.0)
    assert torch.equal(more.content_frames, expected.content_frames) and not torch.equal(more.frames, expected.frames)
    assert pipeline.sampling == before
    pipeline.sampling = how
    assert torch.equal(generate(pipeline, **condition, num_inference_steps=None).frames, expected.frames)


def test_arguments_change_a_sampling_and_leave_the_rest_of_it():
    how = Sampling.model_validate({
        "content": {"guidance": {"kind": "guidance_interval", "scale": 2.0, "low": 0.3}, "eta": 0.5},
        "motion": {"starts": [999, 499]},
    })  # fmt: skip
    assert how.changed({}) == how.changed({"guidance_scale": None}) == how
    changed = how.changed({"guidance_scale": 5.0, "num_inference_steps": 7, "reuse_interval": 3})
    assert changed.content.guidance.low == 0.3 and changed.content.guidance_scale == 5.0
    assert changed.content.eta == 0.5 and changed.content.num_inference_steps == 7
    assert changed.motion.num_inference_steps == 2  # its steps are as many as it knows
    assert changed.content.reuse_interval == changed.motion.reuse_interval == 3
    assert changed.changed({"reuse_interval": 1}).content.wraps == ()
    with pytest.raises(ValueError, match="motion_num_inference_steps: 3, but the model was distilled for 2 steps"):
        how.changed({"motion_num_inference_steps": 3})


def test_without_new_noise_ones_own_ddim_is_the_schedulers(pipeline, condition, generate):
    plain = generate(pipeline, **condition, num_inference_steps=4, output_type="latent")
    own = pipeline.sampling.laid_over({"content": {"eta": 0.0}, "motion": {"eta": 0.0}})
    found = generate(pipeline, **condition, num_inference_steps=4, sampling=own, output_type="latent")
    torch.testing.assert_close(found.content_frames, plain.content_frames, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.frames, plain.frames, atol=1e-3, rtol=1e-3)


def test_new_noise_comes_from_each_clips_generator(text_pipeline, generate):
    text_pipeline.sampling = text_pipeline.sampling.laid_over({"content": {"eta": 1.0}, "motion": {"eta": 0.5}})
    plain = generate(text_pipeline, "red", num_inference_steps=3, sampling=Sampling()).frames
    batch = generate(text_pipeline, ["red", "a ball"], seed=[3, 4], num_inference_steps=3).frames
    assert not torch.equal(batch[:1], plain)
    for number, prompt in enumerate(("red", "a ball")):
        single = generate(text_pipeline, prompt, seed=3 + number, num_inference_steps=3).frames
        torch.testing.assert_close(batch[number], single[0], rtol=0, atol=1e-4)


NOTHING_COUNTS = [  # guidance of the content model, of the motion model, how often texts are encoded
    ({"scale": 1.0}, {"scale": 1.0}, 1),
    ({"scale": 1.5}, {"scale": 1.0}, 2),
    ({"scale": 1.0}, {"kind": "guidance_interval", "scale": 2.0, "low": 0.9999}, 1),  # no step lies there
    ({"scale": 1.0}, {"kind": "joint_guidance", "scale": 2.0}, 2),
    ({"scale": 1.0}, {"kind": "joint_guidance", "scale": 1.0, "frame": 2.0}, 2),
    ({"kind": "cfg_plus_plus", "scale": 0.5}, {"scale": 1.0}, 2),
]


@pytest.mark.parametrize(("content", "motion", "expected"), NOTHING_COUNTS)
def test_what_guidance_leads_away_from_is_encoded_only_where_a_step_asks(
    text_pipeline, generate, content, motion, expected
):
    calls, how = [], {"content": {"guidance": content}, "motion": {"guidance": motion}}
    text_pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(text_pipeline, "red", sampling=how)
    assert len(calls) == expected


def test_guidance_without_any_share_of_the_condition_is_none(text_pipeline, generate):
    how = {"content": {"guidance": {"kind": "cfg_plus_plus", "scale": 0.0}}}
    told, empty = (generate(text_pipeline, prompt, sampling=how).content_frames for prompt in ("a red ball", ""))
    torch.testing.assert_close(told, empty, atol=1e-5, rtol=0)


def test_a_stochastic_batch_equals_its_clips(text_pipeline, generate):
    swap(text_pipeline, "DDPMScheduler")
    batch = generate(text_pipeline, ["red", "a ball"], seed=[3, 4], num_inference_steps=3).frames
    for number, prompt in enumerate(("red", "a ball")):
        single = generate(text_pipeline, prompt, seed=3 + number, num_inference_steps=3).frames
        torch.testing.assert_close(batch[number], single[0], rtol=0, atol=1e-4)


def test_the_callback_sees_every_step_of_both_models(pipeline, condition, generate):
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert pipe is pipeline and list(tensors) == ["latents"] and pipe.num_timesteps == 7
        seen.append((step, timestep, tuple(tensors["latents"].shape)))
        return {}

    out = generate(pipeline, **condition, num_inference_steps=3, motion_num_inference_steps=4,
                   callback_on_step_end=callback, output_type="latent")  # fmt: skip
    assert [step for step, _, _ in seen] == list(range(7))
    assert [shape for _, _, shape in seen] == [tuple(out.content_frames.shape)] * 3 + [tuple(out.frames.shape)] * 4
    timesteps = [*pipeline.content_scheduler.timesteps.tolist(), *pipeline.motion_scheduler.timesteps.tolist()]
    assert [timestep for _, timestep, _ in seen] == timesteps


def test_with_an_image_the_callback_counts_the_motion_steps(text_pipeline, generate, make_image):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, pipe.num_timesteps))

    generate(text_pipeline, content_frame=make_image(), callback_on_step_end=callback)
    assert seen == [(0, 2), (1, 2)]


@pytest.mark.parametrize("answer", [None, {}, {"latents": None}])
def test_the_callback_may_replace_the_latents(text_pipeline, generate, answer):
    def callback(pipe, step, timestep, tensors):
        if answer is None or not answer:
            return answer
        return {"latents": torch.full_like(tensors["latents"], 0.25 if step == 1 else 0.75)}

    plain = generate(text_pipeline, "a ball", output_type="latent")
    out = generate(text_pipeline, "a ball", output_type="latent", callback_on_step_end=callback)
    if answer:
        assert (out.content_frames == 0.25).all() and (out.frames == 0.75).all()
    else:
        assert torch.equal(out.frames, plain.frames)


@pytest.mark.parametrize("last", [0, 1, 3])
def test_interrupting_stops_the_loop(text_pipeline, generate, last):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe.interrupt = step == last

    out = generate(text_pipeline, "a ball", num_inference_steps=3, callback_on_step_end=callback)
    assert steps == list(range(last + 1)) and text_pipeline.interrupt
    assert out.frames.shape == (1, 4, 3, 16, 16)
    generate(text_pipeline, "a ball", num_inference_steps=3, callback_on_step_end=lambda *a: steps.append("again"))
    assert steps.count("again") == 6 and not text_pipeline.interrupt


def fingerprint(pipeline: CMDPipeline) -> dict[str, str]:
    found = {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            digest = hashlib.sha256(repr(component.config).encode())
            for key, value in component.state_dict().items():
                digest.update(key.encode() + value.numpy().tobytes())
            digest.update(str([m.training for m in component.modules()]).encode())
            digest.update(str([p.requires_grad for p in component.parameters()]).encode())
            found[name] = digest.hexdigest()
        elif hasattr(component, "config"):
            found[name] = repr(sorted(component.config.items(), key=str))
    return found


def test_components_are_left_as_they_were(pipeline, kind, condition, generate, make_image):
    before = fingerprint(pipeline)
    grad = torch.is_grad_enabled()
    side = 16 if kind == "text" else 8
    generate(pipeline, **condition, num_videos_per_prompt=2)
    out = generate(pipeline, **condition, content_frame=make_image(side, side))
    assert fingerprint(pipeline) == before and torch.is_grad_enabled() is grad
    assert not out.frames.requires_grad
    assert {"autoencoder", "unet", "motion_transformer", "content_scheduler"} <= set(before)


def test_bfloat16(text_pipeline, generate):
    exact = generate(text_pipeline, "a ball")
    text_pipeline.to(torch.bfloat16)
    assert {c.dtype for c in text_pipeline.components.values() if hasattr(c, "dtype")} == {torch.bfloat16}
    rounded = generate(text_pipeline, "a ball")
    assert rounded.frames.dtype == torch.float32 and rounded.frames.isfinite().all()
    assert rounded.frames.shape == exact.frames.shape
