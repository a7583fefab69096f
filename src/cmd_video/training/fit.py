"""Whether components, and components and clips, fit each other: once, before the first batch.

check_fit(config, components)                                   # sizes, channels, noise
check_latents(config, components, dataset, validation_dataset)  # latents, and who made them
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel
from huggingface_hub import hf_hub_download

from cmd_video.data.files import sha256
from cmd_video.data.latents import LatentsDataset
from cmd_video.denoisers.latent_space import latent_channels, spatial_ratio
from cmd_video.denoisers.references import references_of, told_frames
from cmd_video.diffusion.process import process_of
from cmd_video.pipelines.shipped import component_folder, model_folder

from .config import STAGES, TrainConfig
from .digests import digest_of

logger = logging.getLogger(__name__)

SCHEDULERS = {"content": "content_scheduler", "motion": "motion_scheduler", "video": "video_scheduler"}
NETWORKS = {"content": "unet", "motion": "motion_transformer", "video": "video_model"}


def check_fit(config: TrainConfig, components: Mapping[str, Any]) -> None:
    """Compare components with each other and with the clips that the configuration asks for.

    Raises:
        ValueError: two of them do not fit; the message names the field of one and the value of both.
    """
    denoiser = STAGES[config.stage].denoiser
    if denoiser is not None:
        _check_noise(config, components, denoiser)
    if denoiser != "video" and config.stage not in ("classifier", "decoder"):
        _check_channels(config, components)
        for place, data in _clips(config):
            _check_sides(place, data, config, components)
    sizes = [[getattr(data, name) for name in ("height", "width", "num_frames")] for _, data in _clips(config)]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        logger.warning("validation.data: height, width, num_frames are %s, those of data %s", sizes[1], sizes[0])


def check_latents(config: TrainConfig, components: Mapping[str, Any], dataset: Any, validation_dataset: Any) -> None:
    """Compare latents that were encoded before with the components that are to make them, and to learn from them.

    Raises:
        ValueError: another autoencoder made them, or their channels are others.
    """
    for place, found in (("data", dataset), ("validation.data", validation_dataset)):
        if not isinstance(found, LatentsDataset):
            continue
        for name in ("autoencoder", "vae"):
            if name in components and not _made(found.recipe, name, components[name], config):
                raise ValueError(
                    f"{place}.path: {found.path} holds latents of another {name} than components.{name}; encode the "
                    "clips with this one, or give the one that made them"
                )
        network = components.get(NETWORKS[str(STAGES[config.stage].denoiser)])
        if network is not None and told_frames(network) and "end_frames" not in found.shapes:
            raise ValueError(f"{place}.path: {found.path} holds no first and last frames, which the network is told; "
                             "encode the clips with --end-frames")  # fmt: skip
        channels, height, width = found.shapes["content_frame"]
        _same(f"{place}.path: channels of the content frames", channels, _content_channels(config, components))
        if "motion_transformer" in components and config.stage == "motion":
            model, (motion_channels, frames, _) = (
                components["motion_transformer"].config,
                found.shapes["motion_latents"],
            )
            _same(f"{place}.path: channels of the motion latents", motion_channels, model.latent_channels)
            _check_motion_sides(place, model, frames, height, width)


def _made(recipe: dict[str, Any], name: str, component: Any, config: TrainConfig) -> bool:
    """Whether a component is the one that a recipe of latents states; True where it says nothing that can be told."""
    if "digests" in recipe:
        return bool(recipe["digests"].get(name) == digest_of(component))
    path = config.components[name].path
    stated = recipe.get(f"{name}_sha256")  # of the files, by an earlier version
    if stated is None or path is None:
        return True
    folder = model_folder(path)
    files = [sorted(place.glob("*.safetensors")) for place in (component_folder(folder, name), folder)]
    return not any(files) or stated == sha256(*next(filter(None, files)))


def _clips(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    """The sections of clips that say how large they are."""
    for place, data in (("data", config.data), ("validation.data", config.validation.data)):
        if hasattr(data, "height"):
            yield place, data


def _same(what: str, found: Any, needed: Any) -> None:
    if needed is not None and found != needed:
        raise ValueError(f"{what}: {found}, must be {needed} here")


def _multiple(what: str, number: int, unit: int, of: str) -> None:
    if number % unit:
        raise ValueError(f"{what}: {number} is no multiple of the {unit} of {of}")


def _content_channels(config: TrainConfig, components: Mapping[str, Any]) -> int | None:
    """Channels of content frames, as the network takes them that is trained."""
    if config.stage == "motion":
        return int(components["motion_transformer"].config.content_channels)
    if "unet" not in components:
        return None
    unet = components["unet"].config
    return int(unet.out_channels if told_frames(components["unet"]) else unet.in_channels)


def _check_channels(config: TrainConfig, components: Mapping[str, Any]) -> None:
    channels = latent_channels(components.get("vae"))
    autoencoder, unet, motion = (components.get(name) for name in ("autoencoder", "unet", "motion_transformer"))
    if autoencoder is not None:
        _same("components.autoencoder.config.in_channels", autoencoder.config.in_channels, channels)
        fold = int(autoencoder.config.get("fold") or 1)
        if channels % fold**2:
            raise ValueError(f"components.autoencoder.config.fold: {fold}, its square does not divide {channels}")
    if unet is not None and NETWORKS[str(STAGES[config.stage].denoiser)] == "unet":
        try:
            references_of(unet.config.in_channels, channels)
        except ValueError as error:
            raise ValueError(f"components.unet.config.in_channels: {error}") from error
        _same("components.unet.config.out_channels", unet.config.out_channels or channels, channels)
        encoder, width = components.get("text_encoder"), unet.config.get("cross_attention_dim")
        if encoder is not None and isinstance(width, int):
            _same("components.unet.config.cross_attention_dim", width, encoder.config.hidden_size)
    if motion is not None and autoencoder is not None and config.stage == "motion":
        place, model = "components.motion_transformer.config", motion.config
        _same(f"{place}.latent_channels", model.latent_channels, autoencoder.config.latent_channels)
        _same(f"{place}.content_channels", model.content_channels, autoencoder.config.in_channels)
        _same(f"{place}.autoencoder_patch_size", model.autoencoder_patch_size, autoencoder.config.patch_size)
        encoder = components.get("motion_text_encoder", components.get("text_encoder"))
        if model.text_dim:
            if encoder is None:
                raise ValueError(f"{place}.text_dim: {model.text_dim}, but components has no motion_text_encoder")
            _same(f"{place}.text_dim", model.text_dim, encoder.config.hidden_size)


def _check_sides(place: str, data: Any, config: TrainConfig, components: Mapping[str, Any]) -> None:
    ratio = spatial_ratio(components.get("vae"))
    for side in ("height", "width"):
        _multiple(f"{place}.{side}", getattr(data, side), ratio, "components.vae")
    height, width = data.height // ratio, data.width // ratio
    autoencoder, unet = components.get("autoencoder"), components.get("unet")
    if autoencoder is not None:
        for side in ("height", "width"):
            unit = ratio * autoencoder.config.patch_size
            _multiple(f"{place}.{side}", getattr(data, side), unit, "components.autoencoder (its patches)")
    if isinstance(unet, DiTTransformer2DModel):
        if height != width:
            raise ValueError(f"{place}.width: {data.width}, height is {data.height}; a DiT takes square frames")
        _multiple(f"{place}.height", data.height, ratio * unet.config.patch_size, "components.unet (its patches)")
    if config.stage == "motion":
        _check_motion_sides(place, components["motion_transformer"].config, data.num_frames, height, width)


def _check_motion_sides(place: str, model: Any, frames: int, height: int, width: int) -> None:
    """Sides h, w of content frames, and F, against the patches of the motion model."""
    of = "components.motion_transformer"
    _multiple(f"{place}.num_frames", frames, model.patch_size, f"{of}.config.patch_size")
    for name, side in (("height", height), ("width", width)):
        _multiple(f"{place}.{name} in latents", side, model.content_patch_size, f"{of}.config.content_patch_size")
        unit = model.autoencoder_patch_size * model.patch_size
        _multiple(f"{place}.{name} in latents", side, unit, f"{of}.config.autoencoder_patch_size x patch_size")


def _check_noise(config: TrainConfig, components: Mapping[str, Any], denoiser: str) -> None:
    """Whether a scheduler has levels of noise, and those that the network was trained with before."""
    name, network = SCHEDULERS[denoiser], NETWORKS[denoiser]
    try:
        process = process_of(components[name])
    except ValueError as error:
        raise ValueError(f"components.{name}.config.{str(error).removeprefix('scheduler: ')}") from error
    betas = getattr(components[name], "betas", None)
    if betas is not None and not ((betas >= 0) & (betas <= 1)).all():
        raise ValueError(
            f"components.{name}.config: betas from {betas.min():g} to {betas.max():g}, must lie in [0, 1]"
        )
    if config.validation.num_inference_steps > len(process):
        raise ValueError(
            f"validation.num_inference_steps: {config.validation.num_inference_steps}, "
            f"components.{name} has {len(process)} timesteps"
        )
    path = config.components[network].path
    before = None if path is None else _prediction_type(path, name)
    if before is not None and before != process.prediction_type:
        raise ValueError(
            f"components.{name}.config.prediction_type: {process.prediction_type!r}, but components.{network} of "
            f"{path} was trained with {before!r}; give that"
        )


def _prediction_type(path: str, scheduler: str) -> str | None:
    """What a pretrained network predicts, by the scheduler beside it; None where there is none."""
    folder, names = model_folder(path), (scheduler, *(() if scheduler == "motion_scheduler" else ("scheduler",)))
    places = [component_folder(place, name) for place in (folder, folder.parent) for name in names]
    files = [place / "scheduler_config.json" for place in places]
    if not folder.is_dir():  # a hub id
        try:
            files = [Path(hf_hub_download(path, "scheduler/scheduler_config.json"))]
        except (OSError, ValueError):  # it has none
            return None
    for file in files:
        if file.is_file():
            config = json.loads(file.read_text())
            flow = config.get("use_flow_sigmas") or str(config.get("_class_name")).startswith("FlowMatch")
            return "flow" if flow else config.get("prediction_type")
    return None
