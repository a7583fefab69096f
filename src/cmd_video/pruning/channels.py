"""Fewer channels in an image or video decoder: where most of a few-step model's time goes.

    narrow(vae, {"decoder.up_blocks.3": 0.5})                 # shapes only: the first channels of each group
    kept = kept_channels(vae, widths, weights)                # by magnitude: tensor name -> dimension -> indices

VDMini (arXiv 2411.18375, appendix) makes its decoder three times as fast by leaving out layers and channels. Tensors
that add to or read from the same features lose the same channels: those with the smallest sum of squared weights over
all of them, as many in each group of the group norms, so that groups stay groups.

C channels, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class _Space:
    """Features that several tensors write or read.

    Attributes:
        stages: the stages whose width it has.
        channels: C.
        groups: G of the norms on it.
        tensors: (name, dimension) of everything that has these channels.
        attributes: (module, attribute) of everything that states their number.
    """

    stages: list[str]
    channels: int
    groups: int = 1
    tensors: list[tuple[str, int]] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)


def stage_names(model: Any) -> list[str]:
    """Stages of a decoder whose width can be chosen, from the latents to the pixels."""
    decoder = model.decoder
    middle = ["decoder.mid_block"] if getattr(decoder.mid_block, "resnets", None) else []  # it may have left
    return [*middle, *(f"decoder.up_blocks.{number}" for number in range(len(decoder.up_blocks)))]


def kept_channels(
    model: Any, widths: Mapping[str, float], weights: Mapping[str, torch.Tensor] | None = None
) -> dict[str, dict[int, torch.Tensor]]:
    """Which channels stay.

    Args:
        model: an `AutoencoderKL` or `AutoencoderKLTemporalDecoder`; only its shapes are read.
        widths: stage -> share of its channels that stays, in (0, 1]; 1 for stages that are not named.
        weights: by name; None = the first channels of each group stay.

    Returns:
        tensor name -> dimension -> indices that stay, for every tensor that changes.

    Raises:
        ValueError: there is no such stage, or a share out of range, or stages without a convolution between their
            features have different shares.
    """
    kept: dict[str, dict[int, torch.Tensor]] = {}
    for space, indices in _choose(model, widths, weights):
        for name, dimension in space.tensors:
            kept.setdefault(name, {})[dimension] = indices
    return kept


def narrow(model: Any, widths: Mapping[str, float]) -> None:
    """Give a decoder's layers the shapes of `kept_channels`, in place. Raises as it does."""
    chosen = _choose(model, widths, None)
    for space, indices in chosen:
        for name, attribute in space.attributes:
            setattr(model.get_submodule(name), attribute, len(indices))
        for name, dimension in space.tensors:
            parent, _, leaf = name.rpartition(".")
            tensor = model.get_parameter(name).detach()
            smaller = tensor.index_select(dimension, indices.to(tensor.device))
            setattr(model.get_submodule(parent), leaf, nn.Parameter(smaller))


def cut(tensor: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """What is left of a tensor, as one entry of `kept_channels` says."""
    for dimension, indices in kept.items():
        tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor


def _choose(
    model: Any, widths: Mapping[str, float], weights: Mapping[str, torch.Tensor] | None
) -> list[tuple[_Space, torch.Tensor]]:
    known = stage_names(model)
    for stage, share in widths.items():
        if stage not in known:
            raise ValueError(f"selection: widths: {stage!r} is none of {', '.join(known)}")
        if not 0 < share <= 1:
            raise ValueError(f"selection: widths: {stage} = {share} is not a share in (0, 1]")
    chosen = []
    for space in _spaces(model):
        shares = {stage: widths.get(stage, 1.0) for stage in space.stages}
        if len(set(shares.values())) > 1:
            found = ", ".join(f"{stage} = {share}" for stage, share in shares.items())
            raise ValueError(f"selection: widths: these share their features and need one share: {found}")
        share = next(iter(shares.values()), 1.0)
        per_group = space.channels // space.groups
        count = max(1, round(per_group * share))
        if share < 1 and count == per_group:
            raise ValueError(
                f"selection: widths: {space.stages[0]} = {share} takes nothing: its norms have groups of {per_group}"
            )
        if count < per_group:
            scores = _magnitudes(space, weights) if weights is not None else -torch.arange(space.channels)
            order = scores.view(space.groups, per_group).argsort(dim=1, descending=True, stable=True)  # (G, C / G)
            first = torch.arange(space.groups)[:, None] * per_group
            chosen.append((space, (order[:, :count].sort(dim=1).values + first).flatten()))
    return chosen


def _magnitudes(space: _Space, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of squares of everything that a channel is written or read by: (C,)."""
    total = torch.zeros(space.channels, dtype=torch.float64)
    for name, dimension in space.tensors:
        weight = weights[name]
        if weight.ndim > 1:  # no norms and biases: they have another scale
            total += weight.detach().double().square().transpose(0, dimension).flatten(1).sum(dim=1).cpu()
    return total


# --- which tensors share channels ------------------------------------------------------------------------------------


def _spaces(model: Any) -> list[_Space]:
    """Follow a decoder from the latents to the pixels."""
    decoder, walk = model.decoder, _Walk(model)
    middle = "decoder.mid_block"
    space = walk.new(decoder.conv_in.out_channels)
    walk.write("decoder.conv_in", space)
    for number in range(len(getattr(decoder.mid_block, "resnets", []))):
        space = walk.resnet(f"{middle}.resnets.{number}", space, middle)
    for number, attention in enumerate(getattr(decoder.mid_block, "attentions", [])):
        if attention is None:
            continue
        name = f"{middle}.attentions.{number}"
        walk.norm(f"{name}.group_norm", space)
        for part in ("to_q", "to_k", "to_v"):
            walk.read(f"{name}.{part}", space)
        walk.write(f"{name}.to_out.0", space)
    for number, block in enumerate(decoder.up_blocks):
        stage = f"decoder.up_blocks.{number}"
        if getattr(block, "attentions", None):
            raise ValueError(f"selection: widths: {stage} has attention, whose channels cannot be cut")
        for layer in range(len(block.resnets)):
            space = walk.resnet(f"{stage}.resnets.{layer}", space, stage)
        for layer in range(len(block.upsamplers or [])):
            name = f"{stage}.upsamplers.{layer}"
            space.attributes += [(name, "channels"), (name, "out_channels")]
            walk.read(f"{name}.conv", space)
            walk.write(f"{name}.conv", space)
    walk.norm("decoder.conv_norm_out", space)
    walk.read("decoder.conv_out", space)
    return walk.spaces


class _Walk:
    """Notes which tensors belong to which features."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.spaces: list[_Space] = []

    def new(self, channels: int) -> _Space:
        self.spaces.append(_Space([], channels))
        return self.spaces[-1]

    def resnet(self, name: str, space: _Space, stage: str) -> _Space:
        """A residual block, or the two of one over space and time; returns the features it puts out."""
        block = self.model.get_submodule(name)
        if hasattr(block, "spatial_res_block"):
            space = self.resnet(f"{name}.spatial_res_block", space, stage)
            return self.resnet(f"{name}.temporal_res_block", space, stage)
        inner = self.new(block.conv1.out_channels)
        out = space if block.conv_shortcut is None else self.new(block.conv2.out_channels)
        for features in (inner, out):
            if stage not in features.stages:
                features.stages.append(stage)
        self.norm(f"{name}.norm1", space)
        self.read(f"{name}.conv1", space)
        self.write(f"{name}.conv1", inner)
        self.norm(f"{name}.norm2", inner)
        self.read(f"{name}.conv2", inner)
        self.write(f"{name}.conv2", out)
        if out is not space:
            self.read(f"{name}.conv_shortcut", space)
            self.write(f"{name}.conv_shortcut", out)
        space.attributes.append((name, "in_channels"))
        out.attributes.append((name, "out_channels"))
        return out

    def write(self, name: str, space: _Space) -> None:
        self._layer(name, space, 0)

    def read(self, name: str, space: _Space) -> None:
        self._layer(name, space, 1)

    def norm(self, name: str, space: _Space) -> None:
        space.groups = self.model.get_submodule(name).num_groups
        space.tensors += [(f"{name}.weight", 0), (f"{name}.bias", 0)]
        space.attributes.append((name, "num_channels"))

    def _layer(self, name: str, space: _Space, dimension: int) -> None:
        """A convolution or linear layer writes to (dimension 0 of its weight) or reads from (1) a space."""
        layer = self.model.get_submodule(name)
        kind = "features" if isinstance(layer, nn.Linear) else "channels"
        space.tensors.append((f"{name}.weight", dimension))
        space.attributes.append((name, f"out_{kind}" if dimension == 0 else f"in_{kind}"))
        if dimension == 0 and layer.bias is not None:
            space.tensors.append((f"{name}.bias", 0))
