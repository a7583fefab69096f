"""Models from folders of diffusers and transformers: every weight comes from the files and is a number, and no code
does.

unet = load_whole(UNet2DConditionModel, "my-model", "components.unet.path", subfolder="unet")

The two libraries say of weights that a file lacks that they are new, and go on with random ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from .safetensors_header import check_header

OUT_OF_ORDER = (  # what loaders raise of a folder that is; the last three of a configuration that is no mapping
    *(OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError),
    *(AttributeError, KeyError, TypeError),
)
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(\.(?P<variant>\w+?))?(-\d+-of-\d+)?\.(safetensors|bin)")


def load_whole(kind: Any, path: str | Path, name: str, **options: Any) -> Any:
    """`from_pretrained` of a model class, or of an AutoModel, that gives a whole model.

    A folder that has its weights as one variant only, such as fp16, gives that one.

    Args:
        kind: the class.
        path: folder or hub id.
        name: of the argument that says the path, for the message.
        options: of `from_pretrained`.

    Raises:
        ValueError: weights are missing, damaged, of other shapes, not numbers, or a pickle of more than weights.
    """
    folder = Path(path) / (options.get("subfolder") or "")
    if options.get("variant") is None:
        options = {**options, "variant": only_variant(folder)}
    if not hasattr(kind, "_supports_group_offloading"):  # which only models of diffusers have
        options = {**options, "trust_remote_code": False, "ignore_mismatched_sizes": True}  # to name them all
    try:
        for file in sorted(folder.glob("*.safetensors")):
            check_header(file)
        model, found = kind.from_pretrained(path, output_loading_info=True, **options)
    except OUT_OF_ORDER as error:
        raise ValueError(f"{name}: {folder}: {_reason(error)}") from error
    lost = sorted(map(str, [*found["missing_keys"], *found.get("mismatched_keys", ())]))
    if lost:
        raise ValueError(f"{name}: the weights in {folder} lack {len(lost)} of the model's, such as {lost[0]}")
    _check_finite(model, f"{name}: {folder}")
    return model


def check_whole(model: Any, name: str) -> None:
    """Raise ValueError if some weights of a model have no values, as diffusers leaves them where a file lacks them, or
    values that are no numbers.
    """
    if isinstance(model, nn.Module):
        lost = [key for key, weight in (*model.named_parameters(), *model.named_buffers()) if weight.is_meta]
        if lost:
            raise ValueError(f"{name}: its files lack {len(lost)} of the model's weights, such as {lost[0]}")
        _check_finite(model, name)


def _check_finite(model: nn.Module, name: str) -> None:
    """Raise ValueError if weights hold NaN or infinity, as a broken training or a cast to float16 leaves them."""
    for key, weight in model.state_dict().items():
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() == 1:  # torch's isfinite has no
            continue  # type of 8 bits
        sum_is_finite = weight.sum(dtype=torch.float32).isfinite()  # 50 times as fast as to ask each
        if not sum_is_finite and not weight.isfinite().all():
            raise ValueError(f"{name}: {key} holds values that are not numbers")


def only_variant(folder: Path) -> str | None:
    """The variant that a folder has its weights as, if that is all it has."""
    names = [match for file in folder.glob("*") if (match := WEIGHTS.fullmatch(file.name))]
    found = {match["variant"] for match in names}
    return next(iter(found)) if len(found) == 1 else None


def _reason(error: BaseException) -> str:
    """What went wrong, without advice to load it all the same."""
    if any(isinstance(each, UnpicklingError) or "weights_only" in str(each) for each in _chain(error)):
        return "a pickle that holds more than weights; only weights are read"
    if isinstance(error, SafetensorError):
        return f"the weights are damaged: {error}"
    return str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
