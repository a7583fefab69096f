"""No score of NaN: what is not finite is refused where it enters, before it becomes a number that looks like one.

check_finite("features: i3d", features)
"""

import torch


def check_finite(what: str, values: torch.Tensor) -> torch.Tensor:
    """The same values, of any shape, all finite.

    Args:
        what: they are of, as the message begins: "made: the decoder".
        values: any floating type.

    Raises:
        ValueError: some are NaN or infinite.
    """
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise ValueError(f"{what} gives {wrong} of {values.numel()} values that are NaN or infinite")
    return values
