"""Pictures that a user gives as content frames.

check_images(images, 64, 64);  pixels = read_image(images[0])             # (3, H, W) in [0, 1]
"""

from typing import Any

import numpy as np
import PIL.Image
import torch

from cmd_video.data.picture_file import upright_rgb


def check_images(images: list[Any], height: int, width: int) -> None:
    """Raise a ValueError unless all are pictures of this size, see `read_image`."""
    for image in images:
        found = tuple(read_image(image).shape[1:])
        if found != (height, width):
            raise ValueError(f"image: {found[0]}x{found[1]} (height x width), the clip is {height}x{width}")


def read_image(image: Any) -> torch.Tensor:
    """A picture as numbers: float32 (3, H, W) in [0, 1].

    Args:
        image: of Pillow, read as files of training data are: turned upright, transparency laid on black, 16 bits
            scaled to 8; an array of whole numbers, read as the same picture would be: uint8 (H, W), (H, W, 3) or
            (H, W, 4), uint16 (H, W); or floats in [0, 1], a tensor (3, H, W) or an array (H, W, 3).

    Raises:
        ValueError: it is something else, or its values lie elsewhere.
    """
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.integer):
        image = _of_whole_numbers(image)
    if isinstance(image, PIL.Image.Image):
        try:
            pixels = np.array(upright_rgb(image))
        except (ValueError, OSError) as error:
            raise ValueError(f"image: {error}") from error
        return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
    kind = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    if isinstance(image, np.ndarray) and image.ndim == 3 and np.issubdtype(image.dtype, np.floating):
        image = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    if not (isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3 and len(image) == 3):
        raise ValueError(
            "image: expected PIL images, or floats in [0, 1], a tensor (B, 3, H, W) or an array (B, H, W, 3), "
            f"found {kind}"
        )
    if not image.isfinite().all() or image.numel() and not 0 <= float(image.min()) <= float(image.max()) <= 1:
        raise ValueError(
            f"image: values from {float(image.min()):g} to {float(image.max()):g}, floats must lie in [0, 1]"
        )
    return image.detach().float()


def _of_whole_numbers(pixels: np.ndarray) -> PIL.Image.Image:
    """An array of whole numbers as the picture that it is."""
    dimensions = {"uint8": (2, 3), "uint16": (2,)}.get(str(pixels.dtype), ())
    if pixels.ndim not in dimensions or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise ValueError(
            f"image: found {pixels.dtype} {pixels.shape}; whole numbers may be uint8 (H, W), (H, W, 3), (H, W, 4) or "
            "uint16 (H, W)"
        )
    return PIL.Image.fromarray(pixels)
