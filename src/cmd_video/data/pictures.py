"""Pictures of clips: contact sheets and frames side by side.

contact_sheet([frames], ["a red ball"], columns=8).save("sheet.png")         # frames uint8 (F, H, W, 3)
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, BACKGROUND, TEXT = 6, (255, 255, 255), (30, 30, 30)


def contact_sheet(clips: Sequence[np.ndarray], labels: Sequence[str], columns: int = 8, scale: int = 1) -> Image.Image:
    """One row per clip: its label, then frames spread evenly over it.

    Args:
        clips: uint8 (F, H, W, 3) each, of one size.
        labels: text above each row.
        columns: frames per row.
        scale: enlarge each pixel to scale x scale.
    """
    font = ImageFont.load_default(size=14)
    height, width = (side * scale for side in clips[0].shape[1:3])
    row_height = height + 20 + MARGIN
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, len(clips) * row_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (clip, label) in enumerate(zip(clips, labels, strict=True)):
        top = MARGIN + row * row_height
        draw.text((MARGIN, top), label, fill=TEXT, font=font)
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            picture = Image.fromarray(enlarge(clip[frame], scale))
            sheet.paste(picture, (MARGIN + column * (width + MARGIN), top + 18))
    return sheet


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Repeat pixels: uint8 (..., H, W, 3) -> (..., H * scale, W * scale, 3)."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips of one size next to each other: uint8 (F, H, W, 3) each -> (F, H, sum of W, 3)."""
    return np.concatenate(list(clips), axis=2)
