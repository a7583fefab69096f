"""How things move in a clip, by optical flow (DIS, arXiv 1603.03590, as in OpenCV).

    flow = optical_flow(frames)                     # uint8 (F, H, W, 3) -> (F - 1, H, W, 2) pixels per frame
    dynamic_degree(flow)                            # 0 for a still clip, however good its frames
    warping_error(frames, *visible_flow(frames))
    flow_features(frames)                           # what a distance of motions is measured on

F frames, H, W; flow is (x, y), x to the right and y downwards.
"""

from typing import Any

import numpy as np
import torch

from cmd_video.evaluation.networks.extractors import Extractor

FASTEST = 0.05  # share of the pixels of a frame that dynamic degree looks at
GRID, BINS = 4, 8
OCCLUDED = 0.5  # pixels by which forward and backward flow may disagree, beside 1% of their squared length


def optical_flow(frames: torch.Tensor) -> torch.Tensor:
    """From each frame to the next: uint8 (F, H, W, 3) -> float32 (F - 1, H, W, 2) in pixels.

    Raises:
        ValueError: OpenCV is not installed, or there are fewer than two frames, or they are smaller than 12 pixels.
    """
    return torch.from_numpy(_flows(_gray(frames)))


def dynamic_degree(flow: torch.Tensor) -> float:
    """Mean length of the fastest twentieth of each frame's flow, in percent of the shorter side per frame.

    As VBench reads it (arXiv 2311.17982, appendix), without its threshold.
    """
    lengths = flow.norm(dim=-1).flatten(1)  # (F - 1, H * W)
    count = max(1, int(lengths.shape[1] * FASTEST))
    return float(100 * lengths.topk(count, dim=1).values.mean() / min(flow.shape[1:3]))


def visible_flow(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow from each frame to the next, and where the flow back agrees with it, so that nothing is covered.

    Args:
        frames: uint8 (F, H, W, 3).

    Returns:
        (F - 1, H, W, 2) in pixels, and bool (F - 1, H, W).
    """
    cv2 = _opencv()
    forward = _flows(_gray(frames))
    backward = _flows(_gray(frames.flip(0)))[::-1]  # of frame t + 1 to frame t
    height, width = frames.shape[1:3]
    seen = []
    for there, back in zip(forward, backward, strict=True):
        x, y = _places(there)
        returned = cv2.remap(back, x, y, cv2.INTER_LINEAR)
        gap = np.square(there + returned).sum(-1)
        limit = 0.01 * (np.square(there).sum(-1) + np.square(returned).sum(-1)) + OCCLUDED
        seen.append((gap < limit) & (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))
    return torch.from_numpy(forward), torch.from_numpy(np.stack(seen))


def warping_error(frames: torch.Tensor, flow: torch.Tensor, seen: torch.Tensor) -> float:
    """Mean squared difference in [0, 1] of each frame and the next one moved back onto it, where nothing is covered
    (arXiv 1808.00449, section 4), mean over pairs of frames.

    As there, the flow is that of the clip which `frames` should be, where there is one; the flow of the frames
    themselves follows the very flicker that it should expose. Other than there, edges of motion are not left out.

    Args:
        frames: uint8 (F, H, W, 3).
        flow: from `visible_flow`.
        seen: likewise.

    Returns:
        NaN if everything is covered.
    """
    cv2 = _opencv()
    errors = []
    for number, (there, mask) in enumerate(zip(flow.numpy(), seen.numpy(), strict=True)):
        moved = cv2.remap(frames[number + 1].numpy(), *_places(there), cv2.INTER_LINEAR).astype(np.float32)
        if mask.any():
            errors.append(np.square((moved - frames[number].numpy()) / 255)[mask].mean())
    return float(np.mean(errors)) if errors else float("nan")


def _places(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a frame goes: columns and rows, (H, W) each."""
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return columns + flow[..., 0], rows + flow[..., 1]


def flow_features(frames: torch.Tensor) -> torch.Tensor:
    """Histograms of the directions of velocity and acceleration, weighed by length, on a grid: (256,).

    The idea of FVMD (arXiv 2407.16124), with dense flow in place of tracked points, so its numbers are not FVMD's.

    Args:
        frames: uint8 (F, H, W, 3), F >= 3.
    """
    velocity = optical_flow(frames) / min(frames.shape[1:3]) * 100  # percent of the shorter side per frame
    acceleration = velocity.diff(dim=0)
    return torch.cat([_histograms(velocity), _histograms(acceleration)])


def _histograms(field: torch.Tensor) -> torch.Tensor:
    """Mean length by cell and direction: (T, H, W, 2) -> (GRID * GRID * BINS,); a direction is shared by two bins."""
    lengths = field.norm(dim=-1)  # (T, H, W)
    place = (torch.atan2(field[..., 1], field[..., 0]) / (2 * torch.pi) * BINS) % BINS
    low = place.floor()
    share = place - low
    bins = torch.zeros(*lengths.shape, BINS)
    bins.scatter_add_(-1, (low.long() % BINS)[..., None], (lengths * (1 - share))[..., None])
    bins.scatter_add_(-1, ((low.long() + 1) % BINS)[..., None], (lengths * share)[..., None])
    cells = torch.nn.functional.adaptive_avg_pool2d(bins.mean(dim=0).permute(2, 0, 1), GRID)  # (BINS, GRID, GRID)
    return cells.flatten()


def _flows(gray: np.ndarray) -> np.ndarray:
    cv2 = _opencv()
    if len(gray) < 2:
        raise ValueError(f"frames: motion needs 2 or more, got {len(gray)}")
    if min(gray.shape[1:]) < 12:
        raise ValueError(
            f"frames: optical flow needs 12 pixels or more on each side, got {gray.shape[1]}x{gray.shape[2]}"
        )
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.stack([method.calc(one, other, None) for one, other in zip(gray, gray[1:], strict=False)])


def _gray(frames: torch.Tensor) -> np.ndarray:
    """Brightness (ITU-R BT.601), uint8 (F, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (frames.float() @ weights).round().to(torch.uint8).numpy()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError("optical flow needs OpenCV: pip install 'cmd-video[eval]'") from error
    return cv2


def build(name: str, weights: None, device: str) -> Extractor:
    """`flow_features` of clips; see `extractors.EXTRACTORS`."""
    return Extractor(
        name, "clip", 3, "none", None, lambda frames: torch.stack([flow_features(clip) for clip in frames])
    )
