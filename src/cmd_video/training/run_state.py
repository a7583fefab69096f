"""What a checkpoint of a run holds, and how the run goes on from it: all of it or nothing.

save(run, step, stage, optimizer, ema, best, more, config)
best = restore(stage, optimizer, ema, tensors, state, best)
"""

import textwrap
from itertools import chain
from pathlib import Path
from typing import Any

from diffusers.training_utils import EMAModel

from .checkpoint import pack_optimizer, remove_old_checkpoints, save_checkpoint, unpack_optimizer
from .config import TrainConfig
from .parallel import is_sharded, local
from .sharded_checkpoint import own_parts, save_sharded
from .stage import Stage


def restore(
    stage: Stage,
    optimizer: Any,
    ema: EMAModel,
    tensors: dict[str, Any],
    state: dict[str, Any],
    best: dict[str, Any],
) -> dict[str, Any]:
    """Put a checkpoint's tensors in their places; returns the best step so far, with its loss.

    Raises:
        ValueError: a part is missing or does not fit, or holds values that are not numbers.
    """
    try:
        inner = getattr(optimizer, "optimizer", optimizer)
        if is_sharded(stage):
            tensors = own_parts(tensors, _places(stage, inner, tensors))
        for name, weight in chain(tensors["model"].items(), tensors["ema"].items()):
            if weight.is_floating_point() and not local(weight).isfinite().all():
                raise ValueError(
                    f"the checkpoint of step {state['step']} holds values that are not numbers in {name}; remove it "
                    "to go on from the one before it"
                )
        stage.load_state_dict(tensors["model"])
        if state["optimizer_groups"] is not None:  # a light checkpoint has no moments, they start anew
            unpack_optimizer(inner, tensors["optimizer"], state["optimizer_groups"])
        averages = [tensors["ema"][name] for name in stage.learning()]
        ema.load_state_dict({**ema.state_dict(), **state["ema"], "shadow_params": []})
        ema.shadow_params = averages  # not by it, which copies deeply, as no sharded tensor can be
        ema.to(next(stage.parameters()).device)
        return best if state["best"]["step"] is None else dict(state["best"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 300)  # torch names every weight
        raise ValueError(f"the checkpoint of step {state['step']} does not fit this run: {reason}") from error


def save(
    run: Path,
    step: int,
    stage: Stage,
    optimizer: Any,
    ema: EMAModel,
    best: dict[str, Any],
    more: dict[str, Any],
    config: TrainConfig,
    first: bool = True,
) -> None:
    """Write a checkpoint, and, in the first process, remove those that are no longer kept; of a sharded stage every
    process must call it.

    Raises:
        OSError: it cannot be written.
    """
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
        "stage": config.stage,
        **more,  # samples drawn, digests of what stays as it is, values for the next line of the log
    }
    (save_sharded if is_sharded(stage) else save_checkpoint)(run / "checkpoints", step, tensors, state)
    if first:
        remove_old_checkpoints(run / "checkpoints", step, config.loop.keep_last, best["step"])


def check_finite(step: int, weights: dict[str, Any]) -> None:
    """Raise a ValueError if a weight is not a number."""
    for name, weight in weights.items():
        if not local(weight).isfinite().all():
            raise ValueError(
                f"step {step}: {name} holds values that are not numbers; not saved, older checkpoints stay. Is "
                "optimizer.lr too large?"
            )


def _places(stage: Stage, optimizer: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Tensors that lie like those of a checkpoint are to: weights, averages, moments by number and name."""
    weights = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))
    moments = [(key, *key.split(".", 1)) for key in stored.get("optimizer", {})]
    return {
        "model": stage.state_dict(),
        "ema": stage.learning(),
        "optimizer": {key: weights.get(int(number)) for key, number, name in moments if name != "step"},
    }
