"""Loads a pipeline for a user of the command line: what is wrong with a folder is said in one line.

pipe = load_pipeline("my-model", "cpu")
"""

from inspect import signature
from pathlib import Path
from pickle import UnpicklingError

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from cmd_video.data.files import read_json

from .pipeline_cmd import CMDPipeline
from .shipped import model_folder

PAIRS = ([str, str], [type(None), type(None)])  # what stands for a part in a model_index.json


def load_pipeline(
    model: str | None, device: str = "cpu", preset: str | None = None, dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> CMDPipeline:  # fmt: skip
    """`CMDPipeline.from_pretrained` with a check of the folder before.

    Args:
        model: folder or hub id; None or "default" is the model that ships.
        device: where to put it.
        preset: see `CMDPipeline.use_preset`; None = as the model was saved.
        dtype: of the weights.
        revision: of a hub id: branch, tag or commit; None = its main branch.

    Raises:
        ValueError: no such preset or folder, a revision of a folder, a folder of another kind of model, damaged
            weights, an unknown device.
    """
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {error}") from error
    folder = model_folder(model)
    here = _is_meant_as_folder(folder)
    if here:
        if revision is not None:
            raise ValueError(f"revision: {revision}, but {folder} is a folder here; leave it out")
        _check_index(folder)
    try:
        pipe = CMDPipeline.from_pretrained(model, torch_dtype=dtype, revision=revision)
    except SafetensorError as error:
        raise ValueError(f"model: the weights in {folder} are damaged: {error}") from error
    except UnpicklingError as error:
        raise ValueError(f"model: {folder} holds a pickle that is more than tensors; safetensors are read") from error
    except ValidationError:  # of `sampling`: names the field
        raise
    except Exception as error:  # diffusers, transformers, tokenizers: each raises what it likes of a damaged folder
        reason = " ".join(str(error).split()) or type(error).__name__
        place = "model" if here else f"model: no folder {folder} here, and of the hub"
        raise ValueError(f"{place}: {folder} cannot be loaded: {reason}") from error
    if preset is not None:
        pipe.use_preset(preset)
    return pipe.to(target)


def _is_meant_as_folder(folder: Path) -> bool:
    """Whether a model is a folder, be it there or not, rather than "owner/name" on the hub."""
    return folder.exists() or folder.is_absolute() or len(folder.parts) != 2 or folder.parent.is_dir()


def _check_index(folder: Path) -> None:
    """Refuse a folder without a model_index.json of a pipeline of ours.

    Raises:
        ValueError: there is none, or it says something else.
    """
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise ValueError(f"model: no folder {folder}")
    if not index.is_file():
        raise ValueError(f"model: {folder} is not a pipeline folder (no model_index.json)")
    try:
        found = read_json(index, dict)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    kind = found.get("_class_name")
    if kind != CMDPipeline.__name__:
        raise ValueError(f"model: {folder} holds a {kind}, allowed: {CMDPipeline.__name__}")
    arguments = signature(CMDPipeline.__init__).parameters.values()
    needed = {each.name for each in arguments if each.default is each.empty and each.name != "self"}
    for name in sorted(needed | set(CMDPipeline._optional_components)):
        part = found.get(name, [None, None])
        if not (isinstance(part, list) and [type(each) for each in part] in PAIRS):
            raise ValueError(f"model: {index}: {name}: {part!r}, a module and the name of a class are needed")
