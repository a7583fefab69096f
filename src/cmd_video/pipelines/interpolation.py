"""Clips between two given frames by a video model that continues a first one: Stable Video Diffusion, in both
directions (ViBiDSampler, arXiv 2410.05651).

    svd = StableVideoDiffusionPipeline.from_pretrained("stabilityai/stable-video-diffusion-img2vid-xt").components
    components = {**svd, "video_model": svd["unet"], "video_scheduler": svd["scheduler"]}
    clips = interpolate_video(components, first, last)                  # (B, 3, F, H, W) in [-1, 1]

B batch, C channels, F frames, H, W pixels, h, w latents.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from cmd_video.denoisers.latent_space import encode_images, spatial_ratio
from cmd_video.denoisers.video import VideoDenoiser
from cmd_video.denoisers.video_models import SVD_NOISE, VIDEO_MODEL_CALLS, check_video_model, is_told_a_frame
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import ALL, NOTHING, Denoise
from cmd_video.diffusion.sample import sample
from cmd_video.techniques import bidirectional, cfg_plus_plus

from .inputs import as_list, check_generator, check_multiple, untupled
from .pictures import read_image
from .sampling import ModelSampling

COMPONENTS = ("video_model", "video_scheduler", "vae", "image_encoder")


@torch.no_grad()
def interpolate_video(
    components: Mapping[str, Any],
    first: Any,
    last: Any,
    num_frames: int = 25,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    fps: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """Clips that begin and end with given pictures; the defaults are the paper's.

    Args:
        components: `video_model`, `video_scheduler`, `vae` and `image_encoder`, of Stable Video Diffusion; others are
            left alone.
        first: first frames: pictures of one size, a list of them, a tensor (B, 3, H, W) or an array (B, H, W, 3) of
            floats in [0, 1], or an array of uint8.
        last: as many last frames, likewise.
        num_frames: F, the given ones included.
        num_inference_steps: of the sampler, each of four evaluations of the network.
        guidance_scale: of CFG++, 0 (no picture) to 1 (the picture alone, with the noise of none).
        fps: frames per second that the model is told; None = 7.
        generator: source of noise; with a list of one per clip, a batch equals its clips made singly.

    Returns:
        (B, 3, F, H, W) in [-1, 1]. The two frames are met in the latents: as the autoencoder decodes them.

    Raises:
        ValueError: the components are not those of a model that is told a first frame, or an argument does not fit.
    """
    denoiser = _denoiser(components, fps)
    model, vae = denoiser.components["video_model"], denoiser.components["vae"]
    unit = spatial_ratio(vae) * 2 ** (len(model.config.block_out_channels) - 1)
    pixels = _read(first, last, unit)  # twice (B, 3, H, W)
    check_multiple("num_frames", num_frames, 1)
    if num_frames < 2:
        raise ValueError(f"num_frames: {num_frames}, but first and last frame are two")
    check_multiple("num_inference_steps", num_inference_steps, 1)
    if not 0 <= guidance_scale <= 1:
        raise ValueError(f"guidance_scale: {guidance_scale}, CFG++ takes 0 to 1")
    check_generator(untupled(generator), len(pixels[0]))
    how = ModelSampling(
        num_inference_steps=num_inference_steps,
        guidance=cfg_plus_plus.Settings(scale=guidance_scale),
        solver=bidirectional.Settings(),
    )
    how.check(denoiser, model)

    def draw(*shape: int) -> Tensor:
        return randn_tensor(shape, generator=untupled(generator), device=model.device, dtype=model.dtype)

    pixels = [frames.to(model.device) for frames in pixels]
    forward, backward = (_told(how, denoiser, frames, SVD_NOISE * draw(*frames.shape)) for frames in pixels)
    ends = [encode_images(vae, frames.to(vae.dtype)).to(model.dtype) for frames in pixels]  # (B, C, h, w) each
    z = draw(*ends[0].shape[:2], num_frames, *ends[0].shape[2:])  # (B, C, F, h, w)
    solver, steps = how.ready(denoiser, z.device)
    asked = bidirectional.BothWays(forward, backward, *ends)
    x_0 = sample(asked, solver, steps, z, untupled(generator))  # (B, C, F, h, w)
    return denoiser.pixels(x_0.to(vae.dtype), Condition({})).clamp(-1, 1).float()


def _denoiser(components: Mapping[str, Any], fps: float | None) -> VideoDenoiser:
    """How the network is asked; of the components those that it needs."""
    for name in COMPONENTS[:2]:
        if components.get(name) is None:
            raise ValueError(f"components: {name} is missing; needed are {', '.join(COMPONENTS)}")
    model = components["video_model"]
    known = isinstance(model, tuple(VIDEO_MODEL_CALLS))
    if not known or not is_told_a_frame(model):
        raise ValueError(
            f"components.video_model: a {type(model).__name__} is not told a first frame; "
            "a UNetSpatioTemporalConditionModel is, Stable Video Diffusion's"
        )
    own = {name: components[name] for name in COMPONENTS if components.get(name) is not None}
    check_video_model(model, own)
    return VideoDenoiser(own, fps=fps)


def _read(first: Any, last: Any, unit: int) -> list[Tensor]:
    """First and last frames, (B, 3, H, W) in [-1, 1] each."""
    found = []
    for name, given in (("first", first), ("last", last)):
        if given is None:
            raise ValueError(f"{name}: not given; frames lie between a first and a last one")
        pictures = [read_image(picture, name) for picture in as_list(untupled(given))]  # (3, H, W) in [0, 1] each
        if len({picture.shape for picture in pictures}) != 1:
            raise ValueError(f"{name}: {len(pictures)} pictures; at least one is needed, all of one size")
        check_multiple(f"{name}, height", pictures[0].shape[1], unit)
        check_multiple(f"{name}, width", pictures[0].shape[2], unit)
        found.append(torch.stack(pictures) * 2 - 1)
    if found[0].shape != found[1].shape:
        sizes = ["{0} of {2}x{3}".format(*each.shape) for each in found]
        raise ValueError(f"last: {sizes[1]} (height x width), the first frames are {sizes[0]}")
    return found


def _told(how: ModelSampling, denoiser: VideoDenoiser, frames: Tensor, noise: Tensor) -> Denoise:
    """The network with its guidance, told these first frames (B, 3, H, W)."""
    condition = Condition({"first_frame": frames, "first_frame_noise": noise})
    empty = condition.without(*denoiser.droppable)
    conditions = {ALL: denoiser.encode(condition), NOTHING: denoiser.encode(empty)}
    return how.denoise(denoiser, denoiser.components["video_model"], conditions)
