"""Result files: the numbers with the whole protocol that made them.

write_result(Path("benchmarks/results/adherence.json"), "adherence", values, protocol={...})
"""

import hashlib
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from cmd_video.data.files import sha256, write_json
from cmd_video.pipelines.shipped import model_folder, shared_components

PACKAGES = (
    "cmd-video", "torch", "diffusers", "transformers", "numpy", "av", "pillow", "torchmetrics",
    "opencv-python-headless", "opencv-python",
)  # fmt: skip
PLACES = ("source", "path", "video_root", "clip_model", "model")  # fields of a protocol that say where things lay
PREFIX = re.compile(r"(?:-{0,2}[\w.-]+[=:](?!//))?")
INNER = re.compile(r"(?<=[\s\[{:=,'\"])/[^\s,}\]'\"]+")
ORIGIN = ("_name_or_path", "_diffusers_version", "transformers_version")


def write_result(
    path: Path, name: str, values: dict[str, Any], protocol: dict[str, Any], device: str | None = None
) -> None:
    """Write a result as JSON, with command, date, hardware and package versions; by rename.

    Args:
        path: the file.
        name: of the measurement.
        values: what came out.
        protocol: what decides it.
        device: where it was computed, for `hardware`.

    Raises:
        ValueError: a number is NaN or infinite: nothing is written.
        OSError: the folder cannot be written.
    """
    record = {"name": name, **provenance(device), "protocol": shown_places(protocol), "values": values}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def provenance(device: str | None = None) -> dict[str, Any]:
    """The running command, the date, the hardware and the versions of packages."""
    script = Path(sys.argv[0]).resolve()
    program = (
        f"python {script.parent.name}/{script.name}"
        if script.suffix == ".py" and script.stem != "__main__"
        else "cmd-video"
    )
    return {
        "command": f"{program} {shlex.join(map(_shown_argument, sys.argv[1:]))}".rstrip(),
        "date": date.today().isoformat(),
        "hardware": hardware(device),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def shown_places(protocol: Any, field: str = "") -> Any:
    """A protocol without absolute paths, which say more of a machine and its user than of a result: digests say what
    lay there.
    """
    if isinstance(protocol, dict):
        return {name: shown_places(value, str(name)) for name, value in protocol.items()}
    if isinstance(protocol, list):
        return [shown_places(value, field) for value in protocol]
    return _shown(protocol) if field in PLACES and isinstance(protocol, str) else protocol


def _shown_argument(argument: str) -> str:
    """An argument of the command: PATH, --option=PATH, field=PATH, videomae:PATH, field={path: PATH}."""
    if "{" in argument:
        return INNER.sub(lambda found: _shown(found[0]), argument)
    length = len(PREFIX.match(argument)[0])  # type: ignore[index]  # it matches anything
    return argument[:length] + _shown(argument[length:])


def _shown(path: str) -> str:
    """A path below the current folder; of one that is elsewhere its name."""
    if not Path(path).is_absolute():
        return path
    place = Path(os.path.normpath(path))
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else f".../{place.name}"


def digest_model(model: str | None) -> str:
    """`digest` of the default model (None), of a folder, or of what the cache holds of a hub id."""
    folder = model_folder(model)
    if folder.is_dir():
        return digest(folder)
    cached = try_to_load_from_cache(str(model), "model_index.json")
    return digest(Path(cached).parent) if isinstance(cached, str) else str(model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware(device: str | None = None) -> str:
    """The device, by default a GPU if there is one; of a CPU with the number of threads."""
    if torch.cuda.is_available() if device is None else device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def digest(folder: Path) -> str:
    """sha256 over the weights and configurations of a model folder, shared ones included, by name.

    Of configurations what diffusers notes of their origin does not count.
    """
    total = hashlib.sha256()
    places = {"": folder, **shared_components(folder)}
    files = {
        (Path(part) / path.relative_to(place)).as_posix(): path
        for part, place in places.items()
        for path in (*place.rglob("*.safetensors"), *place.rglob("*.json"))
    }
    for name, path in sorted(files.items()):
        total.update(name.encode())
        total.update(_configuration(path) if path.suffix == ".json" else bytes.fromhex(sha256(path)))
    return total.hexdigest()


def _configuration(path: Path) -> bytes:
    content = json.loads(path.read_bytes())
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in ORIGIN}
    return json.dumps(content, sort_keys=True).encode()


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """sha256 over the names, shapes, types and values of tensors, by name; what is no tensor is left out."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, torch.Tensor):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
