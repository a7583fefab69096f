"""`cmd-video prune MODEL -o DIR`: a smaller model, with the blocks left out that a rule, a file or a budget says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import NewFolder, Revision

if TYPE_CHECKING:
    import torch

    from cmd_video.pruning.selection import BlockSelection

FETCHED = ("*.json", "*.txt", "*.safetensors", "*.model")  # what loading reads: no pickles, pictures or older copies
DENOISERS = ("unet", "transformer", "motion_transformer")


def command(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a pipeline or of one model; `default` is the shipped model.")
    ],
    output: NewFolder,
    component: Annotated[
        str | None, typer.Option(help="Which part of a pipeline; default: its unet or transformer.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="vdmini, for UNets and decoders of at least 3 stages; middle, for transformers.")
    ] = None,
    selection: Annotated[Path | None, typer.Option(help="JSON file that names the blocks to leave out.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the cost that may stay, by --importance or, without, by the weights alone."),
    ] = None,
    importance: Annotated[
        Path | None,
        typer.Option(help="What `cmd-video evaluate importance` wrote, or JSON: block -> {importance, cost}."),
    ] = None,
    revision: Revision = None,
) -> None:
    """Leave blocks out of a model; the rest keeps its weights and should be trained further.

    Example: cmd-video prune path/to/svd --rule vdmini -o svd-small
    """
    if sum(value is not None for value in (rule, selection, budget)) != 1:
        raise ValueError("--rule, --selection, --budget: give one of them")
    if importance is not None and budget is None:
        raise ValueError("--importance: it belongs to --budget")
    from cmd_video.pruning.pruned_models import check_prunable, prune
    from cmd_video.pruning.selection import BlockSelection, select_blocks, select_by_importance

    known = None if selection is None else BlockSelection.load(selection)
    measured = None if importance is None else _read_importance(importance)
    pipe, teacher, name = _open(model, component, revision)
    check_prunable(teacher)
    if known is not None:
        chosen = known
    elif measured is not None:
        chosen = select_by_importance(teacher, *measured, float(budget or 0))
    elif budget is not None:
        chosen = select_blocks(teacher, "magnitude", budget)
        print("chosen by the weights alone; `cmd-video evaluate importance` measures what matters, for --importance")
    else:
        chosen = select_blocks(teacher, str(rule))
    student = prune(teacher, chosen)
    before, after = (sum(tensor.numel() for tensor in part.parameters()) for part in (teacher, student))
    _write(pipe, name, student, chosen, output)
    print(f"{name or type(teacher).__name__}: {before / 1e6:.1f} M -> {after / 1e6:.1f} M parameters")
    print("left out: " + ", ".join(chosen.removed))
    if pipe is not None and type(pipe).__name__ != "CMDPipeline":
        print(f"to load it: import {type(student).__module__}, then {type(pipe).__name__}.from_pretrained")
    print(output)


def _open(model: str, component: str | None, revision: str | None) -> tuple[Any, Any, str | None]:
    """The pipeline (None for a single model), the model to prune and its name in the pipeline."""
    folder = _folder(model, revision)
    if (folder / "config.json").is_file():
        if component is not None:
            raise ValueError(f"--component: {model} is a single model, no pipeline")
        return None, _load_model(folder), None
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"MODEL: {folder} holds neither a pipeline (model_index.json) nor a model (config.json)")
    import torch

    from cmd_video.pipelines.shipped import component_folder

    index = _read_object(folder / "model_index.json")
    parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    if "transformer_2" in parts:
        raise ValueError(
            f"MODEL: {folder}: transformer and transformer_2 share the noise levels; pairs are not pruned"
        )
    name = component or next((name for name in DENOISERS if name in parts), None)
    if name not in parts:
        raise ValueError(f"--component: {name!r} is none of {', '.join(parts)}")
    dtypes = {part: _dtype(component_folder(folder, part)) for part in parts}
    pipe = _load_pipeline(_pipeline_class(folder, index), folder, index, {"default": torch.float32} | dtypes)
    return pipe, getattr(pipe, str(name)), name


def _load_pipeline(kind: Any, folder: Path, index: dict[str, Any], dtypes: dict[str, Any]) -> Any:
    """All of a pipeline, which is saved again whole."""
    import transformers

    from cmd_video.models.whole import check_whole, load_whole

    loaded = {}
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list) and entry[:1] == ["transformers"] and len(entry) == 2:
            part = getattr(transformers, str(entry[1]), None)
            if isinstance(part, type) and issubclass(part, transformers.PreTrainedModel) and (folder / name).is_dir():
                loaded[name] = load_whole(part, folder, "MODEL", subfolder=name, dtype=dtypes.get(name)).eval()
    try:
        pipe = kind.from_pretrained(str(folder), torch_dtype=dtypes, trust_remote_code=False, **loaded)
    except (AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"MODEL: {folder / 'model_index.json'} names what is not known: {error}") from error
    except RecursionError as error:
        raise ValueError(f"MODEL: {folder} cannot be loaded, a file in it is too deep: {error}") from error
    for name, part in pipe.components.items():
        check_whole(part, f"MODEL: {folder / name}")
    return pipe


def _folder(model: str, revision: str | None) -> Path:
    """Where a model lies; one that is on the hub is fetched, of this revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    from cmd_video.pipelines.shipped import model_folder

    folder = model_folder(model)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"--revision: {revision}, but {folder} is a folder here; leave it out")
        return folder
    if folder.is_absolute() or len(folder.parts) != 2:
        raise ValueError(f"MODEL: no folder {model}")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FETCHED)))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"MODEL: no folder {model}, nor could it be fetched from the hub: {error}") from error


def _pipeline_class(folder: Path, index: dict[str, Any]) -> Any:
    import diffusers

    from cmd_video.pipelines.pipeline_cmd import CMDPipeline

    name = str(index.get("_class_name"))
    kind = CMDPipeline if name == "CMDPipeline" else getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ValueError(f"MODEL: {folder} is a pipeline of the class {name!r}, which is not known")
    return kind


def _load_model(folder: Path) -> Any:
    """One model, by the class that its configuration names."""
    import diffusers

    from cmd_video import models
    from cmd_video.models.whole import load_whole
    from cmd_video.pruning import pruned_models

    name = str(_read_object(folder / "config.json").get("_class_name"))
    for module in (models, pruned_models, diffusers):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin):
            return load_whole(kind, folder, "MODEL", torch_dtype=_dtype(folder))
    raise ValueError(f"MODEL: {folder} holds a {name!r}, which is not known")


def _dtype(folder: Path) -> "torch.dtype":
    """What a component's weights are saved as, float32 where there are none."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no dict
                dtype = file.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object."""
    from cmd_video.data.files import read_json

    try:
        return read_json(path, dict)
    except ValueError as error:
        raise ValueError(f"MODEL: {error}") from error


def _read_importance(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Importance and cost of each block, from a file."""
    from cmd_video.data.files import read_json

    try:
        blocks = read_json(path, dict)
        blocks = blocks.get("values", blocks)
        values = {key: float(row["importance"]) for key, row in blocks.items()}
        costs = {key: float(row["cost"]) for key, row in blocks.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--importance: {path} is not of the form {{block: {{importance, cost}}}}: {error}"
        ) from error
    return values, costs


def _write(pipe: Any, name: str | None, student: Any, chosen: "BlockSelection", output: Path) -> None:
    """The whole folder, or nothing."""
    from cmd_video.data.files import whole_folder
    from cmd_video.data.sealed import seal

    with whole_folder(output) as temporary:
        if pipe is None:
            student.save_pretrained(temporary)
        else:
            setattr(pipe, str(name), student)
            pipe.save_pretrained(temporary)
        seal(temporary)
        (temporary / "selection.json").write_text(chosen.to_json())
