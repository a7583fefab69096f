"""What each block of a model carries, and what it costs, in one call, with the protocol in the file it writes.

    rows = importance("configs/sprites/turbo-motion.yaml", Path("importance.json"))
    rows["down_blocks.0.layers.1+up_blocks.3.layers.0"]["importance"]

The model is the one that the stage of a training configuration trains: a denoiser, an autoencoder or a decoder.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cmd_video.data.shares import Share
from cmd_video.diffusion.objective import VALIDATION_TIMESTEPS
from cmd_video.evaluation.networks.pixel_features import pixel_distances
from cmd_video.evaluation.protocol.results import ORIGIN, digest_tensors, write_result
from cmd_video.evaluation.protocol.shared_work import Progress, SharedRows, discard, processes
from cmd_video.evaluation.protocol.tables import digest_all
from cmd_video.pruning.importance import LeaveOut, NoisyBatch, removable_units, weight_importance
from cmd_video.training.autoencoder_stage import AutoencoderStage
from cmd_video.training.build import build_stage
from cmd_video.training.classes import validation_numbers
from cmd_video.training.components import build_components
from cmd_video.training.config import TrainConfig, load_config
from cmd_video.training.data import fixed_batches
from cmd_video.training.decoder import DecoderStage
from cmd_video.training.stage import to_device
from cmd_video.training.stages import DiffusionStage

Cost = Literal["parameters", "flops", "seconds"]
Measure = Literal["loss", "frechet", "magnitude", "taylor"]
Measured = DiffusionStage | AutoencoderStage | DecoderStage
LEARNED = ("unet", "motion_transformer", "video_model", "text_encoder", "motion_text_encoder", "autoencoder")
Row = dict[str, Any]


def importance(
    config: TrainConfig | str | Path,
    output: Path | None = None,
    cost: str = "flops",
    measure: str = "loss",
    num_clips: int = 64,
    device: str = "cpu",
    share: Share | None = None,
    progress: Progress | None = None,
) -> dict[str, Row]:
    """How much worse a model becomes without each of its blocks: in content, and in motion.

    Several processes share the blocks; only the first has the result.

    Args:
        config: a training configuration, or its file; the model must have a `path` in it, a fresh one knows nothing.
        output: JSON file for rows and protocol; work that was interrupted beside it goes on. None = no file.
        cost: what a budget counts: "parameters", "flops" or "seconds".
        measure: what counts as importance: "loss"; "frechet" (as VDMini measures: clips are generated without each
            block, with the steps and guidance of `validation`, and their distance to the true ones is in averaged
            pixels, which suits small synthetic clips); "magnitude" or "taylor" (`weight_importance`).
        num_clips: held-out clips, at least 2.
        device: where the model runs.
        share: the blocks to measure here, where other processes measure the others beside the same output; the call
            without a share then has the rows.
        progress: called with (blocks done, all blocks).

    Returns:
        block -> the fields of `BlockImportance`, `importance` and `cost`; blocks that leave only together are joined
        by "+".

    Raises:
        ValueError: the stage has no blocks to measure, its model is fresh, or an argument is wrong.
        ShareDone: the blocks of a share are measured.
    """
    if share is not None and output is None:
        raise ValueError(f"shard: {share} is kept beside an output; give one")
    for name, value, allowed in (("cost", cost, get_args(Cost)), ("measure", measure, get_args(Measure))):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    state, device = processes(device)
    settings = config if isinstance(config, TrainConfig) else load_config(Path(config))
    stage = open_stage(settings, device)
    batches = _validation_batches(settings, stage.num_classes, num_clips, device)
    model = stage.components[stage.trained[0]]
    units = removable_units(model)
    if not units:
        raise ValueError(f"config: the {type(model).__name__} it trains has no block that could leave")
    protocol = {**_protocol(stage, settings, batches), "cost": cost, "measure": measure}
    noisy = [stage.noisy_batch(batch) for batch in batches]
    make = _measured_rows(stage, batches, noisy, units, measure)
    with ExitStack() as kept:
        beside = Path(kept.enter_context(tempfile.TemporaryDirectory())) / "rows" if output is None else output
        work = beside.with_name(f"{beside.name}.parts")
        rows = SharedRows(work, protocol, share)(len(units) + 1, 1, make, progress)
        if not state.is_main_process:
            return {}
        whole = rows.pop(0)["frechet"]
        values = {row["block"]: _judged(row, whole, cost) for row in rows}
        if measure in ("magnitude", "taylor"):
            for block, score in weight_importance(model, noisy, measure, units).items():  # type: ignore[arg-type]
                values[block]["importance"] = score
        if output is not None:
            write_result(output, "importance", values, protocol | {"frechet_of_the_whole_model": whole}, device)
            discard(work)
    return values


def open_stage(settings: TrainConfig, device: str = "cpu") -> Measured:
    """The stage of a configuration whose models are all trained, in evaluation mode.

    Raises:
        ValueError: one is fresh, or the stage has no blocks to measure.
    """
    learned = (*LEARNED, "vae", "teacher") if settings.stage == "decoder" else LEARNED
    fresh = [name for name, part in settings.components.items() if part.path is None and name in learned]
    if fresh:
        raise ValueError(f"components.{fresh[0]}: has fresh weights, which carry nothing; give it a `path`")
    stage = build_stage(settings, build_components(settings.components)).eval().to(device)
    if not isinstance(stage, Measured):
        raise ValueError(f"stage: {settings.stage!r} has no blocks to measure")
    stage.place(torch.device(device))
    return stage


def _validation_batches(settings: TrainConfig, num_classes: int, num_clips: int, device: str) -> list[Row]:
    """Validation clips, their classes by the numbers of a network that knows so many."""
    dataset = settings.validation.data.open()
    classes = validation_numbers(settings, num_classes, dataset)
    batches = fixed_batches(dataset, num_clips, settings.validation.batch_size, classes)
    return [to_device(batch, torch.device(device)) for batch in batches]


def _measured_rows(
    stage: Measured, batches: list[Row], noisy: list[NoisyBatch], units: list[tuple[str, ...]], measure: str
) -> Callable[[list[int]], list[Row]]:
    """What makes the rows that are kept: number 0 is the whole model, the others lack a unit each."""
    model = stage.components[stage.trained[0]]
    leave_out = cache(lambda: LeaveOut(model, noisy))  # the whole model's predictions, once and only if needed

    def make(numbers: list[int]) -> list[Row]:
        rows = []
        for number in numbers:
            row, view = leave_out()(units[number - 1]) if number else (None, model)
            distances = _distances(stage, view, batches) if measure == "frechet" else {}
            rows.append({**(asdict(row) if row else {}), "frechet": distances})
        return rows

    return make


def _judged(row: Row, whole: dict[str, float], cost: str) -> Row:
    """A row with its importance: growth of the loss, or where clips were made, of their distances."""
    growth = [row["frechet"][kind] / whole[kind] - 1 for kind in whole]
    row = {**row, "importance": sum(growth) / len(growth) if growth else row["loss"], "cost": row[cost]}
    if not growth:
        del row["frechet"]
    return row


@torch.no_grad()
def _distances(stage: Measured, model: Any, batches: list[Row]) -> dict[str, float]:
    """Fréchet distances of the clips that a model makes from the true ones, of the same conditions or themselves."""
    if not isinstance(stage, DiffusionStage):
        known = [stage.noisy_batch(batch) for batch in batches]
        return pixel_distances([batch.call(model) for batch in known], [batch.target for batch in known])
    examples = [stage.denoiser.example(batch) for batch in batches]
    true = [stage.denoiser.pixels(x_0, condition) for x_0, condition in examples]
    generated = [
        stage.denoiser.pixels(stage.draw_samples(batch, model), condition)
        for batch, (_, condition) in zip(batches, examples, strict=True)
    ]
    return pixel_distances(generated, true)


def _protocol(stage: Measured, settings: TrainConfig, batches: list[Row]) -> dict[str, Any]:
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
    config = getattr(part, "config", {})
    fields = {
        key: value for key, value in dict(getattr(config, "to_dict", lambda: config)()).items() if key not in ORIGIN
    }
    weights = digest_tensors(part.state_dict()) if hasattr(part, "state_dict") else ""
    return hashlib.sha256(f"{weights} {json.dumps(fields, sort_keys=True, default=str)}".encode()).hexdigest()
