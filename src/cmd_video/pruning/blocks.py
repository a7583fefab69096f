"""Which blocks a model has, and taking some of them out: the surgery behind every pruned class.

    list_blocks(unet)                                   # ["down_blocks.0.layers.0", ..., "mid_block", ...]
    remove_blocks(unet, ["down_blocks.0.layers.1", "up_blocks.3.layers.1"])

A block of a UNet is a layer of a stage (a residual block with the attention that follows it), the middle, or a whole
stage. Every layer of a down stage hands a skip connection to one layer of the up stage at the same resolution, so they
leave in pairs, and stages leave from the innermost outwards. A block of a transformer is one entry of its lists.
"""

import copy
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

LAYER_LISTS = ("resnets", "attentions", "temp_convs", "temp_attentions", "motion_modules")  # one entry per layer
TRANSFORMER_LISTS = ("transformer_blocks", "single_transformer_blocks", "temporal_transformer_blocks", "blocks")
_UNET_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)(?:\.layers\.(\d+))?")


class Skip(nn.Module):
    """In place of a module that was taken out: hands its first argument on."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def _is_there(block: nn.Module | None) -> bool:
    """Whether there is a block that could leave: some models have none in the middle, pruned ones no longer."""
    return block is not None and not isinstance(block, Skip)


def is_unet(model: nn.Module) -> bool:
    """Whether a model has down stages, up stages and skip connections between them."""
    return hasattr(model, "down_blocks") and hasattr(model, "up_blocks")


def list_blocks(model: Any) -> list[str]:
    """Names of the blocks that can be left out, in the order in which they run.

    Raises:
        ValueError: the model is of a kind that is not known.
    """
    if is_unet(model):
        down = [
            name
            for number, stage in enumerate(model.down_blocks)
            for name in (*_layers(f"down_blocks.{number}", stage), f"down_blocks.{number}")
        ]
        up = [
            name
            for number, stage in enumerate(model.up_blocks)
            for name in (f"up_blocks.{number}", *_layers(f"up_blocks.{number}", stage))
        ]
        return [*down, *(["mid_block"] if _is_there(model.mid_block) else []), *up]
    names = [
        f"{name}.{number}"
        for name, child in model.named_modules()
        if isinstance(child, nn.ModuleList) and name.split(".")[-1] in TRANSFORMER_LISTS and _is_outermost(name)
        for number in range(len(child))
    ]
    decoder = getattr(model, "decoder", None)
    if decoder is not None and hasattr(decoder, "up_blocks"):
        names += _decoder_blocks(decoder)
    if not names:
        raise ValueError(f"model: {type(model).__name__} has no blocks that are known here")
    return names


def block_modules(model: Any) -> dict[str, nn.Module]:
    """Each name of `list_blocks` with its module; of a UNet's layer its residual block."""
    return {name: model.get_submodule(name.replace(".layers.", ".resnets.")) for name in list_blocks(model)}


def remove_blocks(model: Any, removed: Iterable[str]) -> None:
    """Take blocks out of a model, in place.

    Args:
        model: a UNet, a transformer or an image or video autoencoder.
        removed: names from `list_blocks`.

    Raises:
        ValueError: a name is not there, or what is left would not fit together.
    """
    removed = list(dict.fromkeys(removed))
    known = set(list_blocks(model))
    for name in removed:
        if name not in known:
            raise ValueError(f"selection: {type(model).__name__} has no block {name!r}")
    if is_unet(model):
        _remove_from_unet(model, removed)
        return
    numbered: dict[str, set[int]] = {}
    for name in removed:
        if name.rsplit(".", 1)[-1].isdigit():
            parent, number = name.rsplit(".", 1)
            numbered.setdefault(parent, set()).add(int(number))
        else:
            _replace(model, name)
    for parent, numbers in numbered.items():
        blocks = model.get_submodule(parent)
        assert isinstance(blocks, nn.ModuleList)
        if len(numbers) == len(blocks) and not parent.endswith(".resnets"):  # a decoder's stage may lose all of them
            raise ValueError(f"selection: {parent} would have no block left")
        kept = [block for number, block in enumerate(blocks) if number not in numbers]
        _set(model, parent, nn.ModuleList(kept))


def without_blocks(model: Any, removed: Iterable[str]) -> Any:
    """A model without some blocks that shares all its weights with the whole one.

    Raises:
        ValueError: what is left would not fit together.
    """
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    view = copy.deepcopy(model, weights)  # what is in the memo is not copied
    remove_blocks(view, removed)
    return view


def fits(model: Any, removed: Iterable[str]) -> bool:
    """Whether a model still fits together without some blocks."""
    try:
        without_blocks(model, removed)
    except ValueError:
        return False
    return True


def parameter_names(model: nn.Module, removed: Iterable[str]) -> dict[str, str]:
    """Take blocks out, and tell which tensor of the model each of the rest was: new name -> name before."""
    before = {id(tensor): name for name, tensor in _tensors(model)}
    remove_blocks(model, removed)
    return {name: before[id(tensor)] for name, tensor in _tensors(model)}


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


# --- UNets -----------------------------------------------------------------------------------------------------------


def _layers(prefix: str, stage: Any) -> list[str]:
    return [f"{prefix}.layers.{number}" for number in range(len(stage.resnets))]


def _remove_from_unet(unet: Any, removed: list[str]) -> None:
    stages: dict[str, set[int]] = {"down_blocks": set(), "up_blocks": set()}
    layers: dict[tuple[str, int], set[int]] = {}
    for name in removed:
        match = _UNET_BLOCK.fullmatch(name)
        if match is not None and match[3] is None:
            stages[match[1]].add(int(match[2]))
        elif match is not None:
            layers.setdefault((match[1], int(match[2])), set()).add(int(match[3]))
    _check_stages(unet, stages, "mid_block" in removed or not _is_there(unet.mid_block))
    depth = len(unet.down_blocks)
    for number in range(depth):
        _check_layers(unet, number, layers, number in stages["down_blocks"])
    for (kind, number), indices in layers.items():
        if number not in stages[kind]:
            _remove_layers(getattr(unet, kind)[number], indices)
    unet.down_blocks = nn.ModuleList(
        stage for number, stage in enumerate(unet.down_blocks) if number not in stages["down_blocks"]
    )
    unet.up_blocks = nn.ModuleList(
        stage for number, stage in enumerate(unet.up_blocks) if number not in stages["up_blocks"]
    )
    if stages["down_blocks"]:
        unet.down_blocks[-1].downsamplers = None
        unet.num_upsamplers = sum(stage.upsamplers is not None for stage in unet.up_blocks)
    if "mid_block" in removed:
        unet.mid_block = Skip()
    _check_channels(unet)


def _check_stages(unet: Any, stages: dict[str, set[int]], without_middle: bool) -> None:
    depth, count = len(unet.down_blocks), len(stages["down_blocks"])
    innermost = set(range(depth - count, depth)), set(range(count))
    if (stages["down_blocks"], stages["up_blocks"]) != innermost or count >= depth:
        raise ValueError(
            "selection: whole stages leave in pairs from the innermost outwards, such as "
            f"down_blocks.{depth - 1} with up_blocks.0, and one pair stays; "
            f"found down {sorted(stages['down_blocks'])}, up {sorted(stages['up_blocks'])}"
        )
    if count and not without_middle:
        raise ValueError("selection: mid_block must leave with the innermost stages")


def _check_layers(unet: Any, number: int, layers: dict[tuple[str, int], set[int]], whole: bool) -> None:
    mirrored = len(unet.down_blocks) - 1 - number
    down, up = layers.get(("down_blocks", number), set()), layers.get(("up_blocks", mirrored), set())
    if whole:
        return
    if len(down) != len(up):
        raise ValueError(
            f"selection: down_blocks.{number} loses {len(down)} layers and up_blocks.{mirrored} {len(up)}; "
            "each layer's skip connection needs its other end, so they must lose as many"
        )
    if len(down) == len(unet.down_blocks[number].resnets):
        raise ValueError(f"selection: down_blocks.{number} would have no layer left; leave out the stage")


def _remove_layers(stage: Any, indices: set[int]) -> None:
    count = len(stage.resnets)
    for name in LAYER_LISTS:
        blocks = getattr(stage, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) == count:
            setattr(stage, name, nn.ModuleList(b for number, b in enumerate(blocks) if number not in indices))


def _check_channels(unet: Any) -> None:
    """Follow the channels through the skip connections, as the forward pass does."""
    channels = unet.conv_in.out_channels
    skips = [channels]
    for number, stage in enumerate(unet.down_blocks):
        for layer, resnet in enumerate(stage.resnets):
            channels = _expect(channels, resnet, f"down_blocks.{number}.layers.{layer}")
            skips.append(channels)
        if getattr(stage, "downsamplers", None) is not None:
            skips.append(channels)
    for number, stage in enumerate(unet.up_blocks):
        for layer, resnet in enumerate(stage.resnets):
            channels = _expect(channels + skips.pop(), resnet, f"up_blocks.{number}.layers.{layer}")


def _expect(channels: int, resnet: Any, name: str) -> int:
    block = getattr(resnet, "spatial_res_block", resnet)
    if block.in_channels != channels:
        raise ValueError(f"selection: after the cut {name} gets {channels} channels, but it takes {block.in_channels}")
    return int(block.out_channels)


# --- everything else -------------------------------------------------------------------------------------------------


def _is_outermost(name: str) -> bool:
    """A list of blocks inside a block is no list of its own."""
    return not any(part in TRANSFORMER_LISTS for part in name.split(".")[:-1])


def _decoder_blocks(decoder: Any) -> list[str]:
    """The middle, and those residual blocks that keep their channels."""
    names = ["decoder.mid_block"] if _is_there(getattr(decoder, "mid_block", None)) else []
    for number, stage in enumerate(decoder.up_blocks):
        for layer, resnet in enumerate(getattr(stage, "resnets", [])):
            block = getattr(resnet, "spatial_res_block", resnet)
            if getattr(block, "in_channels", None) == getattr(block, "out_channels", -1):
                names.append(f"decoder.up_blocks.{number}.resnets.{layer}")
    return names


def _replace(model: nn.Module, name: str) -> None:
    _set(model, name, Skip())


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)
