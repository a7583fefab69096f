"""Counting operations, in both conventions of the field, without computing anything: models on the meta device.

    with torch.device("meta"):
        model, x = UNet2DConditionModel(...), torch.zeros(1, 4, 64, 64)
    cost = count(lambda: model(x, timestep, tokens));  cost.layer_macs, cost.flops

Papers say "FLOPs" for two things. `layer_macs` is what CMD (arXiv 2403.14148, tables 8 and 9) and most tools print:
multiply-adds of convolutions and linear layers, products inside attention left out. `flops` is what a device does: two
operations per multiply-add, attention included. Both leave out norms, activations and additions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

LAYERS = {"mm", "addmm", "convolution", "_convolution"}  # the rest of what is counted belongs to attention


@dataclass(frozen=True)
class Cost:
    """Operations of one call, or of several together.

    Attributes:
        layer_macs: multiply-adds of convolutions and linear layers (the papers' "FLOPs").
        flops: two for each multiply-add of everything, attention included.
    """

    layer_macs: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.layer_macs + other.layer_macs, self.flops + other.flops)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.layer_macs * times, self.flops * times)


def count(call: Callable[[], Any], backward: bool = False) -> Cost:
    """Count a call.

    Args:
        call: runs a model. On the meta device attention counts right; on a CPU its fused kernel counts as nothing.
        backward: `call` returns a loss; count its backward pass too.
    """
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        result = call()
        if backward:
            result.backward()
    operations = counter.get_flop_counts().get("Global", {})
    layers = sum(number for name, number in operations.items() if str(name).split(".")[-1] in LAYERS)
    return Cost(layer_macs=layers // 2, flops=sum(operations.values()))


def num_parameters(models: Iterable[nn.Module]) -> int:
    """Parameters of several models together."""
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers, in the type they are held in."""
    tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
