"""Fréchet distance between two sets of feature vectors (arXiv 1706.08500, eq. 6), from running sums in float64.

    real, made = FeatureStatistics(), FeatureStatistics()
    real.update(features);  made.update(other_features);  frechet_distance(real, made)

N vectors of d numbers. With fewer vectors than d numbers the distance is biased upwards; compare equal numbers only.
"""

import torch

from cmd_video.evaluation.protocol.finite import check_finite


class FeatureStatistics:
    """Mean and covariance of feature vectors that come in batches.

    Attributes:
        count: vectors so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: torch.Tensor | float = 0.0
        self._outer: torch.Tensor | float = 0.0

    def update(self, features: torch.Tensor) -> None:
        """Add vectors (N, d) of any floating type.

        Raises:
            ValueError: they are no such table, or hold values that are NaN or infinite.
        """
        if features.ndim != 2:
            raise ValueError(f"features: expected (N, d), got {tuple(features.shape)}")
        features = features.detach().double().cpu()
        check_finite("features: the batch", features)
        self.count += len(features)
        self._sum = self._sum + features.sum(dim=0)
        self._outer = self._outer + features.T @ features

    def mean(self) -> torch.Tensor:
        """(d,)."""
        return torch.as_tensor(self._sum) / self.count

    def covariance(self, correction: int = 1) -> torch.Tensor:
        """(d, d); sums are divided by count - correction, as in `torch.cov`.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"features: {self.count} vectors have no covariance, at least 2 are needed")
        mean = self.mean()
        return (torch.as_tensor(self._outer) - self.count * torch.outer(mean, mean)) / (self.count - correction)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics, correction: int = 1) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of vectors of the same length.

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2), which exists and is real for every
    pair of covariances.

    Args:
        first: of N vectors.
        second: of M vectors.
        correction: covariances are over N - correction and M - correction: 1, unbiased, as the metric's authors have
            it; 0 as StyleGAN-V.
    """
    gap = (first.mean() - second.mean()).square().sum()
    covariances = [statistics.covariance(correction) for statistics in (first, second)]
    cross = torch.linalg.matrix_norm(_root(covariances[0]) @ _root(covariances[1]), ord="nuc")
    spread = covariances[0].trace() + covariances[1].trace()
    return max(0.0, float(gap + spread - 2 * cross))


def _root(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
