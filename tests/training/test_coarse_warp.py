"""The coarse loss of the flow: zero where the flow is right, a way home where the fine loss has none."""

import pytest
import torch
import torch.nn.functional as F

from cmd_video.models.autoencoder_warp import warp
from cmd_video.training.coarse_warp import blur, coarse_warp_loss
from cmd_video.training.config import TrainConfig


def disc(x):
    """A white disc of radius 5 on black, 64 x 64, at (x, 32): (1, 1, 64, 64)."""
    axis = torch.arange(64.0)
    distance = ((axis - x) ** 2 + (axis[:, None] - 32) ** 2).sqrt()
    return (5.5 - distance).clamp(0, 1)[None, None]


def test_a_blurred_spot_is_a_gaussian_and_flat_stays_flat():
    flat = torch.full((2, 3, 32, 48), 0.3)
    torch.testing.assert_close(blur(flat, 8), flat)
    spot = torch.zeros(1, 1, 65, 65)
    spot[..., 32, 32] = 1
    axis = torch.arange(65.0) - 32
    blurred = blur(spot, 6)[0, 0]
    assert blurred.sum() == pytest.approx(1, rel=1e-5)
    assert (blurred * axis**2).sum() == pytest.approx(36, rel=0.1)  # a little is cut off
    torch.testing.assert_close(blurred, blurred.T)


def test_a_folded_frame_is_blurred_as_its_pixels_are():
    frames = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blur(F.pixel_unshuffle(frames, 4), 8, fold=4), F.pixel_unshuffle(blur(frames, 8), 4))


def test_a_clip_that_stands_still_costs_nothing():
    frame = torch.rand(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = frame[:, :, None].expand(-1, -1, 5, -1, -1)
    assert coarse_warp_loss(frame, clip, torch.zeros(2, 8, 5, 8, 8), fold=2) == pytest.approx(0, abs=1e-10)


def test_the_gradient_points_home_from_afar():
    content, clip = disc(20), disc(38)[:, :, None]
    home = -18 / 32  # where the disc comes from: 18 pixels to the left, in half widths

    def flow(shift):
        return torch.stack([shift, torch.zeros(())]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 64, 64)

    def fine(content, clip, flow):
        return F.mse_loss(warp(content, flow, 1), clip)

    found = {}
    for loss in (fine, coarse_warp_loss):
        shift = torch.zeros(())
        for _ in range(500):
            shift = shift.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(content, clip, flow(shift)), shift)
            shift = shift - 0.1 * slope
        found[loss] = shift.item()
    assert abs(found[fine]) < 4 / 32  # the fine loss sees no way
    assert found[coarse_warp_loss] == pytest.approx(home, abs=1 / 32)


def test_an_autoencoder_without_flow_refuses_the_weight(tiny_config, tmp_path):
    from cmd_video.training.build import build_stage
    from cmd_video.training.components import build_components

    config = TrainConfig.model_validate(
        tiny_config("autoencoder", tmp_path / "run", objective__coarse_warp_weight=1.0)
    )
    with pytest.raises(ValueError, match="objective.coarse_warp_weight: a CMDAutoencoder .* moves nothing"):
        build_stage(config, build_components(config.components))
