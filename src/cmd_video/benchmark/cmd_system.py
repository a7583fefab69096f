"""CMD as a `System`: any pipeline, and the paper's own models at their true size.

system = cmd_system(pipe, Size(512, 1024))
system = paper_system("sd21", Size(512, 1024), preset="quality", device="meta")

What a step costs is counted by taking it: by the denoisers, guidance and wraps that the pipeline's loop calls.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.denoisers.latent_space import decode_images, decode_video
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import ClassifierFree
from cmd_video.diffusion.plan import Step
from cmd_video.diffusion.solvers import with_schedule
from cmd_video.models import MOTION_TRANSFORMER_SIZES, CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.inputs import check_multiple, size_unit
from cmd_video.pipelines.pipeline_cmd import TOLD
from cmd_video.pipelines.sampling import ModelSampling, Sampling, conditions_for

from .system import Changes, Part, Place, Size, System

PAPER = "arXiv 2403.14148"


def cmd_system(pipe: CMDPipeline, size: Size, sampling: Sampling | None = None, name: str = "CMD") -> System:
    """A pipeline as a list of parts, for one clip.

    Args:
        pipe: the pipeline; its models may lie on any device.
        size: of the clip, divisible as the pipeline demands.
        sampling: how it samples; default: as it does by itself.
        name: for tables.
    """
    how = pipe.sampling if sampling is None else sampling
    check_multiple("height", size.height, size_unit(pipe))
    check_multiple("width", size.width, size_unit(pipe))
    check_multiple("frames", size.frames, pipe.motion_transformer.config.patch_size)
    how.content.check(pipe.content, pipe.unet)
    how.motion.check(pipe.motion, pipe.motion_transformer, "motion_")
    inputs = _Inputs.of(pipe, size)
    pipe.set_progress_bar_config(disable=True)  # it would be timed
    guided = _guided(pipe, how)
    parts = [
        *_text_parts(pipe, guided),
        *_steps("content", pipe.content, pipe.unet, pipe, inputs, how.content),
        *_steps("motion", pipe.motion, pipe.motion_transformer, pipe, inputs, how.motion),
        _autoencoder_part(pipe, inputs),
    ]
    if pipe.vae is not None:
        parts.append(_image_decoder_part(pipe, inputs, how.decode_content_frame))
    return System(
        name, size, _words(how), PAPER, parts,
        whole=partial(_generate, pipe, inputs, how),
        compile=partial(compile_denoisers, pipe, mode="reduce-overhead"),
    )  # fmt: skip


def _guided(pipe: CMDPipeline, how: Sampling) -> bool:
    """Whether a step of either model asks without the text, too."""
    return how.content.asks_without("text", pipe.content) or how.motion.asks_without("text", pipe.motion)


def _words(how: Sampling) -> str:
    content, motion = how.content, how.motion
    words = f"{content.num_inference_steps}+{motion.num_inference_steps} steps"
    if content.guidance_scale > 1 or motion.guidance_scale > 1:
        words += f", guidance {content.guidance_scale:g} / {motion.guidance_scale:g}"
    if content.reuse_interval > 1:
        words += f", deep features every {content.reuse_interval} steps"
    return words


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
    for module in (pipe.unet, *_surroundings(pipe)):
        module._compiled_call_impl = None  # there is no public way
    for denoiser in (pipe.content, pipe.motion):
        denoiser.compile(None)


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


def _generate(pipe: CMDPipeline, inputs: _Inputs, how: Sampling, batch: int) -> torch.Tensor:
    """What a call of the pipeline does between tokenizer and picture files, from noise."""
    draw = torch.Generator(pipe.unet.device).manual_seed(0)
    guided = _guided(pipe, how)
    told, nothing = ([_told(pipe, batch) for _ in range(1 + guided)] * 2)[:2]
    z = {name: torch.randn((batch, *like.shape[1:]), generator=draw, device=like.device, dtype=like.dtype)
         for name, like in (("content", inputs.frame), ("motion", inputs.motion))}  # fmt: skip
    content_frame = pipe.generate("content", z["content"], told, nothing.rows, how.content)
    told = told.having(content_frame=content_frame)
    motion_latents = pipe.generate("motion", z["motion"], told, nothing.rows, how.motion)
    return pipe.decode(content_frame, motion_latents, "pt", how.decode_content_frame)[0]


def _told(pipe: CMDPipeline, batch: int) -> Condition:
    """Made-up labels, or made-up prompts through the text encoders."""
    if pipe.num_classes:
        return Condition({"labels": torch.zeros(batch, dtype=torch.long, device=pipe.unet.device)})
    features = [
        encoder(_token_ids(encoder, batch))[0]
        for encoder in (pipe.text_encoder, pipe.motion_text_encoder)
        if encoder is not None
    ]
    return Condition({"tokens": features[0], "pooled": features[-1].mean(dim=1)})


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
    name: str, denoiser: Denoiser, model: Any, pipe: CMDPipeline, inputs: _Inputs, how: ModelSampling
) -> list[Part]:
    """One part for each kind of step: how many passes it takes, whether deep features are computed, and whether it is
    the first of its passes, which may compute something for the others.
    """
    steps = how.ready(denoiser)[1]
    passes = [how.guidance.passes(step) for step in steps]
    first = {names: steps[number] for number, names in reversed(list(enumerate(passes)))}  # step that asks for them
    kinds = Counter(
        (names, step.fresh, denoiser.remembers and steps[number] is first[names])
        for number, (names, step) in enumerate(zip(passes, steps, strict=True))
    )

    @torch.inference_mode()  # as it is timed: what is compiled for one mode is compiled again for another
    def caller(how: ModelSampling, batch: int, opened_by: Step | None) -> Callable[[Step], Any]:
        """What takes a step, after the step that opens its passes if it is not that itself."""
        told = _fake(denoiser.told(model), pipe, inputs, batch)
        conditions = conditions_for(how, told, told.rows, TOLD)
        denoise = how.denoise(denoiser, model, conditions)
        like = inputs.frame if name == "content" else inputs.motion
        if opened_by is not None:
            denoise(_rows(like, batch), opened_by)
        return lambda step: denoise(_rows(like, batch), step)

    def run(names: tuple[str, ...], fresh: bool, opens: bool, batch: int) -> Callable[[], Any]:
        step = replace(first[names], fresh=fresh)
        if opens:  # a loop of its own each time, so that what opens it is computed
            return lambda: caller(how, batch, None)(step)
        take = caller(how, batch, first[names] if denoiser.remembers or not fresh else None)
        return lambda: take(step)

    parts = [
        Part(
            name, "denoiser", [model], run(*kind, 1), calls,
            batched=partial(run, *kind),
        )
        for kind, calls in kinds.items()
    ]  # fmt: skip
    plain = how.model_copy(update={"guidance": ClassifierFree(), "wraps": ()})
    parts[0] = replace(
        parts[0], paper_run=lambda: caller(plain, 1, None)(steps[0]), paper_calls=how.num_inference_steps
    )
    return parts


def _fake(names: tuple[str, ...], pipe: CMDPipeline, inputs: _Inputs, batch: int) -> Condition:
    """Made-up rows of what a network is told."""
    device, dtype = pipe.unet.device, pipe.unet.dtype
    rows: dict[str, torch.Tensor] = {}
    if "labels" in names:
        rows["labels"] = torch.zeros(batch, dtype=torch.long, device=device)
    if "content_frame" in names:
        rows["content_frame"] = _rows(inputs.frame, batch)
    if "pooled" in names:
        rows["pooled"] = torch.randn(batch, pipe.motion_transformer.config.text_dim, device=device, dtype=dtype)
    if "tokens" in names:
        config = pipe.text_encoder.config
        size = (batch, config.max_position_embeddings, config.hidden_size)
        rows["tokens"] = torch.randn(size, device=device, dtype=dtype)
    return Condition(rows)


def _autoencoder_part(pipe: CMDPipeline, inputs: _Inputs) -> Part:
    """A clip needs the decoder; the paper's totals fit encoder and decoder together, once."""
    model = pipe.autoencoder
    return Part(
        "autoencoder", "decoder", [model],
        lambda: model.decode(_rows(inputs.frame, 1), _rows(inputs.motion, 1)).sample,
        paper_run=lambda: model(inputs.clip), paper_calls=1,
    )  # fmt: skip


def _image_decoder_part(pipe: CMDPipeline, inputs: _Inputs, with_content_frame: bool) -> Part:
    """All frames, and the content frame where it is shown."""
    vae, frames = pipe.vae, inputs.clip.transpose(1, 2).contiguous()  # frame by frame, as the autoencoder leaves them

    def run() -> None:
        decode_video(vae, _rows(frames, 1).transpose(1, 2))
        if with_content_frame:
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
    return cmd_system(pipe, size, name=name)


def set_preset(pipe: CMDPipeline, preset: str) -> None:
    """Put a pipeline of random weights under a preset, whatever it was under: no weights are distilled for `turbo`."""
    pipe.content_scheduler, pipe.motion_scheduler = DDIMScheduler(**SD_SCHEDULE), DDIMScheduler(clip_sample=False)
    if preset == "turbo":
        for part in ("content_scheduler", "motion_scheduler"):
            setattr(pipe, part, with_schedule(LCMScheduler, getattr(pipe, part)))
    pipe.sampling = Sampling()
    pipe.use_preset(preset)
