"""How each class of video diffusion model is called: one signature over diffusers' UNets and transformers.

prediction = call_video_model(model, noisy, timestep, condition, fps=None)

B batch, C channels, F latent frames, h, w latents, S tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch import nn

from cmd_video.models import VideoCrafterUNet
from cmd_video.models.unet_videocrafter import FPS

from .video_conditions import VideoCondition

# what the pipelines of diffusers tell where their caller says nothing
SVD_FPS = 7
SVD_MOTION_BUCKET = 127
SVD_NOISE = 0.02
LTX_FPS = 25
HUNYUAN_GUIDANCE = 6.0


def call_video_model(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None = None
) -> torch.Tensor:
    """Prediction (B, C, F, h, w).

    Args:
        model: of a class in VIDEO_MODEL_CALLS, or pruned from one.
        noisy: (B, C, F, h, w), scaled as the model takes it.
        timestep: (B,), as the model is told.
        condition: a text, or a first frame for Stable Video Diffusion.
        fps: frames per second of the clips, for the models that are told; None = their pipeline's default.
    """
    return VIDEO_MODEL_CALLS[kind_of(model)](model, noisy, timestep, condition.like(noisy), fps)


def kind_of(model: nn.Module) -> type:
    """The class in VIDEO_MODEL_CALLS that a model belongs to, also when it is wrapped for several processes."""
    return next(kind for kind in VIDEO_MODEL_CALLS if isinstance(getattr(model, "module", model), kind))


def check_video_model(model: Any, components: dict[str, Any]) -> None:
    """Whether a model can be told what it needs.

    Raises:
        ValueError: a component is missing, or the model is of a variant that is not known here.
    """
    kind, config = kind_of(model), model.config
    from_frame = kind is UNetSpatioTemporalConditionModel
    needed = ["image_encoder", "vae"] if from_frame else ["text_encoder"]
    if type(components.get("text_encoder")).__name__ == "LlamaModel":
        needed.append("text_encoder_2")
    missing = [name for name in needed if name not in components]
    if missing:
        raise ValueError(f"components: a {type(model).__name__} needs {missing[0]!r}")
    if config.in_channels != config.out_channels * (2 if from_frame else 1):
        raise ValueError(
            f"components.video_model: {config.in_channels} channels in, {config.out_channels} out; "
            "of models that continue an image only Stable Video Diffusion is known here"
        )
    if kind is LTXVideoTransformer3DModel and (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError(f"components.video_model.patch_size: {config.patch_size}, LTX-Video's is 1")


def patch_of(model: Any) -> tuple[int, int]:
    """Latent frames, and latent rows, that one token of a transformer stands for; (1, 1) for UNets."""
    patch = model.config.get("patch_size") or 1
    if isinstance(patch, int):
        return int(model.config.get("patch_size_t") or 1), patch
    return int(patch[0]), int(patch[1])


def _with_text(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    return model(noisy, timestep, condition.text).sample


def _videocrafter(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    return model(noisy, timestep, condition.text, fps=fps or FPS).sample


def _motion_unet(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    assert condition.text is not None
    each_frame = condition.text.repeat_interleave(noisy.shape[2], dim=0)  # (B * F, S, D)
    return model(noisy, timestep, each_frame).sample


def _stable_video_diffusion(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    assert condition.first_frame is not None
    first = condition.first_frame[:, :, None].expand_as(noisy)
    told = noisy.new_tensor([(fps or SVD_FPS) - 1, SVD_MOTION_BUCKET, SVD_NOISE]).expand(len(noisy), -1)
    clip = torch.cat([noisy, first], dim=1).transpose(1, 2)  # (B, F, 2 C, h, w)
    return model(clip, timestep, condition.image, told).sample.transpose(1, 2)


def _ltx(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    frames, height, width = noisy.shape[2:]
    tokens = noisy.flatten(2).transpose(1, 2)  # (B, F h w, C)
    # latent frames and rows in seconds and pixels: the published autoencoder's ratios
    scale = (8 / (fps or LTX_FPS), 32, 32)
    prediction = model(
        tokens,
        condition.text,
        timestep,
        condition.mask,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=scale,
    ).sample
    return prediction.transpose(1, 2).unflatten(2, (frames, height, width))


def _hunyuan(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None
) -> torch.Tensor:
    config: Any = getattr(model, "module", model).config
    guidance = noisy.new_full((len(noisy),), HUNYUAN_GUIDANCE * 1000) if config.guidance_embeds else None
    return model(noisy, timestep, condition.text, condition.mask, condition.pooled, guidance).sample


VIDEO_MODEL_CALLS: dict[type, Callable[..., torch.Tensor]] = {
    VideoCrafterUNet: _videocrafter,  # before the class that it extends
    UNet3DConditionModel: _with_text,
    UNetMotionModel: _motion_unet,
    UNetSpatioTemporalConditionModel: _stable_video_diffusion,
    WanTransformer3DModel: _with_text,
    LTXVideoTransformer3DModel: _ltx,
    HunyuanVideoTransformer3DModel: _hunyuan,
}
