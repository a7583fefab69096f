"""The models that ship, in a distribution of their own (`cmd-video-sprites`), and where any model lies.

model_folder(None) == model_folder("default");  model_folder("my-model") == Path("my-model")

A component that a shipped model has no folder of its own for is the default model's: no weights are stored twice.
"""

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

SHIPPED = (
    "default",
    "turbo",  # its content model distilled for four steps; one step of the same motion model
)
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")


@lru_cache
def sprites_folder() -> Path:
    """Where the weights of the demonstration models and classifiers lie.

    Raises:
        ValueError: they are not installed; the message says what to install.
    """
    spec = find_spec("cmd_video_sprites")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model: {', '.join(map(repr, SHIPPED))} are in the package cmd-video-sprites, which is not installed: "
            "pip install 'cmd-video[sprites]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def model_folder(model: str | Path | None) -> Path:
    """Where a model lies: one that ships for its name (None = "default"), else the folder or hub id itself.

    Raises:
        ValueError: it ships, and the package with the weights is not installed.
    """
    name = "default" if model is None else str(model)
    return sprites_folder() / name if name in SHIPPED else Path(name)


def shared_components(folder: Path) -> dict[str, Path]:
    """Components that a shipped model has no folder of its own for, and where they lie; none of any other model."""
    index = folder / "model_index.json"
    if find_spec("cmd_video_sprites") is None or folder.parent != sprites_folder() or not index.is_file():
        return {}
    parts = {name for name, part in json.loads(index.read_text()).items() if isinstance(part, list) and any(part)}
    return {name: model_folder(None) / name for name in sorted(parts) if not (folder / name).is_dir()}


def component_folder(folder: Path, name: str) -> Path:
    """Where a component of a model lies; that it is there is not checked."""
    return shared_components(folder).get(name, folder / name)
