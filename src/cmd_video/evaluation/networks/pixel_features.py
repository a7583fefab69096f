"""Features for comparing small synthetic clips without a network: what frames look like, and how they change.

content, motion = content_features(video), motion_features(video)         # video (B, 3, F, H, W) in [-1, 1]
pixel_distances(made, known)["content"]                                   # iterables of such batches

Made for sets like sprites, where pixels averaged over an 8x8 grid say what is where. They are no stand-in for FVD, and
distances in them are comparable with one another only.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from cmd_video.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from cmd_video.evaluation.networks.extractors import Extractor, as_video

GRID, FRAMES = 8, 4
RESIZE = f"mean over an {GRID}x{GRID} grid"


def content_features(video: torch.Tensor) -> torch.Tensor:
    """Colors of four frames on a grid, each frame by itself: (B, 3, F, H, W) in [-1, 1] -> (B * 4, 192).

    A picture, F = 1, gives one vector instead of four.
    """
    return _on_grid(video).flatten(0, 1).flatten(1)


def motion_features(video: torch.Tensor) -> torch.Tensor:
    """Changes of brightness on a grid from one of four frames to the next: (B, 3, F, H, W) -> (B, 192)."""
    if video.ndim == 5 and video.shape[2] < 2:
        raise ValueError("video: one frame has no motion")
    brightness = _on_grid(video).mean(dim=2)  # (B, 4, 8, 8)
    return brightness.diff(dim=1).flatten(1)


def _on_grid(video: torch.Tensor) -> torch.Tensor:
    """Four frames spread over the clip, averaged over a grid: (B, 3, F, H, W) -> (B, 4, 3, 8, 8)."""
    if video.ndim != 5:
        raise ValueError(f"video: expected (B, 3, F, H, W), got {tuple(video.shape)}")
    count = 1 if video.shape[2] == 1 else FRAMES
    numbers = torch.linspace(0, video.shape[2] - 1, count).round().long()
    frames = video[:, :, numbers].transpose(1, 2)  # (B, 4, 3, H, W)
    return F.adaptive_avg_pool2d(frames.flatten(0, 1).float(), GRID).unflatten(0, frames.shape[:2])


def pixel_distances(made: Iterable[torch.Tensor], known: Iterable[torch.Tensor]) -> dict[str, float]:
    """Fréchet distances of two sets of clips, batches (B, 3, F, H, W) in [-1, 1].

    Returns:
        `content`, of frames by themselves, and `motion`, of their changes, unless the clips are pictures (F = 1).
    """
    features = {"content": content_features, "motion": motion_features}
    sums = [{name: FeatureStatistics() for name in features} for _ in range(2)]
    for statistics, videos in zip(sums, (made, known), strict=True):
        for video in videos:
            for name, extract in features.items():
                if name == "content" or video.shape[2] > 1:
                    statistics[name].update(extract(video))
    first, second = sums
    return {name: frechet_distance(first[name], second[name]) for name in features if first[name].count}


def build_content(name: str, weights: None, device: str) -> Extractor:
    """`content_features` of frames; see `extractors.EXTRACTORS`."""
    return Extractor(name, "frame", 1, RESIZE, None, lambda frames: content_features(as_video(frames)))


def build_motion(name: str, weights: None, device: str) -> Extractor:
    """`motion_features` of clips; see `extractors.EXTRACTORS`."""
    return Extractor(name, "clip", 2, RESIZE, None, lambda frames: motion_features(as_video(frames)))
