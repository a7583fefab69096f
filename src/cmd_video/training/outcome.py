"""What a run leaves: its components, in the layout of a diffusers pipeline without its index.

export_components(stage, dataset, Path("runs/sprites/motion/pipeline"))
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from cmd_video.data.files import whole_folder
from cmd_video.data.sealed import seal

from .classes import write_names
from .data import ClipDataset, first_batches
from .stage import LATENTS, Stage

CLIPS_FOR_STATISTICS = 256


def export_components(stage: Stage, dataset: ClipDataset, folder: Path, class_names: Sequence[str] = ()) -> None:
    """Save every component of a stage, in the layout of a diffusers pipeline without its index, and names of classes.

    The autoencoder stage measures the statistics of the motion latents first, of few clips at a time, whatever a batch
    of the run is; the others read none. The folder appears complete or not at all.
    """
    measure(stage, dataset)
    write_components(stage, dataset, folder, class_names)


def measure(stage: Stage, dataset: ClipDataset) -> None:
    """The stage's last measurements, of the weights as they are now."""
    stage.eval()
    with torch.no_grad():
        stage.finish(first_batches(dataset, CLIPS_FOR_STATISTICS, 4))


def write_components(stage: Stage, dataset: ClipDataset, folder: Path, class_names: Sequence[str] = ()) -> None:
    """The components as they are, the stage's own files, names of classes; what hashes to what, last."""
    with whole_folder(folder, replace=True) as temporary:
        for name, component in stage.components.items():
            component.save_pretrained(temporary / name)
        stage.save_extras(temporary)
        write_names(temporary, class_names)
        if "digests" in getattr(dataset, "recipe", {}):
            (temporary / LATENTS).write_text(json.dumps(dataset.recipe["digests"], indent=1))  # type: ignore[attr-defined]
        seal(temporary)
