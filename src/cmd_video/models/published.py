"""Weights as others publish them: files of `torch.save`, of which nothing but tensors is read.

state = read_weights(Path("model.ckpt"));  network = load_exactly(network, state, Path("model.ckpt"))
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import nn

WRAPPERS = ("state_dict", "model", "module")  # under which trainers put the weights beside other things
Network = TypeVar("Network", bound=nn.Module)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU.

    Raises:
        ValueError: there is no such file, it wants to run code, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"weights: no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # whose message advises to switch the protection off
        raise ValueError(f"weights: {path} holds more than weights: a pickle, which is not opened") from error
    except (RuntimeError, EOFError, KeyError, IndexError) as error:  # what torch says of other files, of parts of them
        raise ValueError(f"weights: {path} is damaged, or no file of weights ({type(error).__name__})") from error
    if isinstance(state, Mapping):
        state = next((state[name] for name in WRAPPERS if name in state), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} holds other things than tensors by name")
    return dict(state)


def load_exactly(model: Network, state: Mapping[str, torch.Tensor], path: Path) -> Network:
    """Load weights whose names and shapes must be the model's own; returns it, frozen, in evaluation mode.

    Args:
        model: what they are for.
        state: the weights, of any floating type.
        path: where they come from, for the message.

    Raises:
        ValueError: they are of another network.
    """
    weights = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    try:
        model.load_state_dict({**counters, **weights})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"weights: {path} does not fit {type(model).__name__}: {reason}") from error
    return model.eval().requires_grad_(False)
