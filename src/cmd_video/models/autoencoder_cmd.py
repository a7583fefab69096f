"""CMD's autoencoder: a clip <-> one content frame and two planes of motion latents (arXiv 2403.14148, section 3.1).

    autoencoder = CMDAutoencoder(in_channels=4, sample_size=(64, 64))        # in the latent space of Stable Diffusion
    content_frame, motion_latents = autoencoder.encode(video).to_tuple()
    video = autoencoder.decode(content_frame, motion_latents).sample

B batch, C channels, F frames, H, W, D motion channels, H' = H / patch, W' = W / patch, C' width of the transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional

from .layers import FactorizedBlock, ResnetBlock, RotaryTable, rotary_table, zero_init


@dataclass
class CMDAutoencoderOutput(BaseOutput):
    """What `CMDAutoencoder.encode` returns.

    Attributes:
        content_frame: (B, C, H, W), inside the range of the input.
        motion_latents: (B, D, F, H' + W'), in (-1, 1): the plane z_x (rows), then the plane z_y (columns).
    """

    content_frame: torch.Tensor
    motion_latents: torch.Tensor


class VideoTransformer(nn.Module):
    """Factorised time and space attention over patches with rotary positions: (B, C', F, H', W') -> the same shape.

    Time has 1-D rotary positions, space 2-D axial ones; the paper's TimeSformer blocks (appendix B.3).
    """

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.blocks = nn.ModuleList(FactorizedBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.gradient_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, dim, frames, height, width = x.shape
        time_rotary, space_rotary = self._rotary(frames, height, width, x)
        x = x.flatten(3).permute(0, 2, 3, 1)  # (B, F, H'W', C')
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, time_rotary, space_rotary, use_reentrant=False)
            else:
                x = block(x, time_rotary, space_rotary)
        return self.norm(x).permute(0, 3, 1, 2).reshape(batch, dim, frames, height, width)

    def _rotary(self, frames: int, height: int, width: int, like: torch.Tensor) -> tuple[RotaryTable, RotaryTable]:
        """Tables for time (F tokens) and space (H' W' tokens)."""
        time = torch.arange(frames, device=like.device)[:, None]
        sides = (torch.arange(side, device=like.device) for side in (height, width))
        space = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
        return rotary_table(time, self.head_dim, like.dtype), rotary_table(space, self.head_dim, like.dtype)


class CMDAutoencoder(ModelMixin, ConfigMixin):
    """Encoder f = (f_B, f_I, f_M) and decoder g = (g_I, g_M, g_B) of the paper's equations 3 to 6.

    With the defaults this is the paper's model for Stable Diffusion latents (0.047 B parameters). Fields marked
    "differs from paper" are off by default; the recipes of the paper leave them off.

    Args:
        in_channels: C; 3 for pixels, 4 for Stable Diffusion's latents.
        sample_size: (H, W) it is trained for; any size divisible by the patch works.
        num_frames: F it is trained for; any number works.
        patch_size: side of a patch; H' = H / patch_size.
        dim: C', width of both transformers.
        encoder_depth: blocks of f_B.
        decoder_depth: blocks of g_B.
        num_heads: attention heads; the width of a head must be divisible by 4.
        latent_channels: D.
        content_frame: "weighted" is equation 3; "mean" the plain mean of the frames (the paper's ablation, table 4b).
        output_activation: "linear" for latents, "sigmoid" (rescaled to (-1, 1)) for pixels.
        stem_channels: differs from paper: width of a convolutional stem in front of f_B, whose features also reach
            f_I; 0 = none, the paper's single patch layer.
        head_channels: differs from paper: width of a convolutional head behind g_B that sees the content frame's
            features at full resolution too (as in Reducio, arXiv 2411.13552); 0 = none.
        anchor_bias: differs from paper: constant added to the logits of the middle frame in equation 3, so that
            training starts from a content frame that is mostly one sharp frame, not the blurred mean; 0 = none.
        base: differs from paper: what the decoder's output is added to. "none" is the paper; "content" the content
            frame; "warp" the content frame moved by a flow that the head predicts per frame; "layers" that where a
            mask, predicted with the flow, says so, and elsewhere a background painted once for the whole clip, so that
            a moving object need not drag along what surrounds it (both need head_channels).
        fold: the channels are a folded grid of fold x fold pixels (`AutoencoderPixelUnshuffle`), 1 = not folded. The
            flow then moves those pixels, and the weights of equation 3 are predicted once per grid and interpolated.
        latents_mean: mean of each motion channel over training data, measured by the training stage.
        latents_std: standard deviation of each motion channel, measured by the training stage.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FactorizedBlock"]
    _repeated_blocks = ["FactorizedBlock"]

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
    ) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(f"dim: {dim} is not divisible by 4 * num_heads = {4 * num_heads}")
        if content_frame not in ("weighted", "mean"):
            raise ValueError(f"content_frame: {content_frame!r} is neither 'weighted' nor 'mean'")
        if output_activation not in ("linear", "sigmoid"):
            raise ValueError(f"output_activation: {output_activation!r} is neither 'linear' nor 'sigmoid'")
        moved = base in ("warp", "layers")
        if base not in ("none", "content", "warp", "layers") or (moved and not head_channels):
            raise ValueError(f"base: {base!r} is none of 'none', 'content', 'warp', 'layers' (with head_channels > 0)")

        # 1. Encoder: f_B
        self.stem = ConvStem(in_channels, stem_channels) if stem_channels else None
        self.patch_embed = nn.Conv2d(stem_channels or in_channels, dim, patch_size, patch_size)
        self.encoder = VideoTransformer(dim, encoder_depth, num_heads)
        # 2. Heads of the encoder: f_I (weights of the content frame) and f_M (one 1x1 convolution per plane)
        if content_frame == "weighted":
            weight_channels = in_channels // fold**2
            self.content_logits = nn.ConvTranspose2d(dim, stem_channels or weight_channels, patch_size, patch_size)
            self.content_logits_out = nn.Conv2d(2 * stem_channels, weight_channels, 1) if stem_channels else None
            last = self.content_logits_out or self.content_logits
            zero_init(last)  # training starts at the plain mean, or at the anchor
        self.motion_out_x, self.motion_out_y = nn.Conv2d(dim, latent_channels, 1), nn.Conv2d(dim, latent_channels, 1)
        # 3. Decoder: g_I, g_M, g_B and the layer back to channels
        self.content_embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.motion_in_x, self.motion_in_y = nn.Conv2d(latent_channels, dim, 1), nn.Conv2d(latent_channels, dim, 1)
        self.decoder = VideoTransformer(dim, decoder_depth, num_heads)
        self.unpatch = nn.ConvTranspose2d(dim, head_channels or in_channels, patch_size, patch_size)
        extra = {"warp": 2 * fold**2, "layers": 3 * fold**2}.get(base, 0)  # flow; flow and mask
        self.head = ConvHead(in_channels, head_channels, in_channels + extra) if head_channels else None
        self.background = ConvHead(in_channels, head_channels, in_channels) if base == "layers" else None

    def content_weights(self, video: torch.Tensor) -> torch.Tensor:
        """The softmax over frames of equation 3: (B, C, F, H, W) -> (B, C, F, H, W), summing to 1 over F."""
        self.check_size(video)
        if self.config.content_frame == "mean":
            return torch.full_like(video, 1 / video.shape[2])
        return self._content_weights(*self._encode_features(video))

    @apply_forward_hook
    def encode(self, video: torch.Tensor, return_dict: bool = True) -> CMDAutoencoderOutput | tuple[torch.Tensor, ...]:
        """Split a clip.

        Args:
            video: (B, C, F, H, W), in [-1, 1] for pixels, or latents of an image autoencoder times its scaling factor.
            return_dict: return a `CMDAutoencoderOutput` instead of a tuple.

        Returns:
            content_frame (B, C, H, W) and motion_latents (B, D, F, H' + W'), not normalised.

        Raises:
            ValueError: H or W is not divisible by the patch size, or C is wrong.
        """
        self.check_size(video)
        features, u = self._encode_features(video)  # (B, stem, F, H, W) or the video itself, (B, C', F, H', W')
        if self.config.content_frame == "mean":
            content_frame = video.mean(dim=2)
        else:
            content_frame = (video * self._content_weights(features, u)).sum(dim=2)  # eq. 3: (B, C, H, W)
        z_x = self.motion_out_x(u.mean(dim=4)).tanh()  # eq. 4, mean over x: (B, D, F, H')
        z_y = self.motion_out_y(u.mean(dim=3)).tanh()  # eq. 4, mean over y: (B, D, F, W')
        motion_latents = torch.cat([z_x, z_y], dim=3)  # (B, D, F, H' + W')
        if not return_dict:
            return content_frame, motion_latents
        return CMDAutoencoderOutput(content_frame=content_frame, motion_latents=motion_latents)

    @apply_forward_hook
    def decode(
        self, content_frame: torch.Tensor, motion_latents: torch.Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Put a clip together again.

        Args:
            content_frame: (B, C, H, W).
            motion_latents: (B, D, F, H' + W'), not normalised.
            return_dict: return a `DecoderOutput` instead of a tuple.

        Returns:
            `sample` (B, C, F, H, W).

        Raises:
            ValueError: the width of the motion latents is not H' + W'.
        """
        sample, _ = self.decode_with_flow(content_frame, motion_latents)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def decode_with_flow(
        self, content_frame: torch.Tensor, motion_latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `decode` does, and the flow by which it moved the content frame.

        Args:
            content_frame: (B, C, H, W).
            motion_latents: (B, D, F, H' + W'), not normalised.

        Returns:
            the clip (B, C, F, H, W), and the flow (B, 2 fold^2, F, H, W) as `warp` takes it; None without one.

        Raises:
            ValueError: the width of the motion latents is not H' + W'.
        """
        height, width = (side // self.config.patch_size for side in content_frame.shape[-2:])
        if motion_latents.shape[-1] != height + width:
            raise ValueError(
                f"motion_latents: width {motion_latents.shape[-1]} is not H' + W' = {height} + {width} "
                f"of a {tuple(content_frame.shape[-2:])} content frame"
            )
        z_x, z_y = motion_latents.split([height, width], dim=3)
        v_t = self.content_embed(content_frame)  # g_I: (B, C', H', W')
        v_x, v_y = self.motion_in_x(z_x), self.motion_in_y(z_y)  # g_M: (B, C', F, H'), (B, C', F, W')
        v = v_t[:, :, None] + v_x[:, :, :, :, None] + v_y[:, :, :, None, :]  # eq. 6: (B, C', F, H', W')
        v = self.decoder(v)  # g_B
        features = per_frame(self.unpatch, v)  # (B, C or head, F, H, W)
        sample, flow = features, None
        if self.head is not None:
            sample = self.head(features, content_frame)  # (B, C, F, H, W), with the flow's and mask's channels behind
        if self.config.base == "content":
            sample = sample + content_frame[:, :, None]
        elif self.config.base == "warp":
            sample, flow = sample.split([content_frame.shape[1], sample.shape[1] - content_frame.shape[1]], dim=1)
            sample = sample + warp(content_frame, flow, self.config.fold)
        elif self.background is not None:
            area = self.config.fold**2
            sample, flow, mask = sample.split([content_frame.shape[1], 2 * area, area], dim=1)
            painted = self.background(features.mean(dim=2, keepdim=True), content_frame)  # (B, C, 1, H, W)
            background = content_frame[:, :, None] + painted
            sample = sample + lay_over(warp(content_frame, flow, self.config.fold), background, mask.sigmoid())
        if self.config.output_activation == "sigmoid":
            sample = 2 * sample.sigmoid() - 1
        return sample, flow

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode: (B, C, F, H, W) -> (B, C, F, H, W)."""
        return self.decode(*self.encode(sample, return_dict=False), return_dict=return_dict)

    def normalize_latents(self, motion_latents: torch.Tensor) -> torch.Tensor:
        """Motion latents -> zero mean and unit variance in each channel, what the motion model sees."""
        mean, std = self._latent_statistics(motion_latents)
        return (motion_latents - mean) / std

    def denormalize_latents(self, motion_latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_latents`."""
        mean, std = self._latent_statistics(motion_latents)
        return motion_latents * std + mean

    def check_size(self, video: torch.Tensor) -> None:
        """Raise a ValueError that names what is wrong with the shape of a clip (B, C, F, H, W)."""
        if video.ndim != 5 or video.shape[1] != self.config.in_channels:
            raise ValueError(f"video: shape {tuple(video.shape)} is not (B, {self.config.in_channels}, F, H, W)")
        patch = self.config.patch_size
        for name, side in zip(("height", "width"), video.shape[-2:], strict=True):
            if side % patch:
                nearest = max(patch, round(side / patch) * patch)
                raise ValueError(f"{name}: {side} is not divisible by the patch size {patch}; nearest is {nearest}")

    def _encode_features(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = video if self.stem is None else per_frame(self.stem, video)
        return features, self.encoder(per_frame(self.patch_embed, features))

    def _content_weights(self, features: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        logits = per_frame(self.content_logits, u)  # f_I
        if self.content_logits_out is not None:
            logits = per_frame(self.content_logits_out, torch.cat([logits, features], dim=1))
        if self.config.anchor_bias:
            middle = torch.arange(logits.shape[2], device=logits.device) == logits.shape[2] // 2
            logits = logits + self.config.anchor_bias * middle.to(logits)[:, None, None]
        if self.config.fold > 1:
            logits = per_frame(self._to_folded_pixels, logits)
        return logits.softmax(dim=2)  # (B, C, F, H, W)

    def _to_folded_pixels(self, logits: torch.Tensor) -> torch.Tensor:
        """Smooth logits for every pixel of the folded grid: (N, C / fold^2, H, W) -> (N, C, H, W)."""
        fold = self.config.fold
        return functional.pixel_unshuffle(functional.interpolate(logits, scale_factor=fold, mode="bilinear"), fold)

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.config.latent_channels
        mean, std = self.config.latents_mean or [0.0] * channels, self.config.latents_std or [1.0] * channels
        shape = (1, channels, 1, 1)
        return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)


def per_frame(layer: Callable[[torch.Tensor], torch.Tensor], video: torch.Tensor) -> torch.Tensor:
    """Apply a 2-D layer to each frame of (B, C, F, H, W)."""
    batch, _, frames = video.shape[:3]
    out = layer(video.transpose(1, 2).flatten(0, 1))  # (B*F, C, H, W)
    return out.unflatten(0, (batch, frames)).transpose(1, 2)


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
    offsets = functional.pixel_shuffle(flow.transpose(1, 2).flatten(0, 1), fold).float()  # (B*F, 2, H fold, W fold)
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
