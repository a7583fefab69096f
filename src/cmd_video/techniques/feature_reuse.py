"""Deep features of both denoisers, kept from one denoising step for the next (DeepCache, arXiv 2312.00858; A-SDM,
arXiv 2406.00210).

    sampling: {content: {wraps: [{kind: feature_reuse, interval: 2}]}}

Neighbouring steps differ little in their deep features. A step that takes them from an earlier one computes of a UNet
the first convolution, the last residual block that its skip connection leads to, and the output layers; of the motion
transformer the first and the last block. Nothing is trained. The first step, and every first one that asks for other
conditions than the step before, computes everything. Differs from paper: the outermost skip connection only, steps at
equal distances.

B batch, C channels, h, w sides of the content frame, S tokens, E width of the time embedding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser, timesteps
from cmd_video.denoisers.motion import fixed_tokens, frames_of, ready
from cmd_video.denoisers.references import ROW, has_adapters, unet_references, with_references
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask, AskUnder, Guidance
from cmd_video.diffusion.plan import Step
from cmd_video.models import CMDMotionTransformer
from cmd_video.section import Section

PLAIN_DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
PLAIN_UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


class Settings(Section):
    """How often deep features are computed."""

    kind: Literal["feature_reuse"] = "feature_reuse"
    interval: int = Field(1, ge=1)
    """At every n-th step; 1 = at every step, which changes nothing."""

    rows: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Any, denoiser: Denoiser, sampling: Any) -> None:
        """Raise a ValueError for a network whose features cannot be used again, or with a wrap inside this one."""
        if self.interval == 1:
            return
        if sampling.wraps[0] is not self:
            raise ValueError(f"wraps: {self.kind} asks the network itself, so it must be the first of them")
        if isinstance(model, CMDMotionTransformer):
            return
        if not isinstance(model, UNet2DConditionModel):
            raise ValueError(f"reuse_interval: {self.interval}, but a {type(model).__name__} allows only 1")
        check_reusable(model)

    def steps(self, steps: Sequence[Step], guidance: Guidance) -> list[Step]:
        """The plan, with `fresh` where deep features are computed."""
        planned: list[Step] = []
        since, before = 0, None
        for step in steps:
            asked = guidance.passes(step)
            fresh = asked != before or since + 1 >= self.interval
            since, before = 0 if fresh else since + 1, asked
            planned.append(replace(step, fresh=fresh))
        return planned

    def ask_under(self, ask_under: AskUnder, denoiser: Denoiser, model: Any) -> AskUnder:
        """Ask a network that keeps its deep features from the last fresh step."""
        if self.interval == 1:
            return ask_under
        reuse = _motion if isinstance(model, CMDMotionTransformer) else _unet
        return lambda told: reuse(denoiser, model, told)


def _unet(denoiser: Denoiser, model: Any, told: Condition) -> Ask:
    kept: list[Tensor] = []

    def ask(x: Tensor, step: Step) -> Tensor:
        deep = None if step.fresh else kept[0]
        x = with_references(x, told.get(ROW), unet_references(model))  # (B, C + R (C + 1), h, w)
        prediction, new = denoiser.compiled(unet_step)(model, x, timesteps(x, step), told["tokens"], deep)
        if step.fresh:
            kept[:] = [new.clone()]  # CUDA graphs write their next outputs into the same memory
        return prediction

    return ask


def _motion(denoiser: Denoiser, model: Any, told: Condition) -> Ask:
    pooled, labels = (told.get(name) for name in ("pooled", "labels"))
    fixed: list[Tensor] = []
    kept: list[Tensor] = []

    def ask(x: Tensor, step: Step) -> Tensor:
        if not fixed:
            frames = frames_of(model, told)
            model.check_inputs(x, frames, pooled, labels)
            fixed.append(denoiser.compiled(fixed_tokens)(model, x, frames).clone())
        deep, run = None if step.fresh else kept[0], denoiser.compiled(motion_step)
        prediction, new = run(model, x, timesteps(x, step), fixed[0], pooled, labels, deep)
        if step.fresh:
            kept[:] = [new.clone()]
        return prediction

    return ask


def motion_step(
    model: Any,
    x: Tensor,
    timestep: Tensor,
    fixed: Tensor,
    pooled: Tensor | None,
    labels: Tensor | None,
    deep_residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a motion transformer, or with what its inner blocks added in an earlier step only the first and the last.

    Args:
        model: the motion transformer.
        x: (B, D, F, H' + W'), noisy.
        timestep: (B,).
        fixed: (B, S, dim), its `embed_content_frame`.
        pooled: (B, D), or None.
        labels: (B,), or None.
        deep_residual: (B, S, dim), what an earlier step with the same batch returned.

    Returns:
        the prediction, as x, and what all blocks but the first and the last added, (B, S, dim).
    """
    ready(model)
    condition = model.embed_condition(timestep, pooled, labels)  # (B, dim), of one time for all frames
    shallow = model.run(model.blocks[:1], model.embed_latents(x, fixed), condition)  # (B, S, dim)
    if deep_residual is None:
        deep = model.run(model.blocks[1:-1], shallow, condition)  # (B, S, dim)
        deep_residual = deep - shallow
    else:
        deep = shallow + deep_residual
    tokens = model.run(model.blocks[1:][-1:], deep, condition)  # (B, S, dim)
    return model.project(tokens, condition, x), deep_residual


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
    if has_adapters(unet):
        unusual.append("adapters that look at a given frame")
    if unusual:
        raise ValueError(f"reuse_interval: must be 1 for a UNet with {', '.join(dict.fromkeys(unusual))}")


def unet_step(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    deep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    ready(unet)
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


def _deep_features(unet: UNet2DConditionModel, x: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
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


def _residual_layer(block: Any, layer: int, x: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
    x = block.resnets[layer](x, embedding)
    if getattr(block, "has_cross_attention", False):
        x = block.attentions[layer](x, encoder_hidden_states=tokens, return_dict=False)[0]
    return x


def _text(block: torch.nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
