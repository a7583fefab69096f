"""The order in which a pass goes through a set: a pure function of (key, turn, place), whatever the set's size.

    order = BlockOrder([256] * 40_000, key=[seed]);  clip = order(turn=0, place=12)

A set lies in blocks: shards of latents, row groups of a table. A small one is shuffled whole. Of a large one the
blocks are shuffled, and then the clips of each `WINDOW` neighbouring blocks among themselves, so that a pass reads
each block once, a few at a time, and nothing as long as the set is held.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["WINDOW", "BlockOrder"]

WINDOW = 64  # blocks that are shuffled into each other


class BlockOrder:
    """Where each place of a pass lies.

    Args:
        sizes: clips of each block.
        key: numbers that seed the shuffle, such as the seed of a run.
        window: blocks that are shuffled into each other.

    Raises:
        ValueError: there is no clip.
    """

    def __init__(self, sizes: Sequence[int], key: Sequence[int], window: int = WINDOW) -> None:
        self._sizes, self._key, self._window = np.asarray(sizes, np.int64), [int(part) for part in key], window
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])  # first clip of each block, and their number
        if not len(self):
            raise ValueError("sizes: no clip in any block, at least one is needed")
        self._blocks = lru_cache(maxsize=2)(self._blocks_of)
        self._clips = lru_cache(maxsize=4)(self._clips_of)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __call__(self, turn: int, place: int) -> int:
        """Number of the clip at a place of a pass, both counted from 0."""
        if len(self._sizes) <= self._window:
            return int(self._clips(turn, 0)[place])
        _, ends = self._blocks(turn)
        window = int(np.searchsorted(ends, place, side="right"))
        before = int(ends[window - 1]) if window else 0
        return int(self._clips(turn, window)[place - before])

    def _blocks_of(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the order of a pass, and the places at which their windows end."""
        blocks = np.random.default_rng([*self._key, turn]).permutation(len(self._sizes))
        counts = np.add.reduceat(self._sizes[blocks], np.arange(0, len(blocks), self._window))
        return blocks, np.cumsum(counts)

    def _clips_of(self, turn: int, window: int) -> np.ndarray:
        """The clips of a window in the order of a pass."""
        if len(self._sizes) <= self._window:
            return np.random.default_rng([*self._key, turn]).permutation(len(self))
        blocks = self._blocks(turn)[0][window * self._window : (window + 1) * self._window]
        clips = np.concatenate([np.arange(self._starts[block], self._starts[block + 1]) for block in blocks])
        return np.random.default_rng([*self._key, turn, window]).permutation(clips)

    def block_of(self, clip: int) -> tuple[int, int]:
        """(block, place in it) of a clip."""
        block = int(np.searchsorted(self._starts, clip, side="right")) - 1
        return block, clip - int(self._starts[block])

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        del state["_blocks"], state["_clips"]  # a loading process keeps its own
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._blocks = lru_cache(maxsize=2)(self._blocks_of)
        self._clips = lru_cache(maxsize=4)(self._clips_of)
