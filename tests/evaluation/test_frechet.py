"""Fréchet distance against closed forms, and what the pixel features see."""

import numpy as np
import pytest
import scipy.linalg
import torch

from cmd_video.evaluation.metrics.distribution import frechet_estimate
from cmd_video.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from cmd_video.evaluation.networks.pixel_features import content_features, motion_features, pixel_distances
from cmd_video.sprites.scenes import SpritesDataset


def statistics(*batches):
    result = FeatureStatistics()
    for batch in batches:
        result.update(batch)
    return result


def whitened(count, mean, scales):
    """Vectors with exactly this mean and a diagonal covariance."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(count, len(mean), generator=draw, dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    factor = torch.linalg.cholesky(noise.T @ noise / (count - 1))
    return torch.linalg.solve_triangular(factor, noise.T, upper=False).T * torch.tensor(scales) + torch.tensor(mean)


def test_closed_form_of_diagonal_covariances():
    first = whitened(50, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    second = whitened(80, [1.0, 1.0, 0.0], [2.0, 2.0, 0.5])
    expected = 1 + 4 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert frechet_distance(statistics(first), statistics(second)) == pytest.approx(expected, rel=1e-9)


def test_closed_form_of_turned_covariances():
    """With C1 = A A and C2 = B B of matrices that do not commute: against the eigenvalues of C1 C2."""
    draw = torch.Generator().manual_seed(1)
    first, second = (torch.randn(40, 5, generator=draw, dtype=torch.float64) @ torch.randn(
        5, 5, generator=draw, dtype=torch.float64) for _ in range(2))  # fmt: skip
    covariances = [torch.cov(features.T) for features in (first, second)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    gap = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    expected = gap + covariances[0].trace() + covariances[1].trace() - 2 * roots
    assert frechet_distance(statistics(first), statistics(second)) == pytest.approx(expected.item(), rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_in_any_order_and_batches():
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    shuffled = features.flip(0)
    assert frechet_distance(statistics(features), statistics(*shuffled.split(7))) == pytest.approx(0, abs=1e-6)


def test_more_numbers_than_vectors():
    draw = torch.Generator().manual_seed(3)
    first, second = (torch.randn(10, 40, generator=draw) for _ in range(2))
    assert frechet_distance(statistics(first), statistics(second)) > 0


@pytest.mark.parametrize("features", [torch.zeros(3), torch.full((2, 2), float("nan"))])
def test_what_is_no_table_of_numbers_is_refused(features):
    with pytest.raises(ValueError, match="features:"):
        statistics(features)


def test_one_vector_has_no_covariance():
    with pytest.raises(ValueError, match="1 vectors have no covariance"):
        statistics(torch.zeros(1, 4)).covariance()


def test_each_kind_of_feature_sees_its_own():
    clips = torch.stack([SpritesDataset(40)[number]["video"] for number in range(40)])
    backwards, still = clips.flip(2), clips[:, :, :1].expand_as(clips)

    def distance(extract, one, other):
        return frechet_distance(statistics(extract(one)), statistics(extract(other)))

    assert distance(content_features, clips, backwards) == pytest.approx(0, abs=1e-6)  # the same frames
    assert distance(motion_features, clips, backwards) > 0.1
    assert motion_features(still).abs().max() == 0
    assert content_features(clips).shape == (160, 192) and motion_features(clips).shape == (40, 192)


def test_pixel_distances_see_order_only_as_motion():
    clips = SpritesDataset(24, 32, 32, 8)
    videos = torch.stack([clips[index]["video"] for index in range(24)])
    backwards = videos.flip(2)
    found = pixel_distances(backwards.split(5), [videos])
    assert found["content"] == pytest.approx(0, abs=1e-4) and found["motion"] > 0.01
    assert pixel_distances([videos], [videos]) == pytest.approx({"content": 0, "motion": 0}, abs=1e-4)


def test_pictures_have_no_motion_to_compare():
    pictures = torch.rand(12, 3, 1, 16, 16) * 2 - 1
    assert set(pixel_distances([pictures], [pictures / 2])) == {"content"}
    with pytest.raises(ValueError, match="video: one frame has no motion"):
        motion_features(pictures)


def test_covariances_over_n_are_numpys():
    first, second = torch.randn(40, 6, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64) * 2 + 1
    for correction in (0, 1):
        covariances = [np.cov(table.T.numpy(), ddof=correction) for table in (first, second)]
        np.testing.assert_allclose(statistics(first).covariance(correction), covariances[0], rtol=1e-9)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        gap = (first.mean(0) - second.mean(0)).square().sum().item()
        expected = gap + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert frechet_distance(statistics(first), statistics(second), correction) == pytest.approx(expected, rel=1e-8)
        assert frechet_estimate(first, second, 1, correction).value == pytest.approx(expected, rel=1e-8)
