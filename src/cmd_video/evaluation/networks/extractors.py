"""What features are compared in: named extractors, each with its own resizing and the digest of its weights.

    extractor = build_extractor("i3d", weights_dir)
    features = extractor(frames)               # uint8 (B, F, H, W, 3) -> (B, d) per clip or (B * F, d) per frame

A row of EXTRACTORS says where an extractor is built, beside its network, and what it needs. B batch, F frames, H, W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from cmd_video.evaluation.networks.weights import find_weights
from cmd_video.evaluation.protocol.finite import check_finite
from cmd_video.section import named

Classify = Callable[[torch.Tensor], torch.Tensor]  # features (N, d) -> logits (N, classes)
RESIZE = "bilinear, align_corners=False, no antialias"  # StyleGAN-V's


@dataclass(frozen=True)
class Extractor:
    """Features of clips or of single frames.

    Attributes:
        name: its kind, such as "videomae"; of weights that lie at a path the digest says which.
        per: "clip" or "frame", what a feature belongs to.
        min_frames: shortest clip it takes.
        resize: how frames come to the network's size, in words.
        sha256: digest of the weights; None where there are none.
        run: uint8 (B, F, H, W, 3) -> (B, d) or (B * F, d).
        classify: features (N, d) to logits of exclusive classes, for the Inception score; None where there are none.
    """

    name: str
    per: Literal["clip", "frame"]
    min_frames: int
    resize: str
    sha256: str | None
    run: Callable[[torch.Tensor], torch.Tensor]
    classify: Classify | None = None

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Features in float32 on the CPU.

        Raises:
            ValueError: not uint8 (B, F, H, W, 3), or too few frames, or the features are not finite.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(f"frames: expected uint8 (B, F, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        if frames.shape[1] < self.min_frames:
            raise ValueError(f"frames: {self.name} needs {self.min_frames} or more, got {frames.shape[1]}")
        return check_finite(f"extractor: {self.name}", self.run(frames).float().cpu())


class Row(NamedTuple):
    """Where an extractor is built, and what it needs.

    Attributes:
        place: "module:function", imported when it is asked for; the function takes the extractor's name, where its
            weights lie (None where it needs none) and the device.
        published: whether it needs the file of its name in `weights.WEIGHT_FILES`.
        path: of an extractor that is given where its weights lie, as `name:PATH`: what that is, in words.
    """

    place: str
    published: bool = False
    path: str = ""


_HERE = "cmd_video.evaluation.networks"
EXTRACTORS: dict[str, Row] = {
    "i3d": Row(f"{_HERE}.classic:build_i3d", published=True),
    "i3d-torchscript": Row(f"{_HERE}.classic:build_i3d_torchscript", published=True),
    "c3d": Row(f"{_HERE}.classic:build_c3d", published=True),
    "videomaev2": Row(f"{_HERE}.videomae2:build", path="the file vit_g_hybrid_pt_1200e_ssv2_ft.pth"),
    "videomae": Row(f"{_HERE}.video_transformers:build", path="a folder or hub id"),
    "vjepa2": Row(f"{_HERE}.video_transformers:build", path="a folder or hub id"),
    "inception": Row(f"{_HERE}.inception:build", published=True),
    "squeezenet": Row(f"{_HERE}.classic:build_squeezenet", published=True),
    "sprites-action": Row("cmd_video.sprites.features:build"),
    "sprites-appearance": Row("cmd_video.sprites.features:build"),
    "flow": Row(f"{_HERE}.flow:build"),
    "pixels": Row(f"{_HERE}.pixel_features:build_content"),
    "pixel-motion": Row(f"{_HERE}.pixel_features:build_motion"),
}


def build_extractor(name: str, weights_dir: Path | None = None, device: str = "cpu") -> Extractor:
    """An extractor by name; `videomae:PATH` and `vjepa2:PATH` load a folder or hub id through transformers,
    `videomaev2:FILE` the published weights of its ViT-g.

    Raises:
        ValueError: there is no such extractor, or its weights are not there; the message says where to get them.
    """
    kind, _, path = name.partition(":")
    row = EXTRACTORS.get(kind)
    if row is None or (path and not row.path):
        raise ValueError(f"extractor: {name!r} is none of {', '.join(EXTRACTORS)}")
    if row.path and not path:
        raise ValueError(f"extractor: {kind} needs {row.path}, such as {kind}:path/to/model")
    weights: Path | str | None = find_weights(kind, weights_dir) if row.published else path or None
    return named(row.place)(kind, weights, device)


# --- frames as networks take them ------------------------------------------------------------------------------------


def as_video(frames: torch.Tensor, scaled: bool = True) -> torch.Tensor:
    """uint8 (B, F, H, W, 3) -> float (B, 3, F, H, W) in [-1, 1], or in [0, 255]."""
    video = frames.permute(0, 4, 1, 2, 3).float()
    return video / 127.5 - 1 if scaled else video


def resized(video: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C, F, H, W) -> (B, C, F, size, size), each frame by itself."""
    frames = video.transpose(1, 2)  # (B, F, C, H, W)
    small = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return small.unflatten(0, frames.shape[:2]).transpose(1, 2)


def features_of_frames(
    network: Callable[[torch.Tensor], torch.Tensor],
    frames: torch.Tensor,
    size: int,
    device: str,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Features of single frames: uint8 (B, F, H, W, 3) -> (B * F, d).

    Args:
        network: pictures (N, 3, size, size) -> (N, d).
        frames: what is looked at.
        size: of the pictures.
        device: where the network is.
        scale: what becomes of values in [0, 255]; None = nothing.
    """
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)  # (B * F, 3, H, W) in [0, 255]
    found = []
    for part in pictures.split(64):
        small = F.interpolate(part.to(device).float(), (size, size), mode="bilinear", align_corners=False)
        found.append(network(small if scale is None else scale(small)))
    return torch.cat(found)


def unchanged(features: torch.Tensor) -> torch.Tensor:
    """What classifies where features are logits."""
    return features
