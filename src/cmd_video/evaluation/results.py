"""Result files: the numbers with the whole protocol that made them.

write_result(Path("benchmarks/results/adherence.json"), "adherence", values, protocol={...})
"""

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cmd_video.pipelines.shipped import model_folder

PACKAGES = (
    "cmd-video", "torch", "diffusers", "transformers", "numpy", "av", "torchmetrics", "opencv-python-headless",
)  # fmt: skip


def write_result(path: Path, name: str, values: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Write a result as JSON, with command, date, hardware and package versions; by rename.

    Raises:
        OSError: the folder cannot be written.
    """
    script = Path(sys.argv[0]).resolve()
    program = (
        f"python {script.parent.name}/{script.name}"
        if script.suffix == ".py" and script.stem != "__main__"
        else "cmd-video"
    )
    command = f"{program} {shlex.join(sys.argv[1:])}".rstrip()
    record = {
        "name": name,
        "command": command,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": {package: _version(package) for package in PACKAGES},
        "protocol": protocol,
        "values": values,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_model(model: str | None) -> str:
    """sha256 over the files of the default model (None) or of a folder; a hub id is itself."""
    folder = model_folder(model)
    return digest(folder) if folder.is_dir() else str(model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware() -> str:
    """The device and the number of threads, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """sha256 over the names, shapes, types and values of tensors, by name; what is no tensor is left out."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, torch.Tensor):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
