"""How well generated sprite clips follow their prompts, attribute by attribute, on combinations training never saw.

    results = measure_adherence("my-model", num_scenes=200, output=Path("adherence.json"))
    results["accuracy"]["motion"]                             # {"correct": 171, "total": 200, "rate": 0.855, ...}
    results = evaluate_adherence(generate, num_scenes=200)    # generate(prompts, seeds) -> (B, 3, F, H, W) in [-1, 1]

The reader (`reader`) is no model and has no taste, but it can err: `reader_on_ground_truth` is its accuracy on
the same scenes drawn perfectly, in the same run. Only colors, shapes and motion are read, neither size nor background.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmd_video.data.shares import Share
from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.evaluation.protocol.shared_work import Progress, Rows, SharedRows, discard, every_row, processes
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.pipelines.loading import load_pipeline

from .reader import ObjectReading, SceneReading, read_scene, score_adherence
from .scenes import Split, SpriteScene, all_combinations, render, sample_scene

ATTRIBUTES = ("color", "shape", "motion")
SAMPLERS = ("content_sampler", "motion_sampler")
MISSING = "missing"  # in a confusion table: an object that was not read, or one that was read and not asked for


def measure_adherence(
    model: str | None = None,
    num_scenes: int = 200,
    seed: int = 0,
    batch_size: int = 10,
    preset: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    motion_guidance_scale: float | None = None,
    device: str = "cpu",
    output: Path | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`evaluate_adherence` of a pipeline, and a result file with the whole protocol.

    Args:
        model: folder or hub id; None = the model that ships.
        num_scenes: how many clips to generate.
        seed: which world of scenes, and the noise.
        batch_size: clips at a time.
        preset: see `CMDPipeline.use_preset`; None = as the model was saved.
        num_inference_steps: of both models; None = the pipeline's own, as of the next two.
        guidance_scale: of the content model.
        motion_guidance_scale: of the motion model.
        device: where to generate.
        output: file to write; beside it, until it is written, lies what an interrupted call goes on from, and
            processes share the work. None = none of that.
        share: the batches to make here, where other processes make the others beside the same output; the call
            without a share then measures.
        progress: called with (clips read, num_scenes) after every batch.

    Returns:
        as `evaluate_adherence`.

    Raises:
        ValueError: there is no such model or preset, or a setting does not fit.
        ShareDone: the clips of a share are read.
    """
    if share is not None and output is None:
        raise ValueError(f"shard: {share} is kept beside an output; give one")
    state, device = processes(device)
    pipe = load_pipeline(model, device, preset)
    pipe.set_progress_bar_config(disable=True)
    asked = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "motion_guidance_scale": motion_guidance_scale,
    }
    how = pipe.sampling.changed(asked)
    rows, columns = pipe.autoencoder.config.sample_size
    size = [pipe.autoencoder.config.num_frames, rows * pipe.ratio, columns * pipe.ratio]  # F, H, W

    def generate(prompts: list[str], seeds: list[int]) -> Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        out: Any = pipe(prompts, sampling=how, generator=sources, output_type="pt")
        return out.frames.transpose(1, 2).cpu() * 2 - 1  # (B, F, 3, H, W) in [0, 1] -> (B, 3, F, H, W) in [-1, 1]

    protocol: dict[str, Any] = {
        "clips": num_scenes,
        "size": size,
        "preset": preset,
        "sampling": {"content": how.content.model_dump(mode="json"), "motion": how.motion.model_dump(mode="json")},
        "seed": seed,
        "scenes": "sprites, held_out combinations",
        **{name: type(getattr(pipe, name.replace("sampler", "scheduler"))).__name__ for name in SAMPLERS},
        "model": model or "default",
        "model_sha256": digest_model(model),
    }
    work = None if output is None else output.with_name(f"{output.name}.parts")
    rows_of = every_row if work is None else SharedRows(work, protocol, share)
    frames, height, width = size
    values = evaluate_adherence(
        generate, num_scenes, seed, batch_size, height, width, frames, progress=progress, rows_of=rows_of
    )
    protocol["real"] = {"pixels_sha256": values["settings"].pop("truth_sha256")}
    if output is not None and work is not None and state.is_main_process:
        write_result(output, "adherence", values, protocol, device)
        discard(work)
    return values


def evaluate_adherence(
    generate: Callable[[list[str], list[int]], Tensor],
    num_scenes: int = 200,
    seed: int = 0,
    batch_size: int = 8,
    height: int = 64,
    width: int = 64,
    num_frames: int = 16,
    split: Split = "held_out",
    progress: Progress | None = None,
    rows_of: Rows = every_row,
) -> dict[str, Any]:
    """Ask for clips of `num_scenes` scenes and read them.

    Args:
        generate: (prompts, seeds) -> clips (B, 3, F, H, W) in [-1, 1], one per prompt. In world 0 a scene's seed is
            its index.
        num_scenes: how many clips to generate.
        seed: which world of scenes.
        batch_size: prompts per call of `generate`; the last call may have fewer.
        height: H of the ground truth in pixels; clips may have another size.
        width: W of the ground truth in pixels.
        num_frames: F of the ground truth.
        split: combinations to draw from: "held_out", or for comparison "train".
        progress: called with (clips read, num_scenes) after every batch.
        rows_of: how the scenes are gone through; see `shared_work`.

    Returns:
        JSON-able: `accuracy` (for every attribute and `all` of them: correct, total, rate and its 95% Wilson interval
        low, high), `by` (the same for scenes with a given motion, shape, color or number of objects), `confusion`
        (counts: expected -> read), `reader_on_ground_truth` (`accuracy` of the reader alone), `settings` and `scenes`
        (a row for each).
    """
    if num_scenes < 1 or batch_size < 1:
        raise ValueError(f"num_scenes and batch_size: expected at least 1, got {num_scenes} and {batch_size}")
    scenes = choose_scenes(num_scenes, seed, split)
    indices = list(scenes)

    def read(numbers: list[int]) -> list[dict[str, Any]]:
        batch = [indices[number] for number in numbers]
        videos = generate([scenes[index].prompt for index in batch], [seed * 1_000_003 + index for index in batch])
        if videos.ndim != 5 or len(videos) != len(batch):
            raise ValueError(f"generate: expected clips ({len(batch)}, 3, F, H, W), got {tuple(videos.shape)}")
        truths = [render(scenes[index], num_frames, height, width) for index in batch]
        return [
            {
                "scene": _row(index, scenes[index], read_scene(video)),
                "truth": score_adherence(scenes[index], read_scene(truth)),
                "digest": digest_of(to_uint8(truth)),
            }
            for index, video, truth in zip(batch, videos, truths, strict=True)
        ]

    found = rows_of(num_scenes, batch_size, read, progress)
    rows = [entry["scene"] for entry in found]
    return {
        "settings": {
            "num_scenes": num_scenes,
            "seed": seed,
            "split": split,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "truth_sha256": digest_all([entry["digest"] for entry in found]),
        },
        "accuracy": _accuracy(row["correct"] for row in rows),
        "reader_on_ground_truth": _accuracy(entry["truth"] for entry in found),
        "by": {attribute: _breakdown(rows, attribute) for attribute in (*ATTRIBUTES, "objects")},
        "confusion": {attribute: _confusion(rows, attribute) for attribute in ATTRIBUTES},
        "scenes": rows,
    }


def choose_scenes(num_scenes: int, seed: int = 0, split: Split = "held_out") -> dict[int, SpriteScene]:
    """The scenes of an evaluation, by index: one with a single object for every combination of the split (evenly
    spaced ones if `num_scenes` is smaller), and two-object scenes for the rest.
    """
    combinations = all_combinations(split)
    num_single = min(num_scenes, len(combinations))
    wanted = {combinations[number * len(combinations) // num_single] for number in range(num_single)}
    num_pairs = num_scenes - num_single
    chosen: dict[int, SpriteScene] = {}
    index = 0
    while wanted or num_pairs:
        scene = sample_scene(index, seed, split)
        if len(scene.objects) == 2 and num_pairs:
            num_pairs -= 1
            chosen[index] = scene
        elif len(scene.objects) == 1 and scene.combinations()[0] in wanted:
            wanted.remove(scene.combinations()[0])
            chosen[index] = scene
        index += 1
    return chosen


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a rate (by default at 95%), which stays sensible at rates of 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = correct / total, z**2 / total
    center = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def _row(index: int, scene: SpriteScene, reading: SceneReading) -> dict[str, Any]:
    correct = score_adherence(scene, reading)
    return {
        "index": index,
        "prompt": scene.prompt,
        "expected": {
            "objects": [{"color": item.color, "shape": item.shape} for item in scene.objects],
            "motion": scene.motion,
        },
        "read": {
            "objects": [_object_row(item) for item in reading.objects],
            "motion": reading.motion,
            "motion_error": round(reading.motion_error, 3) if math.isfinite(reading.motion_error) else None,
        },
        "correct": correct,
    }


def _object_row(item: ObjectReading) -> dict[str, Any]:
    return {
        "color": item.color,
        "shape": item.shape,
        "shape_score": round(item.shape_score, 3),
        "visible": round(item.visible, 3),
    }


def _accuracy(scores: Iterable[dict[str, bool]]) -> dict[str, dict[str, float]]:
    scores = list(scores)
    result = {}
    for name in (*ATTRIBUTES, "all"):
        correct = sum(all(score.values()) if name == "all" else score[name] for score in scores)
        low, high = wilson_interval(correct, len(scores))
        rate = correct / len(scores)
        result[name] = {"correct": correct, "total": len(scores), "rate": rate, "low": low, "high": high}
    return result


def _values(part: dict[str, Any], attribute: str) -> list[str]:
    """The motion, the number of objects, or their shapes or colors, of a row's `expected` or `read`."""
    if attribute == "objects":
        return [str(len(part["objects"]))]
    return [part["motion"]] if attribute == "motion" else [item[attribute] for item in part["objects"]]


def _breakdown(rows: list[dict[str, Any]], attribute: str) -> dict[str, dict[str, dict[str, float]]]:
    names = sorted({name for row in rows for name in _values(row["expected"], attribute)})
    return {
        name: _accuracy(row["correct"] for row in rows if name in _values(row["expected"], attribute))
        for name in names
    }


def _confusion(rows: list[dict[str, Any]], attribute: str) -> dict[str, dict[str, int]]:
    """Counts of expected -> read. Equal values are paired first, then the others in order, then MISSING fills up."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        expected, read = (Counter(_values(row[part], attribute)) for part in ("expected", "read"))
        equal = expected & read
        left, right = list((expected - equal).elements()), list((read - equal).elements())
        length = max(len(left), len(right))
        left += [MISSING] * (length - len(left))
        right += [MISSING] * (length - len(right))
        for name, found in [*((name, name) for name in equal.elements()), *zip(left, right, strict=True)]:
            counts.setdefault(name, Counter())[found] += 1
    return {name: dict(counter.most_common()) for name, counter in sorted(counts.items())}
