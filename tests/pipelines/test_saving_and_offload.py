"""Pipelines on disk, frozen names in `model_index.json`, and offloading with accelerate's hooks."""

import json

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import Sampling

PLAIN = {
    "num_inference_steps": 50, "starts": None, "spacing": None, "wraps": [], "solver": None, "eta": None,
    "process": None, "search": None,
}  # fmt: skip
OURS = {
    "autoencoder": ["cmd_video.models.autoencoder_cmd", "CMDAutoencoder"],
    "motion_transformer": ["cmd_video.models.motion_transformer", "CMDMotionTransformer"],
    "content_scheduler": ["diffusers", "DDIMScheduler"],
    "motion_scheduler": ["diffusers", "DDIMScheduler"],
    "sampling": {
        "content": {**PLAIN, "guidance": {"kind": "classifier_free", "scale": 3.0}},
        "motion": {**PLAIN, "guidance": {"kind": "classifier_free", "scale": 2.0}},
        "decode_content_frame": True,
        "given_frames": None,
        "control": None,
        "resampling": None,
    },
    "_class_name": "CMDPipeline",
}
TEXT = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
EXPECTED = {
    "unshuffle": {**TEXT, "vae": ["cmd_video.models.autoencoder_pixel_unshuffle", "AutoencoderPixelUnshuffle"]},
    "kl": {**TEXT, "vae": ["diffusers", "AutoencoderKL"]},
    "tiny": {**TEXT, "vae": ["diffusers", "AutoencoderTiny"]},
    "own_motion_text": {
        **TEXT,
        "vae": [None, None],
        "motion_text_encoder": ["transformers", "CLIPTextModel"],
        "motion_tokenizer": ["transformers", "CLIPTokenizer"],
    },
    "class": {
        "unet": ["diffusers", "DiTTransformer2DModel"],
        "vae": [None, None],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    },
}


@pytest.mark.parametrize("variant", EXPECTED)
def test_saved_and_loaded_it_generates_the_same_bytes(
    make_text_pipeline, make_class_pipeline, generate, tmp_path, variant
):
    if variant == "class":
        pipeline = make_class_pipeline()
    else:
        own = variant == "own_motion_text"
        pipeline = make_text_pipeline(None if own else variant, own_motion_text=own)
    arguments = {"class_labels": 3} if variant == "class" else {"prompt": "a red ball"}
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index.pop("_diffusers_version")
    optional = ("motion_text_encoder", "motion_tokenizer", "unet_2", "motion_transformer_2")
    nothing = {name: [None, None] for name in optional}
    assert index == {**OURS, **nothing, **EXPECTED[variant]}
    unsafe = [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    assert not unsafe

    loaded = CMDPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    first, second = generate(pipeline, **arguments), generate(loaded, **arguments)
    assert torch.equal(first.frames, second.frames) and torch.equal(first.content_frames, second.content_frames)
    assert not any(part.training for part in loaded.components.values() if isinstance(part, torch.nn.Module))
    assert loaded.autoencoder.config.latents_mean == [0.1, 0.2, -0.1, 0.0, 0.3]


def test_a_component_can_be_given_when_loading(make_text_pipeline, tmp_path):
    pipeline = make_text_pipeline()
    pipeline.save_pretrained(tmp_path)
    how = {"content": {"guidance": {"scale": 4.5}}}
    loaded = CMDPipeline.from_pretrained(tmp_path, unet=pipeline.unet, sampling=how)
    assert loaded.unet is pipeline.unet and loaded.sampling == Sampling.model_validate(how)
    assert loaded.sampling.content.guidance_scale == 4.5 and loaded.sampling.motion.guidance_scale == 1.0


class CountingHook(ModelHook):
    """Counts how often a module is made ready."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module, *arguments, **keywords):
        self.calls += 1
        return arguments, keywords


def test_encode_and_decode_fire_the_hooks_of_offloading(make_text_pipeline):
    pipeline = make_text_pipeline()
    hooks = {name: CountingHook() for name in ("autoencoder", "vae")}
    for name, hook in hooks.items():
        add_hook_to_module(getattr(pipeline, name), hook)
    with torch.no_grad():
        latents = pipeline.vae.encode(torch.rand(4, 3, 16, 16)).latents
        assert hooks["vae"].calls == 1
        pipeline.vae.decode(latents)
        assert hooks["vae"].calls == 2
        encoded = pipeline.autoencoder.encode(latents.transpose(0, 1)[None])
        assert hooks["autoencoder"].calls == 1
        pipeline.autoencoder.decode(encoded.content_frame, encoded.motion_latents)
        assert hooks["autoencoder"].calls == 2


def test_a_whole_generation_passes_every_hook(make_text_pipeline, generate, make_image):
    pipeline = make_text_pipeline(own_motion_text=True)
    expected = generate(pipeline, "a ball").frames
    hooks = {}
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            hooks[name] = CountingHook()
            add_hook_to_module(part, hooks[name])
    assert torch.equal(generate(pipeline, "a ball").frames, expected)
    assert all(hook.calls for hook in hooks.values()), {name: hook.calls for name, hook in hooks.items()}
    assert hooks["vae"].calls == 2  # the clip and its content frame
    generate(pipeline, content_frame=make_image())
    assert hooks["vae"].calls == 2 + 3  # and the image


def test_every_model_has_its_place_in_the_order_of_offloading(make_text_pipeline):
    pipeline = make_text_pipeline(own_motion_text=True)
    models = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert set(pipeline.model_cpu_offload_seq.split("->")) == models | {"unet_2", "motion_transformer_2"}


@pytest.mark.parametrize("vae", ["unshuffle", "kl", "tiny", None])
def test_offloading_changes_nothing(make_text_pipeline, generate, make_image, vae):
    """To a device that is the CPU here: every hook is passed, and asks each part where it is."""
    pipeline = make_text_pipeline(vae)
    size = make_image(*((16, 16) if vae else (8, 8)))
    asked = [{"prompt": "a ball"}, {"prompt": "a ball", "image": size}, {"prompt": "a ball", "content_frame": size}]
    expected = [generate(pipeline, **one).frames for one in asked]
    video = expected[0].clamp(0, 1)
    changed = pipeline.edit(video, "a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    pipeline.enable_model_cpu_offload(device="cpu")
    for one, before in zip(asked, expected, strict=True):
        torch.testing.assert_close(generate(pipeline, **one).frames, before)
    again = pipeline.edit(video, "a red ball", generator=torch.Generator().manual_seed(0), output_type="pt").frames
    torch.testing.assert_close(again, changed)


@pytest.mark.parametrize("name", ["default", "turbo"])
def test_models_that_ship_can_be_offloaded(name):
    pipe = CMDPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload(device="cpu")
    settings = {} if name == "turbo" else {"num_inference_steps": 2}
    assert len(pipe("a red circle moves up", **settings).frames[0]) == 16


def test_offloading_works_or_says_that_there_is_no_accelerator(make_text_pipeline, generate):
    pipeline = make_text_pipeline()
    expected = generate(pipeline, "a ball").frames
    if torch.accelerator.is_available():
        pipeline.enable_model_cpu_offload()
        torch.testing.assert_close(generate(pipeline, "a ball").frames.cpu(), expected, rtol=0, atol=0.02)
    else:
        with pytest.raises(RuntimeError, match="requires accelerator, but not found"):
            pipeline.enable_model_cpu_offload()
        assert torch.equal(generate(pipeline, "a ball").frames, expected)
