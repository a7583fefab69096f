"""Models that ship with the package: the default one, and variants of it that hold only the parts that differ.

model_folder(None) == model_folder("default") == DEFAULT_MODEL;  model_folder("default-turbo")
"""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
DEFAULT_MODEL = PACKAGE / "default_model"
VARIANTS = {f"default-{name}": PACKAGE / "variants" / name for name in ("pruned", "turbo")}
SHIPPED = {"default": DEFAULT_MODEL, **VARIANTS}


def model_folder(model: str | Path | None) -> Path:
    """Where a model lies: a name of SHIPPED, None for the default one, else the folder or hub id itself."""
    if model is None:
        return DEFAULT_MODEL
    return SHIPPED.get(str(model), Path(model))
