"""A pretrained image diffusion model as the start of a CMD pipeline.

    parts = load_image_model("stable-diffusion-v1-5/stable-diffusion-v1-5", height=512, width=512, motion_size="L")

UNet, VAE, text encoder, tokenizer and noise schedule are taken as they are, from a folder in the hub's layout or a hub
id. The autoencoder and the motion transformer are fresh where none are given, and must be trained.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.denoisers.latent_space import spatial_ratio
from cmd_video.models import MOTION_TRANSFORMER_SIZES, CMDAutoencoder, CMDMotionTransformer
from cmd_video.models.whole import load_whole

INDEX = "model_index.json"
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def load_image_model(
    model: str | Path,
    autoencoder: CMDAutoencoder | None,
    motion_transformer: CMDMotionTransformer | None,
    height: int,
    width: int,
    motion_size: str,
    **loading: Any,
) -> dict[str, Any]:
    """Components of a `CMDPipeline`.

    Args:
        model: folder or hub id of a Stable Diffusion 1 or 2 model.
        autoencoder: a trained one; None = a fresh one for this model's latents.
        motion_transformer: a trained one; None = a fresh one of size `motion_size`.
        height: H in pixels that a fresh autoencoder is made for.
        width: W in pixels.
        motion_size: S, B, L or XL. Differs from paper: content patches are 4 at every size, the paper's 8 at 512x1024.
        loading: for diffusers' `from_pretrained`, such as torch_dtype, revision or local_files_only.

    Raises:
        ValueError: the model is of another kind, or something does not fit; the message names it.
    """
    if motion_size not in MOTION_TRANSFORMER_SIZES:
        raise ValueError(f"motion_size: {motion_size!r} is none of {', '.join(MOTION_TRANSFORMER_SIZES)}")
    folder = _find(model, loading)
    _check_layout(folder)
    weights = {key: value for key, value in loading.items() if key in ("variant", "use_safetensors")}
    weights["torch_dtype"] = loading.get("torch_dtype", torch.float32)
    unet = load_whole(UNet2DConditionModel, folder / "unet", "image model", **weights)
    text_encoder = load_whole(CLIPTextModel, folder / "text_encoder", "image model", **weights)
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    vae_kind = kinds[str(_class_name(folder / "vae" / "config.json"))]
    vae = load_whole(vae_kind, folder / "vae", "image model", **weights)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False)  # whatever sampler it was
    if autoencoder is None:
        ratio = spatial_ratio(vae)
        sides = (height // ratio, width // ratio)
        autoencoder = CMDAutoencoder(in_channels=vae.config.latent_channels, sample_size=sides).to(unet.dtype)
    if motion_transformer is None:
        motion_transformer = CMDMotionTransformer(
            **MOTION_TRANSFORMER_SIZES[motion_size],
            latent_channels=autoencoder.config.latent_channels,
            content_channels=autoencoder.config.in_channels,
            autoencoder_patch_size=autoencoder.config.patch_size,
            text_dim=text_encoder.config.hidden_size,
        ).to(unet.dtype)
    if autoencoder.config.in_channels != unet.config.in_channels:
        raise ValueError(
            f"autoencoder: it has {autoencoder.config.in_channels} channels, the image model {unet.config.in_channels}"
        )
    return {
        "autoencoder": autoencoder.eval(),
        "unet": unet.eval(),
        "motion_transformer": motion_transformer.eval(),
        "content_scheduler": scheduler,
        "motion_scheduler": DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),  # DiT's linear schedule
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    }


def _find(model: str | Path, loading: dict[str, Any]) -> Path:
    """The model's folder, fetched from the hub if it is none on disk."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or len(folder.parts) != 2:
        raise ValueError(f"image model: no folder {model}")
    hub = {key: value for key, value in loading.items() if key in HUB_OPTIONS}
    _check_index(Path(hf_hub_download(str(model), INDEX, **hub)))  # before gigabytes come
    unwanted = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    return Path(DiffusionPipeline.download(str(model), **unwanted, **loading))


def _check_layout(folder: Path) -> None:
    """Raise a ValueError unless the folder holds a text-to-image model with one CLIP text encoder and a 2-D UNet."""
    if not (folder / INDEX).is_file():
        raise ValueError(f"image model: {folder} is not a pipeline folder (no {INDEX})")
    kind = _check_index(folder / INDEX)
    for name in COMPONENTS:
        if not (folder / name).is_dir():
            raise ValueError(f"image model: {folder} holds a {kind} without {name}; Stable Diffusion 1 and 2 fit")
    for name, allowed in (("unet", ("UNet2DConditionModel",)), ("vae", ("AutoencoderKL", "AutoencoderTiny"))):
        found = _class_name(folder / name / "config.json")
        if found not in allowed:
            raise ValueError(f"image model: {folder / name} holds a {found}, allowed: {', '.join(allowed)}")
    config = json.loads((folder / "unet" / "config.json").read_text())
    if config.get("addition_embed_type") == "text_time":
        raise ValueError(f"image model: {folder / 'unet'} is of Stable Diffusion XL; Stable Diffusion 1 and 2 fit")
    if config.get("in_channels", 4) != config.get("out_channels", 4):
        raise ValueError(
            f"image model: {folder / 'unet'} takes {config['in_channels']} channels and gives "
            f"{config.get('out_channels', 4)}, as for inpainting; they must be as many"
        )


def _check_index(path: Path) -> str:
    """The class of a pipeline, which must have one text encoder."""
    index = json.loads(path.read_text())
    kind = str(index.get("_class_name"))
    if (index.get("text_encoder_2") or [None])[0] is not None:
        raise ValueError(
            f"image model: {path.parent} holds a {kind} with two text encoders; Stable Diffusion 1 and 2 fit"
        )
    return kind


def _class_name(path: Path) -> str | None:
    return json.loads(path.read_text()).get("_class_name") if path.is_file() else None
