"""The models that ship with the package, and where any model lies.

model_folder(None) == model_folder("default") == DEFAULT_MODEL;  model_folder("my-model") == Path("my-model")
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent
DEFAULT_MODEL = _PACKAGE / "default_model"
SHIPPED = {
    "default": DEFAULT_MODEL,
    "turbo": _PACKAGE / "turbo_model",  # the default one with half its content model left out, distilled for few steps
    "pruned": _PACKAGE / "pruned_model",  # the same content model, and half of the motion model's blocks (VDMini)
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")


def model_folder(model: str | Path | None) -> Path:
    """Where a model lies: one that ships for its name (None = "default"), else the folder or hub id itself."""
    name = "default" if model is None else str(model)
    return SHIPPED.get(name, Path(name))


def import_own_classes(index: Mapping[str, Any]) -> None:
    """Import what a model_index.json names of this package, such as pruned models: diffusers does not by itself."""
    for part in index.values():
        if isinstance(part, list) and str(part[0]).startswith("cmd_video."):
            import_module(part[0])
