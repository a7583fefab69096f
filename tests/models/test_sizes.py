"""The numbers that make it CMD, on the meta device: parameters and multiply-adds as the paper counts them."""

import pytest
import torch

from cmd_video.benchmark.cost import count, num_parameters
from cmd_video.models import MOTION_TRANSFORMER_SIZES, CMDAutoencoder, CMDMotionTransformer


def tera_multiply_adds(call) -> float:
    """Of convolutions and linear layers alone: the products inside attention are not counted (paper, table 8)."""
    return count(call).layer_macs / 1e12


@pytest.mark.parametrize(
    ("size", "millions"), [("S", 33.0), ("B", 130.5), ("L", 458.1), ("XL", 675.1)]
)  # DiT's own table, with a class condition
def test_named_sizes_have_the_parameters_of_dit(size, millions):
    with torch.device("meta"):
        model = CMDMotionTransformer(**MOTION_TRANSFORMER_SIZES[size], num_classes=1000)
    assert num_parameters([model]) / 1e6 == pytest.approx(millions, rel=0.015)
    assert len(model.blocks) == {"S": 12, "B": 12, "L": 24, "XL": 28}[size]
    assert model.blocks[0].attention.num_heads == {"S": 6, "B": 12, "L": 16, "XL": 16}[size]


def test_the_default_autoencoder_is_the_papers():
    with torch.device("meta"):
        autoencoder = CMDAutoencoder()
        clip = torch.zeros(1, 4, 16, 64, 64)
    assert num_parameters([autoencoder]) / 1e9 == pytest.approx(0.047, rel=0.02)
    assert tera_multiply_adds(lambda: autoencoder(clip)) == pytest.approx(0.77, rel=0.015)
    encoded = autoencoder.encode(clip)
    assert encoded.content_frame.shape == (1, 4, 64, 64) and encoded.motion_latents.shape == (1, 8, 16, 64)


@pytest.mark.parametrize(
    ("width", "content_patch", "tokens", "expected"), [(64, 8, 320, 0.143), (64, 4, 512, 0.228), (128, 8, 512, 0.228)]
)
def test_multiply_adds_of_the_motion_model(width, content_patch, tokens, expected):
    """512x512 (paper: 0.14 T) and 512x1024 with Stable Diffusion's latents."""
    caught = []
    with torch.device("meta"):
        model = CMDMotionTransformer(**MOTION_TRANSFORMER_SIZES["XL"], content_patch_size=content_patch, text_dim=1024)
        model.blocks[0].register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0].shape[1]))
        latents, frame = torch.zeros(1, 8, 16, 32 + width // 2), torch.zeros(1, 4, 64, width)
        timestep, text = torch.zeros(1, dtype=torch.long), torch.zeros(1, 1024)
    assert tera_multiply_adds(lambda: model(latents, timestep, frame, text)) == pytest.approx(expected, rel=0.015)
    assert caught == [tokens]


def test_counting_leaves_attention_out():
    """The check itself: one attention of 1,000 tokens has only the multiply-adds of its two linear layers."""
    from cmd_video.models.layers import Attention

    with torch.device("meta"):
        attention, x = Attention(64, 4), torch.zeros(1, 1000, 64)
    assert tera_multiply_adds(lambda: attention(x)) == pytest.approx(4 * 64 * 64 * 1000 / 1e12)
