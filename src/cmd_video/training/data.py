"""From the data section of a configuration to batches: a stream without state, so that resuming is only a number.

    loader = training_batches(config.data.open(), StepSampler(...), num_workers=4)

Sample n of a run is `dataset[n]`, defined for every n >= 0; each step uses the next samples, as many as its batch has,
however they are dealt out to processes and micro-batches.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from .children import end_with
from .config import LoopConfig

LESS_SHARED = "make /dev/shm larger, or loop.num_workers smaller; 0 needs none"


class ClipDataset(Protocol):
    """Items are dicts of tensors, strings and numbers; item n is a pure function of n."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class NumberedDataset(torch.utils.data.Dataset):
    """Adds `number` to each item, and gives its class the number that the network knows it by.

    Args:
        dataset: the clips.
        classes: number of a class in the dataset -> number in the network; those that are not there stay.
    """

    def __init__(self, dataset: ClipDataset, classes: Mapping[int, int] | None = None) -> None:
        self.dataset, self.classes = dataset, dict(classes or {})

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._numbered(self.dataset[number], number)

    def _numbered(self, item: dict[str, Any], number: int) -> dict[str, Any]:
        if self.classes:
            item = {**item, "class_label": self.classes.get(item["class_label"], item["class_label"])}
        return {**item, "number": number}

    def readable(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Items of these numbers but those whose clips cannot be read; no other one takes their place."""
        own = getattr(self.dataset, "item", self.dataset.__getitem__)  # only files can be damaged
        items = ((number, own(number)) for number in numbers)
        return (self._numbered(item, number) for number, item in items if item is not None)


class Loaded(NamedTuple):
    """A micro-batch on its way from a loading process.

    Attributes:
        batch: what `collate` made; None where it could not be read.
        failures: path and reason of each clip that could not be read on the way.
        problem: why there is no batch.
    """

    batch: dict[str, Any] | None
    failures: list[tuple[str, str]]
    problem: str | None


class _BatchDataset(torch.utils.data.Dataset):
    """Items are whole micro-batches, by the list of their numbers, so that what goes wrong travels as a value: an
    exception would come out of a loading process as the text of a traceback.
    """

    def __init__(self, dataset: ClipDataset, classes: Mapping[int, int] | None = None) -> None:
        self.dataset, self.numbered = dataset, NumberedDataset(dataset, classes)

    def __getitem__(self, numbers: list[int]) -> Loaded:
        failures: dict[str, str] = getattr(self.dataset, "failures", {})
        known, batch, problem = len(failures), None, None
        try:
            batch = collate([self.numbered[number] for number in numbers])
            problem = _shared(batch)
        except (ValueError, OSError) as error:
            problem = str(error)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            problem = (
                f"loop.batch_size: the {len(numbers)} clips that are loaded at a time do not fit into memory; make it "
                "or loop.micro_batch_size smaller, or loop.gradient_accumulation_steps larger"
            )
        batch = None if problem else batch
        return Loaded(batch, list(failures.items())[known:], problem)


def _shared(batch: dict[str, Any]) -> str | None:
    """In a loading process: put a batch where the trainer finds it, or say why there is no room. Left to the queue
    that it travels in, the reason would be lost and the trainer wait.
    """
    if get_worker_info() is None:
        return None
    try:
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    except (RuntimeError, OSError) as error:
        return f"data: a batch could not be put into shared memory ({error}); {LESS_SHARED}"
    return None


class StepSampler(Sampler[list[int]]):
    """The numbers of each micro-batch of this process, from one step to another.

    Args:
        first_step: steps done.
        last_step: steps of the run.
        batch_size: samples of a step.
        micro_batches: parts that a step is computed in.
        rank: number of this process.
        world: how many processes there are.
        first_sample: number of the next sample; None = as many were drawn as the steps done have at this batch size.
    """

    def __init__(
        self,
        first_step: int,
        last_step: int,
        batch_size: int,
        micro_batches: int,
        rank: int,
        world: int,
        first_sample: int | None = None,
    ) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size, self.micro_batches, self.rank, self.world = batch_size, micro_batches, rank, world
        self.first_sample = first_step * batch_size if first_sample is None else first_sample

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // (self.micro_batches * self.world)
        for step in range(len(self.steps)):
            for micro in range(self.micro_batches):
                first = self.first_sample + step * self.batch_size + (micro * self.world + self.rank) * share
                yield list(range(first, first + share))


def finish_batch(dataset: ClipDataset, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that lies on its device -> one with `video`, if the dataset leaves drawing its clips to the device."""
    finish = getattr(dataset, "finish", None)
    return batch if finish is None else finish(batch)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and numbers, keep strings as a list."""
    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        batch[key] = torch.stack(values) if isinstance(first, torch.Tensor) else values
        if isinstance(first, int):
            batch[key] = torch.tensor(values)
    return batch


def training_batches(
    dataset: ClipDataset, sampler: StepSampler, loop: LoopConfig, classes: Mapping[int, int] | None = None
) -> Iterator[dict[str, Any]]:
    """Batches of a run in order, classes numbered as `NumberedDataset` does. Clips that loading processes cannot read
    are counted here, all of them together.

    Raises:
        ValueError: clips cannot be read, or too many of them.
        OSError: a loading process died, or said nothing for `loop.timeout_s`, or could not be started.
    """
    loader = DataLoader(
        _BatchDataset(dataset, classes),
        sampler=sampler,
        batch_size=None,
        num_workers=loop.num_workers,
        timeout=loop.timeout_s if loop.num_workers else 0,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_start_loading, trainer=os.getpid()),
    )
    try:
        batches = iter(loader)  # it begins now: that takes a number from torch's generator
    except OSError as error:
        raise OSError(f"data: loading processes could not be started ({error}); {LESS_SHARED}") from error
    return _received(batches, dataset, loop)


def _received(batches: Any, dataset: ClipDataset, loop: LoopConfig) -> Iterator[dict[str, Any]]:
    while True:
        try:
            loaded = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if str(error).startswith("Caught"):  # a bug of ours, in a loading process
                raise
            _end(batches)
            if "timed out" in str(error):
                raise TimeoutError(
                    f"data: no batch came for {loop.timeout_s:g} s (loop.timeout_s) from the {loop.num_workers} "
                    "loading processes; a clip may be on a disk that does not answer"
                ) from error
            raise ChildProcessError(f"data: a loading process died ({str(error).splitlines()[0]})") from error
        if loop.num_workers:
            for path, reason in loaded.failures:
                dataset.note(path, reason)  # type: ignore[attr-defined]  # only such datasets have failures
        if loaded.problem is not None:
            raise ValueError(loaded.problem)
        yield loaded.batch


def name_clips(batches: Sequence[dict[str, Any]]) -> str:
    """Which clips micro-batches hold, for a message: those with values that are not numbers, else all of them."""
    clips, broken = [], []
    for batch in batches:
        numbers = [int(number) for number in batch["number"]]
        names = batch.get("path") or batch.get("prompt") or [""] * len(numbers)
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
        for place, (number, name) in enumerate(zip(numbers, names, strict=True)):
            clips.append(f"{number} {name!r}" if name else f"{number}")
            if not all(value[place].isfinite().all() for value in tensors if len(value) == len(numbers)):
                broken.append(clips[-1])
    chosen = broken or clips
    more = f" and {len(chosen) - 8} more" if len(chosen) > 8 else ""
    cause = ", which hold values that are not numbers" if broken else ""
    return f"of samples {', '.join(chosen[:8])}{more}{cause}"


def digest_of_clips(dataset: ClipDataset) -> str | None:
    """sha256 of which clips a dataset has, with which captions and classes; None for one that says nothing of them."""
    described = getattr(dataset, "described", None)
    return None if described is None else hashlib.sha256(json.dumps(described()).encode()).hexdigest()


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _end(batches: Any) -> None:
    """End a loader's processes at once: one that is stopped heeds nothing less, and would be waited for."""
    for process in batches._workers:
        process.kill()
    with suppress(RuntimeError):  # that they were killed
        batches._shutdown_workers()


def _start_loading(worker: int, trainer: int) -> None:
    """A signal to the trainer's whole group is for the trainer, which still needs batches to end its step and save;
    but a loading process does not outlive it, wherever it is stuck. The trainer alone reports failures.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    end_with(trainer)
    logging.getLogger("cmd_video.data").setLevel(logging.ERROR)
    info: Any = get_worker_info()
    if hasattr(info.dataset.dataset, "failure_log"):
        info.dataset.dataset.failure_log = None


def fixed_batches(
    dataset: ClipDataset, count: int, batch_size: int, classes: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """The first `count` items but those whose clips cannot be read, in batches; the same every time. Classes are
    numbered as `NumberedDataset` does.

    Raises:
        ValueError: none of them can be read.
    """
    return list(first_batches(dataset, count, batch_size, classes))


def first_batches(
    dataset: ClipDataset, count: int, batch_size: int, classes: Mapping[int, int] | None = None
) -> Iterator[dict[str, Any]]:
    """As `fixed_batches`, each batch read when it is asked for."""
    items = NumberedDataset(dataset, classes).readable(range(min(count, len(dataset))))
    found = False
    while batch := list(islice(items, batch_size)):
        found = True
        yield finish_batch(dataset, collate(batch))
    if not found:
        raise ValueError(f"data: none of the first {count} clips can be read")
