"""Adapters (LoRA) of a whole model on a pruned one, which numbers its layers anew.

rename, lost = renaming({"up_blocks.0.attentions.0...to_k.lora_A.weight": ...}, student)
rename("up_blocks.1.attentions.0...to_k.lora_A.weight")         # "up_blocks.0....", or None where the layer is gone
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import parameter_names
from .pruned_models import PrunedMixin

TRAINED_ON = ("whole", "pruned")
INTO, OUT_OF = ("lora_A.", "lora.down.", "lora_down."), ("lora_B.", "lora.up.", "lora_up.")  # a layer's two halves


def renaming(
    adapters: Mapping[str, Tensor], model: Any, trained_on: str | None = None
) -> tuple[Callable[[str], str | None], set[str]]:
    """How names of layers that adapters are for become a model's own, and the layers that it lost.

    Args:
        adapters: by name, as peft or diffusers name them.
        model: pruned or whole.
        trained_on: "whole" or "pruned": whose layers the names are; None = that is to be seen from them.

    Returns:
        From a name to the model's own, None where its layer is gone; and which of the layers are gone.

    Raises:
        ValueError: a layer is not there or of another size; or the adapters fit both models, and none is said.
    """
    if trained_on not in (None, *TRAINED_ON):
        raise ValueError(f"trained_on: {trained_on!r} is none of {', '.join(TRAINED_ON)}")
    own = unfit(adapters, model)
    if not isinstance(model, PrunedMixin) or trained_on == "pruned":
        if own:
            raise ValueError(f"adapters: {len(own)} do not fit {type(model).__name__}, such as {own[0]}")
        return str, set()
    whole = _whole(model)
    theirs = unfit(adapters, whole)
    if theirs and (own or trained_on == "whole"):
        raise ValueError(f"adapters: {len(theirs)} do not fit the model that was pruned, such as {theirs[0]}")
    if theirs:
        return str, set()
    modules = _modules(whole)
    names = {old: new for new, old in parameter_names(whole, model.config.removed_blocks).items()}
    moved = {layer: _moved(layer, names) for layer in {_layer(name, modules) for name in adapters}}
    if trained_on is None and not own and any(layer != new for layer, new in moved.items()):
        raise ValueError(
            "trained_on: the adapters fit the model that was pruned and, at other layers, what is left of it; "
            "say 'whole' or 'pruned'"
        )

    def rename(name: str) -> str | None:
        layer = _layer(name, modules)
        new = moved.get(layer)
        return None if new is None else new + name[len(layer) :]

    return rename, {layer for layer, new in moved.items() if new is None}


def unfit(adapters: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the adapters whose layer a model does not have, or in another size."""
    modules, found = _modules(model), []
    for name, tensor in adapters.items():
        layer = modules[_layer(name, modules)]
        weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
        side = 1 if any(word in name for word in INTO) else 0 if any(word in name for word in OUT_OF) else None
        of_other_size = weight is not None and side is not None and weight.shape[side] != tensor.shape[side]
        in_a_block = weight is None and side is not None and ".processor." not in name  # whose layer is not there
        if layer is model or in_a_block or of_other_size:
            found.append(name)
    return found


def _whole(model: Any) -> nn.Module:
    """The model that a pruned one was before, on the meta device."""
    teacher = type(model).teacher_class()
    known = inspect.signature(teacher.__init__).parameters
    with torch.device("meta"):
        return teacher(**{name: value for name, value in model.config.items() if name in known})


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without those that adapters brought."""
    return {name: module for name, module in model.named_modules() if "lora_" not in name and "base_layer" not in name}


def _layer(name: str, modules: Iterable[str]) -> str:
    """The module that a name begins with, the longest; the model itself, "", if there is none."""
    parts = name.split(".")
    return next((found for n in range(len(parts), 0, -1) if (found := ".".join(parts[:n])) in modules), "")


def _moved(layer: str, names: Mapping[str, str]) -> str | None:
    """The name that a layer has now; None if it is gone."""
    weights = (pair for pair in names.items() if pair[0].startswith(f"{layer}."))
    return next((new[: len(new) - len(old) + len(layer)] for old, new in weights), None)
