"""Parts of a work whose pieces have numbers, for processes that know nothing of each other.

share = read_share("1/4");  share.has(5)        # pieces 1, 5, 9, ...: True
raise ShareDone("...")                          # where what all pieces are for cannot be there yet
"""

import re
from typing import NamedTuple

SPEC = re.compile(r"(\d{1,9})/(\d{1,9})")


class Share(NamedTuple):
    """Every `step`-th piece, from piece `first` on.

    Attributes:
        first: 0 <= first < step.
        step: how many shares there are.
    """

    first: int
    step: int

    def has(self, number: int) -> bool:
        """Whether a piece belongs to this share."""
        return number % self.step == self.first

    def split(self, parts: int) -> "list[Share]":
        """Shares that are this one together."""
        return [Share(self.first + self.step * part, self.step * parts) for part in range(parts)]

    def __str__(self) -> str:
        return f"{self.first}/{self.step}"


WHOLE = Share(0, 1)


class ShareDone(Exception):
    """The pieces of a share are there. What they are for comes of the same call without a share, once all are; the
    message says how many there are.
    """


def read_share(spec: str) -> Share:
    """A share as it is written, "i/n".

    Raises:
        ValueError: it is none.
    """
    found = SPEC.fullmatch(spec)
    share = Share(int(found[1]), int(found[2])) if found else WHOLE
    if not found or share.first >= share.step:
        raise ValueError(f"shard: {spec!r}, allowed: i/n with 0 <= i < n")
    return share
