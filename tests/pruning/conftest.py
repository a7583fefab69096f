"""Tiny models of every class that can be pruned, each with a call and a selection that fits it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer, VideoCrafterUNet
from cmd_video.pruning.selection import BlockSelection

UNET_LAYERS = (
    "down_blocks.0.layers.1", "down_blocks.1.layers.1", "down_blocks.3", "mid_block", "up_blocks.0",
    "up_blocks.2.layers.1", "up_blocks.3.layers.1",
)  # fmt: skip
SIZES: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4}
TOKENS = (2, 5, 16)


class Example(NamedTuple):
    """A way to build a model, to call it, and what to leave out."""

    build: Callable[[], torch.nn.Module]
    call: Callable[[torch.nn.Module], torch.Tensor]
    removed: tuple[str, ...]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def wan() -> torch.nn.Module:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=8, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip


def ltx() -> torch.nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=3, caption_channels=16,
    )  # fmt: skip


def hunyuan() -> torch.nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_single_layers=3, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip


def animatediff() -> torch.nn.Module:
    return diffusers.UNetMotionModel(
        **{**SIZES, "down_block_types": ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
           "up_block_types": ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3}, cross_attention_dim=16,
        num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=8, sample_size=16,
    )  # fmt: skip


EXAMPLES = {
    "UNet2DConditionModel": Example(
        lambda: diffusers.UNet2DConditionModel(**SIZES, cross_attention_dim=16, attention_head_dim=4, sample_size=16),
        lambda model: model(noise(2, 4, 16, 16), torch.tensor([5, 900]), noise(*TOKENS)).sample,
        UNET_LAYERS,
    ),
    "UNet3DConditionModel": Example(
        lambda: diffusers.UNet3DConditionModel(**SIZES, cross_attention_dim=16, attention_head_dim=4),
        lambda model: model(noise(2, 4, 3, 16, 16), torch.tensor([5, 900]), noise(*TOKENS)).sample,
        UNET_LAYERS,
    ),
    "VideoCrafterUNet": Example(
        lambda: VideoCrafterUNet(**SIZES, cross_attention_dim=16, attention_head_dim=4),
        lambda model: model(noise(2, 4, 3, 16, 16), torch.tensor([5, 900]), noise(*TOKENS), fps=8).sample,
        UNET_LAYERS,
    ),
    "UNetSpatioTemporalConditionModel": Example(
        lambda: diffusers.UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 32, 64, 64), num_attention_heads=(2, 2, 4, 4), cross_attention_dim=16,
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, layers_per_block=2,
        ),
        lambda model: model(noise(1, 3, 8, 16, 16), torch.tensor([5]), noise(1, 1, 16), noise(1, 3)).sample,
        UNET_LAYERS,
    ),
    "UNetMotionModel": Example(
        animatediff,
        lambda model: model(noise(1, 4, 3, 16, 16), torch.tensor([5]), noise(3, 5, 16)).sample,
        UNET_LAYERS,
    ),
    "WanTransformer3DModel": Example(
        wan,
        lambda model: model(noise(1, 4, 2, 8, 8), torch.tensor([5]), noise(1, 5, 16)).sample,
        ("blocks.1",),
    ),
    "LTXVideoTransformer3DModel": Example(
        ltx,
        lambda model: model(
            noise(1, 8, 4), noise(1, 5, 16), torch.tensor([5]), torch.ones(1, 5), num_frames=2, height=2, width=2
        ).sample,
        ("transformer_blocks.1",),
    ),
    "HunyuanVideoTransformer3DModel": Example(
        hunyuan,
        lambda model: model(
            noise(1, 4, 2, 4, 4), torch.tensor([5]), noise(1, 5, 16), torch.ones(1, 5), noise(1, 8), noise(1),
        ).sample,
        ("transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.2"),
    ),
    "CMDMotionTransformer": Example(
        lambda: CMDMotionTransformer(num_layers=4, dim=16, num_heads=2, text_dim=6),
        lambda model: model(noise(2, 8, 4, 8), torch.tensor([5, 900]), noise(2, 4, 8, 8), noise(2, 6)).sample,
        ("blocks.1", "blocks.2"),
    ),
    "CMDAutoencoder": Example(
        lambda: CMDAutoencoder(4, (8, 8), 4, dim=16, encoder_depth=3, decoder_depth=3, num_heads=2),
        lambda model: model(noise(1, 4, 4, 8, 8)).sample,
        ("decoder.blocks.1",),
    ),
    "AutoencoderKL": Example(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        lambda model: model.decode(noise(1, 4, 4, 4)).sample,
        ("decoder.mid_block", "decoder.up_blocks.1.resnets.1"),
    ),
    "AutoencoderKLTemporalDecoder": Example(
        lambda: diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2,
        ),
        lambda model: model.decode(noise(3, 4, 4, 4), num_frames=3).sample,
        ("decoder.mid_block", "decoder.up_blocks.1.resnets.1"),
    ),
}  # fmt: skip


DENOISERS = [name for name in EXAMPLES if "Autoencoder" not in name]


@pytest.fixture(params=EXAMPLES)
def example(request) -> Example:
    return EXAMPLES[request.param]


@pytest.fixture(params=DENOISERS)
def denoiser_example(request) -> Example:
    return EXAMPLES[request.param]


@pytest.fixture(params=[name for name in DENOISERS if "UNet" not in name])
def transformer_example(request) -> Example:
    return EXAMPLES[request.param]


@pytest.fixture
def awake() -> Callable[[Example], torch.nn.Module]:
    """`awake(example)`: its model with awake weights: fresh ones that are zero would hide a wrong order of blocks."""

    def build(example: Example) -> torch.nn.Module:
        torch.manual_seed(0)
        model = example.build().eval()
        for parameter in model.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    return build


@pytest.fixture
def selection() -> Callable[..., BlockSelection]:
    """`selection(teacher, ["mid_block"])`."""
    return lambda teacher, removed: BlockSelection(type(teacher).__name__, tuple(removed), "test")


@pytest.fixture
def teacher(example, awake) -> torch.nn.Module:
    return awake(example)
