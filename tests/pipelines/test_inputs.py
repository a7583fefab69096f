"""What a user may get wrong, each with one line that names the argument, its value and what is allowed."""

import logging

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def picture(height: int, width: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, height))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator() for _ in range(count)]


WRONG = [
    # pipeline, arguments, what the message must say
    ("text", {}, ["prompt", "class_labels", "image"]),
    ("class", {}, ["prompt", "class_labels", "image"]),
    ("text", {"prompt": "a", "class_labels": 1}, ["prompt", "class_labels", "not both"]),
    ("class", {"prompt": "a", "class_labels": 1}, ["prompt", "class_labels", "not both"]),
    ("text", {"class_labels": 1}, ["class_labels", "no class condition", "prompt"]),
    ("class", {"prompt": "a"}, ["prompt", "no text condition", "class_labels", "0..4"]),
    ("class", {"class_labels": 1, "negative_prompt": "a"}, ["prompt", "no text condition"]),
    ("text", {"prompt": []}, ["prompt", "empty"]),
    ("class", {"class_labels": []}, ["class_labels", "empty"]),
    ("text", {"image": []}, ["image", "empty"]),
    ("text", {"prompt": 3}, ["prompt", "3", "string"]),
    ("text", {"prompt": ["a", None]}, ["prompt", "None", "string"]),
    ("text", {"prompt": "a", "negative_prompt": 3}, ["negative_prompt", "3", "string"]),
    ("text", {"prompt": "a", "negative_prompt": ["b", "c"]}, ["negative_prompt", "2", "1"]),
    ("text", {"prompt": ["a", "b"], "negative_prompt": ["c"]}, ["negative_prompt", "1", "2"]),
    ("class", {"class_labels": 5}, ["class_labels", "5", "0..4"]),
    ("class", {"class_labels": [0, -1]}, ["class_labels", "-1", "0..4"]),
    ("class", {"class_labels": "cat"}, ["class_labels", "'cat'", "0..4"]),
    ("class", {"class_labels": 1.5}, ["class_labels", "1.5", "0..4"]),
    ("class", {"class_labels": True}, ["class_labels", "True", "0..4"]),
    ("text", {"prompt": "a", "height": 15}, ["height", "15", "multiple of 8", "16"]),
    ("text", {"prompt": "a", "width": 25}, ["width", "25", "multiple of 8", "24"]),
    ("text", {"prompt": "a", "width": 0}, ["width", "0", "multiple of 8", "nearest is 8"]),
    ("text", {"prompt": "a", "height": -16}, ["height", "-16", "multiple of 8"]),
    ("text", {"prompt": "a", "height": 16.0}, ["height", "16.0", "whole number"]),
    ("text", {"prompt": "a", "num_frames": 0}, ["num_frames", "0", "multiple of 2"]),
    ("text", {"prompt": "a", "num_frames": 5}, ["num_frames", "5", "multiple of 2"]),
    ("text", {"prompt": "a", "num_frames": -4}, ["num_frames", "-4", "multiple of 2"]),
    ("text", {"prompt": "a", "num_frames": "4"}, ["num_frames", "'4'", "whole number"]),
    ("text", {"prompt": "a", "num_inference_steps": 0}, ["num_inference_steps", "0", "at least 1"]),
    ("text", {"prompt": "a", "num_inference_steps": 1001}, ["num_inference_steps", "1001", "1..1000"]),
    ("text", {"prompt": "a", "num_inference_steps": 2.5}, ["num_inference_steps", "2.5", "whole number"]),
    ("text", {"prompt": "a", "num_inference_steps": True}, ["num_inference_steps", "True", "whole number"]),
    ("text", {"prompt": "a", "motion_num_inference_steps": 0}, ["motion_num_inference_steps", "0", "at least 1"]),
    ("text", {"prompt": "a", "motion_num_inference_steps": 1001}, ["motion_num_inference_steps", "1001", "1..1000"]),
    ("text", {"prompt": "a", "guidance_scale": 0.5}, ["guidance_scale", "0.5", "at least 1"]),
    ("text", {"prompt": "a", "guidance_scale": float("nan")}, ["guidance_scale", "nan", "at least 1"]),
    ("text", {"prompt": "a", "motion_guidance_scale": -2}, ["motion_guidance_scale", "-2", "at least 1"]),
    ("text", {"prompt": "a", "num_videos_per_prompt": 0}, ["num_videos_per_prompt", "0", "1"]),
    ("text", {"prompt": "a", "num_videos_per_prompt": 1.5}, ["num_videos_per_prompt", "1.5", "whole number"]),
    ("text", {"prompt": "a", "output_type": "gif"}, ["output_type", "'gif'", "pil, np, pt, latent"]),
    ("text", {"prompt": "a", "generator": generators(2)}, ["generator", "2", "1 clips"]),
    ("text", {"prompt": ["a", "b"], "generator": generators(2), "num_videos_per_prompt": 2}, ["generator", "4 clips"]),
    ("text", {"prompt": "a", "generator": 7}, ["generator", "7", "torch.Generator"]),
    ("text", {"image": picture(16, 8)}, ["image", "16x8", "16x16"]),
    ("text", {"image": picture(16, 16), "width": 24}, ["image", "16x16", "16x24"]),
    ("text", {"image": [picture(16, 16), picture(8, 8)]}, ["image", "8x8", "16x16"]),
    ("text", {"image": torch.zeros(1, 3, 8, 8)}, ["image", "8x8", "16x16"]),
    ("text", {"image": "cat.png"}, ["image", "str", "PIL"]),
    ("text", {"image": np.zeros((3, 16, 16))}, ["image", "(3, 16, 16)", "(B, H, W, 3)"]),
    ("text", {"image": np.full((16, 16, 3), 255.0)}, ["image", "255", "[0, 1]"]),
    ("text", {"image": np.zeros((16, 16, 3), np.int64)}, ["image", "int64", "uint8"]),
    ("text", {"image": np.zeros((16, 16, 2), np.uint8)}, ["image", "(16, 16, 2)", "uint8"]),
    ("text", {"image": np.zeros((16, 16, 3), bool)}, ["image", "bool", "PIL"]),
    ("text", {"image": np.zeros((2, 8, 8, 3), np.uint8)}, ["image", "8x8", "16x16"]),
    ("text", {"image": torch.zeros(3, 16, 16)}, ["image", "(16, 16)", "(B, 3, H, W)"]),
    ("text", {"image": torch.zeros(1, 4, 16, 16)}, ["image", "(4, 16, 16)", "(B, 3, H, W)"]),
    ("text", {"image": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, ["image", "uint8", "float"]),
    ("text", {"image": torch.full((1, 3, 16, 16), 200.0)}, ["image", "200", "[0, 1]"]),
    ("text", {"image": torch.full((1, 3, 16, 16), -1.0)}, ["image", "-1", "[0, 1]"]),
    ("text", {"image": torch.full((1, 3, 16, 16), 1.5, dtype=torch.float16)}, ["image", "1.5", "[0, 1]"]),
    ("text", {"image": torch.full((1, 3, 16, 16), float("nan"))}, ["image", "nan", "[0, 1]"]),
    ("text", {"image": [torch.zeros(3, 16, 16), torch.full((3, 16, 16), 2.0)]}, ["image", "2", "[0, 1]"]),
    ("text", {"image": PIL.Image.new("F", (16, 16))}, ["image", "range is not known"]),
    ("class", {"image": torch.full((1, 3, 16, 16), 255.0)}, ["image", "255", "[0, 1]"]),
    ("text", {"image": [picture(16, 16)] * 2, "prompt": "a"}, ["image", "2", "1 prompts"]),
    ("class", {"image": picture(8, 8), "class_labels": [1, 2]}, ["image", "1", "2 prompts or classes"]),
    ("text", {"last_image": picture(8, 8)}, ["last_image", "8x8", "16x16"]),
    ("text", {"content_frame": "cat.png"}, ["content_frame", "str", "PIL"]),
    ("text", {"image": picture(16, 16), "last_image": [picture(16, 16)] * 2}, ["last_image", "2", "1 pictures"]),
    ("text", {"image": picture(16, 16), "content_frame": picture(16, 16)}, ["content_frame", "image", "one of them"]),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"), WRONG, ids=[f"{k}-{'-'.join(a) or 'none'}" for k, a, _ in WRONG]
)
def test_a_wrong_argument_is_named(pipeline, arguments, words):
    called = []
    for model in (pipeline.unet, pipeline.motion_transformer.latent_embed):
        model.register_forward_pre_hook(lambda module, inputs: called.append(module))
    with pytest.raises(ValueError) as error:
        pipeline(**arguments)
    message = str(error.value)
    assert not [word for word in words if word not in message], message
    assert "\n" not in message and not called


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n\t",
        "\N{VIDEO GAME}" * 9,
        "红球向右移动",
        "a\0b",
        "x" * 10_000,
        "ball " * 2_000,
        "<|endoftext|> a",
        "כדור אדום נע ימינה",
        "كرة حمراء \N{RIGHT-TO-LEFT OVERRIDE}thgir ot\N{POP DIRECTIONAL FORMATTING}",
        "'\"\\{}",
    ],
)
def test_odd_prompts(text_pipeline, tokenizer, generate, prompt):
    out = generate(text_pipeline, prompt, num_inference_steps=1)
    assert out.frames.shape == (1, 4, 3, 16, 16) and out.frames.isfinite().all()
    assert (out.truncated_prompts[0] is not None) == (len(tokenizer(prompt).input_ids) > 16)


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text()  # the first with halves of characters


def check_any_prompt(pipeline, generate, prompt):
    """A clip, the same one twice, or one line that names the prompt."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="^prompt: ") as error:
            generate(pipeline, prompt, num_inference_steps=1)
        assert "\n" not in str(error.value)
        return
    clips = [generate(pipeline, prompt, num_inference_steps=1).frames for _ in range(2)]
    assert clips[0].isfinite().all() and torch.equal(*clips)


FIXTURES_ONCE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=FIXTURES_ONCE)
@given(prompt=ANY_TEXT)
def test_any_prompt(text_pipeline, generate, prompt):
    check_any_prompt(text_pipeline, generate, prompt)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=FIXTURES_ONCE)
@given(prompt=ANY_TEXT)
def test_a_thousand_prompts(text_pipeline, generate, prompt):
    check_any_prompt(text_pipeline, generate, prompt)


def test_what_a_long_prompt_loses_is_told(text_pipeline, generate, caplog):
    """One token per letter and 16 places, two of them for the ends."""
    long, kept = "a b c d e f g h i j k l m n o p q r s", "a b c d e f g h i j k l m n"
    with caplog.at_level(logging.WARNING):
        out = generate(text_pipeline, [long, kept], num_videos_per_prompt=2)
    assert out.truncated_prompts == ["o p q r s", "o p q r s", None, None]
    messages = [record.getMessage() for record in caplog.records if "cut off" in record.getMessage()]
    assert len(messages) == 1 and "'o p q r s'" in messages[0] and "16 tokens" in messages[0]
    same = generate(text_pipeline, [kept, kept], num_videos_per_prompt=2)
    assert torch.equal(out.frames, same.frames)
    assert "cut off" not in caplog.text.split("cut off", 1)[1]


def test_a_long_negative_prompt_is_told_too(text_pipeline, generate, caplog):
    with caplog.at_level(logging.WARNING):
        out = generate(text_pipeline, "a", negative_prompt="b " * 20)
    assert "cut off" in caplog.text and out.truncated_prompts == [None]


def turned() -> PIL.Image.Image:
    """A picture that is stored lying."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    stored = PIL.Image.fromarray(pixels).transpose(PIL.Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6
    return stored


def transparent() -> PIL.Image.Image:
    """White, but for what is seen through it, which is hidden under green."""
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[8:] = pixels[:, 8:] = (0, 255, 0, 0)
    return PIL.Image.fromarray(pixels)


def sixteen_bits() -> PIL.Image.Image:
    pixels = np.zeros((16, 16), np.uint16)
    pixels[:8, :8] = 65535
    return PIL.Image.fromarray(pixels)


def whole_numbers() -> np.ndarray:
    return np.array(transparent())


def gray_of_sixteen_bits() -> np.ndarray:
    return np.array(sixteen_bits())


def floats() -> np.ndarray:
    return np.array(transparent().getchannel("A").convert("RGB")) / 255


@pytest.mark.parametrize("make", [turned, transparent, sixteen_bits, whole_numbers, gray_of_sixteen_bits, floats])
def test_pictures_are_read_as_training_data_are(text_pipeline, make):
    expected = torch.zeros(3, 16, 16)
    expected[:, :8, :8] = 1
    plain = PIL.Image.fromarray((expected * 255).byte().permute(1, 2, 0).numpy())
    frames = [text_pipeline.encode_image(image, 1) for image in (make(), plain, expected[None])]
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[0], frames[2])


def test_an_array_of_four_dimensions_is_a_batch(text_pipeline, generate):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    pictures = [PIL.Image.fromarray(array) for array in arrays]
    settings = {"prompt": ["a", "b"], "num_inference_steps": 1}
    expected = generate(text_pipeline, content_frame=pictures, **settings).frames
    for array in (arrays, arrays.astype(np.float32) / 255):
        assert torch.equal(generate(text_pipeline, content_frame=array, **settings).frames, expected)


def test_a_picture_stored_lying_has_its_upright_size(text_pipeline, generate):
    stored = PIL.Image.new("RGB", (16, 24))
    stored.getexif()[0x0112] = 6
    out = generate(text_pipeline, content_frame=stored, height=16, width=24, num_inference_steps=1)
    assert out.frames.shape[-2:] == (16, 24)


# --- several, in whatever sequence; what cannot be; what is not finite -----------------------------------------------


def clips(pipeline, **arguments):
    return pipeline(output_type="np", num_inference_steps=2, **arguments).frames


SEVERAL = {
    "prompt": (["a red ball", "a blue square"], {}),
    "negative_prompt": (["green", "white"], {"prompt": ["a red ball", "a blue square"]}),
    "generator": (None, {"prompt": ["a red ball", "a blue square"]}),
    "content_frame": (None, {"prompt": ["a red ball", "a blue square"]}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_tuple_is_what_the_list_is(text_pipeline, make_image, name):
    def several():
        made = {
            "generator": [torch.Generator().manual_seed(n) for n in (0, 1)],
            "content_frame": [make_image(), make_image().rotate(90)],
        }
        return made.get(name, SEVERAL[name][0])

    others = {"generator": [torch.Generator().manual_seed(n) for n in (0, 1)]} if name != "generator" else {}

    def draw(kind):
        source = {"generator": [torch.Generator().manual_seed(n) for n in (0, 1)]} if others else {}
        return clips(text_pipeline, **{**SEVERAL[name][1], **source, name: kind(several())})

    assert (draw(list) == draw(tuple)).all()


def test_a_tuple_of_classes_is_what_the_list_is(class_pipeline):
    def draw(labels):
        return clips(class_pipeline, class_labels=labels, generator=torch.Generator().manual_seed(0))

    assert (draw([1, 3]) == draw((1, 3))).all()


WRONG = [
    ("negative_prompt", ("a", "b", "c"), "negative_prompt: 3 texts for 1"),
    ("negative_prompt", {"a"}, "negative_prompt: expected a string"),
    ("prompt", {"a", "b"}, "prompt: expected a string"),
    ("prompt", b"red", "prompt: expected a string"),
    ("prompt", ["red", None], "prompt: expected a string"),
    ("prompt", "red \ud800", "prompt: no valid text at character 4"),
    ("prompt", ["red", "\udcff"], "prompt: no valid text"),
    ("negative_prompt", "\udc80", "negative_prompt: no valid text"),
    ("generator", (torch.Generator(), 3), "generator: expected"),
    ("generator", (torch.Generator(),) * 3, "generator: 3 generators for 1"),
    ("image", {"a": 1}, "image: expected"),
    ("num_inference_steps", 0, "num_inference_steps: 0"),
    ("motion_num_inference_steps", 0, "motion_num_inference_steps: 0"),
    ("num_frames", True, "num_frames: True"),
    ("num_frames", 4 * 10**9, "num_frames, .* GiB, this machine has"),
    ("num_videos_per_prompt", 10**9, "num_videos_per_prompt.* GiB"),
    ("num_clips", 10**9, "num_clips: .* GiB"),
    ("height", 16 * 10**8, "height, width.* GiB"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{row[0]}-{n}" for n, row in enumerate(WRONG)])
def test_what_cannot_be_is_one_line_that_names_the_argument(text_pipeline, name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        text_pipeline(**{"prompt": "a red ball", name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [1.0, "1", True, torch.tensor([1]), [1, None]])
def test_labels_that_are_no_whole_numbers_are_named(class_pipeline, labels):
    with pytest.raises(ValueError, match=r"class_labels: .* in 0\.\.4"):
        class_pipeline(class_labels=labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "motion_transformer", "autoencoder", "vae"])
def test_what_is_not_finite_never_becomes_a_clip_and_the_part_is_named(make_text_pipeline, make_image, part, value):
    pipeline = make_text_pipeline("kl")
    with torch.no_grad():
        for weight in getattr(pipeline, part).parameters():
            weight.fill_(value)
    for output_type in ("latent", "np", "pil"):
        if part in ("unet", "motion_transformer") or output_type != "latent":
            with pytest.raises(ValueError, match=f"^{part}: "):
                pipeline("a red ball", num_inference_steps=2, output_type=output_type)
    if part == "vae":
        with pytest.raises(ValueError, match="^vae: "):
            pipeline("a red ball", content_frame=make_image(), num_inference_steps=2, output_type="latent")


def test_an_overflow_of_float16_never_becomes_a_black_clip(make_text_pipeline, tmp_path, capsys):
    """The weights are numbers, what the decoder makes of them is above 65504."""
    from cmd_video.cli import main

    pipeline = make_text_pipeline("kl")
    with torch.no_grad():
        for weight in pipeline.vae.decoder.conv_in.parameters():
            weight.mul_(0).add_(3e4)
    pipeline.save_pretrained(tmp_path / "model")
    half = pipeline.to(torch.float16)
    for output_type in ("np", "pil", "pt"):
        with pytest.raises(ValueError, match="^vae: .*try float32"):
            half("a red ball", num_inference_steps=2, output_type=output_type)
    command = ["generate", "a red ball", "--model", str(tmp_path / "model"), "--dtype", "float16", "--steps", "2"]
    assert main([*command, "-o", str(tmp_path / "a.mp4")]) == 2
    assert "vae: " in capsys.readouterr().err and not list(tmp_path.glob("a*"))


def test_values_that_are_not_numbers_have_no_brightness():
    from cmd_video.data.transforms import to_uint8

    for value in (float("nan"), float("inf"), -float("inf")):
        clip = torch.zeros(3, 2, 4, 4)
        clip[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match="not numbers"):
            to_uint8(clip)


def test_the_reconstruction_of_an_autoencoder_without_numbers_is_refused(make_text_pipeline):
    from cmd_video.evaluation.metrics.reconstruction import reconstruction_rows

    pipeline = make_text_pipeline("kl")
    with torch.no_grad():
        next(pipeline.autoencoder.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="autoencoder: the reconstruction"):
        reconstruction_rows(pipeline.autoencoder, pipeline.vae, torch.zeros(1, 3, 4, 16, 16))
