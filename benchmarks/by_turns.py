"""Several pipelines on the same sprites and noise, a batch each by turns, so that a busy machine is busy for all.

rows = compare({"quality": pipe, "fast": other}, num_scenes=100)     # the first is what speeds are relative to
"""

import time
from typing import Any

import torch

from cmd_video.data.sprites import render
from cmd_video.evaluation.adherence import choose_scenes, evaluate_adherence
from cmd_video.evaluation.pixel_features import pixel_distances
from cmd_video.pipelines import CMDPipeline

BATCH = 10


@torch.inference_mode()
def compare(pipes: dict[str, CMDPipeline], num_scenes: int) -> dict[str, dict[str, Any]]:
    """Seconds per clip, speed relative to the first pipeline, adherence, Fréchet distances to the true clips."""
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
        _make_clips(pipe, ["a red ring moves up"] * BATCH, list(range(BATCH)))  # warm-up
    scenes = choose_scenes(num_scenes)
    indices = list(scenes)
    clips: dict[str, list[torch.Tensor]] = {name: [] for name in pipes}
    seconds = dict.fromkeys(pipes, 0.0)
    for start in range(0, num_scenes, BATCH):
        batch = indices[start : start + BATCH]
        for name, pipe in pipes.items():
            made, took = _make_clips(pipe, [scenes[index].prompt for index in batch], batch)
            clips[name].append(made)
            seconds[name] += took
        print(f"{start + len(batch)} of {num_scenes} clips", flush=True)
    truth = true_clips(num_scenes)
    first = next(iter(pipes))
    values: dict[str, dict[str, Any]] = {}
    for name, parts in clips.items():
        order = iter(parts)
        adherence = evaluate_adherence(lambda prompts, seeds, order=order: next(order), num_scenes, batch_size=BATCH)
        values[name] = {
            "seconds_per_clip": seconds[name] / num_scenes,
            f"times_as_fast_as_{first}": seconds[first] / seconds[name],
            "adherence": adherence["accuracy"],
            "frechet": pixel_distances(parts, [truth]),
        }
        rates = ", ".join(f"{kind} {score['rate']:.1%}" for kind, score in adherence["accuracy"].items())
        print(f"{name:18s} {seconds[first] / seconds[name]:.2f} times as fast   {rates}")
    return values


def true_clips(num_scenes: int, seed: int = 0) -> torch.Tensor:
    """The scenes that are asked for, drawn: (num_scenes, 3, 16, 64, 64) in [-1, 1]."""
    return torch.stack([render(scene, 16, 64, 64) for scene in choose_scenes(num_scenes, seed).values()])


def _make_clips(pipe: CMDPipeline, prompts: list[str], seeds: list[int]) -> tuple[torch.Tensor, float]:
    """Clips (B, 3, F, H, W) in [-1, 1], and the seconds they took."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = time.perf_counter()
    frames: Any = pipe(prompts, generator=sources, output_type="pt").frames
    return frames.transpose(1, 2) * 2 - 1, time.perf_counter() - start
