"""Sizes and value ranges of clips: pure functions.

    video = to_float(torch.stack([resize_and_crop_frame(each, (64, 64)) for each in frames]))  # float32 (3, F, 64, 64)

Frames as they come from a file are uint8 (F, H, W, 3) in [0, 255]; models take float32 (C, F, H, W) in [-1, 1].
"""

import torch
from torch.nn.functional import interpolate


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (..., F, H, W, C) in [0, 255] into float32 (..., C, F, H, W) in [-1, 1]."""
    return frames.movedim(-1, -4).contiguous().float().div_(127.5).sub_(1)


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Turn float (C, F, H, W) in [-1, 1] into uint8 (F, H, W, C) in [0, 255]; values outside are clamped.

    Raises:
        ValueError: values that are not finite, which have no brightness.
    """
    if not video.isfinite().all():
        raise ValueError("video: it holds values that are not numbers")
    scaled = video.detach().float().clamp(-1, 1).add(1).mul(127.5)
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def resize_and_crop_frame(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scale a frame until it covers `size` and cut out the middle; the shape of things is kept.

    Args:
        frame: uint8 (H, W, C).
        size: height and width of the result.

    Returns:
        uint8 (height, width, C), antialiased bilinear.
    """
    height, width = size
    rows, columns = frame.shape[:2]
    if (rows, columns) == (height, width):
        return frame
    scale = max(height / rows, width / columns)
    covering = (max(round(rows * scale), height), max(round(columns * scale), width))
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    image = frame.permute(2, 0, 1)[None].float()
    image = interpolate(image, covering, mode="bilinear", antialias=True, align_corners=False)
    image = image[0, :, top : top + height, left : left + width]
    return image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def flip_horizontal(frames: torch.Tensor) -> torch.Tensor:
    """Mirror uint8 (F, H, W, C) left to right."""
    return frames.flip(2)
