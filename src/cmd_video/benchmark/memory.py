"""Peak memory of a call, computed on the meta device by following every tensor from its birth to its death.

    peak_bytes(lambda: vae.decode(latents))         # activations only; add `weight_bytes` for the weights

Attention counts as one output: kernels like FlashAttention never hold the scores. Workspace of convolution algorithms
and fragmentation are not in it, so a device needs somewhat more.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], Any], backward: bool = False) -> int:
    """Most bytes of new tensors alive at once.

    Args:
        call: runs a model on the meta device, or on a CPU, where what it computes is then wrong; what exists before
            does not count.
        backward: keep what the backward pass needs and run it, on the loss that `call` returns.
    """
    with torch.set_grad_enabled(backward), _FusedAttention(), _Follow() as follow:
        result = call()
        if backward:
            result.backward()
    return follow.peak


class _Follow(TorchDispatchMode):
    """Knows the storages that are alive, by weak references."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _storages((args, kwargs))
        result = function(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in given}
        for storage in _storages(result):
            if storage._cdata not in self.alive and storage._cdata not in inputs:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        now = sum(size for _, size in self.alive.values())
        if now > self.peak:  # look closer before believing it: some may be dead by now
            self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _FusedAttention(TorchFunctionMode):
    """On the meta device attention is written out, scores and all; here it is what a fused kernel allocates."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False), **(kwargs or {}))
            return _Attention.apply(named["query"], named["key"], named["value"])
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Allocates what a fused attention kernel does, and keeps for the backward pass what it keeps; zeros on a CPU."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        query, key, value, _ = context.saved_tensors
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
