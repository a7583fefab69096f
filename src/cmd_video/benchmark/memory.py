"""Peak memory of a call, computed on the meta device by following every tensor from its birth to its death.

    peak_bytes(lambda: vae.decode(latents))         # activations only; add `weight_bytes` for the weights

Attention counts as one output: kernels like FlashAttention never hold the scores. Workspace of convolution algorithms
and fragmentation are not in it, so a device needs somewhat more.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


def peak_bytes(
    call: Callable[[], Any],
    backward: bool = False,
    half: Iterable[torch.Tensor] | None = None,
    device: str | None = None,
) -> int:
    """Most bytes of new tensors alive at once.

    Args:
        call: runs a model on the meta device, or on a CPU, where what it computes is then wrong; what exists before
            does not count.
        backward: keep what the backward pass needs and run it, on the loss that `call` returns.
        half: on the meta device compute as `torch.autocast` to bfloat16 does on CUDA; these weights are taken to have
            their copy in half precision already. None = in the types that tensors have.
        device: whose tensors count; None = those of all devices.
    """
    with torch.set_grad_enabled(backward), ExitStack() as modes:
        modes.enter_context(_FusedAttention())
        if half is not None:
            modes.enter_context(torch.autocast("cpu", torch.bfloat16))  # of no effect on meta, but a switch to look at
            modes.enter_context(_Autocast(half))
        follow = modes.enter_context(_Follow(device))
        result = call()
        if backward:
            _backward(result)
    return follow.peak


def _backward(loss: torch.Tensor) -> None:
    """As `loss.backward()`, which would leave the modes of functions, though checkpointing calls these again."""
    engine: Any = torch.autograd.Variable._execution_engine
    ones = (torch.ones_like(loss),)
    engine.run_backward((loss,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)


class _Follow(TorchDispatchMode):
    """Knows the storages that are alive, by weak references."""

    def __init__(self, device: str | None) -> None:
        super().__init__()
        self.device = device
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0  # now: with those that died since they were last looked at

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self._storages((args, kwargs))
        result = function(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in given}
        for storage in self._storages(result):
            if storage._cdata not in self.alive and storage._cdata not in inputs:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.now += storage.nbytes()
        if self.now > self.peak:  # look closer before believing it: some may be dead by now
            self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
            self.now = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.now)
        return result

    def _storages(self, tree: Any) -> list[torch.UntypedStorage]:
        tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
        return [leaf.untyped_storage() for leaf in tensors if self.device in (None, leaf.device.type)]


HALF = {  # what autocast computes in half precision on CUDA, as PyTorch's documentation lists it
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu"),
    *("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addbmm", "baddbmm", "einsum"),
    "scaled_dot_product_attention",
}
SINGLE = {  # and what in single precision
    *("layer_norm", "group_norm", "norm", "cosine_similarity", "mse_loss", "l1_loss", "smooth_l1_loss", "interpolate"),
    *("softmax", "log_softmax", "exp", "expm1", "log", "log1p", "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal"),
    *("softplus", "sum", "prod", "cumsum", "cumprod", "logsumexp", "cdist"),
}


class _Autocast(TorchFunctionMode):
    """What `torch.autocast` to bfloat16 does on CUDA, for the meta device, which has none.

    A leaf that learns is cast once, and its copy is kept; others are cast at each use.
    """

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.copies: dict[int, torch.Tensor] = {}
        with torch.enable_grad():
            self.copies = {id(weight): weight.to(torch.bfloat16) for weight in held if weight.dtype == torch.float32}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in HALF | SINGLE and torch.is_autocast_enabled("cpu"):
            cast = self._half if name in HALF else _single
            args, kwargs = tree_map(cast, (args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _half(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.device.type != "meta":
            return value.to(torch.bfloat16) if _is_half(value, torch.float16) else value
        if id(value) in self.copies:
            return self.copies[id(value)]
        copy = value.to(torch.bfloat16)
        if value.is_leaf and value.requires_grad:
            self.copies[id(value)] = copy
        return copy


def _single(value: Any) -> Any:
    return value.float() if _is_half(value, torch.bfloat16) or _is_half(value, torch.float16) else value


def _is_half(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype and value.device.type == "meta"


_TO_CPU = ("('cpu',)", "(device(type='cpu'),)")


class NoValues(TorchFunctionMode):
    """Asked for its values, a tensor on the meta device says zero; on the CPU it is zero, as a mask it chooses
    nothing, and two of them are equal if their shapes are.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.device.type == "meta":
            if function in (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__):
                return {"__bool__": False, "__int__": 0}.get(function.__name__, 0.0)
            if function is torch.Tensor.cpu or (function is torch.Tensor.to and str(args[1:2]) in _TO_CPU):
                return torch.zeros(first.shape, dtype=first.dtype, device="cpu")
            if function is torch.Tensor.tolist:
                return torch.zeros(first.shape, dtype=first.dtype, device="cpu").tolist()
            if function is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
                return first[:0]
            if function is torch.equal:
                return first.shape == args[1].shape
        return function(*args, **(kwargs or {}))


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
