"""Features for comparing small synthetic clips without a network: what frames look like, and how they change.

content, motion = content_features(video), motion_features(video)         # video (B, 3, F, H, W) in [-1, 1]

Made for sets like sprites, where pixels averaged over an 8x8 grid say what is where. They are no stand-in for FVD, and
distances in them are comparable with one another only.
"""

import torch
import torch.nn.functional as F

GRID, FRAMES = 8, 4


def content_features(video: torch.Tensor) -> torch.Tensor:
    """Colors of four frames on a grid, each frame by itself: (B, 3, F, H, W) in [-1, 1] -> (B * 4, 192)."""
    return _on_grid(video).flatten(0, 1).flatten(1)


def motion_features(video: torch.Tensor) -> torch.Tensor:
    """Changes of brightness on a grid from one of four frames to the next: (B, 3, F, H, W) -> (B, 192)."""
    brightness = _on_grid(video).mean(dim=2)  # (B, 4, 8, 8)
    return brightness.diff(dim=1).flatten(1)


def _on_grid(video: torch.Tensor) -> torch.Tensor:
    """Four frames spread over the clip, averaged over a grid: (B, 3, F, H, W) -> (B, 4, 3, 8, 8)."""
    if video.ndim != 5 or video.shape[2] < 2:
        raise ValueError(f"video: expected (B, 3, F, H, W) with at least 2 frames, got {tuple(video.shape)}")
    numbers = torch.linspace(0, video.shape[2] - 1, FRAMES).round().long()
    frames = video[:, :, numbers].transpose(1, 2)  # (B, 4, 3, H, W)
    return F.adaptive_avg_pool2d(frames.flatten(0, 1).float(), GRID).unflatten(0, frames.shape[:2])
