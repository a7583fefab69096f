"""`cmd-video evaluate reference|calc|compare`: distances between sets of clips, with the protocol in every file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmd_video.evaluation.clips import ClipSource
    from cmd_video.evaluation.tables import FeatureTable

Extractor = Annotated[
    str,
    typer.Option(help="i3d or i3d-torchscript (FVD), videomae:PATH, vjepa2:PATH, squeezenet, pixels, pixel-motion."),
]
Frames = Annotated[int, typer.Option(min=1, help="Frames of a clip.")]
Size = Annotated[str | None, typer.Option(help="HxW before the extractor's own resizing; default: as they are.")]
Stride = Annotated[int, typer.Option(min=1, help="Take every stride-th frame.")]
Fps = Annotated[float | None, typer.Option(help="Take frames at this rate instead of --stride.")]
NumClips = Annotated[int | None, typer.Option(min=2, help="Only so many clips.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a model's pipeline.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips at a time.")]
WeightsDir = Annotated[Path | None, typer.Option(help="Folder of the extractors' weights.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps.")]


def reference(
    source: Annotated[str, typer.Argument(help="Clips: a folder, manifest, .npz, or training configuration (.yaml).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Writes OUTPUT.safetensors and OUTPUT.json.")],
    extractor: Extractor = "i3d",
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    batch_size: BatchSize = 8,
    weights_dir: WeightsDir = None,
    device: Device = "cpu",
) -> None:
    """Features of real clips, to compare others with.

    Example: cmd-video evaluate reference ucf101/ -o ucf101-i3d --extractor i3d --size 256x256
    """
    clips = _open(source, frames, size, stride, fps, num_clips, device, None)
    table = _extract(clips, extractor, output, batch_size, weights_dir, device)
    table.save(output)
    _warn(table)
    print(f"{len(table.features)} features of {table.protocol['clips']} clips")
    print(output)


def calc(
    made: Annotated[str, typer.Argument(help="Clips to judge: as for `reference`, or `default`, or a model.")],
    real: Annotated[str, typer.Option("--reference", help="What `evaluate reference` wrote, or real clips.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")] = Path("distance.json"),
    extractor: Extractor = "i3d",
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    steps: Steps = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Of precision, recall and coverage.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of random subsets, and of a model's noise.")] = 0,
    batch_size: BatchSize = 8,
    weights_dir: WeightsDir = None,
    device: Device = "cpu",
) -> None:
    """Fréchet and kernel distance, precision, recall and coverage, each beside what real clips give among themselves.

    With `--extractor i3d` or `i3d-torchscript` the Fréchet distance is FVD and the kernel distance KVD.

    Example: cmd-video evaluate calc made/ --reference ucf101-i3d -o fvd.json
    """
    from cmd_video.evaluation.distances import measure
    from cmd_video.evaluation.results import write_result
    from cmd_video.evaluation.tables import FeatureTable

    options = (frames, size, stride, fps, num_clips, device)
    if Path(f"{real}.json").is_file() or real.endswith((".json", ".safetensors")):
        known = FeatureTable.load(Path(real))
    else:
        clips = _open(real, *options, None)
        known = _extract(clips, extractor, output.with_suffix(".real"), batch_size, weights_dir, device)
    found = _extract(_open(made, *options, steps, seed), extractor, output, batch_size, weights_dir, device)
    values = measure(known, found, neighbours, seed)
    for table in (known, found):
        _warn(table)
    protocol = {"real": known.protocol, "made": found.protocol, "neighbours": neighbours, "seed": seed}
    write_result(output, "distribution", values, protocol)
    for name, row in values.items():
        floor = "" if row["real_against_real"] is None else f"   real against real {row['real_against_real']:.4g}"
        error = "" if row["standard_error"] is None else f" +- {row['standard_error']:.2g}"
        print(f"{name:18s} {row['value']:.5g}{error}{floor}")
    print(output)


def compare(
    first: Annotated[Path, typer.Argument(help="A result file.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Whether two results may stand in one table; exit code 1 and the fields that differ if not.

    Example: cmd-video evaluate compare mine.json theirs.json
    """
    from cmd_video.evaluation.compare import compare as compare_results
    from cmd_video.evaluation.compare import read_result

    found = compare_results(read_result(first), read_result(second))
    for name, (mine, other) in found.versions.items():
        print(f"version of {name}: {mine} and {other}")
    if found.comparable:
        print("comparable")
        return
    print("not comparable:")
    for name, (mine, other) in found.different.items():
        print(f"  {name}: {mine} and {other}")
    raise typer.Exit(1)


def _open(
    source: str,
    frames: int,
    size: str | None,
    stride: int,
    fps: float | None,
    num_clips: int | None,
    device: str,
    steps: int | None,
    seed: int = 0,
) -> "ClipSource":
    """Clips of files, of a configuration's validation data, or of a model that generates them."""
    from cmd_video.evaluation.clips import open_clips

    path = Path(source)
    is_model = source == "default" or (path / "model_index.json").is_file()
    if steps is not None and not is_model:
        raise ValueError(f"--steps: {source} is no model")
    if not is_model and path.suffix not in (".yaml", ".yml"):
        height_width = _parse(size)
        clips = open_clips(path, frames, height_width, stride=stride, fps=fps, num_clips=num_clips)
        clips.recipe["source"] = source
        return clips
    if size is not None or stride != 1 or fps is not None:
        raise ValueError(f"--size, --stride, --fps: {source} decides them itself")
    clips = _generated(source, num_clips or 256, steps, seed, device) if is_model else _dataset(path, num_clips)
    if clips.recipe["frames"] != frames:
        raise ValueError(f"--frames: {source} gives {clips.recipe['frames']}, asked for {frames}")
    return clips


def _dataset(path: Path, num_clips: int | None) -> "ClipSource":
    import torch

    from cmd_video.evaluation.clips import MadeClips
    from cmd_video.training.config import load_config
    from cmd_video.training.data import build_dataset

    data = load_config(path).validation.data
    dataset = build_dataset(data)
    frames = dataset[0]["video"].shape[1]
    recipe = {"kind": "dataset", "frames": frames, "data": data.model_dump(mode="json"), "source": str(path)}
    return MadeClips(
        lambda numbers: torch.stack([dataset[number]["video"] for number in numbers]),
        min(num_clips or len(dataset), len(dataset)),
        recipe,
    )


def _generated(model: str, num_clips: int, steps: int | None, seed: int, device: str) -> "ClipSource":
    """Clips of a pipeline for the captions of held-out sprites, as the default model is trained on."""
    from dataclasses import asdict

    import torch

    from cmd_video.data.sprites import sample_scene
    from cmd_video.evaluation.clips import MadeClips
    from cmd_video.evaluation.results import digest
    from cmd_video.pipelines.loading import load_pipeline
    from cmd_video.pipelines.pipeline_cmd import DEFAULT_MODEL
    from cmd_video.pipelines.sampling import resolve

    pipe = load_pipeline(None if model == "default" else model, device)
    pipe.set_progress_bar_config(disable=True)
    content, motion = resolve(pipe.config, steps, None, None, None, None, None)

    def make(numbers: Any) -> torch.Tensor:
        prompts = [sample_scene(number, seed, "held_out").prompt for number in numbers]
        draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
        out: Any = pipe(prompts, num_inference_steps=steps, generator=draws, output_type="pt")
        return out.frames.transpose(1, 2).cpu() * 2 - 1

    recipe = {
        "kind": "generated",
        "frames": pipe.autoencoder.config.num_frames,
        "prompts": "held-out sprites",
        "seed": seed,
        "sampling": {"content": asdict(content), "motion": asdict(motion)},
        "model": model,
        "model_sha256": digest(DEFAULT_MODEL if model == "default" else Path(model)),
        "source": model,
    }
    return MadeClips(make, num_clips, recipe)


def _extract(
    clips: "ClipSource", extractor: str, output: Path, batch_size: int, weights_dir: Path | None, device: str
) -> "FeatureTable":
    from rich.progress import Progress

    from cmd_video.evaluation.extractors import build_extractor
    from cmd_video.evaluation.tables import extract

    built = build_extractor(extractor, weights_dir, device)
    with Progress() as progress:
        task = progress.add_task("clips", total=len(clips))
        return extract(
            clips, built, output.with_name(f"{output.name}.parts"), batch_size,
            lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip


def _warn(table: "FeatureTable") -> None:
    import sys

    unreadable = table.protocol["unreadable"]
    if unreadable:
        print(f"{len(unreadable)} clips left out, such as {unreadable[0]}", file=sys.stderr)
    count, numbers = table.features.shape
    if count < numbers:
        print(f"{count} features of {numbers} numbers: the Fréchet distance is far too large", file=sys.stderr)


def _parse(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size: {size!r}, expected such as 256x256")
    return int(height), int(width)
