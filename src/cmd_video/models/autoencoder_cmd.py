"""CMD's autoencoder: a clip <-> one content frame and two planes of motion latents (arXiv 2403.14148, section 3.1).

    autoencoder = CMDAutoencoder(in_channels=4, sample_size=(64, 64))        # in the latent space of Stable Diffusion
    content_frame, motion_latents = autoencoder.encode(video).to_tuple()
    video = autoencoder.decode(content_frame, motion_latents).sample

B batch, C channels, F frames, H, W, D motion channels, H' = H / patch, W' = W / patch, C' width of the transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .layers import FactorizedBlock, RotaryTable, rotary_table, zero_init


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

    With the defaults this is the paper's model for Stable Diffusion latents (0.047 B parameters). Small models
    that paint pixels rather than latents need more: `CMDWarpAutoencoder`.

    Differs from paper: rotary positions in the attention; the weights of equation 3 start at the plain mean (a zero
    layer); motion latents are normalised by a measured mean and deviation; 8 heads of 48 follow the paper's count of
    operations, its table 5 says 64.

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
        latents_mean: mean of each motion channel over training data, measured by the training stage.
        latents_std: standard deviation of each motion channel, measured by the training stage.
        frame_weights: mean weight of each frame in equation 3 over training data, measured by the training stage.
    """

    additions: ClassVar[dict[str, Any]] = {}  # a subclass's own fields -> their values without effect
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
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        frame_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(f"dim: {dim} is not divisible by 4 * num_heads = {4 * num_heads}")
        if content_frame not in ("weighted", "mean"):
            raise ValueError(f"content_frame: {content_frame!r} is neither 'weighted' nor 'mean'")
        if output_activation not in ("linear", "sigmoid"):
            raise ValueError(f"output_activation: {output_activation!r} is neither 'linear' nor 'sigmoid'")
        tokens_in, logits_out, frames_out = self._widths()

        # 1. Encoder: f_B
        self.patch_embed = nn.Conv2d(tokens_in, dim, patch_size, patch_size)
        self.encoder = VideoTransformer(dim, encoder_depth, num_heads)
        # 2. Heads of the encoder: f_I (weights of the content frame) and f_M (one 1x1 convolution per plane)
        if content_frame == "weighted":
            self.content_logits = nn.ConvTranspose2d(dim, logits_out, patch_size, patch_size)
            zero_init(self.content_logits)  # training starts at the plain mean
        self.motion_out_x, self.motion_out_y = nn.Conv2d(dim, latent_channels, 1), nn.Conv2d(dim, latent_channels, 1)
        # 3. Decoder: g_I, g_M, g_B and the layer back to channels
        self.content_embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.motion_in_x, self.motion_in_y = nn.Conv2d(latent_channels, dim, 1), nn.Conv2d(latent_channels, dim, 1)
        self.decoder = VideoTransformer(dim, decoder_depth, num_heads)
        self.unpatch = nn.ConvTranspose2d(dim, frames_out, patch_size, patch_size)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers' own; a configuration from before a subclass had its fields to itself makes that subclass."""
        fields = dict(config)
        for heir in cls.__subclasses__() if cls is CMDAutoencoder else ():
            if any(fields.get(name, plain) != plain for name, plain in heir.additions.items()):
                return heir.from_config(fields, return_unused_kwargs, **kwargs)
            fields = {name: value for name, value in fields.items() if name not in heir.additions}
        return super().from_config(fields, return_unused_kwargs, **kwargs)

    def _widths(self) -> tuple[int, int, int]:
        """Channels of what is cut into patches, of the logits of equation 3 and of what tokens become: C, C, C."""
        return (self.config.in_channels,) * 3

    def content_weights(self, video: torch.Tensor) -> torch.Tensor:
        """The softmax over frames of equation 3: (B, C, F, H, W) -> (B, C, F, H, W), summing to 1 over F."""
        self.check_size(video)
        _, logits = self.encode_tokens(video)
        return torch.full_like(video, 1 / video.shape[2]) if logits is None else logits.softmax(dim=2)

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
        u, logits = self.encode_tokens(video)  # (B, C', F, H', W'), (B, C, F, H, W)
        if logits is None:
            content_frame = video.mean(dim=2)
        else:
            content_frame = (video * logits.softmax(dim=2)).sum(dim=2)  # eq. 3: (B, C, H, W)
        z_x = self.motion_out_x(u.mean(dim=4)).tanh()  # eq. 4, mean over x: (B, D, F, H')
        z_y = self.motion_out_y(u.mean(dim=3)).tanh()  # eq. 4, mean over y: (B, D, F, W')
        motion_latents = torch.cat([z_x, z_y], dim=3)  # (B, D, F, H' + W')
        if not return_dict:
            return content_frame, motion_latents
        return CMDAutoencoderOutput(content_frame=content_frame, motion_latents=motion_latents)

    @apply_forward_hook
    def decode(
        self,
        content_frame: torch.Tensor,
        motion_latents: torch.Tensor,
        return_dict: bool = True,
        frames: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Put a clip together again.

        Args:
            content_frame: (B, C, H, W).
            motion_latents: (B, D, F, H' + W'), not normalised.
            return_dict: return a `DecoderOutput` instead of a tuple.
            frames: numbers of the frames that are wanted; None = all.

        Returns:
            `sample` (B, C, F, H, W), or of the frames that are wanted, in their order.

        Raises:
            ValueError: the width of the motion latents is not H' + W'.
        """
        v = self.decode_tokens(content_frame, motion_latents)  # (B, C', F, H', W')
        sample = self.activate(per_frame(self.unpatch, chosen(v, frames)))  # (B, C, F, H, W)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def encode_tokens(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """f_B and f_I: tokens u (B, C', F, H', W') of a clip, and logits (B, C, F, H, W) of equation 3's weights.

        The logits are None where the content frame is the plain mean.
        """
        u = self.encoder(per_frame(self.patch_embed, video))
        return u, None if self.config.content_frame == "mean" else per_frame(self.content_logits, u)

    def decode_tokens(self, content_frame: torch.Tensor, motion_latents: torch.Tensor) -> torch.Tensor:
        """g_I, g_M and g_B: tokens (B, C', F, H', W') of the clip to be; arguments and errors as `decode`."""
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
        return self.decoder(v)  # g_B

    def activate(self, sample: torch.Tensor) -> torch.Tensor:
        """Pixels into (-1, 1), latents as they are."""
        return 2 * sample.sigmoid() - 1 if self.config.output_activation == "sigmoid" else sample

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

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.config.latent_channels
        mean, std = self.config.latents_mean or [0.0] * channels, self.config.latents_std or [1.0] * channels
        shape = (1, channels, 1, 1)
        return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)


def chosen(video: torch.Tensor, frames: Sequence[int] | None) -> torch.Tensor:
    """Some frames of (B, C, F, H, W), by their numbers; None = all."""
    return video if frames is None else video[:, :, list(frames)]


def per_frame(layer: Callable[[torch.Tensor], torch.Tensor], video: torch.Tensor) -> torch.Tensor:
    """Apply a 2-D layer to each frame of (B, C, F, H, W)."""
    batch, _, frames = video.shape[:3]
    out = layer(video.transpose(1, 2).flatten(0, 1))  # (B*F, C, H, W)
    return out.unflatten(0, (batch, frames)).transpose(1, 2)
