"""Weights sharded over processes, for a model that is larger than a card: `loop.parallel`, by PyTorch's `fully_shard`.

    shard(stage, config.loop, accelerator.device)      # before optimizer and average are made of stage.learning()
    reshard(stage)                                     # before weights are read or written outside of a pass
    gather(stage, first=accelerator.is_main_process)   # at the end: whole weights, in the first process

FSDP2: each block of a network lies in parts over the `shard` processes and is whole only while it is passed through;
gradients, Adam's moments and the average lie like the weights. With `replicate` there are several such copies (HSDP),
which add their gradients. Sharded are the networks that learn, those that an objective adds, and a frozen teacher;
image autoencoder and frozen text encoders are whole everywhere.

The processes, the accumulation and the mean of the loss are accelerate's, as without; the wrapping is torch's own,
since accelerate refuses FSDP on a CPU, where the tests run. Each micro-batch leaves its gradients added up and
sharded, so that accumulating takes no memory. Gradients of copies are not held back to the last micro-batch either:
torch 2.13 fails where those of a block come in several portions, as they do where several methods are called.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from .config import LoopConfig, ParallelConfig
from .stage import Stage

UNET_BLOCKS = (  # of video UNets, which name none
    *("ResnetBlock2D", "TemporalConvLayer", "TemporalResnetBlock"),
    *("BasicTransformerBlock", "TemporalBasicTransformerBlock"),
)
METHODS = (  # of networks, called from outside beside `forward`
    *("encode", "decode", "decode_with_flow", "content_weights"),
    *("embed_condition", "embed_content_frame", "embed_latents", "project"),
)


def shard(stage: Stage, loop: LoopConfig, device: torch.device) -> None:
    """Shard a stage's networks in place, each block by itself; whole on the device is one block at a time.

    Args:
        stage: with its networks on the CPU; all processes have built the same one.
        loop: with `parallel`.
        device: of this process.
    """
    assert loop.parallel is not None
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of outputs changed in place, which none is here
    mesh = device_mesh(loop.parallel, device)
    for network in networks_of(stage):
        methods = [name for name in METHODS if hasattr(network, name)] if isinstance(network, ModelMixin) else []
        policy = _precision(network, loop)
        for block in blocks_of(network):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # what lies outside of the blocks stays whole from one method to the next, as they call each other
        fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=not methods)
        for name in methods:
            register_fsdp_forward_method(network, name)


def device_mesh(parallel: ParallelConfig, device: torch.device) -> DeviceMesh:
    """Which process holds which part of which copy: neighbours share a copy, so that those of one machine do."""
    if parallel.replicate == 1:
        return init_device_mesh(device.type, (parallel.shard,), mesh_dim_names=("shard",))
    sizes = (parallel.replicate, parallel.shard)
    return init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))


def is_sharded(stage: Stage) -> bool:
    """Whether `shard` was called on it."""
    return next(_sharded(stage), None) is not None


def reshard(stage: Stage) -> None:
    """Let each process hold its part alone again: what a pass left whole would not be what the optimizer changes."""
    for module in _sharded(stage):
        module.reshard()


def share(stage: Stage) -> str:
    """How much of what learns this process holds, in words."""
    weights = list(stage.learning().values())
    own, all_of_it = sum(local(weight).numel() for weight in weights), sum(weight.numel() for weight in weights)
    return f"loop.parallel: the first process holds {own} of {all_of_it} weights that learn"


def computing(stage: Stage) -> AbstractContextManager[Any]:
    """Half precision for passes outside of training, where blocks of a sharded stage, or its teacher, have it; else
    nothing.
    """
    half = is_sharded(stage) or has_half_teacher(stage)
    if half and stage.config.loop.precision == "bf16":
        return torch.autocast(stage._device().type, torch.bfloat16)
    return nullcontext()


def has_half_teacher(stage: Stage) -> bool:
    """Whether the teacher is held in half precision, be it that some of its layers are not."""
    teacher = stage.frozen.get("teacher")
    return teacher is not None and any(weight.dtype == torch.bfloat16 for weight in teacher.parameters())


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor from all its parts; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(stage: Stage, first: bool) -> None:
    """Make the networks that learn plain modules again, in the first process, with whole weights on the CPU.

    Every process must call it; in the others they are of no more use. Whole on the devices is one weight at a time.
    """
    reshard(stage)
    for network in stage.children():
        for name, parameter in list(network.named_parameters(remove_duplicate=False)):
            weight = whole(parameter.detach())
            if first:
                parent, _, own = name.rpartition(".")
                plain = nn.Parameter(weight.cpu(), requires_grad=parameter.requires_grad)
                setattr(network.get_submodule(parent), own, plain)
        for module in list(network.modules()) if first else ():
            if isinstance(module, FSDPModule):
                module.__class__ = type(module).__mro__[2]  # what fully_shard made a subclass of


def _precision(network: nn.Module, loop: LoopConfig) -> MixedPrecisionPolicy:
    """What weights are gathered in. In half precision whole blocks are, else autocast would keep its own copies of
    them until the backward pass; an objective's small heads compute in float32 in every run.
    """
    half = loop.precision == "bf16" and isinstance(network, ModelMixin | PreTrainedModel)
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32 if half else None,
        cast_forward_inputs=False,  # autocast casts what it should; timesteps stay exact
    )


def networks_of(stage: Stage) -> list[nn.Module]:
    """What is sharded: the registered networks, which learn, and a frozen teacher."""
    teacher = [stage.frozen["teacher"]] if "teacher" in stage.frozen else []
    return [*stage.children(), *teacher]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Modules that are sharded by themselves, inner ones first: those that the class names as not to be split; where
    it names none, those of UNets, or what lies in lists.
    """
    names = getattr(network, "_no_split_modules", None) or UNET_BLOCKS
    inside = [module for module in network.modules() if module is not network]
    found = [module for module in inside if type(module).__name__ in names]
    if not found:
        found = [module for each in inside if isinstance(each, nn.ModuleList) for module in each]
    return [module for module in reversed(found) if next(module.parameters(), None) is not None]


def _sharded(stage: Stage) -> Iterator[FSDPModule]:
    for network in networks_of(stage):
        for module in network.modules():
            if isinstance(module, FSDPModule):
                yield module
