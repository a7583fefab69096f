"""Losses of reconstructions against values worked out by hand."""

import math

import pytest
import torch

from cmd_video.training.reconstruction import psnr, reconstruction_loss


def test_reconstruction_losses_of_known_errors():
    prediction, target = torch.zeros(2, 3), torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, -6.0]])
    assert reconstruction_loss(prediction, target, "l1").item() == pytest.approx(2.0)
    assert reconstruction_loss(prediction, target, "l2").item() == pytest.approx(50 / 6)


def test_psnr_of_known_errors():
    target = torch.zeros(2, 3, 4, 4)
    assert psnr(target + 0.2, target).item() == pytest.approx(20.0, abs=1e-3)
    assert psnr(target + 0.2, target, data_range=1.0).item() == pytest.approx(20 - 20 * math.log10(2), abs=1e-3)
    uneven = target.clone()
    uneven[0] = 0.2  # one mean squared error over the batch, not a mean of two values, one of them infinite
    assert psnr(uneven, target).item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    assert psnr(target, target).item() == math.inf
