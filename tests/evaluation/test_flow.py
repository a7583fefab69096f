"""Optical flow metrics: known motions come back, a still clip has none, and what each must and must not see."""

import numpy as np
import pytest
import torch

from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.networks.flow import dynamic_degree, flow_features, optical_flow, visible_flow, warping_error
from cmd_video.sprites.scenes import SpritesDataset


def sliding(dx, dy, frames=6, size=64):
    """A smooth texture that slides by (dx, dy) pixels a frame: uint8 (F, size, size, 3)."""
    draw = np.random.default_rng(0)
    large = torch.from_numpy(draw.random((1, 3, 24, 24), dtype=np.float32))
    large = torch.nn.functional.interpolate(large, (size + 60, size + 60), mode="bicubic")[0].clamp(0, 1)
    views = []
    for number in range(frames):
        x, y = 30 - dx * number, 30 - dy * number
        views.append(large[:, y : y + size, x : x + size])
    return (torch.stack(views) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (-1, 0), (0, 3), (1, -2)])
def test_a_known_slide_comes_back(dx, dy):
    flow = optical_flow(sliding(dx, dy))
    assert flow.shape == (5, 64, 64, 2)
    middle = flow[:, 12:-12, 12:-12].mean(dim=(0, 1, 2))
    assert middle.tolist() == pytest.approx([dx, dy], abs=0.15)
    assert dynamic_degree(flow) == pytest.approx(100 * (dx**2 + dy**2) ** 0.5 / 64, rel=0.35)


def test_a_still_clip_does_not_move():
    frames = sliding(0, 0)
    assert dynamic_degree(optical_flow(frames)) < 0.05 < dynamic_degree(optical_flow(sliding(1, 0)))


def test_warping_forgives_motion_and_sees_flicker():
    frames = sliding(2, 1)
    steady = warping_error(frames, *visible_flow(frames))
    plain = (frames[1:].float() / 255 - frames[:-1].float() / 255).square().mean().item()
    assert steady < 0.2 * plain
    flickering = frames.clone()
    flickering[1::2] = (flickering[1::2].float() * 0.8).to(torch.uint8)
    assert warping_error(flickering, *visible_flow(frames)) > 5 * steady
    frozen = frames[:1].expand_as(frames)
    assert warping_error(frozen, *visible_flow(frames)) > 5 * steady  # it should have moved
    assert warping_error(frozen, *visible_flow(frozen.contiguous())) < 1e-6
    seen = visible_flow(frames)[1]
    assert 0.8 < seen.float().mean() < 1 and not seen[:, :, -1].any()  # what leaves the picture is left out


def test_directions_fall_into_their_bins():
    for dx, dy, bin_number in ((2, 0, 0), (0, 2, 2), (-2, 0, 4), (0, -2, 6)):
        velocity = flow_features(sliding(dx, dy))[:128].view(8, 16)
        assert int(velocity.sum(dim=1).argmax()) == bin_number
    assert flow_features(sliding(2, 0))[:128].sum() > 5 * flow_features(sliding(2, 0))[128:].sum()  # no acceleration


def test_features_see_order_and_speed():
    dataset = SpritesDataset(50, 64, 64, 8)
    number = next(number for number in range(50) if dataset.scene(number).motion == "left")
    clip = to_uint8(dataset[number]["video"])
    features = flow_features(clip)
    assert features.shape == (256,) and features.isfinite().all()
    shuffled = clip[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert (flow_features(shuffled)[128:].sum() > 1.5 * features[128:].sum()).item()
    assert flow_features(clip[:1].expand(8, -1, -1, -1).contiguous()).abs().max() < 0.01


def test_one_frame_has_no_motion():
    with pytest.raises(ValueError, match="frames: motion needs 2 or more, got 1"):
        optical_flow(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="frames: optical flow needs 12 pixels or more on each side, got 8x16"):
        optical_flow(torch.zeros(2, 8, 16, 3, dtype=torch.uint8))


@pytest.mark.parametrize(("moving", "expected"), [(20, 50.0), (10, 25.0), (40, 50.0), (0, 0.0)])
def test_dynamic_degree_looks_at_the_fastest_twentieth(moving, expected):
    """400 pixels, of which some move by 10 pixels on a side of 20: the mean of the fastest 20 of them."""
    flow = torch.zeros(3, 400, 2)
    flow[:, torch.randperm(400, generator=torch.Generator().manual_seed(0))[:moving]] = torch.tensor([6.0, 8.0])
    assert dynamic_degree(flow.view(3, 20, 20, 2)) == pytest.approx(expected)


def test_warping_error_is_the_mean_square_where_something_is_seen():
    """By numbers: one pixel to the right, brightness other by 51 of 255 = 0.2, and only the left half seen."""
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    frames[0, :, :, :] = torch.arange(16).view(1, 16, 1) * 8
    frames[1, :, 1:] = frames[0, :, :-1] + 51
    flow = torch.zeros(1, 16, 16, 2)
    flow[..., 0] = 1.0
    seen = torch.zeros(1, 16, 16, dtype=torch.bool)
    seen[:, :, :8] = True
    assert warping_error(frames, flow, seen) == pytest.approx(0.04, rel=1e-5)
    frames[1, :, 12:] = 255
    assert warping_error(frames, flow, seen) == pytest.approx(0.04, rel=1e-5)  # what is not seen does not count
