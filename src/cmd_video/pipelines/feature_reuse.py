"""Deep features of a UNet, kept from one denoising step for the next (DeepCache, arXiv 2312.00858).

    prediction, deep = unet_step(unet, latents, timestep, tokens)          # what unet(...) gives, and what to keep
    prediction, deep = unet_step(unet, latents, timestep, tokens, deep)    # only the outermost skip connection is new

Neighbouring steps differ little in their deep features. A step that is given them computes the first convolution, the
last residual block that its skip connection leads to, and the output layers. The motion transformer's counterpart is
its argument `deep_residual`.

B batch, C channels, h, w sides of the content frame, S tokens, E width of the time embedding.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

PLAIN_DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
PLAIN_UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


def check_reusable(unet: UNet2DConditionModel) -> None:
    """Raise a ValueError for a UNet with more in its forward pass than `unet_step` has."""
    config = unet.config
    unusual = [
        name
        for name in (
            "center_input_sample",
            "time_embedding_act_fn",
            "encoder_hid_dim_type",
            "class_embed_type",
            "num_class_embeds",
        )
        if config.get(name)
    ]
    blocks = [*config.down_block_types, *config.up_block_types]
    unusual += [name for name in blocks if name not in PLAIN_DOWN_BLOCKS + PLAIN_UP_BLOCKS]
    if config.mid_block_type not in (None, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"):
        unusual.append(config.mid_block_type)
    if unusual:
        raise ValueError(f"reuse_interval: must be 1 for a UNet with {', '.join(dict.fromkeys(unusual))}")


def unet_step(
    unet: UNet2DConditionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    tokens: torch.Tensor,
    deep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a UNet, or with deep features only its outermost layers.

    Args:
        unet: the content model, one that `check_reusable` lets pass.
        sample: (B, C, h, w), noisy.
        timestep: (B,).
        tokens: (B, S, D), text features.
        deep: (B, C', h, w), what an earlier step with the same batch returned.

    Returns:
        the prediction (B, C, h, w), and the deep features that entered the last residual block.
    """
    hook = getattr(unet, "_hf_hook", None)
    if hook is not None:  # under model offload the weights come to the device only now
        hook.pre_forward(unet)
    embedding = unet.time_embedding(unet.get_time_embed(sample, timestep))  # (B, E)
    addition = unet.get_aug_embed(embedding, tokens, {})
    if addition is not None:
        embedding = embedding + addition
    x = unet.conv_in(sample)
    outermost = x
    if deep is None:
        deep = _deep_features(unet, x, embedding, tokens)
    x = torch.cat([deep, outermost], dim=1)  # (B, C' + C'', h, w)
    x = _residual_layer(unet.up_blocks[-1], -1, x, embedding, tokens)
    if unet.conv_norm_out is not None:
        x = unet.conv_act(unet.conv_norm_out(x))
    return unet.conv_out(x), deep  # (B, C, h, w)


def _deep_features(
    unet: UNet2DConditionModel, x: torch.Tensor, embedding: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """From the first convolution's output down, across and up again: (B, C'', h, w) -> (B, C', h, w)."""
    skips = [x]
    for block in unet.down_blocks:
        x, new = block(x, embedding, **_text(block, tokens))
        skips += new
    if unet.mid_block is not None:
        x = unet.mid_block(x, embedding, **_text(unet.mid_block, tokens))
    for block in unet.up_blocks[:-1]:
        own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        size = skips[-1].shape[2:]  # an odd side was rounded on the way down
        x = block(x, temb=embedding, res_hidden_states_tuple=tuple(own), upsample_size=size, **_text(block, tokens))
    last = unet.up_blocks[-1]
    for layer in range(len(last.resnets) - 1):
        x = _residual_layer(last, layer, torch.cat([x, skips.pop()], dim=1), embedding, tokens)
    return x


def _residual_layer(
    block: Any, layer: int, x: torch.Tensor, embedding: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    x = block.resnets[layer](x, embedding)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[layer](x, encoder_hidden_states=tokens, return_dict=False)[0]
    return x


def _text(block: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
