"""Clips that a verb of `cmd-video evaluate` is given: files, a configuration's validation data, a model's output."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .options import read_lines

if TYPE_CHECKING:
    from cmd_video.denoisers.latent_space import ImageAutoencoder
    from cmd_video.evaluation.protocol.clips import ClipSource, Reading
    from cmd_video.models import CMDAutoencoder

DEMONSTRATION = {  # what is shown where nothing is given, imported when it is
    "clips": "cmd_video.sprites.demo:held_out",
    "prompts": "cmd_video.sprites.demo:captions",
}
Frames = Annotated[int, typer.Option(min=1, help="Frames of a clip.")]
Size = Annotated[str | None, typer.Option(help="HxW before the extractor's own resizing; default: as they are.")]
Stride = Annotated[int, typer.Option(min=1, help="Take every stride-th frame.")]
Fps = Annotated[float | None, typer.Option(help="Take frames at this rate instead of --stride.")]
NumClips = Annotated[int | None, typer.Option(min=2, help="Only so many clips, drawn by --draw-seed.")]
Span = Annotated[
    str, typer.Option(help="Which frames of a longer clip: start, middle, or random (StyleGAN-V's), by --draw-seed.")
]
Reconstruct = Annotated[
    str | None,
    typer.Option(help="Pass the clips to judge through the autoencoder of this model, or finished run, first."),
]
Split = Annotated[str, typer.Option(help="Which clips of a training configuration: validation or train.")]
DrawSeed = Annotated[int, typer.Option(min=0, help="Which clips --num-clips takes, and which spans of them.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a model's pipeline.")]
Prompts = Annotated[
    Path | None,
    typer.Option(help="File of a model's prompts, one a line; default: held-out sprites, or classes."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips at a time.")]
WeightsDir = Annotated[Path | None, typer.Option(help="Folder of the extractors' weights.")]


def parse_reading(
    frames: int,
    size: str | None,
    stride: int,
    fps: float | None,
    num_clips: int | None,
    span: str = "middle",
    draw_seed: int = 0,
) -> "Reading":
    """What the options say about how clips are read.

    Raises:
        ValueError: --size or --span is none.
    """
    from typing import get_args

    from cmd_video.evaluation.protocol.clips import Reading
    from cmd_video.evaluation.protocol.clips import Span as Spans

    if span not in get_args(Spans):
        raise ValueError(f"--span: {span!r} is none of {', '.join(get_args(Spans))}")
    return Reading(frames, _parse_size(size), stride, fps, num_clips, cast("Spans", span), draw_seed)


def open_source(
    source: str,
    reading: "Reading",
    device: str,
    steps: int | None = None,
    seed: int = 0,
    prompts: Path | None = None,
    split: str = "validation",
) -> "ClipSource":
    """Clips of files, of a training configuration's data, or of a model that generates them.

    Size, stride and rate say how files are read; `check_reading` refuses them where there are none. Steps, seed and
    prompts (a file, one on each line) are a model's, the split is a configuration's.

    Raises:
        ValueError: `steps` or `prompts` for what is no model, a `split` that is none, or a source that gives other
            clips than asked for.
    """
    from cmd_video.evaluation.protocol.clips import open_clips
    from cmd_video.pipelines.shipped import model_folder

    path, num_clips = Path(source), reading.num_clips
    is_model = (model_folder(source) / "model_index.json").is_file()
    for option, value in (("--steps", steps), ("--prompts", prompts)):
        if value is not None and not is_model:
            raise ValueError(f"{option}: {source} is no model")
    if are_files(source):
        clips = open_clips(path, reading)
        clips.recipe["source"] = source
        return clips
    if is_model:
        clips = _generated(source, num_clips, steps, seed, prompts, device)
    else:
        clips = dataset_clips(clip_data(path, split), source, reading)
    if clips.recipe["frames"] != reading.frames:
        raise ValueError(f"--frames: {source} gives {clips.recipe['frames']}, asked for {reading.frames}")
    return clips


def open_autoencoder(
    model: str | None, device: str
) -> "tuple[CMDAutoencoder, ImageAutoencoder | None, dict[str, Any]]":
    """The autoencoder of a model, or of a finished run of the stage `autoencoder`; its image autoencoder; and which it
    is, for the protocol.

    Raises:
        ValueError: there is no such model.
    """
    from cmd_video.evaluation.protocol.results import digest, digest_model
    from cmd_video.pipelines.loading import load_pipeline
    from cmd_video.training.components import load_autoencoder

    run = Path(model or "") / "pipeline"
    if model is not None and run.is_dir():
        autoencoder, vae = load_autoencoder(run, device)
        return autoencoder, vae, {"model": model, "model_sha256": digest(run)}
    pipe = load_pipeline(model, device)
    return pipe.autoencoder, pipe.vae, {"model": model or "default", "model_sha256": digest_model(model)}


def reconstructed(clips: "ClipSource", model: str | None, device: str) -> "ClipSource":
    """Clips passed through a model's autoencoder, see `open_autoencoder`; None leaves them as they are."""
    if model is None:
        return clips
    from cmd_video.evaluation.metrics.reconstruction import ReconstructedClips

    return ReconstructedClips(clips, *open_autoencoder(model, device))


def are_files(source: str) -> bool:
    """Whether a source is files, to which size, stride and rate apply."""
    from cmd_video.pipelines.shipped import model_folder

    path = Path(source)
    return path.suffix not in (".yaml", ".yml") and not (model_folder(source) / "model_index.json").is_file()


def check_reading(sources: list[str], reading: "Reading", split: str = "validation") -> None:
    """Refuse options that would do nothing, because none of the sources is files, or a configuration.

    Raises:
        ValueError: there are such.
    """
    if split != "validation" and not any(Path(source).suffix in (".yaml", ".yml") for source in sources):
        raise ValueError(f"--split: {', '.join(sources)} are no training configurations")
    if reading.draw_seed and reading.num_clips is None and reading.span != "random":
        raise ValueError("--draw-seed: nothing is drawn without --num-clips or --span random")
    if any(map(are_files, sources)):
        return
    if reading.size is not None or reading.stride != 1 or reading.fps is not None:
        raise ValueError(f"--size, --stride, --fps: they say how files are read, and {', '.join(sources)} are none")
    if reading.span != "middle" and not any(_lists_files(source, split) for source in sources):
        raise ValueError(f"--span: it says how files are read, and {', '.join(sources)} are none")


def _lists_files(source: str, split: str) -> bool:
    """Whether a source is a configuration whose clips are files."""
    from cmd_video.training.config import VideoData

    path = Path(source)
    return path.suffix in (".yaml", ".yml") and isinstance(clip_data(path, split), VideoData)


def dataset_clips(data: Any, source: str, reading: "Reading") -> "ClipSource":
    """The clips that a section of a training configuration names; size, stride and rate are its own.

    Raises:
        ValueError: there are none.
    """
    from dataclasses import replace

    import torch

    from cmd_video.data.datasets import VideoDataset
    from cmd_video.evaluation.protocol.clips import FolderClips, MadeClips

    dataset = data.open()
    if isinstance(dataset, VideoDataset):  # by itself it would put another clip in a damaged one's place
        frames, size, stride, fps = dataset.num_frames, dataset.size, dataset.stride, dataset.fps
        its_own = replace(reading, frames=frames, size=size, stride=stride, fps=fps)
        files = FolderClips(list(dict.fromkeys(record.path for record in dataset.records)), its_own)
        files.recipe |= {"source": source, "listed_but_missing": dataset.missing}
        if dataset.left_out:
            files.recipe["left_out"] = dataset.left_out
        return files
    frames = dataset[0]["video"].shape[1]
    chosen = reading.choose(len(dataset))
    recipe = {
        "kind": "dataset",
        "frames": frames,
        "data": data.model_dump(mode="json"),
        "chosen": reading.chosen(len(dataset)),
        "source": source,
    }
    return MadeClips(
        lambda numbers: torch.stack([dataset[chosen[number]]["video"] for number in numbers]),
        len(chosen),
        recipe,
    )


def clip_data(path: Path, split: str = "validation") -> Any:
    """What a training configuration validates on, or trains on.

    Raises:
        ValueError: encoded latents, which are no clips; or there is no such split.
    """
    from cmd_video.training.config import load_config

    if split not in ("validation", "train"):
        raise ValueError(f"--split: {split!r} is none of validation, train")
    config = load_config(path)
    data, name = (config.data, "data") if split == "train" else (config.validation.data, "validation.data")
    if data.kind == "latents":
        raise ValueError(f"{path}: {name}: encoded latents, clips are needed")
    return data


def _generated(
    model: str, num_clips: int | None, steps: int | None, seed: int, prompts: Path | None, device: str
) -> "ClipSource":
    """Clips of a pipeline. Conditions: the lines of a file; without one a class after the other, or captions of the
    demonstration, as the default model is trained on.
    """
    import torch

    from cmd_video.evaluation.protocol.clips import MadeClips
    from cmd_video.evaluation.protocol.results import digest_model
    from cmd_video.pipelines.loading import load_pipeline

    pipe = load_pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    how = pipe.sampling.changed({"num_inference_steps": steps})
    asked, conditions, count = _conditions(pipe, prompts, seed)

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


def _parse_size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"--size: {size!r}, expected such as 256x256")
    return int(height), int(width)


def _conditions(
    pipe: Any, prompts: Path | None, seed: int
) -> tuple[str | dict[str, Any], Callable[[Sequence[int]], dict[str, Any]], int]:
    """What a pipeline is asked for, for the protocol; the arguments for clips of some numbers; how many clips."""
    import hashlib

    from cmd_video.section import named

    if prompts is not None:
        if pipe.num_classes:
            raise ValueError("--prompts: the model knows classes, not texts")
        lines = read_lines(prompts)
        if len(lines) < 2:
            raise ValueError(f"--prompts: {prompts} holds {len(lines)} prompts, at least 2 are needed")
        asked = {"lines": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
        return asked, lambda numbers: {"prompt": [lines[number] for number in numbers]}, len(lines)
    if pipe.num_classes:
        classes = len(pipe.class_names) or pipe.num_classes
        return "classes in turn", lambda numbers: {"class_labels": [number % classes for number in numbers]}, 256
    captions, name = named(DEMONSTRATION["prompts"])(seed)
    return name, lambda numbers: {"prompt": captions(numbers)}, 256
