"""Random numbers of a run: each sample has its own source, so that neither batches nor processes matter.

    rng = Draws.of(seed, batch["number"]);  z = rng.normal(x_0);  t = rng.timesteps(1000)

B batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Draws:
    """One CPU generator for each of B samples.

    Args:
        sources: the generators, in the order of the samples.
    """

    def __init__(self, sources: Sequence[torch.Generator]) -> None:
        self.sources = list(sources)

    @classmethod
    def of(cls, seed: int, numbers: Tensor) -> "Draws":
        """Sources that are functions of the seed and each sample's number."""
        return cls([torch.Generator().manual_seed((seed * 1_000_003 + int(number)) % 2**63) for number in numbers])

    def __len__(self) -> int:
        return len(self.sources)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal (B, ...), of the shape, type and on the device of `like`, each sample's from its source."""
        return torch.stack([torch.randn(like.shape[1:], generator=source) for source in self.sources]).to(like)

    def uniform(self) -> list[float]:
        """A number in [0, 1) for each sample."""
        return [torch.rand((), generator=source).item() for source in self.sources]

    def timesteps(self, count: int, logit_normal: tuple[float, float] | None = None) -> Tensor:
        """Numbers (B,) below `count`: uniform, or logit-normal (arXiv 2403.03206, section 3.1)."""
        if logit_normal is None:
            return torch.cat([torch.randint(count, (1,), generator=source) for source in self.sources])
        mean, std = logit_normal
        shares = [torch.sigmoid(mean + std * torch.randn(1, generator=source)) for source in self.sources]
        return torch.cat([(share * count).long().clamp(max=count - 1) for share in shares])

    def nearest_log_normal(self, ratios: Tensor, mean: float, std: float) -> Tensor:
        """Numbers (B,) of the ratios (T,) nearest to log-normal draws (EDM, arXiv 2206.00364, table 1)."""
        drawn = [torch.exp(mean + std * torch.randn(1, generator=source)) for source in self.sources]
        return torch.cat([(ratios - ratio).cpu().abs().argmin(keepdim=True) for ratio in drawn])

    @contextmanager
    def again(self) -> Iterator[None]:
        """What is drawn inside is drawn again afterwards."""
        states = [source.get_state() for source in self.sources]
        try:
            yield
        finally:
            for source, state in zip(self.sources, states, strict=True):
                source.set_state(state)
