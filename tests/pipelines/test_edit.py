"""Clips that are changed: what stays stays to the bit, and the loop begins where the strength says."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.diffusion.plan import steps_at
from cmd_video.diffusion.process import process_of
from cmd_video.diffusion.sample import sample
from cmd_video.diffusion.solvers import EtaSolver, SchedulerSolver

SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


def side(kind: str) -> int:
    return 16 if kind == "text" else 8


def clips(count: int, size: int) -> torch.Tensor:
    """(B, F, 3, H, W) in [0, 1]."""
    return torch.rand(count, 4, 3, size, size, generator=torch.Generator().manual_seed(5))


def edited(pipe: Any, video: Any, *arguments: Any, seed: int | list[int] = 0, **settings: Any) -> Any:
    sources = [torch.Generator().manual_seed(one) for one in (seed if isinstance(seed, list) else [seed])]
    how = pipe.sampling.changed({"num_inference_steps": settings.pop("steps", 4)})
    return pipe.edit(video, *arguments, sampling=how, generator=sources, **{"output_type": "pt", **settings})


def test_without_strength_it_is_the_reconstruction(pipeline, kind):
    video = clips(2, side(kind))
    out = edited(pipeline, video, strength=0.0, seed=[0, 1])
    latents = encode_video(pipeline.vae, video.transpose(1, 2) * 2 - 1)
    with torch.no_grad():
        whole = decode_video(pipeline.vae, pipeline.autoencoder(latents).sample).clamp(-1, 1)
    torch.testing.assert_close(out.frames.transpose(1, 2) * 2 - 1, whole, rtol=0, atol=1e-5)


def test_a_given_content_frame_moves_as_the_clip_did(pipeline, kind, make_image):
    video, picture = clips(1, side(kind)), make_image(side(kind), side(kind))
    kept = edited(pipeline, video, strength=0.0, output_type="latent")
    changed = edited(pipeline, video, content_frame=picture, output_type="latent")
    assert torch.equal(kept.frames, changed.frames)  # the motion latents
    shown = edited(pipeline, video, content_frame=picture, output_type="pil").content_frames[0]
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(picture))


def test_strength_is_where_the_content_is_drawn_anew_from(pipeline, kind, condition):
    video, calls = clips(1, side(kind)), []
    argument = {name: [value] for name, value in condition.items()}
    own = edited(pipeline, video, strength=0.0, output_type="latent")
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    passes, moved = [], []
    for strength in (0.0, 0.3, 0.6, 1.0):
        calls.clear()
        out = edited(pipeline, video, **argument, strength=strength, output_type="latent")
        passes.append(len(calls))
        moved.append(float((out.content_frames - own.content_frames).square().mean()))
        assert torch.equal(out.frames, own.frames)
    assert passes == [0, 1, 2, 4]  # of four steps
    assert moved[0] == 0 < min(moved[1:])


def test_motion_strength_changes_the_motion_alone(pipeline, kind, condition):
    video = clips(1, side(kind))
    own = edited(pipeline, video, strength=0.0, output_type="latent")
    out = edited(pipeline, video, **condition, strength=0.0, motion_strength=0.6, output_type="latent")
    assert torch.equal(out.content_frames, own.content_frames)
    assert (out.frames - own.frames).abs().max() > 1e-3


def test_a_batch_equals_its_clips(pipeline, kind):
    video = clips(2, side(kind))
    asked = {"prompt": ["a red ball", "a blue square"]} if kind == "text" else {"class_labels": [1, 3]}
    both = edited(pipeline, video, **asked, motion_strength=0.5, seed=[0, 1]).frames
    for number in range(2):
        one = {name: values[number] for name, values in asked.items()}
        alone = edited(pipeline, video[number : number + 1], **one, motion_strength=0.5, seed=number).frames
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-4)


def test_clips_of_every_kind_are_read_alike(text_pipeline):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    import PIL.Image

    pictures = [[PIL.Image.fromarray(frame) for frame in clip] for clip in arrays]
    tensor = torch.from_numpy(arrays).permute(0, 1, 4, 2, 3) / 255
    expected = edited(text_pipeline, tensor, strength=0.0, seed=[0, 1]).frames
    for video in (arrays, pictures, list(arrays), [list(clip) for clip in arrays]):
        torch.testing.assert_close(edited(text_pipeline, video, strength=0.0, seed=[0, 1]).frames, expected)
    for video in (arrays[0], pictures[0], list(arrays[0])):
        torch.testing.assert_close(edited(text_pipeline, video, strength=0.0).frames, expected[:1])


@pytest.mark.parametrize(
    ("video", "arguments", "words"),
    [
        (clips(2, 16), {"prompt": ["a"] * 3}, ["prompt", "3", "2 clips"]),
        (clips(2, 16), {"content_frame": clips(1, 16)[0, :1]}, ["content_frame", "1", "2 clips"]),
        (clips(1, 16), {"content_frame": clips(1, 8)[0, :1]}, ["content_frame", "8x8", "16x16"]),
        (clips(1, 16), {"strength": 1.5}, ["strength", "1.5", "0..1"]),
        (clips(1, 16), {"strength": 0.1}, ["strength", "0.1", "last step", "0.249"]),
        (clips(1, 16), {"motion_strength": -1.0}, ["motion_strength", "-1", "0..1"]),
        (clips(1, 16), {"class_labels": 1}, ["class_labels", "not both"]),
        (clips(1, 16)[0], {}, ["video", "(4, 3, 16, 16)", "(B, F, 3, H, W)"]),
        (clips(1, 15), {}, ["height", "15", "16"]),
        (clips(1, 16) * 2, {}, ["video", "[0, 1]"]),
        ([], {}, ["video", "not empty"]),
        (["cat.png"], {}, ["video", "str", "PIL"]),
        ([clips(1, 16)[0, :2], [*clips(1, 16)[0, :3]]], {}, ["video", "[2, 3]"]),
    ],
)
def test_what_does_not_fit_is_named(text_pipeline, video, arguments, words):
    with pytest.raises(ValueError) as error:
        edited(text_pipeline, video, **{"prompt": "a", "seed": 0, **arguments})
    message = str(error.value)
    assert not [word for word in words if word not in message], message
    assert "\n" not in message


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_noised_is_the_marginal_of_the_process(kind):
    solver = SchedulerSolver(kind(**SCHEDULE), 5)
    process = process_of(DDIMScheduler(**SCHEDULE))
    eta = EtaSolver(process, process.levels(solver.timesteps))
    x_0, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for one, other in zip(steps_at(solver.timesteps, 1000), steps_at(eta.timesteps, 1000), strict=True):
        a = process.at(torch.tensor([int(one.t)]), x_0)[0]
        expected = a * x_0 + (1 - a.square()).sqrt() * z
        torch.testing.assert_close(solver.noised(x_0, z, one), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(eta.noised(x_0, z, other), expected, rtol=1e-4, atol=1e-4)


def test_noised_of_a_scheduler_that_scales_is_its_own():
    solver = SchedulerSolver(EulerDiscreteScheduler(**SCHEDULE), 5)
    x_0, z = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for number, step in enumerate(steps_at(solver.timesteps, 1000)):
        torch.testing.assert_close(solver.noised(x_0, z, step), x_0 + solver.scheduler.sigmas[number] * z)


@pytest.mark.parametrize("first", range(5))
def test_whoever_knows_the_clean_sample_comes_back_to_it(first):
    """From any step on, with the exact noise as prediction."""
    solver, process = SchedulerSolver(DDIMScheduler(**SCHEDULE), 5), process_of(DDIMScheduler(**SCHEDULE))
    x_0, z = torch.randn(1, 3, 4, 4).clamp(-1, 1), torch.randn(1, 3, 4, 4)
    steps = steps_at(solver.timesteps, 1000)[first:]

    def denoise(x, step):
        a, g = process.at(torch.tensor([int(step.t)]), x)
        return (x - a * x_0) / g

    found = sample(denoise, solver, steps, z, begin=solver.noised(x_0, z, steps[0]))
    torch.testing.assert_close(found, x_0, rtol=1e-3, atol=1e-3)


def test_a_part_is_drawn_anew_and_the_rest_stays(text_pipeline):
    video = clips(2, 16)
    prompts = ["a red ball", "a blue square"]
    plain = {"kind": "known_frames", "refine_steps": 0}
    text_pipeline.sampling = text_pipeline.sampling.laid_over({"resampling": plain})
    own = edited(text_pipeline, video, strength=0.0, output_type="latent", seed=[0, 1])
    part = edited(text_pipeline, video, prompts, resample_frames=(2, 4), output_type="latent", seed=[0, 1])
    assert torch.equal(part.content_frames, own.content_frames)
    assert torch.equal(part.frames[:, :, :2], own.frames[:, :, :2])
    assert (part.frames[:, :, 2:] - own.frames[:, :, 2:]).abs().max() > 1e-3
    for number in range(2):
        alone = edited(text_pipeline, video[number : number + 1], prompts[number], resample_frames=(2, 4),
                       output_type="latent", seed=[number])  # fmt: skip
        torch.testing.assert_close(part.frames[number : number + 1], alone.frames, rtol=0, atol=1e-4)


def test_frames_that_stay_are_shown_as_they_were_the_better_the_more_they_are_refined(text_pipeline):
    video, off = clips(1, 16), []
    own = edited(text_pipeline, video, strength=0.0).frames
    for steps in (0, 15):
        how = {"kind": "known_frames", "refine_steps": steps}
        text_pipeline.sampling = text_pipeline.sampling.laid_over({"resampling": how})
        part = edited(text_pipeline, video, "a red ball", resample_frames=(2, 4)).frames
        off.append(float((part - own)[:, :2].square().mean()))
    assert off[1] < off[0], off


def test_resampling_says_what_does_not_fit(text_pipeline):
    video = clips(1, 16)
    with pytest.raises(ValueError, match=r"resample_frames: given beside motion_strength 0.5; give one of them"):
        edited(text_pipeline, video, "a ball", resample_frames=(2, 4), motion_strength=0.5)
    with pytest.raises(ValueError, match=r"resample_frames: \(1, 4\) is no part of the 4 frames"):
        edited(text_pipeline, video, "a ball", resample_frames=(1, 4))
    text_pipeline.sampling = text_pipeline.sampling.laid_over(
        {"motion": {"starts": (999, 499), "num_inference_steps": 2}}
    )
    with pytest.raises(ValueError, match="resample_frames: this motion model was distilled for few steps"):
        text_pipeline.edit(video, "a ball", resample_frames=(2, 4))
