"""Arguments of a component that is made fresh, before it is made: libraries take much that ends in a riddle later.

check_arguments("components.unet.config", UNet2DConditionModel, {"layers_per_block": 2})
"""

import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any


def check_arguments(place: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Compare arguments with the signature that they are for, by name and by the kind and sign of its defaults.

    A number whose default is above zero must be above zero, any other one not below: a token's number aside, which may
    be anything.

    Raises:
        ValueError: a name is unknown, or a value cannot be meant; the message begins with `place` and the name.
    """
    known = inspect.signature(function).parameters
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(f"{place}.{name}: unknown name{f', did you mean {near[0]}?' if near else ''}")
        default = known[name].default
        several = isinstance(default, tuple | list)
        if several and len(default) and not isinstance(value, list | tuple | None):
            raise ValueError(f"{place}.{name}: {value!r}, must be a list such as {list(default)}")
        if several and len(default) and value is not None and not len(value):
            raise ValueError(f"{place}.{name}: [], must hold something such as {list(default)}")
        example = default[0] if several and len(default) else default
        for number in value if isinstance(value, list | tuple) else [value]:
            _check_value(f"{place}.{name}", name, number, example)


def _check_value(place: str, name: str, value: Any, example: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(example, int | float) and not isinstance(example, bool) and isinstance(value, str):
        raise ValueError(f"{place}: {value!r}, must be a number such as {example}")
    if not is_number:
        return
    if isinstance(example, str):
        raise ValueError(f"{place}: {value!r}, must be a text such as {example!r}")
    if not math.isfinite(value) or abs(value) >= 2**53:
        raise ValueError(f"{place}: {value}, must be a number that is finite and not too large")
    if isinstance(example, float | bool) or not isinstance(value, int) or name.endswith(("_id", "_ids")):
        return
    if value < 0:
        raise ValueError(f"{place}: {value}, must not be negative")
    if value == 0 and isinstance(example, int) and example > 0:
        raise ValueError(f"{place}: 0, must be 1 or more")
