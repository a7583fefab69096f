"""Clips from prompts, classes and images: seeds, batches, sizes, kinds of output."""

import numpy as np
import pytest
import torch


def test_the_same_seed_gives_the_same_bytes(pipeline, condition, generate):
    first, second, other = (generate(pipeline, **condition, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.frames, second.frames) and torch.equal(first.content_frames, second.content_frames)
    assert (first.frames - other.frames).abs().max() > 0.01
    assert (first.content_frames - other.content_frames).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "name", "values"), [
    ("text", "prompt", ["a red ball", "x", ""]), ("class", "class_labels", [4, 0, 2])
])  # fmt: skip
def test_a_batch_equals_its_clips_one_by_one(pipeline, generate, name, values):
    batch = generate(pipeline, seed=[5, 6, 7], **{name: values})
    assert batch.frames.shape[0] == len(batch.truncated_prompts) == 3
    for number, value in enumerate(values):
        single = generate(pipeline, seed=5 + number, **{name: value})
        torch.testing.assert_close(batch.frames[number], single.frames[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(batch.content_frames[number], single.content_frames[0], rtol=0, atol=1e-4)


def test_num_videos_per_prompt_repeats_each_prompt(text_pipeline, generate):
    pair = generate(text_pipeline, ["a ball", "x"], seed=[0, 1, 2, 3], num_videos_per_prompt=2)
    row = generate(text_pipeline, ["a ball", "a ball", "x", "x"], seed=[0, 1, 2, 3])
    assert pair.frames.shape[0] == len(pair.truncated_prompts) == 4
    torch.testing.assert_close(pair.frames, row.frames)
    assert (pair.frames[0] - pair.frames[1]).abs().max() > 0.01


@pytest.mark.parametrize(("height", "width", "num_frames"), [(16, 24, 4), (24, 8, 2), (8, 16, 10)])
def test_other_sizes_and_numbers_of_frames(text_pipeline, generate, height, width, num_frames):
    out = generate(text_pipeline, "a ball", height=height, width=width, num_frames=num_frames)
    assert out.frames.shape == (1, num_frames, 3, height, width) and out.frames.isfinite().all()
    assert out.content_frames.shape == (1, 3, height, width)
    latent = generate(text_pipeline, "a ball", height=height, width=width, num_frames=num_frames, output_type="latent")
    assert latent.frames.shape == (1, 5, num_frames, height // 4 + width // 4)
    assert latent.content_frames.shape == (1, 12, height // 2, width // 2)


def test_defaults_are_the_models_own(text_pipeline, generate):
    steps = {"motion_num_inference_steps": 2}
    explicit = {"height": 16, "width": 16, "num_frames": 4, "guidance_scale": 3.0, "motion_guidance_scale": 2.0}
    assert torch.equal(
        generate(text_pipeline, "a ball").frames, generate(text_pipeline, "a ball", **explicit, **steps).frames
    )
    for changes in ({"guidance_scale": 1.0}, {"motion_guidance_scale": 1.0}, {"motion_num_inference_steps": 3}):
        assert not torch.equal(
            generate(text_pipeline, "a ball").frames, generate(text_pipeline, "a ball", **changes).frames
        )


@pytest.mark.parametrize("vae", [None, "kl", "tiny"])
def test_other_image_autoencoders(make_text_pipeline, generate, vae):
    pipeline = make_text_pipeline(vae)
    side = 16 if vae else 8
    out = generate(pipeline, "a ball")
    assert out.frames.shape == (1, 4, 3, side, side) and out.frames.isfinite().all()
    assert out.frames.std() > 1e-3
    assert torch.equal(out.frames, generate(pipeline, "a ball").frames)


def test_the_kinds_of_output_agree(pipeline, condition, generate):
    out = {name: generate(pipeline, **condition, output_type=name) for name in ("pt", "np", "pil", "latent")}
    side = 16 if pipeline.vae is not None else 8
    assert out["pt"].frames.shape == (1, 4, 3, side, side) and out["pt"].frames.dtype == torch.float32
    assert out["pt"].frames.min() >= 0 and out["pt"].frames.max() <= 1
    assert isinstance(out["np"].frames, np.ndarray) and out["np"].frames.shape == (1, 4, side, side, 3)
    np.testing.assert_allclose(out["np"].frames, out["pt"].frames.permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    np.testing.assert_allclose(out["np"].content_frames, out["pt"].content_frames.permute(0, 2, 3, 1), atol=1e-6)
    assert [len(clip) for clip in out["pil"].frames] == [4] and len(out["pil"].content_frames) == 1
    for number, picture in enumerate(out["pil"].frames[0]):
        assert picture.mode == "RGB" and picture.size == (side, side)
        np.testing.assert_array_equal(np.asarray(picture), (out["np"].frames[0, number] * 255).round())
    frames, content_frames = pipeline.decode(out["latent"].content_frames, out["latent"].frames, "pt", True)
    assert torch.equal(frames, out["pt"].frames) and torch.equal(content_frames, out["pt"].content_frames)


def test_frames_are_the_decoded_motion_latents(text_pipeline, generate):
    """From normalised latents to pixels by hand."""
    latent = generate(text_pipeline, "a ball", output_type="latent")
    mean, std = torch.tensor([0.1, 0.2, -0.1, 0.0, 0.3]), torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    motion_latents = latent.frames * std.view(1, 5, 1, 1) + mean.view(1, 5, 1, 1)
    clip = text_pipeline.autoencoder.decode(latent.content_frames, motion_latents).sample  # (1, 12, 4, 8, 8)
    for number in range(4):
        pixels = torch.nn.functional.pixel_shuffle(clip[:, :, number] / 2.0, 2)
        expected = (pixels.clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(generate(text_pipeline, "a ball").frames[:, number], expected.detach())


def test_a_tuple_in_place_of_the_output(pipeline, condition, generate):
    out, plain = generate(pipeline, **condition), generate(pipeline, **condition, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(out.to_tuple()) == 3
    assert torch.equal(plain[0], out.frames) and torch.equal(plain[1], out.content_frames)
    assert plain[2] == out.truncated_prompts == [None]


def test_the_condition_changes_content_and_motion(pipeline, kind, generate):
    name, values = {"text": ("prompt", ["a red ball", "blue"]), "class": ("class_labels", [0, 3])}[kind]
    first, second = (generate(pipeline, **{name: value}, output_type="latent") for value in values)
    assert (first.content_frames - second.content_frames).abs().max() > 1e-3
    assert (first.frames - second.frames).abs().max() > 1e-3


def test_the_motion_model_may_have_a_text_encoder_of_its_own(make_text_pipeline, generate, make_image):
    shared, own = make_text_pipeline(), make_text_pipeline(own_motion_text=True)
    first, second = (generate(pipeline, "a red ball", output_type="latent") for pipeline in (shared, own))
    assert torch.equal(first.content_frames, second.content_frames)
    assert (first.frames - second.frames).abs().max() > 1e-3
    shared.text_encoder = own.motion_text_encoder  # given the content frame, only the motion model's text counts
    given = {"content_frame": make_image(), "output_type": "latent"}
    assert torch.equal(generate(shared, "a red ball", **given).frames, generate(own, "a red ball", **given).frames)


def test_an_image_becomes_the_content_frame(pipeline, kind, generate, make_image):
    side = 16 if kind == "text" else 8
    image, other = make_image(side, side), make_image(side, side, seed=1)
    out = generate(pipeline, content_frame=image, output_type="pil")  # no prompt, no class
    np.testing.assert_array_equal(np.asarray(out.content_frames[0]), np.asarray(image))
    assert out.truncated_prompts == [None]
    latents = [generate(pipeline, content_frame=picture, output_type="latent").frames for picture in (image, other)]
    assert (latents[0] - latents[1]).abs().max() > 1e-3, "the motion does not depend on the image"


def test_an_image_with_a_condition(pipeline, kind, condition, generate, make_image):
    image = make_image(*((16, 16) if kind == "text" else (8, 8)))
    plain, conditioned = (generate(pipeline, content_frame=image, **given) for given in ({}, condition))
    assert torch.equal(plain.content_frames, conditioned.content_frames)
    assert (plain.frames - conditioned.frames).abs().max() > 1e-5


def test_no_condition_is_the_null_label_or_the_empty_prompt(pipeline, kind, generate, make_image):
    """Then both halves of guidance are the same, whatever its scale."""
    image = make_image(*((16, 16) if kind == "text" else (8, 8)))
    plain, guided = (
        generate(pipeline, content_frame=image, motion_guidance_scale=scale).frames for scale in (1.0, 6.0)
    )
    torch.testing.assert_close(plain, guided, rtol=0, atol=1e-4)
    if kind == "text":
        assert torch.equal(guided, generate(pipeline, "", content_frame=image, motion_guidance_scale=6.0).frames)


def test_several_images_as_pictures_or_as_a_tensor(text_pipeline, generate, make_image):
    images = [make_image(16, 24), make_image(16, 24, seed=1)]
    tensor = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    arguments = {"prompt": ["a", "b"], "width": 24, "num_videos_per_prompt": 2}
    pictures = generate(text_pipeline, content_frame=images, **arguments)
    assert pictures.frames.shape == (4, 4, 3, 16, 24)
    torch.testing.assert_close(pictures.content_frames, tensor.repeat_interleave(2, dim=0), rtol=0, atol=1e-5)
    for other in (tensor, list(tensor)):
        torch.testing.assert_close(generate(text_pipeline, content_frame=other, **arguments).frames, pictures.frames)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_are_made_rgb(text_pipeline, generate, make_image, mode):
    image = make_image().convert(mode)
    out = generate(text_pipeline, content_frame=image, output_type="pil")
    np.testing.assert_array_equal(np.asarray(out.content_frames[0]), np.asarray(image.convert("RGB")))


def test_clips_that_are_not_numbers_are_refused(text_pipeline, generate):
    with torch.no_grad():
        text_pipeline.autoencoder.unpatch.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="^autoencoder: .*not numbers"):
        generate(text_pipeline, "a ball")


def test_without_a_generator_torchs_own_is_used(text_pipeline, generate):
    clips = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        clips.append(generate(text_pipeline, "a ball", generator=None).frames)
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
