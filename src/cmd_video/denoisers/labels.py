"""Class labels: what a class-conditional model knows, and which label stands for none.

labels = class_labels(dit, batch["class_label"])
"""

from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn


def class_labels(model: nn.Module, labels: torch.Tensor) -> torch.Tensor | None:
    """Labels (B,) for a class-conditional model, None for any other.

    Raises:
        ValueError: a clip has no class, or one that the model does not know.
    """
    null = null_label(model)
    if not null:
        return None
    check_labels(labels[labels != null], null)
    return labels


def check_labels(labels: torch.Tensor, count: int) -> None:
    """Raise ValueError unless all labels (B,) lie in 0 to count - 1."""
    wrong = labels[(labels < 0) | (labels >= count)]
    if len(wrong):
        raise ValueError(f"class_label: {wrong[0].item()} in the data, the model knows 0 to {count - 1}")


def config_of(model: nn.Module) -> Any:
    """The configuration of a model, also when it is wrapped for several processes."""
    return getattr(model, "module", model).config


def null_label(model: nn.Module) -> int:
    """The class label that stands for no class, or 0 where the model has no class condition."""
    config = config_of(model)
    return int(getattr(config, "num_classes", 0) or getattr(config, "num_embeds_ada_norm", 0) or 0)


def leave_dropping_to_conditions(model: nn.Module) -> None:
    """Switch off what diffusers' DiT does in training: each of its blocks drops the labels of other samples, so that a
    sample without any label, as guidance asks for, never comes.
    """
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def with_null(labels: torch.Tensor, absent: torch.Tensor, null: int) -> torch.Tensor:
    """Labels (B,) with the label for no class where they are absent (B,)."""
    return torch.where(absent.to(labels.device), torch.full_like(labels, null), labels)
