"""How far a reconstruction is from its clip: pure functions of tensors.

loss = reconstruction_loss(decoded, clip, "l2")
"""

from typing import Literal

import torch
import torch.nn.functional as F


def reconstruction_loss(prediction: torch.Tensor, target: torch.Tensor, kind: Literal["l2", "l1"]) -> torch.Tensor:
    """Mean squared or absolute difference of two tensors of any one shape (CMD, section 3.1: "e.g., l2 loss")."""
    return F.mse_loss(prediction, target) if kind == "l2" else F.l1_loss(prediction, target)


def psnr(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of the whole batch: one mean squared error over all clips and frames."""
    return 10 * torch.log10(data_range**2 / (prediction.float() - target.float()).square().mean())
