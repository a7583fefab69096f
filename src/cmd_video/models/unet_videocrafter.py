"""VideoCrafter2's UNet (arXiv 2401.09047), which T2V-Turbo distills: ModelScope's, told the frame rate as well.

    unet = load_videocrafter(Path("model.ckpt"));  unet.save_pretrained("videocrafter2/unet")

B batch, C channels, F frames, H, W, S tokens, D width of the timestep's embedding.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput

from .published import load_exactly, read_weights

FPS = 16  # what T2V-Turbo tells where nothing else is asked for
GUIDANCE_SCALE = 7.5  # likewise, for models with guidance built in
PREFIX = "model.diffusion_model."
RESIDUAL = (
    (r"^in_layers\.0\.", "resnets.{0}.norm1."),
    (r"^in_layers\.2\.", "resnets.{0}.conv1."),
    (r"^emb_layers\.1\.", "resnets.{0}.time_emb_proj."),
    (r"^out_layers\.0\.", "resnets.{0}.norm2."),
    (r"^out_layers\.3\.", "resnets.{0}.conv2."),
    (r"^skip_connection\.", "resnets.{0}.conv_shortcut."),
    (r"^temopral_conv\.", "temp_convs.{0}."),  # so spelled
)
OTHERS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_cond_proj": "time_embedding.cond_proj",
    "fps_embedding.0": "time_embedding.frame_rate.linear_1",
    "fps_embedding.2": "time_embedding.frame_rate.linear_2",
    "input_blocks.0.0": "conv_in",
    "init_attn.0": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


class FrameRateEmbedding(TimestepEmbedding):
    """The embedding of the timestep, plus one of the frame rate."""

    def __init__(self, channels: int, dim: int, act_fn: str, cond_proj_dim: int | None) -> None:
        super().__init__(channels, dim, act_fn, cond_proj_dim=cond_proj_dim)
        self.frame_rate_proj = Timesteps(channels, True, 0)
        self.frame_rate = TimestepEmbedding(channels, dim, act_fn)

    def forward(self, sample: torch.Tensor, condition: Any = None) -> torch.Tensor:
        """Sinusoids of the timestep (B, C), and fps (B,) with guidance (B, cond_proj_dim) or None -> (B, D)."""
        fps, guidance = condition
        frame_rate = self.frame_rate(self.frame_rate_proj(fps).to(sample))
        return super().forward(sample, guidance) + frame_rate


class VideoCrafterUNet(UNet3DConditionModel):
    """VideoCrafter2 and T2V-Turbo: the arguments are those of `UNet3DConditionModel`."""

    @functools.wraps(UNet3DConditionModel.__init__)  # type: ignore[misc]  # the signature is its configuration
    def __init__(self, *arguments: Any, **config: Any) -> None:
        super().__init__(*arguments, **config)
        channels = self.config.block_out_channels[0]
        guidance = self.config.time_cond_proj_dim
        self.time_embedding = FrameRateEmbedding(channels, 4 * channels, self.config.act_fn, guidance)

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        fps: torch.Tensor | float = FPS,
        guidance_scale: float = GUIDANCE_SCALE,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        """Prediction of the shape of the sample.

        Args:
            sample: noisy latents (B, C, F, H, W).
            timestep: (B,).
            encoder_hidden_states: text (B, S, cross_attention_dim).
            fps: frames per second, of all clips or (B,).
            guidance_scale: for models with guidance built in (`time_cond_proj_dim`, T2V-Turbo); others ignore it.
            return_dict: an output class, or a tuple.
        """
        rates = torch.as_tensor(fps, dtype=torch.float32, device=sample.device).expand(len(sample))
        guidance = None
        if self.config.time_cond_proj_dim is not None:
            scales = sample.new_full((len(sample),), guidance_scale * 1000)  # as Latent Consistency Models embed it
            guidance = _sinusoids(scales, self.config.time_cond_proj_dim).to(sample)
        condition: Any = (rates, guidance)
        return super().forward(
            sample, timestep, encoder_hidden_states, timestep_cond=condition, return_dict=return_dict
        )


def load_videocrafter(path: Path, **config: Any) -> VideoCrafterUNet:
    """The UNet out of a published file: VideoCrafter2's `model.ckpt`, or T2V-Turbo's weights merged into it.

    Args:
        path: the file.
        config: of `VideoCrafterUNet` where it differs from the published size.

    Raises:
        ValueError: there is no such file, it holds more than weights, or those of another network.
    """
    state = read_weights(path)
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    guidance = state["time_cond_proj.weight"].shape[1] if "time_cond_proj.weight" in state else None
    settings = {"cross_attention_dim": 1024, "attention_head_dim": 64, "time_cond_proj_dim": guidance, **config}
    unet = VideoCrafterUNet(**settings)
    weights = renamed(state, len(unet.config.block_out_channels), unet.config.layers_per_block)
    return load_exactly(unet, weights, path).requires_grad_(True)


def renamed(state: Mapping[str, torch.Tensor], stages: int, layers: int) -> dict[str, torch.Tensor]:
    """Published names to diffusers'; the first temporal layer's 1x1 convolutions to linear layers."""
    places = _places(stages, layers)
    weights = {}
    for name, value in state.items():
        block = next((prefix for prefix in places if name.startswith(f"{prefix}.")), None)
        if block is not None:
            name = _within(name.removeprefix(f"{block}."), *places[block])
        else:
            known = next((prefix for prefix in OTHERS if name.startswith(f"{prefix}.")), None)
            name = name if known is None else OTHERS[known] + name.removeprefix(known)
        weights[name] = value[..., 0] if name.startswith("transformer_in.proj") and value.ndim == 3 else value
    return weights


def _places(stages: int, layers: int) -> dict[str, tuple[str, int]]:
    """Numbered blocks -> the stage of diffusers and the layer in it; longer numbers first."""
    places: dict[str, tuple[str, int]] = {}
    for stage in range(stages):
        for layer in range(layers + 1):  # the last one down is the downsampler
            places[f"input_blocks.{1 + stage * (layers + 1) + layer}"] = (f"down_blocks.{stage}", layer)
            places[f"output_blocks.{stage * (layers + 1) + layer}"] = (f"up_blocks.{stage}", layer)
    return {**places, "middle_block": ("mid_block", 0)}


def _within(name: str, stage: str, layer: int) -> str:
    """What a part of a numbered block is called: residual block, attention, attention over time, resampling."""
    number, _, rest = name.partition(".")
    if rest.startswith("op."):
        return f"{stage}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{stage}.upsamplers.0.{rest}"
    if stage == "mid_block" and number == "3":
        layer = 1
    for pattern, new in RESIDUAL:
        if re.match(pattern, rest):
            return f"{stage}." + re.sub(pattern, new.format(layer), rest)
    kind = {"1": "attentions", "2": "temp_attentions"}.get(number, "unknown")
    return f"{stage}.{kind}.{layer}.{rest}"


def _sinusoids(values: torch.Tensor, dim: int) -> torch.Tensor:
    """(B,) -> (B, dim), sines first (Latent Consistency Models, arXiv 2310.04378, section 4.2)."""
    return Timesteps(dim, flip_sin_to_cos=False, downscale_freq_shift=1)(values)
