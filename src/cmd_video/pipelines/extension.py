"""Clips that go on from a first frame, or from the clip so far, by a text-to-video model whose frames have times of
their own: Wan and LTX-Video after `objective.kind: frame_timesteps` (FVDM, arXiv 2410.03160; Pusa, arXiv 2507.16116).

    wan = WanPipeline.from_pretrained("path/to/wan").components
    components = {**wan, "video_model": wan["transformer"], "video_scheduler": wan["scheduler"]}
    clips = extend_video(components, "a dog runs", picture, num_frames=33)           # (B, 3, F, H, W) in [-1, 1]

B batch, C channels, F frames, f latent frames, H, W pixels, h, w latents.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from cmd_video.denoisers.latent_space import encode_video, spatial_ratio
from cmd_video.denoisers.video import VideoDenoiser
from cmd_video.denoisers.video_models import TAKE_TIMES, check_video_model, patch_of
from cmd_video.denoisers.video_space import VideoAutoencoder, compression
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import ALL, NOTHING, ClassifierFree
from cmd_video.techniques.frame_timesteps import Resample

from .inputs import as_list, check_generator, check_multiple, untupled
from .pictures import read_batch, read_clips
from .sampling import ModelSampling

COMPONENTS = ("video_model", "video_scheduler", "vae", "text_encoder", "tokenizer")


@torch.no_grad()
def extend_video(
    components: Mapping[str, Any],
    prompt: str | list[str],
    begun: Any,
    num_frames: int,
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    fps: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """Clips of which the first frames are given.

    Args:
        components: `video_model`, `video_scheduler`, `vae`, `text_encoder` and `tokenizer`, of Wan or LTX-Video, as
            their pipelines have them; others are left alone.
        prompt: what the clips show, a text or one each.
        begun: first frames, as `CMDPipeline` takes pictures; or clips so far, tensors (B, F', 3, H, W) of floats in
            [0, 1] or what `read_clips` takes else. F' is 1 more than a multiple of the frames of a latent.
        num_frames: F, the given ones included; likewise.
        num_inference_steps: of the sampler.
        guidance_scale: classifier-free guidance, 1 = none.
        fps: frames per second that the model is told; None = its pipeline's default.
        generator: source of noise; with a list of one per clip, a batch equals its clips made singly.

    Returns:
        (B, 3, F, H, W) in [-1, 1]. The given frames are kept in the latents: as the autoencoder decodes them.

    Raises:
        ValueError: the components are not those of such a model, or an argument does not fit.
    """
    denoiser = _denoiser(components, fps)
    model, vae = denoiser.components["video_model"], denoiser.components["vae"]
    pixels = _read(begun).to(model.device, vae.dtype)  # (B, 3, F', H, W)
    prompts = as_list(prompt) * (len(pixels) if isinstance(prompt, str) else 1)
    if len(prompts) != len(pixels):
        raise ValueError(f"prompt: {len(prompts)} texts for {len(pixels)} clips")
    ratio, unit = compression(vae)[0], spatial_ratio(vae) * patch_of(model)[1]
    for name, side in zip(("height", "width"), pixels.shape[3:], strict=True):
        check_multiple(f"begun, {name}", side, unit)
    for name, number in (("begun", pixels.shape[2]), ("num_frames", num_frames)):
        if number < 1 or (number - 1) % ratio:
            raise ValueError(f"{name}: {number} frames; it must be 1 more than a multiple of {ratio}")
    if num_frames <= pixels.shape[2]:
        raise ValueError(f"num_frames: {num_frames}, but {pixels.shape[2]} are given")
    check_generator(untupled(generator), len(pixels))

    given = encode_video(vae, pixels).to(model.dtype)  # (B, C, f', h, w)
    frames = 1 + (num_frames - 1) // ratio  # f
    shape = (*given.shape[:2], frames, *given.shape[3:])
    z = randn_tensor(shape, generator=untupled(generator), device=model.device, dtype=model.dtype)
    whole = torch.cat([given, torch.zeros_like(z[:, :, given.shape[2] :])], dim=2)  # (B, C, f, h, w)
    known = Resample().around((given.shape[2], frames), whole, model)
    how = ModelSampling(
        num_inference_steps=num_inference_steps, guidance=ClassifierFree(scale=guidance_scale)
    ).model_copy(update={"wraps": (known,)})
    condition = Condition({"prompt": prompts})
    told = {ALL: denoiser.encode(condition), NOTHING: denoiser.encode(condition.without(*denoiser.droppable))}
    x_0 = known.put_into(how.run(denoiser, model, told, z, untupled(generator)))  # (B, C, f, h, w)
    return denoiser.pixels(x_0.to(vae.dtype), condition).clamp(-1, 1).float()


def _denoiser(components: Mapping[str, Any], fps: float | None) -> VideoDenoiser:
    """How the network is asked; of the components those that it needs."""
    missing = [name for name in COMPONENTS if components.get(name) is None]
    if missing:
        raise ValueError(f"components: {missing[0]} is missing; needed are {', '.join(COMPONENTS)}")
    model = components["video_model"]
    if not isinstance(model, TAKE_TIMES) or not isinstance(components["vae"], VideoAutoencoder):
        names = ", ".join(kind.__name__ for kind in TAKE_TIMES)
        raise ValueError(
            f"components.video_model: a {type(model).__name__} with a {type(components['vae']).__name__}; frames have "
            f"times of their own in {names}, with autoencoders that compress time"
        )
    own = {name: components[name] for name in COMPONENTS}
    check_video_model(model, own)
    return VideoDenoiser(own, fps=fps)


def _read(begun: Any) -> Tensor:
    """First frames or clips, (B, 3, F', H, W) in [-1, 1]."""
    one = untupled(begun)
    pictures = as_list(one)
    whole = (
        getattr(one, "ndim", 0) == 5 or isinstance(pictures[0], (list, tuple)) or getattr(pictures[0], "ndim", 0) == 4
    )
    return read_clips(begun) if whole else read_batch(one)[:, :, None]
