"""What wins quality back after pruning: the two losses of VDMini (arXiv 2411.18375), and what they look at.

    pairs = shared_stages(student, teacher)                       # where both hold the same kind of features
    with tap(teacher, [pair.teacher for pair in pairs]) as features:
        teacher(...)
    loss = content_loss(student_features, teacher_features)       # ICD, equation 4
    score = FeatureDiscriminator([64, 128], temporal=True)(encoder_features, level)      # MCA, equations 5 and 6

ICD, individual content distillation: features of student and teacher for the same noisy input, frame by frame. MCA,
multi-frame content adversarial loss: a discriminator on features of the frozen teacher's encoder tells the teacher's
outputs from the student's, by each frame and by each position over time.

B batch, C channels of a feature, F frames, h, w, S tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cmd_video.models.layers import TimestepEmbedder

from .blocks import TRANSFORMER_LISTS, is_unet, list_blocks

LAST_OF_A_LAYER = ("temp_attentions", "motion_modules", "attentions", "temp_convs", "resnets")


class Pair(NamedTuple):
    """Names of two modules whose outputs have the same shape and meaning."""

    student: str
    teacher: str


def shared_stages(student: Any, teacher: Any, most: int = 8) -> list[Pair]:
    """Where a pruned model should feel like its teacher.

    Args:
        student: of a pruned class.
        teacher: what it was made from.
        most: at most so many pairs, evenly spread, to bound the memory.

    Returns:
        For a UNet the last layer of each stage that both have. For a transformer each block of the student with the
        teacher's block before the one that follows in the student: so the student's block stands for those left out
        after it.
    """
    if is_unet(student):
        gone = len(teacher.up_blocks) - len(student.up_blocks)
        stages = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(len(student.down_blocks))]
        stages += [(f"up_blocks.{i}", f"up_blocks.{i + gone}") for i in range(len(student.up_blocks))]
        pairs = [Pair(_last_layer(student, mine), _last_layer(teacher, its)) for mine, its in stages]
    else:
        removed = set(student.config.get("removed_blocks", ()))
        pairs = []
        for name in dict.fromkeys(block.rpartition(".")[0] for block in list_blocks(teacher)):
            if name.split(".")[-1] not in TRANSFORMER_LISTS:
                continue
            count = len(teacher.get_submodule(name))
            kept = [number for number in range(count) if f"{name}.{number}" not in removed]
            pairs += [
                Pair(f"{name}.{own}", f"{name}.{following - 1}") for own, following in enumerate([*kept[1:], count])
            ]
    return spread(pairs, most)


def encoder_taps(model: Any, most: int = 4) -> list[str]:
    """Modules whose outputs the discriminator sees: a UNet's down stages, the first half of a transformer."""
    if is_unet(model):
        return spread([_last_layer(model, f"down_blocks.{i}") for i in range(len(model.down_blocks))], most)
    blocks = [name for name in list_blocks(model) if name.rpartition(".")[0].split(".")[-1] in TRANSFORMER_LISTS]
    return spread(blocks[: (len(blocks) + 1) // 2], most)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread, the last one among them."""
    if len(items) <= most:
        return list(items)
    return [items[round((number + 1) * len(items) / most) - 1] for number in range(most)]


def _last_layer(model: Any, stage: str) -> str:
    block = model.get_submodule(stage)
    for name in LAST_OF_A_LAYER:
        layers = getattr(block, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return f"{stage}.{name}.{len(layers) - 1}"
    raise ValueError(f"model: {stage} of {type(model).__name__} has no layers that are known here")


class _Enough(Exception):
    """Raised behind the last tap, to leave a forward pass."""


@contextmanager
def tap(model: nn.Module, names: Sequence[str], stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of modules while a model runs.

    Args:
        model: the model.
        names: of its modules, in the order in which they run.
        stop: leave the forward pass behind the last one.

    Yields:
        a list that holds the outputs, in order, once the model has run.
    """
    features: list[torch.Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        features.append(_tensor(output))
        if stop and len(features) == len(names):
            raise _Enough

    handles = [model.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield features
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output[0]  # a tuple, or diffusers' output classes


def by_frame(feature: torch.Tensor, batch: int, frames: int, tokens: int | None = None, rows: int = 1) -> torch.Tensor:
    """A feature of any model as (B, F, C, h, w).

    Args:
        feature: (B * F, C, h, w) of a UNet, or (B, S, C) of a transformer, tokens ordered by frame.
        batch: B.
        frames: F, in tokens' terms: frames over the patch size.
        tokens: how many tokens belong to the clip, the first ones; None = all.
        rows: h, of a frame's tokens; 1 where they are no picture, as CMD's motion latents.
    """
    if feature.ndim == 4:
        return feature.unflatten(0, (batch, frames))
    clip = feature[:, :tokens].unflatten(1, (frames, -1))  # (B, F, S / F, C)
    # contiguous: the backward pass of torch 2.13 crashes on a CPU in a convolution of the strides of a transposition
    return clip.transpose(2, 3).contiguous().unflatten(3, (rows, -1))  # (B, F, C, h, S / (F h))


def content_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """ICD (VDMini, eq. 4): sum over stages of the squared distance of features, a mean over their numbers.

    Raises:
        ValueError: the features do not go together.
    """
    if [feature.shape for feature in student] != [feature.shape for feature in teacher]:
        shapes = [[tuple(feature.shape) for feature in features] for features in (student, teacher)]
        raise ValueError(f"teacher: its features {shapes[1]} do not match the student's {shapes[0]}")
    distances = [F.mse_loss(mine.float(), its.float()) for mine, its in zip(student, teacher, strict=True)]
    return torch.stack(distances).sum()


class FeatureDiscriminator(nn.Module):
    """Heads on features of a frozen network: of each frame, and of each position over time (after SF-V, 2406.04324).

    Args:
        channels: C of each feature.
        temporal: whether there are several frames.
        hidden: width of a head.
    """

    def __init__(self, channels: Sequence[int], temporal: bool, hidden: int = 64) -> None:
        super().__init__()
        self.level_embed = TimestepEmbedder(hidden)
        self.spatial_heads = nn.ModuleList(_Head(width, hidden, nn.Conv2d) for width in channels)
        self.temporal_heads = nn.ModuleList(_Head(width, hidden, nn.Conv1d) for width in channels if temporal)

    def forward(self, features: Sequence[torch.Tensor], level: torch.Tensor) -> torch.Tensor:
        """Scores (B, heads), high for the teacher's outputs.

        Args:
            features: (B, F, C, h, w) each.
            level: (B,), the timestep up to which the outputs were noised again.
        """
        embedding = self.level_embed(level, features[0].dtype)  # (B, hidden)
        scores = []
        for head, feature in zip(self.spatial_heads, features, strict=True):
            scores.append(head(feature, embedding))  # each frame: (B, F, C, h, w)
        for head, feature in zip(self.temporal_heads, features, strict=False):
            over_time = feature.permute(0, 3, 4, 2, 1).flatten(1, 2)  # each position: (B, h * w, C, F)
            scores.append(head(over_time, embedding))
        return torch.stack(scores, dim=1)


class _Head(nn.Module):
    """Two convolutions over frames or over sequences in time: (B, N, C, ...) -> (B,)."""

    def __init__(self, channels: int, hidden: int, convolution: type[nn.Conv1d] | type[nn.Conv2d]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.conv_in = convolution(channels, hidden, 1)
        self.conv_out = convolution(hidden, 1, 3, padding=1)

    def forward(self, feature: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        batch, count = feature.shape[:2]
        x = self.conv_in(self.norm(feature.flatten(0, 1)))  # (B * N, hidden, ...)
        level = embedding.repeat_interleave(count, dim=0)
        x = F.silu(x + level.view(*level.shape, *[1] * (x.ndim - 2)))
        return self.conv_out(x).view(batch, -1).mean(dim=1)


def discriminator_loss(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """MCA's hinge (VDMini, eq. 6) of scores (B, heads): E[max(0, 1 - D(teacher))] + E[max(0, 1 + D(student))]."""
    return F.relu(1 - teacher).mean() + F.relu(1 + student).mean()


def generator_loss(student: torch.Tensor) -> torch.Tensor:
    """MCA for the student, of scores (B, heads): -E[D(student)].

    Differs from paper: equation 5 is printed as -log D, which does not fit a hinge, whose scores have either sign.
    """
    return -student.mean()
