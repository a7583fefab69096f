"""The training loop, the same for every stage.

    train(load_config("configs/sprites/autoencoder.yaml"))      # the same call again goes on where it stopped

Everything random is a function of (seed, number of the sample) or (seed, step), so a checkpoint holds no generator
state and a killed run, resumed, is bit-identical on a CPU to one that was never killed.
"""

import logging
import math
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from .build import build_stage
from .captions import captions_of
from .checkpoint import load_latest, name_torn, remove_old_checkpoints
from .classes import settle_classes, write_names
from .components import build_components
from .config import LoopConfig, OptimizerConfig, TrainConfig
from .data import (
    ClipDataset,
    StepSampler,
    digest_of_clips,
    finish_batch,
    fixed_batches,
    name_clips,
    training_batches,
)
from .digests import digests_of
from .fit import check_latents
from .left_out import log_failures, remark, tell_failures
from .logs import RunLog
from .outcome import measure, write_components
from .parallel import computing, gather, is_sharded, reshard, shard, share, whole
from .processes import every_process, first_process, seed_of_layers, start
from .run_folder import compare, locked, record, samples_drawn
from .run_state import check_finite, restore, save
from .sharded_checkpoint import open_stored
from .stage import Batch, Stage, compute_again, to_device
from .stopping import StopRequest

logger = logging.getLogger(__name__)
SIGNS_OF_A_LOST_PROCESS = ("Timed out waiting", "timed out after", "Connection closed by peer", "Connection reset by")


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
        ValueError: the data or the components do not fit, the folder is in use or belongs to another run, none of its
            checkpoints can be read, or the loss is not a number.
        OSError: no space on disk, or no permission; a loading process, or another process of the run, is lost.
    """
    try:
        with ExitStack() as cleanup:  # however the run ends, the log is closed and signals act as before
            return _run(config, cleanup)
    except RuntimeError as error:
        if any(sign in str(error) for sign in SIGNS_OF_A_LOST_PROCESS):
            raise TimeoutError(
                f"another process of the run ended, or did not answer for {config.loop.timeout_s:g} s (loop.timeout_s)"
            ) from error
        raise


def _run(config: TrainConfig, cleanup: ExitStack) -> Path:
    # Set up.
    loop, run = config.loop, Path(config.output_dir)
    accelerator = start(config)
    first_process(accelerator, lambda: cleanup.enter_context(locked(run)))
    found = _latest(run / "checkpoints", loop)
    dataset, validation_dataset = config.data.open(on_device=True), config.validation.data.open()
    captions = captions_of(dataset) if _needs_captions(config) else None
    stage = build_stage(config, build_components(config.components, captions, config.seed))
    classes = settle_classes(config, stage.num_classes, dataset, validation_dataset)
    check_latents(config, stage.components, dataset, validation_dataset)
    digests = first_process(accelerator, lambda: _digests(stage, dataset))
    _speed_up(stage, dataset, loop)
    wrapped, optimizer = _prepare(stage, config, accelerator)
    ema = EMAModel(stage.learning().values(), decay=loop.ema_decay)
    ema.to(accelerator.device)

    # Resume.
    first_step, tensors, state = found or (0, {}, {})
    best: dict[str, Any] = {"step": None, "loss": math.inf}
    changes = first_process(accelerator, lambda: compare(run, config, first_step, state, digests))
    samples = first_process(accelerator, lambda: samples_drawn(run, config, first_step, state))
    if found is not None:
        best = every_process(lambda: restore(stage, optimizer, ema, tensors, state, best))

    # Data.
    sampler = _sampler(accelerator, loop, first_step, samples)
    datasets = {"data": dataset, "validation.data": validation_dataset}
    if accelerator.is_main_process:
        log_failures(run, datasets)
    loader = training_batches(dataset, sampler, loop, classes.training)
    validation = config.validation
    held_out = fixed_batches(validation_dataset, validation.num_clips, validation.batch_size, classes.validation)
    if found is None:  # until now nothing was written
        first = next(loader)
        _try_out(stage, finish_batch(dataset, to_device(first, accelerator.device)), held_out[0], accelerator)
        loader = chain([first], loader)
    if accelerator.is_main_process:
        record(run, config, changes, first_step)
        write_names(run, classes.names)
    log = RunLog(run, first_step, loop.steps, enabled=accelerator.is_main_process)
    cleanup.callback(log.close)
    log.pending = state.get("pending", [])
    log.changed(first_step, [str(change) for change in changes])
    if found is None and accelerator.is_main_process:
        remark(log, stage, datasets)
        if is_sharded(stage):
            log.remark(0, share(stage))
    stop = StopRequest(loop.max_minutes)
    cleanup.callback(stop.restore)

    # Train.
    wrapped.train()
    done = first_step
    for step in range(first_step, loop.steps):
        torch.manual_seed(seed_of_layers(config.seed, step, accelerator.process_index))
        rate = learning_rate(step, loop.steps, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        total_loss, terms = 0.0, []
        clips: list[Batch] = []
        for _ in range(accelerator.gradient_accumulation_steps):
            batch = finish_batch(dataset, to_device(next(loader), accelerator.device))
            with accelerator.accumulate(wrapped), accelerator.autocast():
                loss = wrapped({"step": step, **batch})
                accelerator.backward(loss)
            terms.append(stage.terms)
            clips.append({name: batch[name] for name in ("number", "prompt", "path") if name in batch})
            mean_loss = accelerator.reduce(loss.detach(), reduction="mean").item()
            own = math.isfinite(loss.item())
            _check_number(step + 1, "loss", mean_loss, [] if own else [batch])
            total_loss += mean_loss / accelerator.gradient_accumulation_steps
        reshard(stage)
        largest = config.optimizer.max_grad_norm or math.inf
        norm = float(whole(accelerator.clip_grad_norm_(wrapped.parameters(), largest)))
        _check_number(step + 1, "gradient norm", norm, clips)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(stage.learning().values())
        done = step + 1
        samples += loop.batch_size

        # Report, validate, save.
        log.step(done, loss=total_loss, lr=rate, grad_norm=norm, **_mean_terms(terms, accelerator))
        if done % loop.log_every == 0 or done == loop.steps:
            log.write(done)
        if done % loop.validate_every == 0 or done == loop.steps:
            metrics = _validate(stage, ema, held_out, log, done, config)
            if metrics["loss"] < best["loss"]:
                best = {"step": done, "loss": metrics["loss"]}
        stop.agree(accelerator)
        ends = done == loop.steps or stop.requested or stop.late
        due = done % loop.checkpoint_every == 0 or done == best["step"] or ends
        if due:
            every_process(partial(check_finite, done, stage.learning()))
        if due and (accelerator.is_main_process or is_sharded(stage)):
            more = {"samples": samples, "digests": digests, "pending": log.pending}
            save(run, done, stage, optimizer, ema, best, more, config, first=accelerator.is_main_process)
        if stop.requested:
            accelerator.wait_for_everyone()
            raise SystemExit(128 + stop.requested)
        if stop.late:
            break

    # Finish.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        tell_failures(log, done, datasets)
        remove_old_checkpoints(run / "checkpoints", loop.steps, loop.keep_last, best["step"])
    _leave(run, stage, ema, dataset, classes.names, accelerator)
    del wrapped  # freed after its process group it can hang: the group's threads would wait for Python's lock
    accelerator.free_memory()
    accelerator.end_training()
    return run / "pipeline"


def _leave(
    run: Path, stage: Stage, ema: EMAModel, dataset: ClipDataset, class_names: Sequence[str], accelerator: Accelerator
) -> None:
    """The components with the averaged weights, in the run's folder."""
    if accelerator.is_main_process or is_sharded(stage):
        ema.copy_to(stage.learning().values())
        with computing(stage):
            measure(stage, dataset)
    if is_sharded(stage):
        gather(stage, first=accelerator.is_main_process)
    if accelerator.is_main_process:
        write_components(stage, dataset, run / "pipeline", class_names)


def _latest(folder: Path, loop: LoopConfig) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """The newest checkpoint that is whole; of a sharded run its weights are read later, by slices."""
    if loop.parallel is None:
        return load_latest(folder)
    name_torn(folder)
    return load_latest(folder, open_stored)


def _prepare(stage: Stage, config: TrainConfig, accelerator: Accelerator) -> tuple[Stage, Any]:
    """The stage as the processes share it, on its device, and AdamW of what learns."""
    if config.loop.parallel is not None:  # its networks are wrapped one by one, the stage is not
        shard(stage, config.loop, accelerator.device)
    stage.place(accelerator.device)
    optimizer = torch.optim.AdamW(
        stage.parameter_groups(),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=True if accelerator.device.type == "cuda" else None,
    )
    if config.loop.parallel is not None:
        return stage, accelerator.prepare(optimizer)
    return accelerator.prepare(stage, optimizer)


def _sampler(accelerator: Accelerator, loop: LoopConfig, first_step: int, samples: int) -> StepSampler:
    """This process's part of the samples of each step."""
    return StepSampler(
        first_step,
        loop.steps,
        loop.batch_size,
        accelerator.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        samples,
    )


def _check_number(step: int, what: str, value: float, clips: list[Batch]) -> None:
    """Raise a ValueError if a loss or a gradient is no number; `clips` are this process's, none if it is another's."""
    if not math.isfinite(value):
        where = name_clips(clips) if clips else "in another process"
        raise ValueError(
            f"step {step}: the {what} is {value}, {where}; stopped before the update, checkpoints stay as they are"
        )


def _digests(stage: Stage, dataset: ClipDataset) -> dict[str, str]:
    """Of what the run is trained with: frozen components by name, and "data"."""
    clips = digest_of_clips(dataset)
    found = digests_of({**stage.components, **stage.frozen}, without=stage.trained)
    return found if clips is None else {**found, "data": clips}


def _mean_terms(terms: Sequence[dict[str, float]], accelerator: Accelerator) -> dict[str, float]:
    """Parts of the loss of a step: means over micro-batches and processes, as the loss itself."""
    names = list(terms[0])
    if not names:
        return {}
    values = torch.tensor([[part[name] for name in names] for part in terms], dtype=torch.float64)
    means = accelerator.reduce(values.mean(dim=0).to(accelerator.device), reduction="mean")
    return dict(zip(names, means.tolist(), strict=True))


def _try_out(stage: Stage, batch: Batch, held_out: Batch, accelerator: Accelerator) -> None:
    """Pass the first clips of training and validation through the stage once, before anything is written.

    Raises:
        ValueError: components, or components and clips, do not fit each other.
    """
    clip = to_device({key: value[:1] for key, value in held_out.items()}, accelerator.device)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            with accelerator.autocast():
                stage.train()({"step": 0, **batch})
            with computing(stage):
                stage.eval().validate(clip)
            reshard(stage)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ArithmeticError, LookupError, TypeError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"components: they, or they and the clips, do not fit each other: {reason}") from error


def _speed_up(stage: Stage, dataset: ClipDataset, loop: LoopConfig) -> None:
    """Gradient checkpointing and compilation, as far as the configuration asks for them."""
    if loop.gradient_checkpointing:
        compute_again(stage)
    if loop.compile:
        stage.compile_trained()
        if hasattr(dataset, "compiled"):  # it draws its clips on the device
            dataset.compiled = True


def _needs_captions(config: TrainConfig) -> bool:
    return any("tokenizer" in name and part.path is None for name, part in config.components.items())


@torch.no_grad()
def _validate(
    stage: Stage, ema: EMAModel, held_out: list[dict[str, Any]], log: "RunLog", step: int, config: TrainConfig
) -> dict[str, float]:
    """Mean metrics of the averaged weights on held-out clips at fixed timesteps, and a sample grid.

    Raises:
        ValueError: the loss is not a number.
    """
    ema.store(stage.learning().values())
    ema.copy_to(stage.learning().values())
    stage.eval()
    try:
        device = next(stage.parameters()).device
        with computing(stage):
            metrics = [stage.validate(to_device(batch, device)) for batch in held_out]
        for batch, values in zip(held_out, metrics, strict=True):
            if not values["loss"].isfinite():
                raise ValueError(
                    f"step {step}: the validation loss is {values['loss'].item()}, {name_clips([batch])}; stopped, "
                    f"{config.output_dir} keeps its checkpoints"
                )
        sizes = torch.tensor([float(len(batch["number"])) for batch in held_out])
        means = {
            key: float((torch.stack([m[key].float().cpu() for m in metrics]) * sizes).sum() / sizes.sum())
            for key in metrics[0]
        }
        count = min(config.validation.num_samples, len(held_out[0]["number"]))
        grid = None
        if count and (is_sharded(stage) or log.enabled):  # a pass through what is sharded is everyone's
            few = {key: value[:count] for key, value in held_out[0].items()}
            with computing(stage):
                grid = stage.sample_grid(to_device(few, device))
    finally:
        reshard(stage)
        ema.restore(stage.learning().values())
        stage.train()
    log.validation(step, means, grid)
    return means
