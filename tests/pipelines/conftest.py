"""Tiny whole pipelines with awake weights: clips of 4 frames of 16x16 pixels from a prompt, of 8x8 from a class."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cmd_video.models import AutoencoderPixelUnshuffle, CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.training.tokenizer import train_tokenizer

SCHEDULER = {
    "clip_sample": False, "prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}  # fmt: skip
AUTOENCODER: dict[str, Any] = {
    "sample_size": (8, 8),
    "num_frames": 4,
    "dim": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "latent_channels": 5,
    "latents_mean": [0.1, 0.2, -0.1, 0.0, 0.3],
    "latents_std": [0.5, 0.6, 0.7, 0.8, 0.9],
    "frame_weights": [0.02, 0.03, 0.9, 0.05],
}
MOTION: dict[str, Any] = {"latent_channels": 5, "content_patch_size": 4, "num_layers": 1, "dim": 16, "num_heads": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def awaken(model: nn.Module) -> nn.Module:
    """Random values for the parameters that start at zero: a fresh motion transformer ignores everything."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def image_autoencoder(kind: str | None) -> tuple[nn.Module | None, int]:
    """An image autoencoder that halves the sides, or None for pixels; and its channels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    match kind:
        case None:
            return None, 3
        case "unshuffle":
            return AutoencoderPixelUnshuffle(patch_size=2), 12
        case "kl":
            return AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, shift_factor=0.1, **blocks), 4
        case "tiny":
            channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
            return AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **channels), 4
    raise ValueError(kind)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["a red ball", "a blue square"], vocab_size=530, model_max_length=16)


@pytest.fixture(scope="session")
def make_text_encoder(tokenizer) -> Callable[..., CLIPTextModel]:
    def make(length: int = 16, seed: int = 0) -> CLIPTextModel:
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=530, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=length, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return CLIPTextModel(config).eval()

    return make


@pytest.fixture
def make_text_pipeline(tokenizer, make_text_encoder) -> Callable[..., CMDPipeline]:
    """`make_text_pipeline("unshuffle" | "kl" | "tiny" | None)`: text to clips of 16x16 pixels (8x8 without)."""

    def make(kind: str | None = "unshuffle", own_motion_text: bool = False) -> CMDPipeline:
        torch.manual_seed(0)
        vae, channels = image_autoencoder(kind)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(16, 32),
            layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        pipeline = CMDPipeline(
            autoencoder=awaken(CMDAutoencoder(in_channels=channels, **AUTOENCODER)),
            unet=awaken(unet),
            motion_transformer=awaken(CMDMotionTransformer(content_channels=channels, text_dim=16, **MOTION)),
            content_scheduler=DDIMScheduler(**SCHEDULER),
            motion_scheduler=DDIMScheduler(**SCHEDULER),
            vae=vae and vae.eval(),
            text_encoder=make_text_encoder(),
            tokenizer=tokenizer,
            motion_text_encoder=make_text_encoder(seed=7) if own_motion_text else None,
            motion_tokenizer=tokenizer if own_motion_text else None,
            sampling={"content": {"guidance": {"scale": 3.0}}, "motion": {"guidance": {"scale": 2.0}}},
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def make_class_pipeline() -> Callable[[], CMDPipeline]:
    """Five classes to clips of 8x8 pixels, without image autoencoder."""

    def make() -> CMDPipeline:
        torch.manual_seed(0)
        unet = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=1, sample_size=8,
            patch_size=2, num_embeds_ada_norm=5, norm_num_groups=1,
        )  # fmt: skip
        pipeline = CMDPipeline(
            autoencoder=awaken(CMDAutoencoder(in_channels=3, output_activation="sigmoid", **AUTOENCODER)),
            unet=awaken(unet),
            motion_transformer=awaken(CMDMotionTransformer(content_channels=3, num_classes=5, **MOTION)),
            content_scheduler=DDIMScheduler(**SCHEDULER),
            motion_scheduler=DDIMScheduler(**SCHEDULER),
            sampling={"content": {"guidance": {"scale": 3.0}}, "motion": {"guidance": {"scale": 2.0}}},
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def text_pipeline(make_text_pipeline) -> CMDPipeline:
    return make_text_pipeline()


@pytest.fixture
def class_pipeline(make_class_pipeline) -> CMDPipeline:
    return make_class_pipeline()


@pytest.fixture(params=["text", "class"])
def kind(request) -> str:
    """Both kinds of pipeline, for what holds for both."""
    return request.param


@pytest.fixture
def pipeline(request, kind) -> CMDPipeline:
    return request.getfixturevalue(f"{kind}_pipeline")


@pytest.fixture
def condition(kind) -> dict[str, Any]:
    return {"prompt": "a red ball"} if kind == "text" else {"class_labels": 2}


@pytest.fixture
def generate() -> Callable[..., Any]:
    """`generate(pipeline, "a ball", seed=1)`: tensors after two steps; a list of seeds for one generator per clip."""

    def run(pipeline: CMDPipeline, prompt: Any = None, seed: int | list[int] = 0, **arguments: Any) -> Any:
        def source(number: int) -> torch.Generator:
            return torch.Generator().manual_seed(number)

        generator = [source(number) for number in seed] if isinstance(seed, list) else source(seed)
        chosen = {"num_inference_steps": 2, "output_type": "pt", "generator": generator, **arguments}
        return pipeline(prompt, **chosen) if prompt is not None else pipeline(**chosen)

    return run


@pytest.fixture
def make_image() -> Callable[..., PIL.Image.Image]:
    """`make_image(16, 24)`: noise of this height and width."""

    def make(height: int = 16, width: int = 16, seed: int = 0) -> PIL.Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return PIL.Image.fromarray(pixels)

    return make
