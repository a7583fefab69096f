"""`cmd-video evaluate importance CONFIG`: what each block of a model carries, and what it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Device, Output, progress_bar

if TYPE_CHECKING:
    from cmd_video.evaluation.protocol.shared_work import Make
    from cmd_video.pruning.importance import NoisyBatch
    from cmd_video.training.autoencoder_stage import AutoencoderStage
    from cmd_video.training.config import TrainConfig
    from cmd_video.training.decoder import DecoderStage
    from cmd_video.training.stages import DiffusionStage

    Measured = DiffusionStage | AutoencoderStage | DecoderStage

LEARNED = ("unet", "motion_transformer", "video_model", "text_encoder", "motion_text_encoder", "autoencoder")
COSTS = ("parameters", "flops", "seconds")
WEIGHT_MEASURES: tuple[Literal["magnitude", "taylor"], ...] = ("magnitude", "taylor")
MEASURES = ("loss", "frechet", *WEIGHT_MEASURES)


def command(
    config: Annotated[Path, typer.Argument(help="Training configuration of any stage but classifier.")],
    output: Output = Path("importance.json"),
    cost: Annotated[str, typer.Option(help="What a budget counts: parameters, flops or seconds.")] = "flops",
    measure: Annotated[
        str,
        typer.Option(help="What counts as importance: loss, frechet (clips are generated), magnitude or taylor."),
    ] = "loss",
    num_clips: Annotated[int, typer.Option(min=2, help="Held-out clips.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="PNG: what each block carries, beside what it costs.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the configuration: section.field=value.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """How much worse a model becomes without each of its blocks: in content, and in motion.

    The model is the one that the stage trains: a denoiser, an autoencoder or a decoder. It must have a `path` in the
    configuration: a fresh one knows nothing. With `--measure frechet`, as VDMini measures, clips are generated (by an
    autoencoder reconstructed) without each block, with the recipe's steps and guidance of `validation`, and their
    distance to the true ones is in averaged pixels, which suits small synthetic clips. `magnitude` and `taylor` look
    at the weights that would leave, the second also at the loss's gradient. Started again after an interruption it
    goes on; `accelerate launch -m cmd_video.cli` shares the blocks.

    Example: cmd-video evaluate importance configs/sprites/turbo-motion.yaml -o importance.json
    """
    from cmd_video.evaluation.protocol.results import write_result
    from cmd_video.evaluation.protocol.shared_work import SharedRows, discard, processes
    from cmd_video.pruning.importance import BlockImportance, plot_importance, removable_units
    from cmd_video.training.config import load_config

    _check(cost, measure, plot)
    state, device = processes(device)
    settings = load_config(config, overrides)
    stage = _open_stage(config, settings, device)
    batches = _validation_batches(settings, stage.num_classes, num_clips, device)
    model = stage.components[stage.trained[0]]
    units = removable_units(model)
    if not units:
        raise ValueError(f"{config}: its {type(model).__name__} has no block that could leave")
    protocol = {**_protocol(stage, settings, batches), "cost": cost, "measure": measure}
    noisy, work = [stage.noisy_batch(batch) for batch in batches], output.with_name(f"{output.name}.parts")
    with progress_bar("blocks", len(units) + 1) as progress:
        rows = SharedRows(work, protocol)(
            len(units) + 1, 1, _measured_row(stage, batches, noisy, units, measure),
            progress,
        )  # fmt: skip
    if not state.is_main_process:
        return
    whole = rows.pop(0)["frechet"]
    values = {row["block"]: {**row, "importance": row["loss"], "cost": row[cost]} for row in rows}
    for row in values.values():
        growth = [row["frechet"][kind] / whole[kind] - 1 for kind in whole]
        if growth:
            row["importance"] = sum(growth) / len(growth)
        else:
            del row["frechet"]
    for block, score in _by_weights(measure, model, noisy, units).items():
        values[block]["importance"] = score
    write_result(output, "importance", values, protocol | {"frechet_of_the_whole_model": whole}, device)
    discard(work)
    _print(values)
    print(output)
    if plot is not None:
        fields = BlockImportance.__dataclass_fields__
        plot_importance([BlockImportance(**{name: row[name] for name in fields}) for row in rows], plot)
        print(plot)


def _measured_row(
    stage: "Measured",
    batches: list[dict[str, Any]],
    noisy: "list[NoisyBatch]",
    units: list[tuple[str, ...]],
    measure: str,
) -> "Make":
    """What makes the rows that are kept: number 0 is the whole model, the others lack a unit each."""
    from dataclasses import asdict
    from functools import cache

    from cmd_video.pruning.importance import LeaveOut

    model = stage.components[stage.trained[0]]
    leave_out = cache(lambda: LeaveOut(model, noisy))  # the whole model's predictions, once and only if needed

    def make(numbers: list[int]) -> list[dict[str, Any]]:
        rows = []
        for number in numbers:
            row, view = leave_out()(units[number - 1]) if number else (None, model)
            distances = _distances(stage, view, batches) if measure == "frechet" else {}
            rows.append({**(asdict(row) if row else {}), "frechet": distances})
        return rows

    return make


def _check(cost: str, measure: str, plot: Path | None) -> None:
    for name, value, allowed in (("--cost", cost, COSTS), ("--measure", measure, MEASURES)):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    if plot is not None and (plot.suffix != ".png" or not plot.absolute().parent.is_dir()):
        raise ValueError(f"--plot: {plot} does not end in .png, or lies in a folder that does not exist")


def _by_weights(
    measure: str, model: Any, batches: "list[NoisyBatch]", units: list[tuple[str, ...]]
) -> dict[str, float]:
    """Importance by the weights, if the measure is of that kind."""
    from cmd_video.pruning.importance import weight_importance

    return next((weight_importance(model, batches, kind, units) for kind in WEIGHT_MEASURES if kind == measure), {})


def _protocol(stage: "Measured", settings: "TrainConfig", batches: list[dict[str, Any]]) -> dict[str, Any]:
    from cmd_video.diffusion.objective import VALIDATION_TIMESTEPS
    from cmd_video.evaluation.protocol.results import digest_tensors
    from cmd_video.evaluation.protocol.tables import digest_all
    from cmd_video.training.stages import DiffusionStage

    name = stage.trained[0]
    protocol: dict[str, Any] = {
        "model": type(stage.components[name]).__name__,
        "model_sha256": _digest_part(stage.components[name]),
        "components_sha256": {part: _digest_part(found) for part, found in stage.components.items() if part != name},
        "path": settings.components[name].path,
        "stage": settings.stage,
        "objective": settings.objective.model_dump(mode="json"),
        "clips": sum(len(batch["number"]) for batch in batches),
        "real": {"clips_sha256": digest_all([digest_tensors(batch) for batch in batches])},
        "prompts": [batch.get("prompt") for batch in batches],
        "data": settings.validation.data.model_dump(mode="json"),
    }
    if not isinstance(stage, DiffusionStage):
        return protocol
    sampling = {
        "num_inference_steps": settings.validation.num_inference_steps,
        "guidance_scale": settings.validation.guidance_scale,
        "sampler": type(stage.sampler()).__name__,
        "seed": settings.seed,
    }
    return {**protocol, "timesteps": list(VALIDATION_TIMESTEPS), "sampling": sampling}


def _digest_part(part: Any) -> str:
    """sha256 of a component: its weights, and its configuration but for where it came from."""
    import hashlib
    import json

    from cmd_video.evaluation.protocol.results import ORIGIN, digest_tensors

    config = getattr(part, "config", {})
    fields = {
        key: value for key, value in dict(getattr(config, "to_dict", lambda: config)()).items() if key not in ORIGIN
    }
    weights = digest_tensors(part.state_dict()) if hasattr(part, "state_dict") else ""
    return hashlib.sha256(f"{weights} {json.dumps(fields, sort_keys=True, default=str)}".encode()).hexdigest()


def _open_stage(path: Path, settings: "TrainConfig", device: str) -> "Measured":
    """The stage of a configuration whose models are all trained, in evaluation mode."""
    import torch

    from cmd_video.training.autoencoder_stage import AutoencoderStage
    from cmd_video.training.build import build_stage
    from cmd_video.training.components import build_components
    from cmd_video.training.decoder import DecoderStage
    from cmd_video.training.stages import DiffusionStage

    learned = (*LEARNED, "vae", "teacher") if settings.stage == "decoder" else LEARNED
    fresh = [name for name, part in settings.components.items() if part.path is None and name in learned]
    if fresh:
        raise ValueError(f"components.{fresh[0]}: has fresh weights, which carry nothing; give it a `path`")
    stage = build_stage(settings, build_components(settings.components)).eval().to(device)
    if not isinstance(stage, (DiffusionStage, AutoencoderStage, DecoderStage)):
        raise ValueError(f"{path}: the stage {settings.stage!r} has no blocks to measure")
    stage.place(torch.device(device))
    return stage


def _validation_batches(
    settings: "TrainConfig", num_classes: int, num_clips: int, device: str
) -> list[dict[str, Any]]:
    """Validation clips, their classes by the numbers of a network that knows so many."""
    import torch

    from cmd_video.training.classes import validation_numbers
    from cmd_video.training.data import fixed_batches
    from cmd_video.training.stage import to_device

    dataset = settings.validation.data.open()
    classes = validation_numbers(settings, num_classes, dataset)
    batches = fixed_batches(dataset, num_clips, settings.validation.batch_size, classes)
    return [to_device(batch, torch.device(device)) for batch in batches]


def _distances(stage: "Measured", model: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """Fréchet distances of the clips that a model makes from the true ones, of the same conditions or themselves."""
    import torch

    from cmd_video.evaluation.networks.pixel_features import pixel_distances
    from cmd_video.training.stages import DiffusionStage

    if not isinstance(stage, DiffusionStage):
        known = [stage.noisy_batch(batch) for batch in batches]
        with torch.no_grad():
            return pixel_distances([batch.call(model) for batch in known], [batch.target for batch in known])
    with torch.no_grad():
        examples = [stage.denoiser.example(batch) for batch in batches]
        true = [stage.denoiser.pixels(x_0, condition) for x_0, condition in examples]
        generated = [
            stage.denoiser.pixels(stage.draw_samples(batch, model), condition)
            for batch, (_, condition) in zip(batches, examples, strict=True)
        ]
        return pixel_distances(generated, true)


def _print(values: dict[str, dict[str, Any]]) -> None:
    print("block".ljust(52) + "importance  loss   content  motion   parameters  flops  seconds")
    for block, row in values.items():
        shares = f"{row['parameters']:8.1%} {row['flops']:8.1%} {row['seconds']:7.1%}"
        kept = f"{row['importance']:+7.1%} {row['loss']:+9.1%} {row['content']:8.2%} {row['motion']:8.2%}"
        print(f"{block:54s} {kept} {shares}")
