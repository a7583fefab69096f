"""Pictures that a clip starts or ends with, through the whole pipeline."""

from typing import Any

import numpy as np
import pytest
import torch

END = {"image": 0, "last_image": 3}


def side(kind: str) -> int:
    return 16 if kind == "text" else 8


def rolled(steps: int) -> dict[str, Any]:
    return {"given_frames": {"kind": "roll_forward", "refine_steps": steps}}


def misfit(frames: torch.Tensor, picture: Any, number: int) -> float:
    wanted = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return float((frames[:, number] - wanted).square().mean())


@pytest.mark.parametrize("ends", [("image",), ("last_image",), ("image", "last_image")])
def test_refining_meets_the_given_frames_better(pipeline, kind, condition, generate, make_image, ends):
    given = {name: make_image(side(kind), side(kind), seed=number) for number, name in enumerate(ends)}
    own = pipeline.sampling
    off = []
    for steps in (0, 15):
        frames = generate(pipeline, sampling=own.laid_over(rolled(steps)), **condition, **given).frames
        off.append(sum(misfit(frames, picture, END[name]) for name, picture in given.items()))
    assert off[1] < off[0], off


def test_where_the_content_frame_is_the_first_frame_nothing_is_rolled(text_pipeline, generate, make_image):
    text_pipeline.autoencoder.register_to_config(frame_weights=[0.9, 0.1, 0.0, 0.0])
    picture, how = make_image(), text_pipeline.sampling.laid_over(rolled(0))
    first = generate(text_pipeline, "a ball", image=picture, sampling=how).frames
    content = generate(text_pipeline, "a ball", content_frame=picture, sampling=how).frames
    assert torch.equal(first, content)
    with pytest.raises(ValueError, match="last_image: .* give image as well"):
        generate(text_pipeline, "a ball", last_image=picture)
    assert generate(text_pipeline, image=picture, last_image=picture).frames.isfinite().all()


def test_a_batch_equals_its_clips(pipeline, kind, generate, make_image):
    pictures = [make_image(side(kind), side(kind), seed=number) for number in range(2)]
    asked = {"prompt": ["a red ball", "a blue square"]} if kind == "text" else {"class_labels": [1, 3]}
    both = generate(pipeline, image=pictures, last_image=pictures[::-1], seed=[0, 1], **asked).frames
    for number in range(2):
        one = {name: values[number] for name, values in asked.items()}
        alone = generate(pipeline, image=pictures[number], last_image=pictures[1 - number], seed=[number], **one)
        torch.testing.assert_close(both[number : number + 1], alone.frames, rtol=0, atol=1e-3)


def test_several_videos_for_a_picture_differ(text_pipeline, generate, make_image):
    out = generate(text_pipeline, image=make_image(), num_videos_per_prompt=2).frames
    assert out.shape == (2, 4, 3, 16, 16)
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_every_step_of_both_passes_is_told(text_pipeline, generate, make_image):
    told = []

    def callback(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append((step, tensors["latents"].shape[2]))
        return {}

    generate(text_pipeline, image=make_image(), callback_on_step_end=callback)
    assert text_pipeline.num_timesteps == len(told) == 4
    assert told == [(0, 6), (1, 6), (2, 4), (3, 4)]  # the first clip is longer: 2 is the anchor of 4, 3 of 6
    told.clear()
    generate(text_pipeline, image=make_image(), num_inference_steps=7, callback_on_step_end=callback)
    assert text_pipeline.num_timesteps == len(told) == 5 + 7


def test_it_works_without_gradients_and_leaves_none(text_pipeline, generate, make_image):
    given = {"image": make_image(), "last_image": make_image(seed=1)}
    expected = generate(text_pipeline, **given).frames
    with torch.inference_mode():
        inside = generate(text_pipeline, **given).frames
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-5)
    parts = [part for part in text_pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert not any(value.grad is not None for part in parts for value in part.parameters())


def test_clips_in_a_row_go_on_where_the_one_before_ends(pipeline, kind, condition, generate):
    told: list[int] = []

    def callback(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append(step)
        return {}

    how = pipeline.sampling.laid_over(rolled(30))
    first = generate(pipeline, **condition, sampling=how).frames
    row = generate(pipeline, **condition, sampling=how, num_clips=3, callback_on_step_end=callback).frames
    assert row.shape[1] == 4 + 3 + 3
    torch.testing.assert_close(row[:, :4], first, rtol=0, atol=1e-5)
    assert pipeline.num_timesteps == len(told) == 2 + 2 + 2 * 4
    picture = pipeline.video_processor.pt_to_numpy(first[:, -1])  # the second clip is one from that picture
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 12, 8, 8), (1, 5, 4, 8)) if kind == "text" else ((1, 3, 8, 8), (1, 5, 4, 8)):
        torch.randn(shape, generator=generator)  # what the first clip took
    second = generate(pipeline, **condition, sampling=how, image=picture, generator=generator).frames
    torch.testing.assert_close(row[:, 4:7], second[:, 1:], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_clips": 0}, ["num_clips", "0"]),
        ({"num_clips": 2, "output_type": "latent"}, ["num_clips", "2", "'latent'"]),
        ({"num_clips": 2, "last_image": True}, ["num_clips", "2", "last_image"]),
    ],
)
def test_what_cannot_go_on_is_named(text_pipeline, generate, make_image, arguments, words):
    given = {name: make_image() if value is True else value for name, value in arguments.items()}
    with pytest.raises(ValueError) as error:
        generate(text_pipeline, "a ball", **given)
    assert all(word in str(error.value) for word in words), error.value


def region(size: int, share: float) -> torch.Tensor:
    """White from the right on, so much of a picture."""
    picture = torch.zeros(1, 3, size, size)
    picture[..., size - round(share * size) :] = 1
    return picture


@pytest.mark.parametrize("given", [("image",), ("content_frame",), ("image", "last_image"), ()])
def test_outside_a_region_nothing_moves(pipeline, kind, condition, generate, make_image, given):
    size = side(kind)
    pictures = {name: make_image(size, size, seed=number) for number, name in enumerate(given)}
    free = generate(pipeline, **condition, **pictures)
    still, half, whole = (
        generate(pipeline, **condition, **pictures, motion_region=region(size, share)).frames for share in (0, 0.5, 1)
    )
    torch.testing.assert_close(whole, free.frames)
    shown = free.content_frames
    if "image" in pictures:
        shown = torch.from_numpy(np.array(pictures["image"])).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(still, shown[:, None].expand_as(still), rtol=0, atol=1e-6)
    torch.testing.assert_close(half[..., : size // 2], still[..., : size // 2])
    torch.testing.assert_close(half[..., size // 2 :], free.frames[..., size // 2 :])


def test_a_region_for_each_clip(text_pipeline, generate, make_image):
    pictures = [make_image(seed=number) for number in range(2)]
    asked: dict[str, Any] = {"image": pictures, "num_videos_per_prompt": 2}
    both = torch.cat([region(16, 0), region(16, 1)])
    free = generate(text_pipeline, **asked).frames
    chosen = generate(text_pipeline, **asked, motion_region=both).frames
    torch.testing.assert_close(chosen[2:], free[2:])
    assert torch.equal(chosen[:2], chosen[:2, :1].expand_as(chosen[:2]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"motion_region": region(8, 1)}, ["motion_region", "8x8", "16x16"]),
        ({"motion_region": region(16, 1), "output_type": "latent"}, ["motion_region", "latent"]),
        ({"motion_region": torch.cat([region(16, 1)] * 3)}, ["motion_region", "3", "1 clips"]),
        ({"motion_region": "mask.png"}, ["motion_region", "str"]),
    ],
)
def test_a_region_that_does_not_fit_is_named(text_pipeline, generate, arguments, words):
    with pytest.raises(ValueError) as error:
        generate(text_pipeline, "a ball", **arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_saved_with_the_pipeline(text_pipeline, tmp_path, generate, make_image):
    from cmd_video.pipelines import CMDPipeline

    text_pipeline.sampling = text_pipeline.sampling.laid_over(rolled(3))
    text_pipeline.save_pretrained(tmp_path / "model")
    again = CMDPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert again.autoencoder.config.frame_weights == text_pipeline.autoencoder.config.frame_weights
    assert torch.equal(*(generate(pipe, image=make_image()).frames for pipe in (text_pipeline, again)))


@pytest.mark.parametrize(
    ("weights", "words"),
    [(None, ["not measured", "content_frame"]), ([0.3, 0.4, 0.2, 0.1], ["mixes its frames", "0.40", "content_frame"])],
)
def test_a_content_frame_that_is_no_frame_is_refused(pipeline, kind, make_image, generate, weights, words):
    pipeline.autoencoder.register_to_config(frame_weights=weights)
    picture = make_image(side(kind), side(kind))
    for name in END:
        with pytest.raises(ValueError) as error:
            generate(pipeline, **{name: picture})
        assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words)
    assert generate(pipeline, content_frame=picture).frames.isfinite().all()


@pytest.mark.parametrize("prior", ["still", "masked"])
def test_a_masked_bridge_starts_at_both_given_frames(text_pipeline, generate, make_image, prior):
    """Unrefined, of two pictures only the one that is rolled counts, but for where a masked bridge starts."""
    bridge = {"process": {"kind": "bridge", "kappa": 2.0, "schedule": "linear", "prior": prior}}
    how = text_pipeline.sampling.laid_over({**rolled(0), "motion": bridge})
    made = [
        generate(
            text_pipeline, "a ball", image=make_image(seed=seed), last_image=make_image(seed=9), sampling=how
        ).frames
        for seed in (0, 1)
    ]
    assert torch.equal(*made) == (prior == "still")
