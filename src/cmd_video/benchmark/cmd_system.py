"""CMD as a `System`: any pipeline, and the paper's own models at their true size.

system = cmd_system(pipe, Size(512, 1024), *pipe_sampling)
system = paper_system("sd21", Size(512, 1024), preset="quality", device="meta")
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from cmd_video.models import MOTION_TRANSFORMER_SIZES, CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.conditions import Rows
from cmd_video.pipelines.feature_reuse import check_reusable, unet_step
from cmd_video.pipelines.image_space import decode_images, decode_video
from cmd_video.pipelines.inputs import check_multiple
from cmd_video.pipelines.sampling import PRESETS, Sampling, Step, resolve, set_timesteps, with_schedule
from cmd_video.pipelines.shapes import size_unit

from .system import Changes, Part, Place, Size, System

PAPER = "arXiv 2403.14148"


def default_sampling(pipe: CMDPipeline) -> tuple[Sampling, Sampling]:
    """How a pipeline samples its two models unless told otherwise."""
    return resolve(pipe.config, None, None, None, None, None, None)


def cmd_system(pipe: CMDPipeline, size: Size, content: Sampling, motion: Sampling, name: str = "CMD") -> System:
    """A pipeline as a list of parts, for one clip.

    Args:
        pipe: the pipeline; its models may lie on any device.
        size: of the clip, divisible as the pipeline demands.
        content: how the content model is sampled.
        motion: how the motion model is sampled.
        name: for tables.
    """
    check_multiple("height", size.height, size_unit(pipe))
    check_multiple("width", size.width, size_unit(pipe))
    check_multiple("frames", size.frames, pipe.motion_transformer.config.patch_size)
    if content.reuse_interval > 1 and not pipe.num_classes:
        check_reusable(pipe.unet)
    inputs = _Inputs.of(pipe, size)
    pipe.set_progress_bar_config(disable=True)  # it would be timed
    words = f"{content.num_inference_steps}+{motion.num_inference_steps} steps"
    if content.guidance_scale > 1 or motion.guidance_scale > 1:
        words += f", guidance {content.guidance_scale:g} / {motion.guidance_scale:g}"
    if content.reuse_interval > 1:
        words += f", deep features every {content.reuse_interval} steps"
    guided = content.guidance_scale > 1 or motion.guidance_scale > 1
    parts = [*_text_parts(pipe, guided), *_content_parts(pipe, inputs, content), *_motion_parts(pipe, inputs, motion)]
    parts.append(_autoencoder_part(pipe, inputs))
    if pipe.vae is not None:
        parts.append(_image_decoder_part(pipe, inputs))
    return System(
        name, size, words, PAPER, parts,
        whole=partial(_generate, pipe, inputs, content, motion),
        compile=partial(compile_denoisers, pipe, mode="reduce-overhead"),
    )  # fmt: skip


def compile_denoisers(pipe: CMDPipeline, **options: Any) -> None:
    """Compile what runs at every denoising step, each of its few shapes on its own; options as of `torch.compile`."""
    pipe.compile_denoisers(dynamic=False, **options)


def compile_surroundings(pipe: CMDPipeline, **options: Any) -> None:
    """Compile what runs before and after the loops: text encoders and decoders.

    CUDA graphs are not for them: the next frames would be decoded into the memory of those before.
    """
    for module in _surroundings(pipe):
        module.compile(dynamic=False, **options)


def uncompile(pipe: CMDPipeline) -> None:
    """Undo `compile_denoisers` and `compile_surroundings`."""
    for module in (pipe.unet, pipe.motion_transformer, *_surroundings(pipe)):
        module._compiled_call_impl = None  # there is no public way
    pipe.unet_step = unet_step


def _surroundings(pipe: CMDPipeline) -> list[Any]:
    decoders = [model.decoder for model in (pipe.autoencoder, pipe.vae) if model is not None]
    return [*decoders, *(model for model in (pipe.text_encoder, pipe.motion_text_encoder) if model is not None)]


@dataclass
class _Inputs:
    """Made-up inputs for one clip; noise, as a device is faster on zeros."""

    frame: torch.Tensor  # (1, C, h, w)
    clip: torch.Tensor  # (1, C, F, h, w)
    motion: torch.Tensor  # (1, D, F, H' + W')

    @classmethod
    def of(cls, pipe: CMDPipeline, size: Size) -> "_Inputs":
        options: dict[str, Any] = {"device": pipe.unet.device, "dtype": pipe.unet.dtype}
        channels, patch = pipe.autoencoder.config.in_channels, pipe.autoencoder.config.patch_size
        height, width = size.height // pipe.ratio, size.width // pipe.ratio
        places = height // patch + width // patch
        return cls(
            frame=torch.randn(1, channels, height, width, **options),
            clip=torch.randn(1, channels, size.frames, height, width, **options),
            motion=torch.randn(1, pipe.autoencoder.config.latent_channels, size.frames, places, **options),
        )


def _rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """(1, ...) -> (rows, ...), made where and laid out as the loops do: what is compiled for them serves here too."""
    return tensor.repeat(rows, *[1] * (tensor.ndim - 1))


def _timesteps(rows: int, device: torch.device) -> torch.Tensor:
    """Likewise, (rows,)."""
    return torch.zeros((), dtype=torch.long, device=device).expand(rows)


def _generate(pipe: CMDPipeline, inputs: _Inputs, content: Sampling, motion: Sampling, batch: int) -> torch.Tensor:
    """What a call of the pipeline does between tokenizer and picture files, from noise."""
    draw = torch.Generator(pipe.unet.device).manual_seed(0)
    guided = content.guidance_scale > 1 or motion.guidance_scale > 1
    condition, negative = ([_condition(pipe, batch) for _ in range(1 + guided)] * 2)[:2]
    noise = {name: torch.randn((batch, *like.shape[1:]), generator=draw, device=like.device, dtype=like.dtype)
             for name, like in (("content", inputs.frame), ("motion", inputs.motion))}  # fmt: skip
    content_frame = pipe.denoise_content(noise["content"], condition, negative, content)
    motion_latents = pipe.denoise_motion(noise["motion"], content_frame, condition, negative, motion)
    return pipe.decode(content_frame, motion_latents, "pt")[0]


def _condition(pipe: CMDPipeline, batch: int) -> Rows:
    """Made-up labels, or made-up prompts through the text encoders."""
    if pipe.num_classes:
        return {"labels": torch.zeros(batch, dtype=torch.long, device=pipe.unet.device)}
    features = [
        encoder(_token_ids(encoder, batch))[0]
        for encoder in (pipe.text_encoder, pipe.motion_text_encoder)
        if encoder is not None
    ]
    return {"tokens": features[0], "pooled": features[-1].mean(dim=1)}


def _token_ids(encoder: CLIPTextModel, rows: int) -> torch.Tensor:
    length = encoder.config.max_position_embeddings
    return torch.zeros(rows, length, dtype=torch.long, device=encoder.device)


def _text_parts(pipe: CMDPipeline, guided: bool) -> list[Part]:
    """The prompt, and with guidance the negative prompt, through each text encoder."""

    def part(name: str, encoder: CLIPTextModel) -> Part:
        return Part(name, "condition", [encoder], lambda: encoder(_token_ids(encoder, 1)), 1 + guided)

    encoders = {"text encoder": pipe.text_encoder, "motion text encoder": pipe.motion_text_encoder}
    return [part(name, encoder) for name, encoder in encoders.items() if encoder is not None]


def _steps(
    name: str, module: torch.nn.Module, scheduler: Any, sampling: Sampling, call: Callable[[int, bool, bool], Any],
    remembers: bool = False,
) -> list[Part]:  # fmt: skip
    """One part for each kind of step: guided or not, with deep features computed or used again, and, if the first of
    its kind leaves something for the others, first or not.
    """
    set_timesteps(scheduler, sampling.num_inference_steps)
    plan = sampling.plan(scheduler)
    guided = [step.guided for step in plan]
    kinds = Counter((step, remembers and guided.index(step.guided) == number) for number, step in enumerate(plan))

    def part(step: Step, first: bool, calls: int) -> Part:
        rows = 2 if step.guided else 1
        return Part(
            name, "denoiser", [module], lambda: call(rows, step.reuse, first), calls,
            batched=lambda batch: call(rows * batch, step.reuse, first),
        )  # fmt: skip

    parts = [part(*kind, calls) for kind, calls in kinds.items()]
    parts[0] = replace(parts[0], paper_run=lambda: call(1, False, True), paper_calls=sampling.num_inference_steps)
    return parts


def _content_parts(pipe: CMDPipeline, inputs: _Inputs, sampling: Sampling) -> list[Part]:
    unet, device = pipe.unet, pipe.unet.device
    if pipe.num_classes:
        label = torch.zeros(1, dtype=torch.long, device=device)

        def run(rows: int, reuse: bool, first: bool) -> Any:
            return unet(_rows(inputs.frame, rows), _timesteps(rows, device), class_labels=_rows(label, rows)).sample

        return _steps("content", unet, pipe.content_scheduler, sampling, run)

    length, dim = pipe.text_encoder.config.max_position_embeddings, pipe.text_encoder.config.hidden_size
    tokens = torch.randn(1, length, dim, device=device, dtype=unet.dtype)
    deep: dict[int, torch.Tensor] = {}

    def run_unet(rows: int, reuse: bool, first: bool) -> Any:
        sample, timestep, text = _rows(inputs.frame, rows), _timesteps(rows, device), _rows(tokens, rows)
        if sampling.reuse_interval == 1:
            return unet(sample, timestep, encoder_hidden_states=text).sample
        step = pipe.unet_step(unet, sample, timestep, text, deep[rows] if reuse else None)
        if not reuse:
            deep[rows] = step[1].clone()
        return step[0]

    return _steps("content", unet, pipe.content_scheduler, sampling, run_unet)


def _motion_parts(pipe: CMDPipeline, inputs: _Inputs, sampling: Sampling) -> list[Part]:
    model, device = pipe.motion_transformer, pipe.motion_transformer.device
    config = model.config
    pooled = torch.randn(1, config.text_dim, device=device, dtype=model.dtype) if config.text_dim else None
    label = torch.zeros(1, dtype=torch.long, device=device) if config.num_classes else None
    deep: dict[int, torch.Tensor] = {}
    fixed: dict[int, torch.Tensor] = {}

    def run(rows: int, reuse: bool, first: bool) -> Any:
        output = model(
            _rows(inputs.motion, rows),
            _timesteps(rows, device),
            _rows(inputs.frame, rows),
            None if pooled is None else _rows(pooled, rows),
            None if label is None else _rows(label, rows),
            deep[rows] if reuse else None,
            None if first else fixed[rows],
        )
        if not reuse and sampling.reuse_interval > 1:
            deep[rows] = output.deep_residual.clone()
        if first:
            fixed[rows] = output.fixed_tokens.clone()
        return output.sample

    return _steps("motion", model, pipe.motion_scheduler, sampling, run, remembers=True)


def _autoencoder_part(pipe: CMDPipeline, inputs: _Inputs) -> Part:
    """A clip needs the decoder; the paper's totals fit encoder and decoder together, once."""
    model = pipe.autoencoder
    return Part(
        "autoencoder", "decoder", [model],
        lambda: model.decode(_rows(inputs.frame, 1), _rows(inputs.motion, 1)).sample,
        paper_run=lambda: model(inputs.clip), paper_calls=1,
    )  # fmt: skip


def _image_decoder_part(pipe: CMDPipeline, inputs: _Inputs) -> Part:
    """All frames, and the content frame where it is shown."""
    vae, frames = pipe.vae, inputs.clip.transpose(1, 2).contiguous()  # frame by frame, as the autoencoder leaves them

    def run() -> None:
        decode_video(vae, _rows(frames, 1).transpose(1, 2))
        if pipe.config.decode_content_frame:
            decode_images(vae, _rows(inputs.frame, 1))

    return Part("image decoder", "decoder", [vae], run)


# --- the paper's models ----------------------------------------------------------------------------------------------

STABLE_DIFFUSION: dict[str, dict[str, Any]] = {  # published configurations of the text encoder and the UNet
    "sd15": {
        "text": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "projection_dim": 768,
        },
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        "content_patch": 4,  # of the motion transformer, table 6
    },
    "sd21": {
        "text": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "projection_dim": 512, "hidden_act": "gelu",
        },
        "unet": {
            "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
            "sample_size": 64,
        },
        "content_patch": 8,
    },
}  # fmt: skip
IMAGE_AUTOENCODER: dict[str, Any] = {  # Stable Diffusion's
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CLIP_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77}
SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def paper_pipeline(
    base: str = "sd21",
    motion: str = "XL",
    device: str = "meta",
    dtype: torch.dtype = torch.float32,
    tiny_decoder: bool = False,
    changes: Changes | None = None,
) -> CMDPipeline:
    """CMD at the size of its paper, with random weights.

    Args:
        base: "sd15" or "sd21", whose UNet, text encoder and VAE.
        motion: size of the motion transformer, S, B, L or XL (the paper: XL).
        device: where to put it; on "meta" it costs no memory.
        dtype: of the weights.
        tiny_decoder: `AutoencoderTiny` (TAESD) instead of Stable Diffusion's VAE.
        changes: see `Place`.
    """
    if base not in STABLE_DIFFUSION:
        raise ValueError(f"base: {base!r} is none of {', '.join(STABLE_DIFFUSION)}")
    at, published = Place(device, dtype, changes or {}), STABLE_DIFFUSION[base]
    return CMDPipeline(
        autoencoder=at.build(CMDAutoencoder),
        unet=at.build(UNet2DConditionModel, **published["unet"]),
        motion_transformer=paper_motion_transformer(base, motion, at),
        vae=paper_image_autoencoder(tiny_decoder, at),
        text_encoder=at.build(CLIPTextModel, **CLIP_TEXT, **published["text"]),
        content_scheduler=DDIMScheduler(**SD_SCHEDULE),
        motion_scheduler=DDIMScheduler(clip_sample=False),
    )


def paper_motion_transformer(base: str, motion: str, at: Place) -> CMDMotionTransformer:
    """The motion transformer of a named size for a base."""
    if motion not in MOTION_TRANSFORMER_SIZES:
        raise ValueError(f"motion: {motion!r} is none of {', '.join(MOTION_TRANSFORMER_SIZES)}")
    patch, width = STABLE_DIFFUSION[base]["content_patch"], STABLE_DIFFUSION[base]["text"]["hidden_size"]
    sizes = MOTION_TRANSFORMER_SIZES[motion]
    return at.build(CMDMotionTransformer, **sizes, content_patch_size=patch, text_dim=width)


def paper_image_autoencoder(tiny: bool, at: Place) -> AutoencoderKL | AutoencoderTiny:
    """Stable Diffusion's, or TAESD."""
    return at.build(AutoencoderTiny) if tiny else at.build(AutoencoderKL, **IMAGE_AUTOENCODER)


def paper_system(
    base: str, size: Size, preset: str = "quality", motion: str = "XL", device: str = "meta",
    dtype: torch.dtype = torch.float32,
) -> System:  # fmt: skip
    """The paper's CMD under a preset; `fast` and `turbo` decode with the small image decoder."""
    pipe = paper_pipeline(base, motion, device, dtype, tiny_decoder=preset != "quality")
    set_preset(pipe, preset)
    name = f"CMD {base} {preset}" + ("" if motion == "XL" else f" DiT-{motion}")
    return cmd_system(pipe, size, *default_sampling(pipe), name=name)


def set_preset(pipe: CMDPipeline, preset: str) -> None:
    """Put a pipeline of random weights under a preset, whatever it was under: no weights are distilled for `turbo`."""
    pipe.content_scheduler, pipe.motion_scheduler = DDIMScheduler(**SD_SCHEDULE), DDIMScheduler(clip_sample=False)
    if preset == "turbo":
        for part in ("content_scheduler", "motion_scheduler"):
            setattr(pipe, part, with_schedule(LCMScheduler, getattr(pipe, part)))
    pipe.register_to_config(guidance_scale=7.5, motion_guidance_scale=1.0)
    pipe.use_preset(preset)


__all__ = ["PRESETS", "cmd_system", "default_sampling", "paper_pipeline", "paper_system", "set_preset"]
