"""Clips of whatever can give some: files, a training configuration's data, a model that generates; and autoencoders.

made, real = open_source("my-model", Reading(num_clips=100)), open_source("recipe.yaml", Reading(num_clips=100))
evaluate(reconstructed(real, "my-model"), real)                                        # rFVD
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cmd_video.data.datasets import VideoDataset
from cmd_video.data.manifest import Manifest, paths_of
from cmd_video.denoisers.latent_space import ImageAutoencoder
from cmd_video.evaluation.metrics.reconstruction import ReconstructedClips
from cmd_video.evaluation.protocol.clips import ClipSource, FolderClips, MadeClips, Reading, open_clips
from cmd_video.evaluation.protocol.results import digest, digest_model
from cmd_video.models import CMDAutoencoder
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import model_folder
from cmd_video.section import named
from cmd_video.training.components import load_autoencoder
from cmd_video.training.config import VideoData, load_config

DEMONSTRATION = {  # what is shown where nothing is given, imported when it is
    "clips": "cmd_video.sprites.demo:held_out",
    "prompts": "cmd_video.sprites.demo:captions",
}


def open_source(
    source: str,
    reading: Reading | None = None,
    device: str = "cpu",
    steps: int | None = None,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
    split: str = "validation",
) -> ClipSource:
    """Clips of files, of a training configuration's data, or of a model that generates them.

    Args:
        source: a folder, manifest or array file; a training configuration (.yaml); a model's folder, name or hub id.
        reading: which clips and frames; size, stride and rate say how files are read and are of no use elsewhere.
        device: where a model runs.
        steps: of a model's pipeline.
        seed: of a model's prompts and noise.
        prompts: what a model is asked for, at least 2; None = captions of the demonstration, or classes in turn.
        split: which clips of a configuration: "validation" or "train".

    Raises:
        ValueError: `steps` or `prompts` for what is no model, a `split` that is none, or a source that gives other
            clips than asked for.
    """
    reading = reading or Reading()
    is_model = (model_folder(source) / "model_index.json").is_file()
    for name, value in (("steps", steps), ("prompts", prompts)):
        if value is not None and not is_model:
            raise ValueError(f"{name}: {source} is no model")
    if are_files(source):
        clips = open_clips(Path(source), reading)
        clips.recipe["source"] = source
        return clips
    if is_model:
        clips = _generated(source, reading.num_clips, steps, seed, prompts, device)
    else:
        clips = dataset_clips(clip_data(Path(source), split), source, reading)
    if clips.recipe["frames"] != reading.frames:
        raise ValueError(f"frames: {source} gives {clips.recipe['frames']}, asked for {reading.frames}")
    return clips


def open_autoencoder(
    model: str | None, device: str = "cpu"
) -> tuple[CMDAutoencoder, ImageAutoencoder | None, dict[str, Any]]:
    """The autoencoder of a model, or of a finished run of the stage `autoencoder`; its image autoencoder; and which it
    is, for the protocol.

    Raises:
        ValueError: there is no such model.
    """
    run = Path(model or "") / "pipeline"
    if model is not None and run.is_dir():
        autoencoder, vae = load_autoencoder(run, device)
        return autoencoder, vae, {"model": model, "model_sha256": digest(run)}
    pipe = load_pipeline(model, device)
    return pipe.autoencoder, pipe.vae, {"model": model or "default", "model_sha256": digest_model(model)}


def reconstructed(clips: ClipSource, model: str | None, device: str = "cpu") -> ClipSource:
    """Clips passed through a model's autoencoder, see `open_autoencoder`; None leaves them as they are."""
    return clips if model is None else ReconstructedClips(clips, *open_autoencoder(model, device))


def is_recipe(source: str) -> bool:
    """Whether a source is a training configuration."""
    return Path(source).suffix in (".yaml", ".yml")


def are_files(source: str) -> bool:
    """Whether a source is files, to which size, stride and rate apply."""
    return not is_recipe(source) and not (model_folder(source) / "model_index.json").is_file()


def lists_files(source: str, split: str = "validation") -> bool:
    """Whether a source is a configuration whose clips are files."""
    return is_recipe(source) and isinstance(clip_data(Path(source), split), VideoData)


def clip_data(path: Path, split: str = "validation") -> Any:
    """What a training configuration validates on, or trains on.

    Raises:
        ValueError: encoded latents, which are no clips; or there is no such split.
    """
    if split not in ("validation", "train"):
        raise ValueError(f"split: {split!r} is none of validation, train")
    config = load_config(path)
    data, name = (config.data, "data") if split == "train" else (config.validation.data, "validation.data")
    if data.kind == "latents":
        raise ValueError(f"{path}: {name}: encoded latents, clips are needed")
    return data


def dataset_clips(data: Any, source: str, reading: Reading) -> ClipSource:
    """The clips that a section of a training configuration names; size, stride and rate are its own.

    Raises:
        ValueError: there are none.
    """
    dataset = data.open()
    if isinstance(dataset, VideoDataset):  # by itself it would put another clip in a damaged one's place
        frames, size, stride, fps = dataset.num_frames, dataset.size, dataset.stride, dataset.fps
        its_own = replace(reading, frames=frames, size=size, stride=stride, fps=fps)
        files = FolderClips(paths_of(Manifest(dataset.records)), its_own)
        files.recipe |= {"source": source, "listed_but_missing": dataset.missing}
        if dataset.left_out:
            files.recipe["left_out"] = dataset.left_out
        return files
    chosen = reading.choose(len(dataset))
    recipe = {
        "kind": "dataset",
        "frames": dataset[0]["video"].shape[1],
        "data": data.model_dump(mode="json"),
        "chosen": reading.chosen(len(dataset)),
        "source": source,
    }
    return MadeClips(
        lambda numbers: torch.stack([dataset[chosen[number]]["video"] for number in numbers]), len(chosen), recipe
    )


def _generated(
    model: str, num_clips: int | None, steps: int | None, seed: int, prompts: Sequence[str] | None, device: str
) -> ClipSource:
    """Clips of a pipeline, each from noise of its own seed."""
    pipe = load_pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    how = pipe.sampling.changed({"num_inference_steps": steps})
    asked, conditions, count = model_conditions(pipe, prompts, seed)

    def make(numbers: Any) -> torch.Tensor:
        draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
        out: Any = pipe(**conditions(numbers), num_inference_steps=steps, generator=draws, output_type="pt")
        return out.frames.transpose(1, 2).cpu() * 2 - 1

    recipe = {
        "kind": "generated",
        "frames": pipe.autoencoder.config.num_frames,
        "prompts": asked,
        "seed": seed,
        "sampling": {
            "content": {**how.content.model_dump(mode="json"), "sampler": type(pipe.content_scheduler).__name__},
            "motion": {**how.motion.model_dump(mode="json"), "sampler": type(pipe.motion_scheduler).__name__},
        },
        "model": model,
        "model_sha256": digest_model(model),
        "source": model,
    }
    return MadeClips(make, min(num_clips or count, count) if prompts else num_clips or count, recipe)


def model_conditions(
    pipe: Any, prompts: Sequence[str] | None, seed: int
) -> tuple[str | dict[str, Any], Callable[[Sequence[int]], dict[str, Any]], int]:
    """What a pipeline is asked for, for the protocol; the arguments for clips of some numbers; how many clips.

    Raises:
        ValueError: prompts for a model of classes, or fewer than 2.
    """
    if prompts is not None:
        if pipe.num_classes:
            raise ValueError("prompts: the model knows classes, not texts")
        if len(prompts) < 2:
            raise ValueError(f"prompts: {len(prompts)} given, at least 2 are needed")
        asked = {"lines": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}
        return asked, lambda numbers: {"prompt": [prompts[number] for number in numbers]}, len(prompts)
    if pipe.num_classes:
        classes = len(pipe.class_names) or pipe.num_classes
        return "classes in turn", lambda numbers: {"class_labels": [number % classes for number in numbers]}, 256
    captions, name = named(DEMONSTRATION["prompts"])(seed)
    return name, lambda numbers: {"prompt": captions(numbers)}, 256
