"""The processes of a run, which torchrun or accelerate started: who takes part, and how they stay together.

accelerator = start(config)
found = first_process(accelerator, lambda: ...)            # what one of them finds or refuses, all of them do
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from .config import TrainConfig


def start(config: TrainConfig) -> Accelerator:
    """Who takes part in the run, and in which precision.

    Raises:
        ValueError: the batch cannot be dealt out to so many processes, or `loop.parallel` is for another number.
    """
    loop = config.loop
    accelerator = Accelerator(
        mixed_precision="bf16" if loop.precision == "bf16" else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=bool(getattr(config.objective, "takes_turns", False))
            ),
            InitProcessGroupKwargs(timeout=timedelta(seconds=loop.timeout_s)),
        ],
    )
    accelerator.gradient_accumulation_steps = loop.parts(accelerator.num_processes)
    if loop.parallel is not None and loop.parallel.processes != accelerator.num_processes:
        raise ValueError(
            f"loop.parallel: shard {loop.parallel.shard} x replicate {loop.parallel.replicate} = "
            f"{loop.parallel.processes}, but the number of processes is {accelerator.num_processes}"
        )
    return accelerator


def first_process(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """What the first process finds; what it refuses all of them refuse, and none is left waiting."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer = [action(), None]
        except (ValueError, OSError) as error:
            answer = [None, error]
    found, refusal = broadcast_object_list(answer)
    if refusal is not None:
        raise refusal
    return found


def every_process(action: Callable[[], Any]) -> Any:
    """What each process finds for itself; what one of them refuses all of them refuse, and none is left waiting."""
    found, refusal = None, None
    try:
        found = action()
    except (ValueError, OSError) as error:
        refusal = error
    refusals = [each for each in gather_object([refusal]) if each is not None]
    if refusals:
        raise refusals[0]
    return found


def seed_of_layers(seed: int, step: int, rank: int) -> int:
    """Of layers that draw by themselves, such as dropout: another one for each step and process."""
    if rank == 0:
        return seed * 1_000_003 + step
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
