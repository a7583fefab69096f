"""CMD's autoencoder for small models that paint pixels: it moves the content frame's instead of drawing them anew.

    autoencoder = CMDWarpAutoencoder(in_channels=48, fold=4, stem_channels=48, head_channels=64, base="warp")
    reconstruction, flow = autoencoder.decode_with_flow(content_frame, motion_latents)

None of this is in the paper. B batch, C channels, F frames, H, W, H', W', C' as in `autoencoder_cmd`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers import ModelMixin as ModelMixin  # diffusers looks for a component's base class in its module
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional

from .autoencoder_cmd import CMDAutoencoder, chosen, per_frame
from .layers import ResnetBlock, zero_init


class CMDWarpAutoencoder(CMDAutoencoder):
    """The paper's autoencoder between convolutions, with a flow by which the content frame's pixels move.

    Args:
        in_channels: this and the next ten as in `CMDAutoencoder`.
        sample_size: see there.
        num_frames: see there.
        patch_size: see there.
        dim: see there.
        encoder_depth: see there.
        decoder_depth: see there.
        num_heads: see there.
        latent_channels: see there.
        content_frame: see there.
        output_activation: see there.
        stem_channels: width of a convolutional stem in front of f_B, whose features also reach f_I; 0 = none.
        head_channels: width of a convolutional head behind g_B that sees the content frame's features at full
            resolution too (as in Reducio, arXiv 2411.13552); 0 = none.
        anchor_bias: constant added to the logits of the middle frame in equation 3, so that training starts from a
            content frame that is mostly one sharp frame, not the blurred mean; 0 = none.
        base: what the decoder's output is added to. "none" is the paper; "content" the content frame; "warp" the
            content frame moved by a flow that the head predicts per frame; "layers" that where a mask, predicted with
            the flow, says so, and elsewhere a background painted once for the whole clip, so that a moving object need
            not drag along what surrounds it (both need head_channels).
        fold: the channels are a folded grid of fold x fold pixels (`AutoencoderPixelUnshuffle`), 1 = not folded. The
            flow then moves those pixels, and the weights of equation 3 are predicted once per grid and interpolated.
        latents_mean: see there.
        latents_std: see there.
        frame_weights: see there.
    """

    additions: ClassVar[dict[str, Any]] = {
        "stem_channels": 0, "head_channels": 0, "anchor_bias": 0.0, "base": "none", "fold": 1,
    }  # fmt: skip

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        sample_size: tuple[int, int] = (64, 64),
        num_frames: int = 16,
        patch_size: int = 2,
        dim: int = 384,
        encoder_depth: int = 8,
        decoder_depth: int = 8,
        num_heads: int = 8,
        latent_channels: int = 8,
        content_frame: Literal["weighted", "mean"] = "weighted",
        output_activation: Literal["linear", "sigmoid"] = "linear",
        stem_channels: int = 0,
        head_channels: int = 0,
        anchor_bias: float = 0.0,
        base: Literal["none", "content", "warp", "layers"] = "none",
        fold: int = 1,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        frame_weights: list[float] | None = None,
    ) -> None:
        moved = base in ("warp", "layers")
        if base not in ("none", "content", "warp", "layers") or (moved and not head_channels):
            raise ValueError(f"base: {base!r} is none of 'none', 'content', 'warp', 'layers' (with head_channels > 0)")
        if in_channels % fold**2:
            raise ValueError(f"in_channels: {in_channels} is no grid of {fold} x {fold} pixels (fold)")
        super().__init__(
            in_channels, sample_size, num_frames, patch_size, dim, encoder_depth, decoder_depth, num_heads,
            latent_channels, content_frame, output_activation, latents_mean, latents_std, frame_weights,
        )  # fmt: skip
        self.stem = ConvStem(in_channels, stem_channels) if stem_channels else None
        self.content_logits_out = None
        if stem_channels and content_frame == "weighted":
            self.content_logits.reset_parameters()  # the last layer is another now, and starts at zero
            self.content_logits_out = nn.Conv2d(2 * stem_channels, in_channels // fold**2, 1)
            zero_init(self.content_logits_out)
        extra = {"warp": 2 * fold**2, "layers": 3 * fold**2}.get(base, 0)  # flow; flow and mask
        self.head = ConvHead(in_channels, head_channels, in_channels + extra) if head_channels else None
        self.background = ConvHead(in_channels, head_channels, in_channels) if base == "layers" else None

    def _widths(self) -> tuple[int, int, int]:
        channels, stem, head = self.config.in_channels, self.config.stem_channels, self.config.head_channels
        return stem or channels, stem or channels // self.config.fold**2, head or channels

    def encode_tokens(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = video if self.stem is None else per_frame(self.stem, video)  # (B, stem or C, F, H, W)
        u, logits = super().encode_tokens(features)  # (B, C', F, H', W'), (B, stem or C / fold^2, F, H, W)
        if logits is None:
            return u, None
        if self.content_logits_out is not None:
            logits = per_frame(self.content_logits_out, torch.cat([logits, features], dim=1))
        if self.config.anchor_bias:
            middle = torch.arange(logits.shape[2], device=logits.device) == logits.shape[2] // 2
            logits = logits + self.config.anchor_bias * middle.to(logits)[:, None, None]
        if self.config.fold > 1:
            logits = per_frame(self._to_folded_pixels, logits)
        return u, logits  # (B, C', F, H', W'), (B, C, F, H, W)

    def _to_folded_pixels(self, logits: torch.Tensor) -> torch.Tensor:
        """Smooth logits for every pixel of the folded grid: (N, C / fold^2, H, W) -> (N, C, H, W)."""
        fold = self.config.fold
        return functional.pixel_unshuffle(functional.interpolate(logits, scale_factor=fold, mode="bilinear"), fold)

    @apply_forward_hook
    def decode(
        self,
        content_frame: torch.Tensor,
        motion_latents: torch.Tensor,
        return_dict: bool = True,
        frames: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """As `CMDAutoencoder.decode`."""
        sample, _ = self.decode_with_flow(content_frame, motion_latents, frames)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_with_flow(
        self, content_frame: torch.Tensor, motion_latents: torch.Tensor, frames: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `decode` does, and the flow by which it moved the content frame.

        Args:
            content_frame: (B, C, H, W).
            motion_latents: (B, D, F, H' + W'), not normalised.
            frames: numbers of the frames that are wanted; None = all.

        Returns:
            the clip (B, C, F, H, W), and the flow (B, 2 fold^2, F, H, W) as `warp` takes it; None without one.

        Raises:
            ValueError: the width of the motion latents is not H' + W'.
        """
        v = self.decode_tokens(content_frame, motion_latents)  # (B, C', F, H', W')
        features = per_frame(self.unpatch, v)  # (B, C or head, F, H, W)
        whole, features = features, chosen(features, frames)
        sample, flow, area = features, None, self.config.fold**2
        if self.head is not None:
            sample = self.head(features, content_frame)  # (B, C, F, H, W), with the flow's and mask's channels behind
        if self.config.base == "content":
            sample = sample + content_frame[:, :, None]
        elif self.config.base == "warp":
            sample, flow = sample.split([content_frame.shape[1], 2 * area], dim=1)
            sample = sample + warp(content_frame, flow, self.config.fold)
        elif self.background is not None:
            sample, flow, mask = sample.split([content_frame.shape[1], 2 * area, area], dim=1)
            painted = self.background(whole.mean(dim=2, keepdim=True), content_frame)  # (B, C, 1, H, W)
            background = content_frame[:, :, None] + painted
            sample = sample + lay_over(warp(content_frame, flow, self.config.fold), background, mask.sigmoid())
        return self.activate(sample), flow


def warp(content_frame: torch.Tensor, flow: torch.Tensor, fold: int) -> torch.Tensor:
    """Move the pixels of a content frame, once per frame, by bilinear sampling.

    Args:
        content_frame: (B, C, H, W), its channels a folded grid of fold x fold pixels.
        flow: (B, 2 * fold^2, F, H, W), where each pixel comes from, relative to itself, in half frame widths (x, y).
        fold: side of the folded grid; 1 = none.

    Returns:
        (B, C, F, H, W); what would come from outside the frame comes from its edge.
    """
    frames = flow.shape[2]
    pixels = functional.pixel_shuffle(content_frame, fold).float()  # (B, C / fold^2, H fold, W fold)
    offsets = unfolded(flow, fold).flatten(0, 1)  # (B*F, 2, H fold, W fold)
    height, width = offsets.shape[-2:]
    ys = (torch.arange(height, device=flow.device, dtype=torch.float32) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=flow.device, dtype=torch.float32) * 2 + 1) / width - 1
    grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1) + offsets.permute(
        0, 2, 3, 1
    )
    pixels = pixels.repeat_interleave(frames, dim=0)
    moved = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved = moved.to(content_frame.dtype)  # float32 until here: bfloat16 cannot tell the places of a wide frame
    return functional.pixel_unshuffle(moved, fold).unflatten(0, (-1, frames)).transpose(1, 2)


def unfolded(flow: torch.Tensor, fold: int) -> torch.Tensor:
    """A flow pixel by pixel: (B, 2 * fold^2, F, H, W) as `warp` takes it -> float32 (B, F, 2, H fold, W fold)."""
    offsets = functional.pixel_shuffle(flow.transpose(1, 2).flatten(0, 1), fold).float()
    return offsets.unflatten(0, (-1, flow.shape[2]))


def check_flow(name: str, autoencoder: Any) -> None:
    """Raise a ValueError that begins with this name unless an autoencoder predicts a flow."""
    base = autoencoder.config.get("base", "none")
    if base not in ("warp", "layers"):
        raise ValueError(f"{name}: this autoencoder predicts no flow (base {base!r}); allowed: 'warp', 'layers'")


def lay_over(moved: torch.Tensor, background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What moves, over what stays.

    Args:
        moved: (B, C, F, H, W), its channels a folded grid of fold x fold pixels of C / fold^2 colors.
        background: (B, C, 1, H, W).
        mask: (B, fold^2, F, H, W) in [0, 1]: 1 shows what moves.

    Returns:
        (B, C, F, H, W).
    """
    mask = mask.repeat(1, moved.shape[1] // mask.shape[1], 1, 1, 1)  # the same for every color
    return mask * moved + (1 - mask) * background


class ConvStem(nn.Sequential):
    """(N, C, H, W) -> (N, stem_channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1), ResnetBlock(channels))


class ConvHead(nn.Module):
    """Upsampled tokens (B, head, F, H, W) and the content frame (B, C, H, W) -> (B, out_channels, F, H, W)."""

    def __init__(self, content_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.content_features = ConvStem(content_channels, channels)
        self.blocks = nn.Sequential(ResnetBlock(channels), ResnetBlock(channels), nn.GroupNorm(8, channels), nn.SiLU())
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)
        zero_init(self.conv_out)  # with a base, training starts at the content frame

    def forward(self, hidden: torch.Tensor, content_frame: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.content_features(content_frame)[:, :, None]
        return per_frame(self.conv_out, per_frame(self.blocks, hidden))
