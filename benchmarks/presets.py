"""What each preset costs and keeps on sprites: seconds, adherence, Fréchet distance to the ground truth, in one run.

python benchmarks/presets.py -o benchmarks/results/sprites-presets.json [--turbo FOLDER] [--num-scenes 200]

Presets take turns, a batch each, so that a busy machine is busy for all. `turbo` needs a model distilled for it.
Distances are in pixel features (`cmd_video.evaluation.pixel_features`), beside that between two sets of true clips.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from cmd_video.data.sprites import render
from cmd_video.evaluation.adherence import choose_scenes, evaluate_adherence
from cmd_video.evaluation.pixel_features import pixel_distances
from cmd_video.evaluation.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import DEFAULT_MODEL

BATCH = 10


def make_clips(pipe: CMDPipeline, prompts: list[str], seeds: list[int]) -> tuple[torch.Tensor, float]:
    """Clips (B, 3, F, H, W) in [-1, 1], and the seconds they took."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = time.perf_counter()
    frames: Any = pipe(prompts, generator=sources, output_type="pt").frames
    return frames.transpose(1, 2) * 2 - 1, time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--turbo", help="a model distilled for few steps")
    parser.add_argument("--num-scenes", type=int, default=200)
    arguments = parser.parse_args()
    pipes = {preset: load_pipeline(None, preset=preset) for preset in ("quality", "fast")}
    if arguments.turbo:
        pipes["turbo"] = load_pipeline(arguments.turbo, preset="turbo")
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
        make_clips(pipe, ["a red ring moves up"] * BATCH, list(range(BATCH)))  # warm-up
    scenes = choose_scenes(arguments.num_scenes)
    clips: dict[str, list[torch.Tensor]] = {preset: [] for preset in pipes}
    seconds = dict.fromkeys(pipes, 0.0)
    indices = list(scenes)
    for start in range(0, len(indices), BATCH):
        batch = indices[start : start + BATCH]
        for preset, pipe in pipes.items():
            made, took = make_clips(pipe, [scenes[index].prompt for index in batch], batch)
            clips[preset].append(made)
            seconds[preset] += took
        print(f"{start + len(batch)} of {len(indices)}", flush=True)
    truth = torch.stack([render(scene, 16, 64, 64) for scene in scenes.values()])
    others = torch.stack([render(scene, 16, 64, 64) for scene in choose_scenes(arguments.num_scenes, seed=1).values()])
    values: dict[str, Any] = {"another set of true clips": {"frechet": pixel_distances([others], [truth])}}
    for preset, parts in clips.items():
        made = torch.cat(parts)
        order = iter(parts)
        adherence = evaluate_adherence(lambda prompts, seeds, order=order: next(order), len(made), batch_size=BATCH)
        values[preset] = {
            "seconds_per_clip": seconds[preset] / len(made),
            "times_as_fast_as_quality": seconds["quality"] / seconds[preset],
            "adherence": adherence["accuracy"],
            "frechet": pixel_distances([made], [truth]),
        }
        rates = ", ".join(f"{name} {score['rate']:.1%}" for name, score in adherence["accuracy"].items())
        print(f"{preset:8s} {values[preset]['times_as_fast_as_quality']:.1f} times as fast   {rates}")
    protocol = {
        "clips": arguments.num_scenes,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "model_sha256": digest(DEFAULT_MODEL),
        "turbo_sha256": digest(Path(arguments.turbo)) if arguments.turbo else None,
    }
    write_result(arguments.output, "presets", values, protocol)


if __name__ == "__main__":
    main()
