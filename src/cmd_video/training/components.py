"""Builds the components a run names: from a folder or hub id, or fresh from a configuration.

components = build_components(config, captions=[...])      # {"unet": UNet2DConditionModel, ...}
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from cmd_video import models
from cmd_video.data.files import read_json
from cmd_video.data.sealed import check_sealed
from cmd_video.denoisers.latent_space import ImageAutoencoder
from cmd_video.models import CMDAutoencoder
from cmd_video.models.whole import load_whole
from cmd_video.pipelines.older import STARTS
from cmd_video.pipelines.shipped import model_folder, shared_components
from cmd_video.pruning import pruned_models
from cmd_video.section import named

from .arguments import check_arguments
from .config import COMPONENT_CLASSES, TEXT_ENCODERS, ComponentConfig
from .dit import initialize_dit
from .tokenizer import train_tokenizer

ELSEWHERE = {  # classes by name, imported when one is asked for
    "SpriteClassifier": "cmd_video.sprites.classifier:SpriteClassifier",
}
_BUILD_ORDER = sorted(COMPONENT_CLASSES, key=lambda name: "tokenizer" not in name)  # a text encoder needs it

INDEX = "model_index.json"
NOT_WANTED = ["*.bin", "*.fp16.*"]
VIDEO_MODEL_FOLDERS = ("transformer", "unet")  # of a video model, in a pipeline of diffusers
FETCHED = {  # from a hub id, whose class is not known before: folders that may hold it
    "video_model": ("video_model", *VIDEO_MODEL_FOLDERS),
    "video_scheduler": ("video_scheduler", "scheduler"),
    "vae": ("vae",),
}


def build_components(
    configs: dict[str, ComponentConfig], captions: list[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Load or create each component.

    Args:
        configs: what to build, by name.
        captions: text that a fresh tokenizer is trained on.
        seed: initial weights of fresh components are a function of it.

    Raises:
        ValueError: a folder holds another kind of component, or a constructor argument is wrong.
    """
    components: dict[str, Any] = {}
    for name in sorted(configs, key=_BUILD_ORDER.index):
        config = configs[name]
        torch.manual_seed(seed)
        if config.path is not None:
            dtype = None if config.dtype is None else getattr(torch, config.dtype)
            components[name] = load_component(name, config.path, config.revision, dtype)
        elif name in ("image_encoder", "text_encoder_2", "tokenizer_2"):
            raise ValueError(f"components.{name}: give a `path`; a fresh one knows nothing and is not trained")
        else:
            components[name] = _fresh(name, config, components, captions or [])
    for name in ("text_encoder", "motion_text_encoder"):
        if isinstance(components.get(name), CLIPTextModel):
            _check_vocabulary(name, components[name], components[name.replace("text_encoder", "tokenizer")])
    return components


def load_component(name: str, path: str, revision: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """One component by itself, from its own folder or a pipeline's; with weights of its own in memory.

    Args:
        name: of the component.
        path: the folder, a hub id, or a model that ships.
        revision: of a hub id: branch, tag or commit; None = its main branch.
        dtype: of a text encoder's, a teacher's weights; None = float32, or for a large text encoder as in its files.

    Raises:
        ValueError: there is none, or another kind of component.
    """
    return _in_memory(_load(name, path, revision, dtype))


def load_autoencoder(folder: Path, device: str = "cpu") -> tuple[CMDAutoencoder, ImageAutoencoder | None]:
    """The autoencoder of a finished run's folder `pipeline`, and the image autoencoder it was trained with.

    Raises:
        ValueError: the folder holds no autoencoder.
    """
    if not (folder / "autoencoder" / "config.json").is_file():
        raise ValueError(f"{folder}: no autoencoder; is the run finished?")
    vae = _load("vae", str(folder)).to(device) if (folder / "vae" / "config.json").is_file() else None
    return _load("autoencoder", str(folder)).to(device), vae


def _fresh(name: str, config: ComponentConfig, components: dict[str, Any], captions: list[str]) -> Any:
    """A component of a configuration that a user wrote: whatever its class says of it is said of the field."""
    place = f"components.{name}.config"
    try:
        if "tokenizer" in name:
            check_arguments(place, train_tokenizer, config.config)
            return train_tokenizer(captions, **config.config)
        if "text_encoder" in name:
            check_arguments(place, CLIPTextConfig, config.config)
            return _fresh_text_encoder(config.config, components[name.replace("text_encoder", "tokenizer")])
        kind = find_class(config.class_name)
        check_arguments(place, kind, config.config)
        component = kind(**config.config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # libraries have kinds of their own
        said = " ".join(str(error).split())
        raise ValueError(said if said.startswith("components.") else f"{place}: {said[:300]}") from error
    if isinstance(component, diffusers.DiTTransformer2DModel):
        initialize_dit(component)
    return component


def _fresh_text_encoder(config: dict[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextModel:
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextModel(CLIPTextConfig(**{**ends, **config}))


def find_class(class_name: str | None) -> Any:
    """A class of components by its name, from wherever it is."""
    assert class_name is not None
    if class_name in ELSEWHERE:
        return named(ELSEWHERE[class_name])
    for module in (models, pruned_models, diffusers, transformers):
        if hasattr(module, class_name):
            return getattr(module, class_name)
    raise ValueError(f"class: {class_name!r} is not known")


def _load(name: str, path: str, revision: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load component `name` from its own folder, or from its subfolder of a pipeline folder or of an image model.

    A model that ships is a pipeline folder, by its name.
    """
    folder = model_folder(path)
    in_pipeline = "scheduler" if name.endswith("scheduler") else name.removeprefix("motion_")
    if revision is not None and folder.is_dir():
        raise ValueError(f"components.{name}.revision: {revision}, but {path} is a folder here; leave it out")
    is_id = not folder.is_dir() and not folder.is_absolute() and len(folder.parts) == 2
    if is_id and (name in FETCHED or revision is not None):
        folder = _fetch(name, path, FETCHED.get(name, tuple({name, in_pipeline})), revision)
    path = str(folder)
    subfolder = in_pipeline
    if folder.is_dir():
        names = (name, in_pipeline, *(VIDEO_MODEL_FOLDERS if name == "video_model" else ()))
        shared = shared_components(folder)
        if name == "video_model":
            _refuse_pair(folder)
        subfolder = next((option for option in names if option in shared or (folder / option).is_dir()), "")
        if subfolder in shared:
            folder = shared[subfolder].parent
            path = str(folder)
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2):
        raise ValueError(f"components.{name}.path: no folder {path}")
    check_sealed(folder, subfolder, f"components.{name}.path")
    if "tokenizer" in name:
        return _load_tokenizer(name, path, subfolder)
    if "text_encoder" in name:
        return _load_text_encoder(name, path, subfolder, dtype)
    if name == "image_encoder":
        kind = transformers.CLIPVisionModelWithProjection
        return load_whole(kind, path, f"components.{name}.path", subfolder=subfolder, dtype=torch.float32)
    if name == "teacher" and not folder.is_dir():
        raise ValueError(f"components.teacher.path: {path} is no folder here; a teacher is loaded from its own folder")
    if folder.is_dir():
        files = [folder / subfolder / file for file in ("config.json", "scheduler_config.json")]
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        class_name = found[0].get("_class_name") if found else None
        if found and STARTS in found[0]:  # a student's sampler: not for training, but its run is exported
            return diffusers.DPMSolverMultistepScheduler.from_pretrained(path, subfolder=subfolder or None)
        if name.endswith("scheduler") and class_name is not None:
            return _load_scheduler(name, path, subfolder, found[0])
    else:
        class_name = COMPONENT_CLASSES[name][0]
    if class_name not in COMPONENT_CLASSES[name]:
        allowed = ", ".join(COMPONENT_CLASSES[name])
        raise ValueError(f"components.{name}.path: {path} holds {class_name or 'no component'}, allowed: {allowed}")
    kind = find_class(class_name)
    if name.endswith("scheduler"):
        return kind.from_pretrained(path, subfolder=subfolder or None)
    options = {} if dtype is None else {"torch_dtype": dtype}
    return load_whole(kind, path, f"components.{name}.path", subfolder=subfolder or None, **options)


def _fetch(name: str, repository: str, folders: tuple[str, ...], revision: str | None) -> Path:
    """The folders of a hub repository that may hold a component; weights as safetensors, in single precision."""
    wanted = [INDEX, *(f"{each}/*" for each in folders)]
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_WANTED)
        )
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"components.{name}.path: no folder {repository}, nor could it be fetched from the hub: {error}"
        ) from error


def _refuse_pair(folder: Path) -> None:
    """Raise a ValueError for a pipeline of two denoisers, of which the one that is loaded would learn all levels."""
    index = folder / INDEX
    second = read_json(index, dict).get("transformer_2") if index.is_file() else None
    if isinstance(second, list) and second[0] is not None:
        raise ValueError(
            f"components.video_model.path: {folder}: transformer and transformer_2 share the noise levels; a pair is "
            "not trained here, give the folder of one of them to train it on all levels"
        )


def _load_scheduler(name: str, path: str, subfolder: str, config: dict[str, Any]) -> Any:
    """The scheduler of a folder, or one that is trained with and has the same noise."""
    class_name, place = config.get("_class_name"), {"subfolder": subfolder or None}
    if name == "video_scheduler":
        if config.get("use_flow_sigmas"):  # Wan's UniPC
            shift = config.get("flow_shift", 1.0)
            return diffusers.FlowMatchEulerDiscreteScheduler(config.get("num_train_timesteps", 1000), shift)
        if class_name == "EulerDiscreteScheduler" and config.get("timestep_type") != "continuous":
            class_name = "DDIMScheduler"
        if class_name not in COMPONENT_CLASSES[name] and "beta_schedule" not in config:  # neither DDPM's nor known
            allowed = ", ".join(COMPONENT_CLASSES[name])
            raise ValueError(f"components.{name}.path: {path} holds {class_name}, allowed: {allowed}")
    if class_name not in COMPONENT_CLASSES[name]:
        # a Stable Diffusion folder's PNDM has the same noise schedule, and never clips latents
        return diffusers.DDIMScheduler.from_pretrained(path, **place, clip_sample=False)
    return find_class(class_name).from_pretrained(path, **place)


def _load_tokenizer(name: str, path: str, subfolder: str) -> Any:
    class_name = get_tokenizer_config(path, subfolder=subfolder).get("tokenizer_class") or "CLIPTokenizer"
    if class_name.startswith("CLIP"):
        return CLIPTokenizer.from_pretrained(path, subfolder=subfolder)
    if find_spec("sentencepiece") is None and not (Path(path) / subfolder / "tokenizer.json").is_file():
        raise ValueError(
            f"components.{name}.path: {path}: a {class_name} without tokenizer.json needs sentencepiece: "
            "pip install 'cmd-video[video]'"
        )
    return AutoTokenizer.from_pretrained(path, subfolder=subfolder, trust_remote_code=False)


def _load_text_encoder(name: str, path: str, subfolder: str, wanted: torch.dtype | None) -> Any:
    """CLIP's in fp32, for it may be trained; a video model's larger one in the type of its files."""
    config = AutoConfig.from_pretrained(path, subfolder=subfolder, trust_remote_code=False)
    class_name = (config.architectures or ["CLIPTextModel"])[0]
    kind: Any = CLIPTextModel
    dtype: Any = torch.float32
    if name == "text_encoder" and class_name in TEXT_ENCODERS and class_name != "CLIPTextModel":
        kind, dtype = getattr(transformers, class_name), "auto"
    return load_whole(kind, path, f"components.{name}.path", subfolder=subfolder, dtype=wanted or dtype)


def _in_memory(component: Any) -> Any:
    """The component with weights of its own: those that are mapped from a file change when it is overwritten."""
    if isinstance(component, torch.nn.Module):
        for tensor in (*component.parameters(), *component.buffers()):
            tensor.data = tensor.data.clone()
    return component


def _check_vocabulary(name: str, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    if text_encoder.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"components.{name}.config.vocab_size: {text_encoder.config.vocab_size} is less than the "
            f"tokenizer's {len(tokenizer)}"
        )
    if text_encoder.config.max_position_embeddings < tokenizer.model_max_length:
        raise ValueError(
            f"components.{name}.config.max_position_embeddings: {text_encoder.config.max_position_embeddings} "
            f"is less than the tokenizer's model_max_length {tokenizer.model_max_length}"
        )
