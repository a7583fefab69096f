"""What a pipeline's model_index.json may name: classes that are known, of the kinds that a pipeline has.

No code of the folder is looked for, imported or run.

    classes = check_index(json.loads(path.read_text()), path.parent)
"""

import json
from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer

LIBRARIES = ("diffusers", "transformers", "cmd_video.pruning.pruned_models")  # and the modules of cmd_video.models
ENCODERS = ("text_encoder", "motion_text_encoder")
KINDS: dict[str, tuple[type, ...]] = {
    "autoencoder": (CMDAutoencoder,),
    "unet": (UNet2DConditionModel, DiTTransformer2DModel),
    "motion_transformer": (CMDMotionTransformer,),
    "unet_2": (UNet2DConditionModel, DiTTransformer2DModel),
    "motion_transformer_2": (CMDMotionTransformer,),
    "content_scheduler": (SchedulerMixin,),
    "motion_scheduler": (SchedulerMixin,),
    "vae": (ModelMixin,),
    **dict.fromkeys(ENCODERS, (PreTrainedModel,)),
    "tokenizer": (PreTrainedTokenizerBase,),
    "motion_tokenizer": (PreTrainedTokenizerBase,),
}
SECOND = ("unet_2", "motion_transformer_2")  # weights for cleaner noise levels
MODELS = ("autoencoder", "unet", "motion_transformer", "vae", *ENCODERS, *SECOND)
OPTIONAL = ("vae", *ENCODERS, "tokenizer", "motion_tokenizer", *SECOND)
OFFLOADED = (
    *ENCODERS,
    "unet",
    "unet_2",
    "motion_transformer",
    "motion_transformer_2",
    "autoencoder",
    "vae",
)  # in order
CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json")


def check_index(index: Any, where: Path, given: Container[str] = ()) -> dict[str, Any]:
    """The class of each component, imported; own ones too, which diffusers does not find by itself.

    Args:
        index: what a model_index.json holds.
        where: the folder, for the message.
        given: components that are not looked for there.

    Raises:
        ValueError: it is no mapping, or names something else than a class of the component's kind.
    """
    if not isinstance(index, Mapping):
        raise ValueError(f"model: {where}: model_index.json holds a {type(index).__name__}, an object is needed")
    classes = {}
    for name, kinds in KINDS.items():
        entry = index.get(name, [None, None])
        if name in given or (name in OPTIONAL and entry in (None, [None, None], (None, None))):
            continue
        found = _class_of(entry)
        if found is None or not issubclass(found, kinds):
            allowed = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"model: {where}: model_index.json: {name}: {entry!r} is no [library, class] of {allowed}"
            )
        classes[name] = found
        for path in (where / name / config for config in CONFIGS):
            if path.is_file():
                _check_object(path)
    return classes


def _class_of(entry: Any) -> type | None:
    if not isinstance(entry, (list, tuple)) or [type(part) for part in entry] != [str, str]:
        return None
    library, name = entry
    if library not in LIBRARIES and not library.startswith("cmd_video.models."):
        return None
    try:
        found = getattr(import_module(library), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def _check_object(path: Path) -> None:
    try:
        holds = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path} is not JSON: {error}") from error
    if not isinstance(holds, dict):
        raise ValueError(f"model: {path} holds a {type(holds).__name__}, an object is needed")
