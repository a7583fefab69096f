"""Checks of what a user gives the pipeline: a ValueError names the argument, its value and what is allowed.

size = check_condition(num_classes=0, prompt="a red ball", negative_prompt=None, class_labels=None, pictures={})
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cmd_video.data.classes import check_text


def check_condition(
    num_classes: int, prompt: Any, negative_prompt: Any, class_labels: Any, pictures: Mapping[str, Any], count: int = 0
) -> int:
    """Whether prompt, class labels and pictures go together and suit the model.

    Args:
        num_classes: classes that the model knows; 0 = it has a text condition.
        prompt: text or list of texts, or None.
        negative_prompt: the same.
        class_labels: number or list of numbers, or None.
        pictures: those that are given, by the name of the argument: a picture, a list of pictures, a tensor
            (B, 3, H, W) or an array (B, H, W, 3).
        count: how many clips there are already, to be changed; 0 = none.

    Returns:
        How many conditions there are.

    Raises:
        ValueError: they do not.
    """
    if prompt is not None and class_labels is not None:
        raise ValueError("prompt and class_labels: give one of them, not both")
    if num_classes:
        if prompt is not None or negative_prompt is not None:
            raise ValueError(f"prompt: this model has no text condition; give class_labels in 0..{num_classes - 1}")
        for label in as_list(class_labels):
            if not isinstance(label, int) or isinstance(label, bool):
                raise ValueError(f"class_labels: expected whole numbers in 0..{num_classes - 1}, got {class_labels!r}")
            if not 0 <= label < num_classes:
                raise ValueError(f"class_labels: {label!r} is not in 0..{num_classes - 1}")
    elif class_labels is not None:
        raise ValueError("class_labels: this model has no class condition; give a prompt")
    if not count and not pictures and prompt is None and class_labels is None:
        raise ValueError("nothing to generate from: give a prompt, class_labels or an image")
    for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        check_texts(name, value)
    counts = {len(as_list(value)) for value in (prompt, class_labels) if value is not None}
    if count and counts - {count}:
        raise ValueError(f"prompt or class_labels: {counts.pop()} for {count} clips")
    others = "clips" if count else "prompts or classes" if counts else "pictures"
    counts |= {count} - {0}
    for name, value in pictures.items():
        found = len(as_list(value))
        if counts | {found} != {found}:
            raise ValueError(f"{name}: {found} pictures for {counts.pop()} {others}")
        counts.add(found)
    size = max(counts)
    if not size:
        raise ValueError("nothing to generate from: the list of prompts, class_labels or images is empty")
    if isinstance(negative_prompt, (list, tuple)) and len(negative_prompt) != size:
        raise ValueError(f"negative_prompt: {len(negative_prompt)} texts for {size} prompts")
    return size


def check_texts(name: str, value: Any) -> None:
    """Raise a ValueError unless it is a text, a list of texts or None, of characters that can be written."""
    for text in as_list(value):
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected a string or a list of strings, got {value!r}")
        check_text(name, text)


def check_finite(part: str, *values: torch.Tensor) -> None:
    """Raise a ValueError that names a part of the pipeline if what it gave is not all finite."""
    if not all(value.isfinite().all() for value in values):
        raise ValueError(f"{part}: it gave values that are not numbers; damaged weights, or try float32")


def check_memory(num_clips: int, num_frames: int, height: int, width: int) -> None:
    """Raise a ValueError if the clips alone, as floats, would not fit into this machine's memory."""
    needed = 4 * 3 * num_clips * num_frames * height * width
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"height, width, num_frames, num_videos_per_prompt, num_clips: {height}x{width}, {num_frames} frames, "
            f"{num_clips} clips take {needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}"
        )


def check_multiple(name: str, value: Any, unit: int) -> None:
    """Raise a ValueError unless the argument of this name is a positive whole multiple of `unit`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}: {value!r} is not a whole number")
    if value <= 0 or value % unit:
        nearest = max(unit, round(value / unit) * unit)
        raise ValueError(f"{name}: {value} is not a positive multiple of {unit}; the nearest is {nearest}")


def check_generator(generator: Any, num_clips: int) -> None:
    """Raise a ValueError unless it is a torch.Generator, a list of one per clip, or None."""
    if not all(isinstance(source, torch.Generator) for source in as_list(generator)):
        raise ValueError(f"generator: expected a torch.Generator or a list of them, got {generator!r}")
    if isinstance(generator, (list, tuple)) and len(generator) != num_clips:
        raise ValueError(f"generator: {len(generator)} generators for {num_clips} clips")


def as_list(value: Any) -> list[Any]:
    """One value or several as a list; None is none."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.ndim == 4):
        return list(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def untupled(value: Any) -> Any:
    """A tuple as a list, so that several are known by one type; anything else as it is."""
    return list(value) if isinstance(value, tuple) else value


def default_size(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """H and W in pixels: what is given, where None what a pipeline's autoencoder was trained for."""
    rows, columns = pipe.autoencoder.config.sample_size
    return (rows * pipe.ratio if height is None else height, columns * pipe.ratio if width is None else width)


def size_unit(pipe: Any) -> int:
    """H and W in pixels must be multiples of this: every patch layer and the UNet's halvings must fit."""
    motion = pipe.motion_transformer.config
    units = [motion.autoencoder_patch_size * motion.patch_size, motion.content_patch_size]
    content = pipe.unet.config
    units.append(content.patch_size if pipe.num_classes else 2 ** (len(content.block_out_channels) - 1))
    return pipe.ratio * math.lcm(*units)
