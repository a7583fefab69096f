"""Pictures of a validation batch: clips in rows, some of their frames side by side.

grid = tile([still, evenly(video)])                                   # (3, height, width) in [-1, 1]
"""

import torch


def evenly(video: torch.Tensor, count: int = 6) -> torch.Tensor:
    """Frames spread over clips: (B, 3, F, H, W) -> (B, 3, count, H, W)."""
    return video[:, :, torch.linspace(0, video.shape[2] - 1, count).round().long()]


def tile(columns: list[torch.Tensor]) -> torch.Tensor:
    """One row per clip, frames side by side: list of (B, 3, F, H, W) -> (3, B * H, sum(F) * W), in [-1, 1]."""
    rows = torch.cat([column.float().cpu() for column in columns], dim=2)  # (B, 3, frames, H, W)
    batch, channels, frames, height, width = rows.shape
    return rows.permute(1, 0, 3, 2, 4).reshape(channels, batch * height, frames * width).clamp(-1, 1)
