"""Published text- and image-to-video models in diffusers, with their published configurations and random weights.

    system = build_peer("ltx-video-2b", Size(512, 512, 16), device="meta", dtype=torch.bfloat16)

Parts are the denoiser with the guidance its pipeline uses by default, the text or image encoder, and the decoder of
all frames. Models that compress time only know some frame counts; they take the nearest one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    LlamaModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

from .cmd_system import CLIP_TEXT, IMAGE_AUTOENCODER, STABLE_DIFFUSION
from .system import Changes, Part, Place, Size, System, place

# --- parts that several peers share ----------------------------------------------------------------------------------


def _clip_text(at: Place, base: str, calls: int) -> Part:
    model = at.build(CLIPTextModel, **CLIP_TEXT, **STABLE_DIFFUSION[base]["text"])
    return Part("text encoder", "condition", [model], lambda: model(at.ones(1, 77)), calls)


CLIP_VIT_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 224, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip


def _clip_image(at: Place) -> Part:
    """CLIP ViT-H/14."""
    model = at.build(CLIPVisionModelWithProjection, **CLIP_VIT_H)
    return Part("image encoder", "condition", [model], lambda: model(at.noise(1, 3, 224, 224)))


T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def _t5(at: Place, tokens: int, calls: int) -> Part:
    """The encoder of T5 v1.1 XXL."""
    model = at.build(T5EncoderModel, vocab_size=32128, **T5_XXL)
    return Part("text encoder", "condition", [model], lambda: model(at.ones(1, tokens)), calls)


def _sd_decoder(at: Place, size: Size, vae: diffusers.AutoencoderKL | None = None) -> Part:
    """Stable Diffusion's image decoder, on every frame."""
    decoder: Any = at.build(diffusers.AutoencoderKL, **IMAGE_AUTOENCODER) if vae is None else vae
    frame = at.noise(1, 4, size.height // 8, size.width // 8)
    return Part("image decoder", "decoder", [decoder], lambda: decoder.decode(frame).sample, size.frames)


def _sd_encoder(at: Place, size: Size, vae: Any) -> Part:
    """The conditioning image, encoded once."""
    image = at.noise(1, 3, size.height, size.width)
    return Part("image autoencoder's encoder", "condition", [vae], lambda: vae.encode(image))


def _denoiser(model: nn.Module, steps: int, rows: int, call: Callable[[int], Any]) -> Part:
    """`rows` = 2 with classifier-free guidance, both in one batch."""
    return Part(
        "denoiser", "denoiser", [model], lambda: call(rows), steps, paper_run=lambda: call(1), paper_calls=steps,
        batched=lambda batch: partial(call, rows * batch),
    )  # fmt: skip


# --- peers -----------------------------------------------------------------------------------------------------------


def _modelscope(size: Size, at: Place) -> System:
    unet = at.build(diffusers.UNet3DConditionModel, cross_attention_dim=1024, attention_head_dim=64)

    def call(rows: int) -> Any:
        latents = at.noise(rows, 4, size.frames, size.height // 8, size.width // 8)
        return unet(latents, at.ones(1), at.noise(rows, 77, 1024))

    parts = [_clip_text(at, "sd21", 2), _denoiser(unet, 50, 2, call), _sd_decoder(at, size)]
    return System("ModelScope", size, "50 steps, guidance 9", "ali-vilab/text-to-video-ms-1.7b", parts)


SVD_UNET = {"num_attention_heads": (5, 10, 20, 20), "num_frames": 14}
TEMPORAL_AUTOENCODER = {key: value for key, value in IMAGE_AUTOENCODER.items() if key != "up_block_types"}


def _svd(size: Size, at: Place) -> System:
    unet = at.build(diffusers.UNetSpatioTemporalConditionModel, **SVD_UNET)
    vae = at.build(diffusers.AutoencoderKLTemporalDecoder, **TEMPORAL_AUTOENCODER)
    height, width = size.height // 8, size.width // 8

    def call(rows: int) -> Any:
        latents = at.noise(rows, size.frames, 8, height, width)
        return unet(latents, at.ones(1), at.noise(rows, 1, 1024), at.zeros(rows, 3))

    clip = at.noise(size.frames, 4, height, width)
    decoder = Part("image decoder", "decoder", [vae], lambda: vae.decode(clip, num_frames=size.frames).sample)
    parts = [_clip_image(at), _sd_encoder(at, size, vae), _denoiser(unet, 25, 2, call), decoder]
    source = "stabilityai/stable-video-diffusion-img2vid"
    return System("SVD (image to video)", size, "25 steps, guidance 1 to 3", source, parts)


def _animatediff(size: Size, at: Place) -> System:
    def build() -> nn.Module:
        unet = diffusers.UNet2DConditionModel(**STABLE_DIFFUSION["sd15"]["unet"])
        adapter = diffusers.MotionAdapter(use_motion_mid_block=False, motion_max_seq_length=32)
        return diffusers.UNetMotionModel.from_unet2d(unet, adapter, load_weights=False)

    unet = place(build, at.device, at.dtype)

    def call(rows: int) -> Any:
        latents = at.noise(rows, 4, size.frames, size.height // 8, size.width // 8)
        return unet(latents, at.ones(1), at.noise(rows * size.frames, 77, 768))

    parts = [_clip_text(at, "sd15", 2), _denoiser(unet, 50, 2, call), _sd_decoder(at, size)]
    source = "guoyww/animatediff-motion-adapter-v1-5-3"
    return System("AnimateDiff", size, "50 steps, guidance 7.5", source, parts)


def _i2vgen(size: Size, at: Place) -> System:
    unet = at.build(diffusers.I2VGenXLUNet, cross_attention_dim=1024, num_attention_heads=64)
    vae = at.build(diffusers.AutoencoderKL, **IMAGE_AUTOENCODER)

    def call(rows: int) -> Any:
        latents = at.noise(rows, 4, size.frames, size.height // 8, size.width // 8)
        return unet(latents, at.ones(1), at.ones(rows), latents, at.noise(rows, 1, 1024), at.noise(rows, 77, 1024))

    parts = [_clip_text(at, "sd21", 2), _clip_image(at), _sd_encoder(at, size, vae), _denoiser(unet, 50, 2, call)]
    parts.append(_sd_decoder(at, size, vae))
    return System("I2VGenXL (image to video)", size, "50 steps, guidance 9", "ali-vilab/i2vgen-xl", parts)


def _latte(size: Size, at: Place) -> System:
    config = {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
        "caption_channels": 4096, "cross_attention_dim": 1152, "sample_size": 64, "patch_size": 2,
        "video_length": size.frames, "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate",
        "attention_bias": True, "norm_elementwise_affine": False, "norm_eps": 1e-6, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    model = at.build(diffusers.LatteTransformer3DModel, **config)

    def call(rows: int) -> Any:
        latents = at.noise(rows, 4, size.frames, size.height // 8, size.width // 8)
        return model(latents, at.ones(rows), at.noise(rows, 120, 4096))

    parts = [_t5(at, 120, 2), _denoiser(model, 50, 2, call), _sd_decoder(at, size)]
    return System("Latte-1", size, "50 steps, guidance 7.5", "maxin-cn/Latte-1", parts)


def _cogvideox(size: Size, at: Place) -> System:
    model = at.build(diffusers.CogVideoXTransformer3DModel)
    vae = at.build(
        diffusers.AutoencoderKLCogVideoX, block_out_channels=(128, 256, 256, 512), layers_per_block=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    frames, height, width = (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8

    def call(rows: int) -> Any:
        return model(at.noise(rows, frames, 16, height, width), at.noise(rows, 226, 4096), at.ones(rows))

    clip = at.noise(1, 16, frames, height, width)
    decoder = Part("video decoder", "decoder", [vae], lambda: vae.decode(clip).sample)
    parts = [_t5(at, 226, 2), _denoiser(model, 50, 2, call), decoder]
    return System("CogVideoX-2B", size, "50 steps, guidance 6", "THUDM/CogVideoX-2b", parts)


def _ltx(size: Size, at: Place) -> System:
    model = at.build(diffusers.LTXVideoTransformer3DModel)
    vae = at.build(diffusers.AutoencoderKLLTXVideo)
    frames, height, width = (size.frames - 1) // 8 + 1, size.height // 32, size.width // 32

    def call(rows: int) -> Any:
        tokens = at.noise(rows, frames * height * width, 128)
        text, mask = at.noise(rows, 128, 4096), at.ones(rows, 128)
        return model(tokens, text, at.ones(rows), mask, num_frames=frames, height=height, width=width)

    clip = at.noise(1, 128, frames, height, width)
    decoder = Part("video decoder", "decoder", [vae], lambda: vae.decode(clip).sample)
    parts = [_t5(at, 128, 2), _denoiser(model, 50, 2, call), decoder]
    return System("LTX-Video 2B", size, "50 steps, guidance 3", "Lightricks/LTX-Video", parts)


WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}  # of 1.3B
UMT5_XXL = {"vocab_size": 256384, **T5_XXL}


def _wan(size: Size, at: Place) -> System:
    model = at.build(diffusers.WanTransformer3DModel, **WAN)
    vae = at.build(diffusers.AutoencoderKLWan)
    encoder = at.build(UMT5EncoderModel, **UMT5_XXL)
    frames, height, width = (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8

    def call(rows: int) -> Any:
        return model(at.noise(rows, 16, frames, height, width), at.ones(rows), at.noise(rows, 512, 4096))

    clip = at.noise(1, 16, frames, height, width)
    text = Part("text encoder", "condition", [encoder], lambda: encoder(at.ones(1, 512)), 2)
    decoder = Part("video decoder", "decoder", [vae], lambda: vae.decode(clip).sample)
    parts = [text, _denoiser(model, 50, 2, call), decoder]
    return System("Wan2.1-1.3B", size, "50 steps, guidance 5", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", parts)


LLAMA_8B = {
    "vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def _hunyuan(size: Size, at: Place) -> System:
    model = at.build(diffusers.HunyuanVideoTransformer3DModel)
    vae = at.build(diffusers.AutoencoderKLHunyuanVideo)
    encoder = at.build(LlamaModel, **LLAMA_8B)
    frames, height, width = (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8

    def call(rows: int) -> Any:
        latents, text = at.noise(rows, 16, frames, height, width), at.noise(rows, 256, 4096)
        return model(latents, at.ones(rows), text, at.ones(rows, 256), at.noise(rows, 768), at.zeros(rows))

    clip = at.noise(1, 16, frames, height, width)
    prompt = 256 + 95  # tokens of the prompt and of the template around it
    mask = at.zeros(1, 1, prompt, prompt)  # whole, or the encoder would look at its values
    text = Part("text encoder", "condition", [encoder], lambda: encoder(at.ones(1, prompt), mask, use_cache=False))
    decoder = Part("video decoder", "decoder", [vae], lambda: vae.decode(clip).sample)
    parts = [text, _clip_text(at, "sd15", 1), _denoiser(model, 50, 1, call), decoder]
    source = "hunyuanvideo-community/HunyuanVideo"
    return System("HunyuanVideo", size, "50 steps, distilled guidance", source, parts)


@dataclass(frozen=True)
class Peer:
    """A peer: its builder, and how many frames a latent frame stands for (it takes a multiple of that, plus one)."""

    build: Callable[[Size, Place], System]
    time_factor: int = 1


PEERS: dict[str, Peer] = {
    "modelscope": Peer(_modelscope),
    "svd": Peer(_svd),
    "animatediff": Peer(_animatediff),
    "i2vgen-xl": Peer(_i2vgen),
    "latte-1": Peer(_latte),
    "cogvideox-2b": Peer(_cogvideox, 4),
    "ltx-video-2b": Peer(_ltx, 8),
    "wan2.1-1.3b": Peer(_wan, 4),
    "hunyuanvideo": Peer(_hunyuan, 4),
}


def build_peer(
    name: str, size: Size, device: str = "meta", dtype: torch.dtype = torch.float32, changes: Changes | None = None
) -> System:
    """A peer with random weights.

    Args:
        name: a key of PEERS.
        size: what to generate; the frames are rounded to the nearest count that the peer knows.
        device: where to put it.
        dtype: of the weights.
        changes: see `Place`.

    Raises:
        ValueError: there is no such peer, or it cannot generate this size.
    """
    if name not in PEERS:
        raise ValueError(f"peer: {name!r} is none of {', '.join(PEERS)}")
    if name == "animatediff" and size.frames > 32:
        raise ValueError(f"frames: {size.frames}, but AnimateDiff has positions for 32")
    if size.height % 32 or size.width % 32:
        raise ValueError(f"resolution: {size.height}x{size.width} is not divisible by 32, as some peers need")
    factor = PEERS[name].time_factor
    frames = size.frames if factor == 1 else round((size.frames - 1) / factor) * factor + 1
    return PEERS[name].build(Size(size.height, size.width, frames), Place(device, dtype, changes or {}))
