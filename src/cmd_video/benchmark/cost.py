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
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d}
TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


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
        backward: `call` returns a loss; count its backward pass too (in `flops` only).
    """
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter, _Layers() as layers:
        result = call()
        if backward:
            result.backward()
    return Cost(layer_macs=layers.macs, flops=counter.get_total_flops())


class _Layers(TorchFunctionMode):
    """Counts the layers' multiply-adds where they are called: below that, a layer without bias and a product inside
    attention may be the same operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is F.linear:
            x, weight = _inputs(args, kwargs)
            self.macs += x.numel() // x.shape[-1] * weight.numel()
        elif function in CONVOLUTIONS:  # each output value is a product with one filter
            _, weight = _inputs(args, kwargs)
            self.macs += result.numel() * (weight.numel() // len(weight))
        elif function in TRANSPOSED:  # each input value is a product with one filter
            x, weight = _inputs(args, kwargs)
            self.macs += x.numel() * (weight.numel() // len(weight))
        return result


def _inputs(args: Any, kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    named = dict(zip(("input", "weight"), args, strict=False), **(kwargs or {}))
    return named["input"], named["weight"]


def num_parameters(models: Iterable[nn.Module]) -> int:
    """Parameters of several models together."""
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers, in the type they are held in."""
    tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
