"""The training loop, the same for every stage.

    train(load_config("configs/sprites/autoencoder.yaml"))      # the same call again goes on where it stopped

Everything random is a function of (seed, number of the sample) or (seed, step), so a checkpoint holds no generator
state and a killed run, resumed, is bit-identical on a CPU to one that was never killed.
"""

import json
import logging
import math
import signal
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.training_utils import EMAModel
from transformers import PreTrainedModel

from cmd_video.data.files import whole_folder, write_whole
from cmd_video.diffusion.objective import DiffusionSettings

from .build import build_stage
from .captions import caption_remarks, captions_of
from .checkpoint import (
    load_latest,
    pack_optimizer,
    remove_old_checkpoints,
    save_checkpoint,
    unpack_optimizer,
)
from .classes import settle_classes, write_names
from .components import build_components
from .config import PLAIN_OBJECTIVES, STAGES, LoopConfig, OptimizerConfig, TrainConfig
from .data import ClipDataset, StepSampler, finish_batch, fixed_batches, training_batches
from .logs import RunLog
from .stage import Stage, to_device

logger = logging.getLogger(__name__)
CLIPS_FOR_STATISTICS = 256


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of a step: 1) linear warm-up, 2) constant, or a half cosine to zero at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def train(config: TrainConfig) -> Path:
    """Run a stage to its last step and save its components.

    Args:
        config: the run. If `output_dir` holds a checkpoint of it, training goes on from there.

    Returns:
        The folder with the trained components, `output_dir/pipeline`.

    Raises:
        ValueError: the data or the components do not fit, or the loss is not a number.
        OSError: no space on disk, or no permission.
    """
    with ExitStack() as cleanup:  # however the run ends, the log is closed and signals act as before
        return _run(config, cleanup)


def _run(config: TrainConfig, cleanup: ExitStack) -> Path:
    # Set up.
    loop = config.loop
    accelerator = Accelerator(
        mixed_precision="bf16" if loop.precision == "bf16" else "no",
        gradient_accumulation_steps=loop.gradient_accumulation_steps,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=bool(getattr(config.objective, "takes_turns", False)))
        ],
    )
    run = Path(config.output_dir)
    per_process = loop.gradient_accumulation_steps * accelerator.num_processes
    if loop.batch_size % per_process:
        raise ValueError(
            f"loop.batch_size: {loop.batch_size} is not divisible by accumulation x processes = {per_process}"
        )
    dataset, validation_dataset = config.data.open(on_device=True), config.validation.data.open()
    captions = captions_of(dataset) if _needs_captions(config) else None
    stage = build_stage(config, build_components(config.components, captions, config.seed))
    classes = settle_classes(config, stage.num_classes, dataset, validation_dataset)
    if accelerator.is_main_process:
        _claim(run, config)
        write_names(run, classes.names)
    _speed_up(stage, dataset, loop)
    stage.place(accelerator.device)
    optimizer = torch.optim.AdamW(
        stage.parameter_groups(),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=True if accelerator.device.type == "cuda" else None,
    )
    wrapped, optimizer = accelerator.prepare(stage, optimizer)
    ema = EMAModel(stage.learning().values(), decay=loop.ema_decay)
    ema.to(accelerator.device)

    # Resume.
    first_step = 0
    best: dict[str, Any] = {"step": None, "loss": math.inf}
    found = load_latest(run / "checkpoints")
    if found is not None:
        first_step, tensors, state = found
        _restore(stage, optimizer, ema, tensors, state)
        if state["best"]["step"] is not None:
            best = dict(state["best"])
    log = RunLog(run, first_step, loop.steps, enabled=accelerator.is_main_process)
    cleanup.callback(log.close)
    if found is None and accelerator.is_main_process:
        _remark(log, stage, {"data": dataset, "validation.data": validation_dataset})
    if found is not None:
        log.pending = found[2].get("pending", [])
    stop = StopRequest(loop.max_minutes)
    cleanup.callback(stop.restore)

    # Data.
    sampler = StepSampler(
        first_step,
        loop.steps,
        loop.batch_size,
        loop.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = iter(training_batches(dataset, sampler, loop.num_workers, classes.training))
    validation = config.validation
    held_out = fixed_batches(validation_dataset, validation.num_clips, validation.batch_size, classes.validation)

    # Train.
    wrapped.train()
    for step in range(first_step, loop.steps):
        torch.manual_seed(config.seed * 1_000_003 + step)  # for layers that draw by themselves
        rate = learning_rate(step, loop.steps, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        total_loss = 0.0
        for _ in range(loop.gradient_accumulation_steps):
            batch = finish_batch(dataset, to_device(next(loader), accelerator.device))
            with accelerator.accumulate(wrapped), accelerator.autocast():
                loss = wrapped(batch)
                accelerator.backward(loss)
            mean_loss = accelerator.reduce(loss.detach(), reduction="mean").item()
            if not math.isfinite(mean_loss):
                raise ValueError(
                    f"step {step + 1}: the loss is {mean_loss}; stopped before the update, {run} keeps its checkpoints"
                )
            total_loss += mean_loss / loop.gradient_accumulation_steps
        norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), config.optimizer.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise ValueError(f"step {step + 1}: the gradient norm is {norm}; stopped before the update")
        optimizer.step()
        optimizer.zero_grad()
        ema.step(stage.learning().values())
        done = step + 1

        # Report, validate, save.
        log.step(done, loss=total_loss, lr=rate, grad_norm=norm, **stage.terms)
        if done % loop.log_every == 0 or done == loop.steps:
            log.write(done)
        if done % loop.validate_every == 0 or done == loop.steps:
            metrics = _validate(stage, ema, held_out, log, done, config)
            if metrics["loss"] < best["loss"]:
                best = {"step": done, "loss": metrics["loss"]}
        stop.agree(accelerator)
        ends = done == loop.steps or stop.requested or stop.late
        due = done % loop.checkpoint_every == 0 or done == best["step"] or ends
        if due and accelerator.is_main_process:
            _save(run, done, stage, optimizer, ema, best, log.pending, config)
        if stop.requested:
            accelerator.wait_for_everyone()
            raise SystemExit(128 + stop.requested)
        if stop.late:
            break

    # Finish.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remove_old_checkpoints(run / "checkpoints", loop.steps, loop.keep_last, best["step"])
        ema.copy_to(stage.learning().values())
        export_components(stage, dataset, run / "pipeline", classes.names)
    del wrapped  # freed after its process group it can hang: the group's threads would wait for Python's lock
    accelerator.free_memory()
    accelerator.end_training()
    return run / "pipeline"


def _remark(log: RunLog, stage: Stage, datasets: dict[str, ClipDataset]) -> None:
    """Write down what of the data is not used: clips that were left out, ends of captions."""
    for place, dataset in datasets.items():
        for line in getattr(dataset, "remarks", ()):
            log.remark(0, f"{place}: {line}")
        for line in caption_remarks(stage.components, dataset, place):
            logger.warning(line)
            log.remark(0, line)


def _speed_up(stage: Stage, dataset: ClipDataset, loop: LoopConfig) -> None:
    """Gradient checkpointing and compilation, as far as the configuration asks for them."""
    if loop.gradient_checkpointing:
        for name in stage.trained:
            component = getattr(stage, name)
            if isinstance(component, PreTrainedModel):
                component.gradient_checkpointing_enable()
            else:
                component.enable_gradient_checkpointing()
    if loop.compile:
        stage.compile_trained()
        if hasattr(dataset, "compiled"):  # it draws its clips on the device
            dataset.compiled = True


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that the loop can save and leave after the current step; and when time is up.

    Args:
        minutes: how long the loop may run; None = no limit.

    Attributes:
        requested: the signal's number, 0 for none.
        late: whether time is up, as of the last `agree`.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.requested = 0
        self.late = False
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not in the main thread: the caller handles signals
                return

    def agree(self, accelerator: Accelerator) -> None:
        """Let all processes leave after the same step, whichever got the signal or ran out of time first."""
        self.late = time.monotonic() >= self.deadline
        if accelerator.num_processes > 1:
            mine = torch.tensor([[self.requested, self.late]], device=accelerator.device)
            requested, late = accelerator.gather(mine).amax(dim=0).tolist()
            self.requested, self.late = requested, bool(late)

    def restore(self) -> None:
        """Let the signals act as they did before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = number


def export_components(stage: Stage, dataset: ClipDataset, folder: Path, class_names: Sequence[str] = ()) -> None:
    """Save every component of a stage, in the layout of a diffusers pipeline without its index, and names of classes.

    The autoencoder stage measures the statistics of the motion latents first. The folder appears complete or not at
    all.
    """
    stage.eval()
    with torch.no_grad():
        stage.finish(fixed_batches(dataset, CLIPS_FOR_STATISTICS, 16))
    with whole_folder(folder, replace=True) as temporary:
        for name, component in stage.components.items():
            component.save_pretrained(temporary / name)
        stage.save_extras(temporary)
        write_names(temporary, class_names)


def _claim(run: Path, config: TrainConfig) -> None:
    """Write the resolved configuration into the run folder; refuse a folder that belongs to another run."""
    run.mkdir(parents=True, exist_ok=True)
    resolved = config.model_dump(mode="json", by_alias=True)
    path = run / "config.json"
    if path.is_file():
        previous = json.loads(path.read_text())
        fixed = [
            "stage",
            "seed",
            "components",
            *(["data"] if _needs_captions(config) else []),
        ]  # a tokenizer's captions
        fields = type(config.data).model_fields.items()  # those that are newer than the run have their defaults
        defaults = {name: field.default for name, field in fields if not field.is_required()}
        previous["data"] = defaults | previous.get("data", {})
        changed = [key for key in (*fixed, "edit") if previous.get(key) != resolved[key]]
        before = {"kind": STAGES[config.stage].objective} | previous.get("objective", {})
        changed += [f"objective.{name}" for name in _other_objective(config.objective, before)]
        if changed:
            raise ValueError(
                f"output_dir: {run} belongs to a run with another {' and '.join(changed)}; choose a new folder"
            )
    write_whole(path, json.dumps(resolved, indent=1))


def _other_objective(objective: Any, before: dict[str, Any]) -> list[str]:
    """Fields in which an objective differs from another one, of those that decide what is trained at all."""
    if before["kind"] != objective.kind:
        return ["kind"]
    fields = type(objective).model_fields
    deciding = (
        {"process"} if objective.kind in PLAIN_OBJECTIVES else fields.keys() - DiffusionSettings.model_fields.keys()
    )
    now = objective.model_dump(mode="json")
    newer = {name: fields[name].default for name in deciding & fields.keys()}  # than the run: have their defaults
    return sorted(name for name in newer if before.get(name, newer[name]) != now[name])


def _needs_captions(config: TrainConfig) -> bool:
    return any("tokenizer" in name and part.path is None for name, part in config.components.items())


def _restore(stage: Stage, optimizer: Any, ema: EMAModel, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    """All or nothing: a missing part is an error."""
    try:
        stage.load_state_dict(tensors["model"])
        if state["optimizer_groups"] is not None:  # a light checkpoint has no moments, they start anew
            inner = getattr(optimizer, "optimizer", optimizer)
            unpack_optimizer(inner, tensors["optimizer"], state["optimizer_groups"])
        names = list(stage.learning())
        ema.load_state_dict(
            {**ema.state_dict(), **state["ema"], "shadow_params": [tensors["ema"][name] for name in names]}
        )
        ema.to(next(stage.parameters()).device)
    except (KeyError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 300)  # torch names every weight
        raise ValueError(f"the checkpoint of step {state['step']} does not fit this run: {reason}") from error


def _save(
    run: Path,
    step: int,
    stage: Stage,
    optimizer: Any,
    ema: EMAModel,
    best: dict[str, Any],
    pending: list[dict[str, float]],
    config: TrainConfig,
) -> None:
    moments, groups = pack_optimizer(getattr(optimizer, "optimizer", optimizer))
    tensors = {
        "model": stage.state_dict(),
        "ema": dict(zip(stage.learning(), ema.shadow_params, strict=True)),
        "optimizer": moments,
    }
    state = {
        "optimizer_groups": groups,
        "ema": {"optimization_step": ema.optimization_step},
        "best": {"step": best["step"], "loss": best["loss"] if best["step"] is not None else None},
        "pending": pending,  # values for the next line of the log
        "stage": config.stage,
    }
    save_checkpoint(run / "checkpoints", step, tensors, state)
    remove_old_checkpoints(run / "checkpoints", step, config.loop.keep_last, best["step"])


@torch.no_grad()
def _validate(
    stage: Stage, ema: EMAModel, held_out: list[dict[str, Any]], log: "RunLog", step: int, config: TrainConfig
) -> dict[str, float]:
    """Mean metrics of the averaged weights on held-out clips at fixed timesteps, and a sample grid."""
    ema.store(stage.learning().values())
    ema.copy_to(stage.learning().values())
    stage.eval()
    try:
        device = next(stage.parameters()).device
        metrics = [stage.validate(to_device(batch, device)) for batch in held_out]
        sizes = torch.tensor([float(len(batch["number"])) for batch in held_out])
        means = {
            key: float((torch.stack([m[key].float().cpu() for m in metrics]) * sizes).sum() / sizes.sum())
            for key in metrics[0]
        }
        count = min(config.validation.num_samples, len(held_out[0]["number"]))
        grid = None
        if count and log.enabled:
            few = {key: value[:count] for key, value in held_out[0].items()}
            grid = stage.sample_grid(to_device(few, device))
    finally:
        ema.restore(stage.learning().values())
        stage.train()
    log.validation(step, means, grid)
    return means
