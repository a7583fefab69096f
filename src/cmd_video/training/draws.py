"""Random numbers of a run: each sample has its own source, so that neither batches nor processes matter.

draws = generators(seed, batch["number"]);  timestep = draw_timestep(1000, draws[0])
"""

import torch

from cmd_video.losses import NoiseLevels


def generators(seed: int, numbers: torch.Tensor) -> list[torch.Generator]:
    """One CPU generator per sample."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + int(number)) % 2**63) for number in numbers]


def draw_timestep(
    num_timesteps: int, generator: torch.Generator, logit_normal: tuple[float, float] | None = None
) -> torch.Tensor:
    """A timestep (1,) below `num_timesteps`: uniform, or logit-normal (arXiv 2403.03206, section 3.1)."""
    if logit_normal is None:
        return torch.randint(num_timesteps, (1,), generator=generator)
    mean, std = logit_normal
    share = torch.sigmoid(mean + std * torch.randn(1, generator=generator))
    return (share * num_timesteps).long().clamp(max=num_timesteps - 1)


def draw_level(levels: NoiseLevels, mean: float, std: float, generator: torch.Generator) -> torch.Tensor:
    """The level (1,) whose noise-to-signal ratio is nearest to a log-normal draw (EDM, arXiv 2206.00364, table 1)."""
    ratio = torch.exp(mean + std * torch.randn(1, generator=generator))
    return (levels.sigma / levels.alpha - ratio).cpu().abs().argmin(keepdim=True)


def draw_noise(like: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    """Standard normal noise (B, ...) of the shape and on the device of `like`, each sample's from its own source."""
    return torch.stack([torch.randn(like.shape[1:], generator=draw) for draw in draws]).to(like)
