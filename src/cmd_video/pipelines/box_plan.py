"""Plans: boxes over time that objects of a picture follow, and a clip, cut and pasted, that shows them.

    plan = Plan.model_validate_json('{"objects": [{"id": "ball", "keyframes": [{"frame": 0, "box": [4, 40, 16, 16]}, '
                                    '{"frame": 15, "box": [40, 4, 16, 16]}]}]}')
    clip = sketch(plan, picture, num_frames=16)  # (F, 3, H, W)
    out = pipe.edit(clip[None], "", strength=0, motion_strength=0.2)

After VLIPP (arXiv 2503.23368), where a vision language model writes the boxes. Differs from paper: it turns the
sketch's optical flow into noise of that motion; here the motion latents of the encoded sketch are the plan, and the
motion model draws them anew from a share of diffusion time on (`CMDPipeline.edit`). This is no row of the table of
techniques: it makes a clip, and changes nothing of how models are trained or sampled.

F frames, H, W the picture's sides. Boxes are (x, y, w, h) in pixels: left, top, width, height; pixel n reaches from n
to n + 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.nn.functional import grid_sample, max_pool2d

from cmd_video.section import Section

from .pictures import read_image


class Keyframe(Section):
    """Where an object is in one frame."""

    frame: int = Field(ge=0)
    """Number of the frame, from 0 on."""
    box: tuple[float, float, float, float]
    """(x, y, w, h) in pixels, inside the picture."""


class PlannedObject(Section):
    """One object and its boxes."""

    id: str = Field(min_length=1)
    """Its name, for messages; no two objects share one."""
    keyframes: tuple[Keyframe, ...]
    """In the order of their frames, the first of frame 0. After the last one the object stays."""


class Plan(Section):
    """Objects of a picture, each at its boxes; where they overlap, later ones lie above earlier ones."""

    objects: tuple[PlannedObject, ...] = Field(min_length=1)


def sketch(plan: Plan | Mapping[str, Any], image: Any, num_frames: int) -> torch.Tensor:
    """A clip in which the content of each object's first box is cut out and pasted at its boxes.

    Between keyframes boxes are linear in time. Where boxes grow or shrink, the pasted is resized; at fractions of a
    pixel it is sampled bilinearly, and pixels that a box covers in part are mixed. What was behind the objects is
    filled in from around, see `filled`. With first boxes of whole pixels the first frame is the picture.

    Args:
        plan: boxes over time.
        image: the first frame, as `pictures.read_image` takes it.
        num_frames: F.

    Returns:
        float32 (F, 3, H, W) in [0, 1].

    Raises:
        ValueError: the plan does not fit the picture or the number of frames.
    """
    plan = Plan.model_validate(plan)
    picture = read_image(image)  # (3, H, W)
    height, width = picture.shape[1:]
    check_plan(plan, height, width, num_frames)
    tracks = [boxes_at(item, num_frames) for item in plan.objects]
    covers = [
        _covered(track[:, 1], track[:, 3], height)[:, :, None] * _covered(track[:, 0], track[:, 2], width)[:, None]
        for track in tracks
    ]  # each (F, H, W)
    hole = torch.stack([cover[0] > 0 for cover in covers]).any(0)
    if hole.all():
        raise ValueError("plan: the boxes of frame 0 cover the whole picture; allowed: some of it left to fill holes")
    clip = filled(picture, hole).expand(num_frames, -1, -1, -1)
    for track, cover in zip(tracks, covers, strict=True):
        clip = clip.lerp(_moved(picture, track), cover[:, None])
    return clip.clamp(0, 1)


def check_plan(plan: Plan, height: int, width: int, num_frames: int) -> None:
    """Raise a ValueError that names object and keyframe, value and what is allowed, unless the plan fits a clip.

    Args:
        plan: boxes over time.
        height: H in pixels.
        width: W.
        num_frames: F.
    """
    names = [item.id for item in plan.objects]
    for item in plan.objects:
        if names.count(item.id) > 1:
            raise ValueError(f"plan: object {item.id!r} is there {names.count(item.id)} times; allowed: once")
        if len(item.keyframes) < 2:
            raise ValueError(f"plan: object {item.id!r}: {len(item.keyframes)} keyframes; allowed: 2 or more")
        first, last = 0, 0
        for number, key in enumerate(item.keyframes):
            where = f"plan: object {item.id!r}, keyframe {number}"
            if not first <= key.frame <= last:
                allowed = f"{first} to {last}" if first < last else f"{first}" if first == last else "no more of them"
                raise ValueError(f"{where}: frame {key.frame}; allowed: {allowed} (a clip of {num_frames} frames)")
            first, last = key.frame + 1, num_frames - 1
            box = "[" + ", ".join(f"{value:g}" for value in key.box) + "]"
            x, y, w, h = key.box
            if min(w, h) < 1:
                raise ValueError(f"{where}: box {box} is {w:g} wide and {h:g} high; allowed: 1 pixel or more")
            if min(x, y) < 0 or x + w > width or y + h > height:
                raise ValueError(f"{where}: box {box} leaves the picture; allowed: x 0 to {width}, y 0 to {height}")


def boxes_at(item: PlannedObject, num_frames: int) -> torch.Tensor:
    """Boxes (F, 4) of an object: those of its keyframes, linear between them, the last one from there on."""
    numbers = [key.frame for key in item.keyframes]
    columns = zip(*(key.box for key in item.keyframes), strict=True)
    boxes = np.stack([np.interp(np.arange(num_frames), numbers, column) for column in columns], axis=-1)
    return torch.from_numpy(boxes.astype(np.float32))


def filled(picture: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """A picture (3, H, W) with each pixel of a hole (H, W) the mean of those around the hole, weighted by 1/distance².

    Smooth, and what lies at the hole's rim goes on into it; a texture does not.
    """
    around = (max_pool2d(hole[None].float(), 3, stride=1, padding=1)[0] > 0) & ~hole
    places, values = around.nonzero().float(), picture[:, around].T  # (R, 2), (R, 3)
    whole = picture.clone()
    for row in hole.any(1).nonzero()[:, 0].tolist():  # not all at once: holes may be large
        columns = hole[row].nonzero()[:, 0]
        squares = (places[:, 0] - row).square() + (places[:, 1] - columns[:, None]).square()  # (N, R)
        weights = squares.reciprocal()
        whole[:, row, columns] = (weights @ values / weights.sum(1, keepdim=True)).T
    return whole


def _covered(start: torch.Tensor, size: torch.Tensor, length: int) -> torch.Tensor:
    """How much of each of `length` pixels spans (F,) cover: (F, length) in [0, 1]."""
    pixels = torch.arange(length)
    return (torch.minimum(pixels + 1, (start + size)[:, None]) - torch.maximum(pixels, start[:, None])).clamp(0, 1)


def _moved(picture: torch.Tensor, track: torch.Tensor) -> torch.Tensor:
    """A picture (3, H, W) so that the content of the first of the boxes (F, 4) lies in each: (F, 3, H, W)."""
    lines = []
    for axis, length in enumerate(reversed(picture.shape[1:])):  # x, y
        start, size = track[0, axis], track[0, axis + 2]
        scale = size / track[:, axis + 2 : axis + 3]
        line = start + (torch.arange(length) + 0.5 - track[:, axis : axis + 1]) * scale  # (F, length)
        lines.append(line.clamp(start + 0.5, start + size - 0.5) / length * 2 - 1)
    x, y = lines
    grid = torch.stack([x[:, None].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    return grid_sample(picture.expand(len(track), -1, -1, -1), grid, padding_mode="border", align_corners=False)
