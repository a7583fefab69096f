"""From the data section of a configuration to batches: a stream without state, so that resuming is only a number.

    loader = training_batches(config.data.open(), StepSampler(...), num_workers=4)

Sample n of a run is `dataset[n]`, defined for every n >= 0; step s of batch size B uses samples s * B to (s + 1) * B
- 1.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler


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
        item = self.dataset[number]
        if self.classes:
            item = {**item, "class_label": self.classes.get(item["class_label"], item["class_label"])}
        return {**item, "number": number}


class StepSampler(Sampler[list[int]]):
    """The numbers of each micro-batch of this process, from one step to another."""

    def __init__(
        self, first_step: int, last_step: int, batch_size: int, micro_batches: int, rank: int, world: int
    ) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size, self.micro_batches, self.rank, self.world = batch_size, micro_batches, rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // (self.micro_batches * self.world)
        for step in self.steps:
            for micro in range(self.micro_batches):
                first = step * self.batch_size + (micro * self.world + self.rank) * share
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
    dataset: ClipDataset, sampler: StepSampler, num_workers: int, classes: Mapping[int, int] | None = None
) -> DataLoader:
    """Batches of a run in order, classes numbered as `NumberedDataset` does."""
    return DataLoader(
        NumberedDataset(dataset, classes),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_leave_process_group,
    )


def _leave_process_group(worker: int) -> None:
    """A signal to the trainer's whole group is for the trainer, which still needs batches to end its step and save."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def fixed_batches(
    dataset: ClipDataset, count: int, batch_size: int, classes: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """The first `count` items, in batches; the same every time. Classes are numbered as `NumberedDataset` does."""
    numbered = NumberedDataset(dataset, classes)
    count = min(count, len(dataset))
    return [
        finish_batch(dataset, collate([numbered[number] for number in range(first, min(first + batch_size, count))]))
        for first in range(0, count, batch_size)
    ]
