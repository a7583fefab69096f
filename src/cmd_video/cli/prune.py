"""`cmd-video prune MODEL -o DIR`: a smaller model, with the blocks left out that a rule, a file or a budget says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmd_video.pruning.selection import BlockSelection

DENOISERS = ("unet", "transformer", "motion_transformer")


def command(
    model: Annotated[
        str, typer.Argument(help="Folder of a pipeline or of one model; `default` is the shipped model.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; must not exist.")],
    component: Annotated[
        str | None, typer.Option(help="Which part of a pipeline; default: its unet or transformer.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="vdmini, for UNets and decoders of at least 3 stages; middle, for transformers.")
    ] = None,
    selection: Annotated[Path | None, typer.Option(help="JSON file that names the blocks to leave out.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of the cost that may stay; needs --importance.")] = None,
    importance: Annotated[
        Path | None,
        typer.Option(help="What `cmd-video evaluate importance` wrote, or JSON: block -> {importance, cost}."),
    ] = None,
) -> None:
    """Leave blocks out of a model; the rest keeps its weights and should be trained further.

    Example: cmd-video prune path/to/svd --rule vdmini -o svd-small
    """
    if sum(value is not None for value in (rule, selection, budget)) != 1:
        raise ValueError("--rule, --selection, --budget: give one of them")
    if (budget is None) != (importance is None):
        raise ValueError("--budget and --importance: they come together")
    if output.exists():
        raise ValueError(f"--output: {output} exists; choose a new folder")
    from cmd_video.pruning.pruned_models import prune
    from cmd_video.pruning.selection import BlockSelection, select_by_rule

    pipe, teacher, name = _open(model, component)
    if rule is not None:
        chosen = select_by_rule(teacher, rule)
    elif selection is not None:
        chosen = BlockSelection.load(selection)
    else:
        chosen = _within_budget(teacher, Path(str(importance)), float(budget or 0))
    student = prune(teacher, chosen)
    before, after = (sum(tensor.numel() for tensor in part.parameters()) for part in (teacher, student))
    _write(pipe, name, student, chosen, output)
    print(f"{name or type(teacher).__name__}: {before / 1e6:.1f} M -> {after / 1e6:.1f} M parameters")
    print("left out: " + ", ".join(chosen.removed))
    print(output)


def _open(model: str, component: str | None) -> tuple[Any, Any, str | None]:
    """The pipeline (None for a single model), the model to prune and its name in the pipeline."""
    from diffusers import DiffusionPipeline

    from cmd_video.pipelines.pipeline_cmd import CMDPipeline
    from cmd_video.pipelines.shipped import model_folder

    folder = model_folder(model)
    if not folder.is_dir():
        raise ValueError(f"MODEL: no folder {model}")
    if (folder / "config.json").is_file():
        if component is not None:
            raise ValueError(f"--component: {model} is a single model, no pipeline")
        return None, _load_model(folder), None
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"MODEL: {folder} holds neither a pipeline (model_index.json) nor a model (config.json)")
    index = json.loads((folder / "model_index.json").read_text())
    kind = CMDPipeline if index.get("_class_name") == "CMDPipeline" else DiffusionPipeline
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    name = component or next((name for name in DENOISERS if name in parts), None)
    if name not in parts:
        raise ValueError(f"--component: {name!r} is none of {', '.join(parts)}")
    pipe = kind.from_pretrained(str(folder))
    return pipe, getattr(pipe, str(name)), name


def _load_model(folder: Path) -> Any:
    """One model, by the class that its configuration names."""
    import diffusers

    from cmd_video import models
    from cmd_video.pruning import pruned_models

    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    for module in (models, pruned_models, diffusers):
        if isinstance(name, str) and hasattr(module, name):
            return getattr(module, name).from_pretrained(folder)
    raise ValueError(f"MODEL: {folder} holds a {name!r}, which is not known")


def _within_budget(teacher: Any, path: Path, budget: float) -> "BlockSelection":
    from cmd_video.pruning.selection import select_by_importance

    try:
        blocks = json.loads(path.read_text())
        blocks = blocks.get("values", blocks)
        values = {key: float(row["importance"]) for key, row in blocks.items()}
        costs = {key: float(row["cost"]) for key, row in blocks.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--importance: {path} is not of the form {{block: {{importance, cost}}}}: {error}"
        ) from error
    return select_by_importance(teacher, values, costs, budget)


def _write(pipe: Any, name: str | None, student: Any, chosen: "BlockSelection", output: Path) -> None:
    """The whole folder, or nothing."""
    import os

    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    if pipe is None:
        student.save_pretrained(temporary)
    else:
        setattr(pipe, str(name), student)
        pipe.save_pretrained(temporary)
    (temporary / "selection.json").write_text(chosen.to_json())
    temporary.rename(output)
