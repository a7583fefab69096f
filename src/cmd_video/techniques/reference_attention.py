"""A content model told the first frame without touching its weights: I2V-Adapter (arXiv 2312.16693).

    edit: {kind: reference_attention}                                                # in training, of clips or latents
    attach(pipe.unet, "runs/sprites/reference-attention/pipeline/reference_attention")
    pipe(prompt, image=first, sampling=pipe.sampling.laid_over({"given_frames": {"kind": "told_frames"}}))

The reference, clean, goes through the UNet as another row of the batch, and each spatial self-attention of the noisy
row also looks at it:

    out = W_o Attn(Q, K, V) + W_o' Attn(W_q' h, K_0, V_0),

K_0, V_0 of the reference by the layer's own projections. Only W_q', which begins as W_q, and W_o', which begins at
zero, learn: fresh adapters change nothing, those of one fine-tuning fit the next, and a model without its adapters is
the one that it was. They are a file of their own. Costs a second row in each pass. What the network is told comes in
the same channels as with `reference_frames` of count 1, the picture and its mask.

Differs from paper: one picture in place of the frames of a video model; no tokens of an IP-Adapter, no frame
similarity prior; the reference's row has the noisy row's timestep and text, and is not kept from step to step.

N rows asked for, C channels of a frame, S tokens of a feature map, D their width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cmd_video.section import Section

FOLDER, FILE = "reference_attention", "adapters.safetensors"
HOOKS = "_reference_hooks"  # attribute of a UNet with adapters


class Settings(Section):
    """Whether a UNet gets them."""

    kind: Literal["reference_attention"] = "reference_attention"
    count: int = Field(1, ge=0, le=1)
    """Frames that it is told: the first; 0 = none, which changes nothing."""

    def edit(self, model: Any, seed: int = 0) -> Any:
        """Freeze a UNet and give it adapters.

        Raises:
            ValueError: it is no UNet2DConditionModel, has no self-attention, or takes given frames already.
        """
        if not self.count:
            return model
        if not isinstance(model, UNet2DConditionModel):
            raise ValueError(f"edit.kind: {self.kind!r} is for UNets, not for a {type(model).__name__}")
        model.requires_grad_(False)
        return adapt(model)

    def finish(self, model: Any) -> dict[str, Tensor]:
        """Take the adapters off again, and return their weights."""
        return detach(model) if self.count else {}

    def save(self, adapters: Mapping[str, Tensor], folder: Path) -> None:
        """The weights as a file, in a folder `reference_attention`."""
        if adapters:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            save_file({name: each.contiguous().cpu() for name, each in adapters.items()}, folder / FOLDER / FILE)


class ReferenceAttention(nn.Module):
    """A processor of a self-attention: the layer's own, and what the first half of the rows sees in the second.

    Args:
        attention: the layer, of diffusers.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        query = attention.to_q
        self.to_q = nn.Linear(query.in_features, query.out_features, bias=False)
        self.to_out = nn.Linear(query.out_features, attention.to_out[0].out_features, bias=False)
        self.to(query.weight)
        with torch.no_grad():
            self.to_q.weight.copy_(query.weight)
            self.to_out.weight.zero_()
        self.plain, self.given = AttnProcessor2_0(), torch.ones(1, 1, 1)

    def forward(self, attn: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """(2 N, S, D), noisy rows and then their references, to the same; `given` (N, 1, 1) says which have one."""
        own = self.plain(attn, hidden_states, *arguments, **named)  # (2 N, S, D)
        noisy, reference = hidden_states.chunk(2)  # (N, S, D) each
        projected = self.to_q(noisy), attn.to_k(reference), attn.to_v(reference)
        q, k, v = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in projected)  # (N, heads, S, d)
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (N, S, inner)
        more = self.to_out(seen) * self.given.to(seen) / attn.rescale_output_factor
        return torch.cat([own[: len(noisy)] + more, own[len(noisy) :]])


def adapt(unet: Any) -> Any:
    """A UNet with fresh adapters, which takes (N, C + C + 1, h, w): noisy frames, references and masks.

    Raises:
        ValueError: as of `Settings.edit`.
    """
    channels = unet.config.out_channels
    if unet.config.in_channels != channels:
        raise ValueError(f"edit.kind: the UNet takes {unet.config.in_channels} channels, of given frames already")
    places = _self_attentions(unet)
    if not places:
        raise ValueError("edit.kind: the UNet has no self-attention that could look at a reference")
    for attention in places.values():
        attention.set_processor(ReferenceAttention(attention))
    unet.register_to_config(in_channels=2 * channels + 1)
    hooks = (unet.register_forward_pre_hook(_as_rows, with_kwargs=True), unet.register_forward_hook(_first_half))
    setattr(unet, HOOKS, hooks)
    return unet


def detach(unet: Any) -> dict[str, Tensor]:
    """A UNet as it was before `adapt`; what its adapters have learned, by name."""
    weights: dict[str, Tensor] = {}
    for name, attention in _self_attentions(unet).items():
        found = attention.processor
        weights |= {f"{name}.{part}": value.detach().clone() for part, value in found.state_dict().items()}
        attention.set_processor(AttnProcessor2_0())
    for hook in unet.__dict__.pop(HOOKS):
        hook.remove()
    unet.register_to_config(in_channels=unet.config.out_channels)
    return weights


def attach(unet: Any, folder: str | Path) -> Any:
    """A UNet with the adapters of a folder, for sampling.

    Raises:
        ValueError: there are none, or they are another UNet's.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"folder: no {FILE} in {folder}")
    weights, places = load_file(path), _self_attentions(unet)
    needed = {f"{name}.{part}.weight" for name in places for part in ("to_q", "to_out")}
    odd = sorted(needed ^ weights.keys())
    if odd:
        raise ValueError(f"folder: {path}: {odd[0]} is not in both the file and the UNet; {len(odd)} such weights")
    adapt(unet)
    try:
        for name, attention in _self_attentions(unet).items():
            own = {part: weights[f"{name}.{part}"] for part in ("to_q.weight", "to_out.weight")}
            attention.processor.load_state_dict(own)
    except RuntimeError as error:
        detach(unet)
        raise ValueError(
            f"folder: {path}: adapters of another UNet ({str(error).splitlines()[-1].strip()})"
        ) from error
    return unet


def _self_attentions(unet: Any) -> dict[str, Any]:
    """Layers by name."""
    return {name: module for name, module in unet.named_modules() if name.endswith(".attn1")}


def _as_rows(unet: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before a UNet's pass: (N, 2 C + 1, h, w) as noisy rows and then references, (2 N, C, h, w), told the same."""
    sample, timestep, *rest = arguments
    channels = unet.config.out_channels
    noisy, reference, mask = sample.split([channels, channels, 1], dim=1)
    given = (mask.flatten(1).amax(dim=1) > 0).view(-1, 1, 1)  # (N, 1, 1)
    for attention in _self_attentions(unet).values():
        attention.processor.given = given
    if isinstance(timestep, Tensor) and timestep.ndim and len(timestep) == len(sample):
        timestep = torch.cat([timestep] * 2)
    rest = [torch.cat([value] * 2) if isinstance(value, Tensor) else value for value in rest]
    named = {name: torch.cat([value] * 2) if isinstance(value, Tensor) else value for name, value in named.items()}
    return (torch.cat([noisy, reference]), timestep, *rest), named


def _first_half(unet: Any, arguments: tuple[Any, ...], output: Any) -> Any:
    """After it: of the noisy rows alone."""
    if isinstance(output, tuple):
        return (output[0].chunk(2)[0], *output[1:])
    output.sample = output.sample.chunk(2)[0]
    return output
