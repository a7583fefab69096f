"""Tiny models with awake weights: nothing stays at its zero start, so that every input reaches every output."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer, CMDWarpAutoencoder

PAPER: dict[str, Any] = {
    "in_channels": 3,
    "sample_size": (8, 8),
    "num_frames": 4,
    "patch_size": 2,
    "dim": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "latent_channels": 4,
}
SPRITES: dict[str, Any] = {
    "in_channels": 12,
    "stem_channels": 8,
    "head_channels": 8,
    "anchor_bias": 1.0,
    "base": "warp",
    "fold": 2,
}
RECIPES: dict[str, dict[str, Any]] = {"paper": {}, "sprites": SPRITES, "pixels": {"output_activation": "sigmoid"}}
MOTION: dict[str, Any] = {
    "latent_channels": 4,
    "content_channels": 3,
    "autoencoder_patch_size": 2,
    "patch_size": 2,
    "content_patch_size": 4,
    "num_layers": 2,
    "dim": 32,
    "num_heads": 2,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def awaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture
def make_autoencoder() -> Callable[..., CMDAutoencoder]:
    """`make_autoencoder("sprites", dim=32)`: a recipe with changes, without zero weights, in evaluation mode."""

    def make(recipe: str = "paper", **changes: Any) -> CMDAutoencoder:
        torch.manual_seed(0)
        fields = {**PAPER, **RECIPES[recipe], **changes}
        kind = CMDWarpAutoencoder if fields.keys() & CMDWarpAutoencoder.additions.keys() else CMDAutoencoder
        return awaken(kind(**fields))

    return make


@pytest.fixture
def make_motion_transformer() -> Callable[..., CMDMotionTransformer]:
    """`make_motion_transformer(num_classes=3)`; with `fresh=True` as the constructor leaves it."""

    def make(fresh: bool = False, **changes: Any) -> CMDMotionTransformer:
        torch.manual_seed(0)
        model = CMDMotionTransformer(**{**MOTION, **changes})
        return model if fresh else awaken(model)

    return make


@pytest.fixture
def random_clip() -> Callable[..., torch.Tensor]:
    """`random_clip(3, 4, 8, 12)`: two clips (2, C, F, H, W) in [-1, 1]."""

    def make(channels: int = 3, frames: int = 4, height: int = 8, width: int = 12, batch: int = 2) -> torch.Tensor:
        return torch.rand(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1

    return make


@pytest.fixture
def motion_inputs() -> Callable[..., dict[str, torch.Tensor]]:
    """`motion_inputs(model, frames=4, height=8, width=16)`: keyword arguments of its forward, a batch of two."""

    def make(
        model: CMDMotionTransformer, frames: int = 4, height: int = 8, width: int = 16
    ) -> dict[str, torch.Tensor]:
        config, generator = model.config, torch.Generator().manual_seed(3)
        places = (height + width) // config.autoencoder_patch_size
        inputs = {
            "hidden_states": torch.randn(2, config.latent_channels, frames, places, generator=generator),
            "timestep": torch.tensor([10, 700]),
            "content_frame": torch.randn(2, config.content_channels, height, width, generator=generator),
        }
        if config.text_dim:
            inputs["pooled_text"] = torch.randn(2, config.text_dim, generator=generator)
        if config.num_classes:
            inputs["class_labels"] = torch.tensor([0, 1])
        return inputs

    return make
