"""Deep features of a UNet, kept from one denoising step for the next (DeepCache, arXiv 2312.00858).

    prediction, deep = full_step(unet, latents, timestep, tokens)       # what unet(...) gives, and what to keep
    prediction = shallow_step(unet, latents, timestep, tokens, deep)    # only the outermost skip connection is new

Neighbouring steps differ little in their deep features. A shallow step therefore computes the first convolution, the
last residual block that its skip connection leads to, and the output layers. The motion transformer's counterpart is
its argument `deep_residual`.

B batch, C channels, h, w sides of the content frame, S tokens.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel


def full_step(
    unet: UNet2DConditionModel, sample: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the whole UNet.

    Args:
        unet: the content model.
        sample: (B, C, h, w), noisy.
        timestep: (B,).
        tokens: (B, S, D), text features.

    Returns:
        the prediction (B, C, h, w), and the deep features (B, C', h, w) that enter the last residual block.
    """
    block = unet.up_blocks[-1].resnets[-1]
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        joined = arguments[0]  # deep features and skip connection, joined along the channels
        kept.append(joined[:, : joined.shape[1] - unet.conv_in.out_channels])

    handle = block.register_forward_pre_hook(keep)
    try:
        prediction = unet(sample, timestep, encoder_hidden_states=tokens).sample
    finally:
        handle.remove()
    if not kept:
        raise ValueError("reuse_interval: must be 1 for a UNet that torch.compile has compiled without it")
    return prediction, kept[0]


def shallow_step(
    unet: UNet2DConditionModel, sample: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, deep: torch.Tensor
) -> torch.Tensor:
    """Run the UNet's outermost layers around deep features that a `full_step` with the same batch returned."""
    embedding = unet.time_embedding(unet.get_time_embed(sample, timestep))  # (B, E)
    addition = unet.get_aug_embed(embedding, tokens, {})
    if addition is not None:
        embedding = embedding + addition
    tokens = unet.process_encoder_hidden_states(tokens, {})
    block = unet.up_blocks[-1]
    x = torch.cat([deep, unet.conv_in(sample)], dim=1)  # (B, C' + C'', h, w)
    x = block.resnets[-1](x, embedding)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[-1](x, encoder_hidden_states=tokens).sample
    if unet.conv_norm_out is not None:
        x = unet.conv_act(unet.conv_norm_out(x))
    return unet.conv_out(x)  # (B, C, h, w)
