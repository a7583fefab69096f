"""The model that ships with the package, and where any model lies.

model_folder(None) == model_folder("default") == DEFAULT_MODEL;  model_folder("my-model") == Path("my-model")
"""

from pathlib import Path

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"


def model_folder(model: str | Path | None) -> Path:
    """Where a model lies: the default one for None or "default", else the folder or hub id itself."""
    return DEFAULT_MODEL if model is None or str(model) == "default" else Path(model)
