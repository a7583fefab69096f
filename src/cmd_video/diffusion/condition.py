"""What a network is told of each sample: named rows, each of which can be left out.

    condition = Condition({"prompt": ["a red ball", "a box"], "class": labels});  condition.dropped([True, False])

Which null stands for a row that was left out (the empty prompt, the label for no class, zeros) is the denoiser's: it
applies them when it encodes a condition for its network.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Condition:
    """Rows of B samples.

    Args:
        rows: by name, tensors (B, ...) or lists of B strings.
        absent: by name, which samples' rows are left out, (B,) bool on the CPU; of the others none are.
    """

    def __init__(self, rows: Mapping[str, Any], absent: Mapping[str, Tensor] | None = None) -> None:
        self.rows, self.absent = dict(rows), dict(absent or {})

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> Any:
        return self.rows[name]

    def is_absent(self, name: str) -> Tensor:
        """Which samples' rows of a name are left out: (B,)."""
        return self.absent.get(name, torch.zeros(len(self), dtype=torch.bool))

    def dropped(self, which: Sequence[bool] | Tensor, names: Iterable[str]) -> "Condition":
        """The same without these samples' rows of these names."""
        mask = torch.as_tensor(which, dtype=torch.bool)
        return Condition(self.rows, {**self.absent, **{name: self.is_absent(name) | mask for name in names}})

    def without(self, *names: str) -> "Condition":
        """The same without all rows of these names."""
        return self.dropped([True] * len(self), names)

    def having(self, **rows: Any) -> "Condition":
        """The same with further rows, or others in their place."""
        return Condition({**self.rows, **rows}, self.absent)

    def get(self, name: str, default: Any = None) -> Any:
        """A row, or something else where there is none of that name."""
        return self.rows.get(name, default)

    def only(self, names: Iterable[str]) -> "Condition":
        """The same with the rows of these names, as far as there are such."""
        return Condition({name: self.rows[name] for name in names if name in self.rows}, self.absent)

    def chosen(self, which: Tensor) -> "Condition":
        """Some samples, as (B,) says."""
        numbers = which.nonzero().flatten().tolist()
        rows = {
            name: value[which] if isinstance(value, Tensor) else [value[number] for number in numbers]
            for name, value in self.rows.items()
        }
        return Condition(rows, {name: mask[which.cpu()] for name, mask in self.absent.items()})


def stacked(conditions: Sequence[Condition]) -> Condition:
    """Several conditions of the same names as one, one behind the other. Rows must be tensors."""
    if len(conditions) == 1:
        return conditions[0]
    return Condition({name: torch.cat([each[name] for each in conditions]) for name in conditions[0].rows})
