"""How each class of video diffusion model is called: one signature over diffusers' UNets and transformers.

prediction = call_video_model(model, noisy, timestep, condition, fps=None)

B batch, C channels, F latent frames, h, w latents, S tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch import nn
from transformers import CLIPTextModel, LlamaModel

from cmd_video.models import VideoCrafterUNet
from cmd_video.models.unet_videocrafter import FPS

from .latent_space import latent_channels, spatial_ratio
from .video_conditions import VideoCondition
from .video_space import VideoAutoencoder, compression

# what the pipelines of diffusers tell where their caller says nothing
SVD_FPS = 7
SVD_MOTION_BUCKET = 127
SVD_NOISE = 0.02
LTX_FPS = 25
HUNYUAN_GUIDANCE = 6.0
IMAGE_VARIANTS = ("image_condition_type", "image_dim")  # of HunyuanVideo and of Wan, where they continue an image
TEXT_WIDTHS = (
    "text_embed_dim",
    "caption_channels",
    "text_dim",
    "cross_attention_dim",
)  # of each class's configuration


def call_video_model(
    model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor, condition: VideoCondition, fps: float | None = None
) -> torch.Tensor:
    """Prediction (B, C, F, h, w).

    Args:
        model: of a class in VIDEO_MODEL_CALLS, or pruned from one.
        noisy: (B, C, F, h, w), scaled as the model takes it.
        timestep: (B,), as the model is told; or (B, F), of each latent frame its own, of models in TAKE_TIMES.
        condition: a text, or a first frame for Stable Video Diffusion.
        fps: frames per second of the clips, for the models that are told; None = their pipeline's default.
    """
    kind = kind_of(model)
    if timestep.ndim == 2:
        if kind not in TAKE_TIMES:
            names = ", ".join(each.__name__ for each in TAKE_TIMES)
            raise ValueError(f"timestep: one for each frame, which a {kind.__name__} does not take; {names} do")
        timestep = per_token(model, noisy, timestep)
    return VIDEO_MODEL_CALLS[kind](model, noisy, timestep, condition.like(noisy), fps)


def per_token(model: nn.Module, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Timesteps of latent frames (B, F) for each token of a transformer that has them frame by frame: (B, S)."""
    frames, rows = patch_of(getattr(model, "module", model))
    places = (noisy.shape[3] // rows) * (noisy.shape[4] // rows)
    return timestep[:, ::frames].repeat_interleave(places, dim=1)


def kind_of(model: nn.Module) -> type:
    """The class in VIDEO_MODEL_CALLS that a model belongs to, also when it is wrapped for several processes."""
    return next(kind for kind in VIDEO_MODEL_CALLS if isinstance(getattr(model, "module", model), kind))


def check_video_model(model: Any, components: dict[str, Any]) -> None:
    """Whether a model can be told what it needs, by components that fit it.

    Raises:
        ValueError: a component is missing, of no use or of another size, or the model is of a variant that is not
            known here.
    """
    name, config, from_frame = type(model).__name__, model.config, is_told_a_frame(model)
    if from_frame and "text_encoder" in components:
        raise ValueError(f"components.text_encoder: a {name} is told a first frame and no text")
    if not from_frame and "image_encoder" in components:
        raise ValueError(f"components.image_encoder: a {name} is told a text and no first frame")
    needed = ["image_encoder", "vae"] if from_frame else ["text_encoder"]
    if isinstance(components.get("text_encoder"), LlamaModel):
        needed.append("text_encoder_2")
    missing = [part for part in needed if part not in components]
    if missing:
        raise ValueError(f"components: a {name} needs {missing[0]!r}")
    variant = next((key for key in IMAGE_VARIANTS if config.get(key) is not None), None)
    if variant is not None or config.in_channels != config.out_channels * (2 if from_frame else 1):
        found = f"{variant} {config[variant]}" if variant else f"{config.in_channels} channels in"
        raise ValueError(
            f"components.video_model: {found}, {config.out_channels} out; of models that continue an image only "
            "Stable Video Diffusion is known here"
        )
    if kind_of(model) is LTXVideoTransformer3DModel and (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError(f"components.video_model.patch_size: {config.patch_size}, LTX-Video's is 1")
    vae = components.get("vae")
    if from_frame and not isinstance(vae, AutoencoderKL | AutoencoderKLTemporalDecoder):
        raise ValueError(f"components.vae: a {type(vae).__name__}; a {name} needs an autoencoder of single frames")
    if latent_channels(vae) != config.out_channels:
        raise ValueError(f"components.vae: {latent_channels(vae)} channels, the {name} has {config.out_channels}")
    if not from_frame:
        _check_text(model, components)


def _check_text(model: Any, components: dict[str, Any]) -> None:
    """Widths of the text features, and whether there are those of the whole text."""
    config, encoder = model.config, components["text_encoder"]
    width = next(config[key] for key in TEXT_WIDTHS if config.get(key) is not None)
    found = encoder.config.hidden_size  # T5 has it under another name, and knows this one
    if found != width:
        raise ValueError(f"components.text_encoder: features of {found} numbers, the video model takes {width}")
    if kind_of(model) is HunyuanVideoTransformer3DModel:
        second = components.get("text_encoder_2", encoder)
        if not isinstance(second, CLIPTextModel):
            raise ValueError(f"components.text_encoder: a {type(second).__name__} has no features of the whole text")
        if second.config.hidden_size != config.pooled_projection_dim:
            raise ValueError(
                f"components.text_encoder_2: features of {second.config.hidden_size} numbers, the video model takes "
                f"{config.pooled_projection_dim}"
            )


def check_clips(model: Any, vae: Any, place: str, data: Any) -> None:
    """Whether a video model and its autoencoder take clips of a size.

    Args:
        model: the video model.
        vae: its autoencoder, or None.
        place: what the data are called in the configuration.
        data: with `height`, `width` and `num_frames`.

    Raises:
        ValueError: a side is no multiple of a latent patch, or the frames are not those of the autoencoder.
    """
    unit = spatial_ratio(vae) * patch_of(model)[1]
    for side in ("height", "width"):
        if getattr(data, side) % unit:
            raise ValueError(f"{place}.{side}: {getattr(data, side)} is no multiple of {unit} pixels")
    ratio = compression(vae)[0] if isinstance(vae, VideoAutoencoder) else 1
    if (data.num_frames - 1) % ratio:
        raise ValueError(f"{place}.num_frames: {data.num_frames} is not 1 more than a multiple of {ratio}")


def is_told_a_frame(model: nn.Module) -> bool:
    """Whether a model is told the first frame in place of a text."""
    return kind_of(model) is UNetSpatioTemporalConditionModel


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


TAKE_TIMES = (WanTransformer3DModel, LTXVideoTransformer3DModel)  # a timestep of their own for each token
VIDEO_MODEL_CALLS: dict[type, Callable[..., torch.Tensor]] = {
    VideoCrafterUNet: _videocrafter,  # before the class that it extends
    UNet3DConditionModel: _with_text,
    UNetMotionModel: _motion_unet,
    UNetSpatioTemporalConditionModel: _stable_video_diffusion,
    WanTransformer3DModel: _with_text,
    LTXVideoTransformer3DModel: _ltx,
    HunyuanVideoTransformer3DModel: _hunyuan,
}
