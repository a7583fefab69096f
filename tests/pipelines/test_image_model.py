"""Pipelines around Stable Diffusion folders in the hub's layout, made from small configurations."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import Sampling

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
UNET = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 16,
    "attention_head_dim": 4, "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
VARIANTS = {  # UNet and scheduler as Stable Diffusion 1.5, 2.1-base and 2.1 (768) publish them
    "sd15": ({}, {"steps_offset": 1, "set_alpha_to_one": False}),
    "sd21-base": ({"use_linear_projection": True, "attention_head_dim": (2, 4)}, {"steps_offset": 1}),
    "sd21-v": (
        {"use_linear_projection": True, "attention_head_dim": (2, 4)},
        {"steps_offset": 1, "prediction_type": "v_prediction"},
    ),
}


@pytest.fixture
def make_folder(tokenizer, make_text_encoder, tmp_path):
    def make(variant="sd15", tiny_vae=False, **unet):
        torch.manual_seed(0)
        own, schedule = VARIANTS[variant]
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, **blocks)
        if tiny_vae:
            channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
            vae = AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **channels)
        pipe = StableDiffusionPipeline(
            vae=vae, text_encoder=make_text_encoder(), tokenizer=tokenizer,
            unet=UNet2DConditionModel(**{**UNET, **own, **unet}), scheduler=PNDMScheduler(**SCHEDULE, **schedule),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        folder = tmp_path / variant
        pipe.save_pretrained(folder)
        return folder

    return make


def parts(pipe):
    channels = pipe.vae.config.latent_channels
    return {
        "autoencoder": CMDAutoencoder(
            channels, (8, 8), 4, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2, latent_channels=5
        ),
        "motion_transformer": CMDMotionTransformer(5, channels, num_layers=1, dim=16, num_heads=2, text_dim=16),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_model_becomes_a_video_pipeline(make_folder, generate, variant, tmp_path):
    folder = make_folder(variant)
    image_model = StableDiffusionPipeline.from_pretrained(folder)
    pipe = CMDPipeline.from_image_model(folder, **parts(image_model))
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder"):
        for key, value in getattr(image_model, name).state_dict().items():
            assert torch.equal(getattr(pipe, name).state_dict()[key], value), key
    assert isinstance(pipe.content_scheduler, DDIMScheduler)
    assert torch.equal(pipe.content_scheduler.alphas_cumprod, image_model.scheduler.alphas_cumprod)
    expected = "v_prediction" if variant == "sd21-v" else "epsilon"
    assert pipe.content_scheduler.config.prediction_type == expected
    assert pipe.sampling == Sampling() and pipe.sampling.content.guidance_scale == 7.5
    out = generate(pipe, "a red ball", num_inference_steps=20, height=16, width=16, num_frames=4)
    assert out.frames.shape == (1, 4, 3, 16, 16) and out.frames.isfinite().all()
    pipe.save_pretrained(tmp_path / "cmd")
    assert CMDPipeline.from_pretrained(tmp_path / "cmd").content_scheduler.config.prediction_type == expected


def test_the_content_frame_is_what_the_image_model_draws(make_folder, generate):
    """Before fine-tuning, equation 7's model is the image model: same noise, same sampler, same picture."""
    folder = make_folder("sd15")
    image_model = StableDiffusionPipeline.from_pretrained(folder)
    pipe = CMDPipeline.from_image_model(folder, **parts(image_model))
    for each in (pipe, image_model):
        each.set_progress_bar_config(disable=True)
    image_model.scheduler = DDIMScheduler.from_config(image_model.scheduler.config, clip_sample=False)
    assert not pipe.content_scheduler.config.clip_sample  # latents are never clipped
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    picture = image_model(
        "a red ball", latents=noise, num_inference_steps=20, guidance_scale=4.0, height=16, width=16, output_type="pt"
    ).images
    out = generate(
        pipe, "a red ball", seed=5, num_inference_steps=20, guidance_scale=4.0, height=16, width=16, num_frames=4
    )
    torch.testing.assert_close(out.content_frames, picture, atol=1e-4, rtol=1e-3)


def test_fresh_parts_fit_the_image_model(make_folder):
    pipe = CMDPipeline.from_image_model(make_folder(), height=32, width=64, motion_size="S")
    assert tuple(pipe.autoencoder.config.sample_size) == (16, 32)
    assert pipe.motion_transformer.config.text_dim == 16
    assert len(pipe.motion_transformer.blocks) == 12
    half = CMDPipeline.from_image_model(make_folder("sd21-v"), motion_size="S", torch_dtype=torch.bfloat16)
    assert {
        part.dtype for part in (half.unet, half.vae, half.text_encoder, half.autoencoder, half.motion_transformer)
    } == {torch.bfloat16}


def test_the_small_image_autoencoder_fits_too(make_folder):
    pipe = CMDPipeline.from_image_model(make_folder(tiny_vae=True), motion_size="S")
    assert isinstance(pipe.vae, AutoencoderTiny)


def test_lora_files_of_the_image_model_load(make_folder, tmp_path):
    folder = make_folder()
    image_model = StableDiffusionPipeline.from_pretrained(folder)
    image_model.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    layers = get_peft_model_state_dict(image_model.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)

    pipe = CMDPipeline.from_image_model(folder, **parts(image_model))
    x, t, tokens = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 16, 16)
    with torch.no_grad():
        before = pipe.unet(x, t, tokens).sample
        pipe.load_lora_weights(tmp_path / "lora")
        after, expected = pipe.unet(x, t, tokens).sample, image_model.unet(x, t, tokens).sample
        pipe.unload_lora_weights()
        unloaded = pipe.unet(x, t, tokens).sample
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(after, before, atol=1e-4)
    assert torch.equal(unloaded, before)


def test_stable_diffusion_xl_is_refused(tokenizer, make_text_encoder, tmp_path):
    config = CLIPTextConfig(vocab_size=530, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                            num_attention_heads=2, max_position_embeddings=16, projection_dim=16)  # fmt: skip
    unet = UNet2DConditionModel(
        **{**UNET, "cross_attention_dim": 32}, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2), text_encoder=make_text_encoder(),
        text_encoder_2=CLIPTextModelWithProjection(config), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=PNDMScheduler(**SCHEDULE),
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "xl")
    with pytest.raises(ValueError, match="holds a StableDiffusionXLPipeline with two text encoders"):
        CMDPipeline.from_image_model(tmp_path / "xl")


def test_what_does_not_fit_is_refused(make_folder, tmp_path):
    with pytest.raises(ValueError, match="image model: no folder /nowhere"):
        CMDPipeline.from_image_model("/nowhere")
    with pytest.raises(ValueError, match="is not a pipeline folder"):
        CMDPipeline.from_image_model(tmp_path)
    folder = make_folder()
    with pytest.raises(ValueError, match="motion_size: 'XXL' is none of S, B, L, XL"):
        CMDPipeline.from_image_model(folder, motion_size="XXL")
    with pytest.raises(ValueError, match="autoencoder: it has 3 channels, the image model 4"):
        CMDPipeline.from_image_model(
            folder, autoencoder=CMDAutoencoder(3, (8, 8), dim=16, num_heads=2), motion_size="S"
        )
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 9}))
    with pytest.raises(ValueError, match="takes 9 channels and gives 4, as for inpainting"):
        CMDPipeline.from_image_model(folder)
