"""What several commands check alike."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def find_dtype(name: str) -> "torch.dtype":
    """The type of weights that `--dtype` names.

    Raises:
        ValueError: it is none of DTYPES.
    """
    if name not in DTYPES:
        raise ValueError(f"--dtype: {name!r} is none of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)
