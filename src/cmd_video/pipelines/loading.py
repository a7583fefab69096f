"""Loads a pipeline for a user of the command line: what is wrong with a folder is said in one line.

pipe = load_pipeline("my-model", "cpu")
"""

import json

import torch
from safetensors import SafetensorError

from .pipeline_cmd import CMDPipeline
from .shipped import model_folder


def load_pipeline(
    model: str | None, device: str = "cpu", preset: str | None = None, dtype: torch.dtype = torch.float32
) -> CMDPipeline:
    """`CMDPipeline.from_pretrained` with a check of the folder before.

    Args:
        model: folder or hub id; None or "default" is the model that ships.
        device: where to put it.
        preset: see `CMDPipeline.use_preset`; None = as the model was saved.
        dtype: of the weights.

    Raises:
        ValueError: no such preset or folder, a folder of another kind of model, damaged weights, an unknown device.
    """
    folder = model_folder(model)
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        index = folder / "model_index.json"
        if not folder.is_dir():
            raise ValueError(f"model: no folder {folder}")
        if not index.is_file():
            raise ValueError(f"model: {folder} is not a pipeline folder (no model_index.json)")
        try:
            found = json.loads(index.read_text())
        except ValueError as error:
            raise ValueError(f"model: {index} is not JSON: {error}") from error
        kind = found.get("_class_name") if isinstance(found, dict) else type(found).__name__
        if kind != CMDPipeline.__name__:
            raise ValueError(f"model: {folder} holds a {kind}, allowed: {CMDPipeline.__name__}")
    try:
        target = torch.device(device)
        if target.type == "meta":
            raise ValueError(f"device: {device!r} holds no values")
        pipe = CMDPipeline.from_pretrained(model, torch_dtype=dtype)
    except SafetensorError as error:
        raise ValueError(f"model: the weights in {folder} are damaged: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"device or model: {error}") from error
    if preset is not None:
        pipe.use_preset(preset)
    return pipe.to(target)
