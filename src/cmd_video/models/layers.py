"""Layers that the autoencoder and the motion transformer share: attention with rotary positions, blocks, tables.

B batch, C channels, F frames, H, W, S tokens, D width of a token; `t` is diffusion time only.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

RotaryTable: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (S, dim / 2) each


def rotary_table(positions: torch.Tensor, dim: int, dtype: torch.dtype = torch.float32) -> RotaryTable:
    """Cosines and sines of rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15).

    Args:
        positions: (S, A), A coordinates per token; each takes an equal share of the head ("axial" rotary for A = 2).
        dim: width of one attention head; must be divisible by 2 * A.
        dtype: of the result; the angles are computed in float32.

    Returns:
        cosines and sines, (S, dim / 2) each.
    """
    share = dim // (2 * positions.shape[1])
    frequencies = 10_000.0 ** (-torch.arange(share, device=positions.device, dtype=torch.float32) / share)
    angles = (positions.float()[:, :, None] * frequencies).flatten(1)  # (S, A * share)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn the two halves of each head by the angles of its token: x (..., S, dim), tables (S, dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def sincos_table(rows: torch.Tensor, columns: torch.Tensor, dim: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine position table, for any rectangular set of coordinates.

    Args:
        rows: (S,) first coordinate of each token.
        columns: (S,) second coordinate of each token.
        dim: width D, divisible by 4.

    Returns:
        float32 (S, D): half of the width encodes rows, half columns.
    """

    def encode(position: torch.Tensor) -> torch.Tensor:
        frequencies = 10_000.0 ** (-torch.arange(dim // 4, device=position.device, dtype=torch.float32) / (dim // 4))
        angles = position.float()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    return torch.cat([encode(rows), encode(columns)], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`, with optional rotary positions."""

    def __init__(self, dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotary: RotaryTable | None = None) -> torch.Tensor:
        batch, tokens, dim = x.shape
        q, k, v = (
            self.to_qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, S, d)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(x.transpose(1, 2).reshape(batch, tokens, dim))


class GEGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202): D -> 2 * mult * D -> D."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * mult * dim)
        self.proj_out = nn.Linear(mult * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(x * F.gelu(gate))


class FactorizedBlock(nn.Module):
    """TimeSformer block: attention along time, attention within each frame, feed-forward; each on a residual path."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_time, self.norm_space, self.norm_ff = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.time_attention = Attention(dim, num_heads, bias=False)
        self.space_attention = Attention(dim, num_heads, bias=False)
        self.feed_forward = GEGLU(dim)

    def forward(
        self,
        x: torch.Tensor,
        time_rotary: RotaryTable,
        space_rotary: RotaryTable,
    ) -> torch.Tensor:
        batch, frames, tokens, dim = x.shape  # (B, F, S, D)
        along_time = self.norm_time(x).transpose(1, 2).reshape(batch * tokens, frames, dim)  # (B*S, F, D)
        x = x + self.time_attention(along_time, time_rotary).view(batch, tokens, frames, dim).transpose(1, 2)
        within_frame = self.norm_space(x).view(batch * frames, tokens, dim)  # (B*F, S, D)
        x = x + self.space_attention(within_frame, space_rotary).view(batch, frames, tokens, dim)
        return x + self.feed_forward(self.norm_ff(x))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions on a residual branch, frame by frame: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        zero_init(self.conv2)  # the fresh block is the identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


def zero_init(layer: nn.Module) -> None:
    """Set weight and bias of a layer to zero, so that a fresh residual branch adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale and shift every token of x (B, S, D) by vectors (B, 1, D), or by its own (B, S, D)."""
    return x * (1 + scale) + shift


def per_token(vectors: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
    """Vectors of samples (B, D) for all of their tokens, (B, 1, D); those of K slots (B, K, D) for tokens that lie in
    the slots (S,), (B, S, D).
    """
    return vectors[:, None] if slots is None else vectors[:, slots]


class AdaLNZeroBlock(nn.Module):
    """Transformer block with adaLN-Zero (DiT, arXiv 2212.09748, section 3.2); the identity where gates are zero. With
    `slots` (S,), each token has the condition of its slot, (B, K, D) in all (FVDM, arXiv 2410.03160).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: torch.Tensor, condition: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        modulation = per_token(self.modulation(condition), slots)  # (B, 1 or S, 6 D)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # each (B, 1 or S, D)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TimestepEmbedder(nn.Module):
    """Diffusion time (B,) -> (B, D): 256 sinusoids and a two-layer MLP, as in DiT."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sinusoids = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(256, dim)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(self.sinusoids(timestep).to(dtype))
