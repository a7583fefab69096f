"""What every stage is: which weights learn, the loss of a batch, validation, a picture.

stage = build_stage(config, components);  loss = stage(batch)

Every random draw is a function of (seed, number of the sample), so that neither resuming nor the number of processes
changes it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .config import TrainConfig

# video (B, 3, F, H, W) or content_frame and motion_latents; prompt, class_label, number; step, the optimizer's
Batch = dict[str, Any]
LATENTS = "latents.json"  # in a run's folder of components: digests of what made the latents that it learned from


class Stage(nn.Module):
    """Base of the stages. Registered submodules are trained; everything in `frozen` is used as it is.

    Args:
        config: the run.
        components: all components by name.
        trained: names of the components to train.

    Attributes:
        terms: what the last loss of this process consisted of, for the log; empty where it is one thing.
    """

    def __init__(self, config: TrainConfig, components: dict[str, Any], trained: tuple[str, ...]) -> None:
        super().__init__()
        self.terms: dict[str, float] = {}
        self.config, self.components = config, components
        self.trained = trained
        for name in trained:
            self.add_module(name, components[name])
        self.frozen = {
            name: component.eval().requires_grad_(False)
            for name, component in components.items()
            if isinstance(component, nn.Module) and name not in trained
        }

    @property
    def num_classes(self) -> int:
        """Classes of clips that the network knows which learns; 0 = it is told none."""
        return 0

    def place(self, device: torch.device) -> None:
        """Move the frozen components (the trained ones are moved by accelerate)."""
        for component in self.frozen.values():
            component.to(device)

    def compile_trained(self) -> None:
        """Run the networks that learn through `torch.compile`; names of weights stay."""
        for name in self.trained:
            getattr(self, name).compile()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch; random draws follow `batch["number"]`."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Metrics of one validation batch; "loss" decides which checkpoint is best."""
        raise TypeError(f"{type(self).__name__} has no validation")

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        """A picture (3, height, width) in [-1, 1] of what the weights do."""
        raise TypeError(f"{type(self).__name__} has no picture")

    def finish(self, batches: Iterator[Batch]) -> None:
        """Last measurements before the components are saved; batches are read when they are asked for."""

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; with LoRA only the adapters do."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns, for the optimizer; each group's `lr_scale` multiplies the learning rate."""
        return [{"params": list(self.learning().values()), "lr_scale": 1.0}]

    def save_extras(self, folder: Path) -> None:
        """Files beside the components, after `finish`."""

    def _device(self) -> torch.device:
        return next(self.parameters()).device


def compute_again(stage: Stage) -> None:
    """Gradient checkpointing of what learns, and of a teacher, through which gradients may pass to its inputs."""
    teacher = [stage.frozen["teacher"]] if stage.config.stage == "video" and "teacher" in stage.frozen else []
    for network in (*(getattr(stage, name) for name in stage.trained), *teacher):
        if isinstance(network, PreTrainedModel):
            network.gradient_checkpointing_enable()
        else:
            network.enable_gradient_checkpointing()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors; the numbers stay."""
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) and key != "number" else value
        for key, value in batch.items()
    }
