"""Latents of a clip moved so that it has frames that are given.

x_c, z = refined({0: first}, x_c, z, decode, steps=5, rate=0.05)

B batch, C channels, F frames, h, w latents, D motion channels.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Decode = Callable[
    [Tensor, Tensor, list[int]], Tensor
]  # content frame, normalised motion latents, numbers of N frames -> these, (B, C, N, h, w)


def refined(
    given: Mapping[int, Tensor], content_frame: Tensor, motion_latents: Tensor, decode: Decode, steps: int,
    rate: float, content_rate: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The two moved by Adam towards |g(x_c, z)[p] - picture|^2 = 0 at the given frames p.

    Args:
        given: pictures (B, C, h, w) in the autoencoder's space, by their frame's number.
        content_frame: x_c (B, C, h, w).
        motion_latents: z (B, D, F, H' + W'), normalised.
        decode: the autoencoder, g.
        steps: of Adam; 0 leaves both as they are.
        rate: its learning rate for z.
        content_rate: the same for x_c; 0 = it stays.
    """
    if not steps:
        return content_frame, motion_latents
    with torch.inference_mode(False), torch.enable_grad():
        x_c, z = (value.detach().float().clone().requires_grad_() for value in (content_frame, motion_latents))
        rates = [(z, rate)] + ([(x_c, content_rate)] if content_rate else [])
        adam = torch.optim.Adam([{"params": [value], "lr": own} for value, own in rates])
        moved = [value for value, _ in rates]
        wanted = torch.stack([picture.detach().float() for picture in given.values()], dim=2)  # (B, C, N, h, w)
        for _ in range(steps):
            shown = decode(x_c.to(content_frame), z.to(motion_latents), list(given))  # (B, C, N, h, w)
            misfit = (shown.float() - wanted).square().sum()  # a batch moves as its clips alone
            for value, gradient in zip(moved, torch.autograd.grad(misfit, moved), strict=True):
                value.grad = gradient
            adam.step()
    return x_c.detach().to(content_frame), z.detach().to(motion_latents)
