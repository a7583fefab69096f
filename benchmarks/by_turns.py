"""Several models on the same sprites and noise, a batch each by turns, so that a busy machine is busy for all.

rows = compare({"quality": clips_of(pipe), "fast": clips_of(other)}, num_scenes=100)  # speed relative to the first
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cmd_video.data.transforms import to_uint8
from cmd_video.denoisers.latent_space import encode_video
from cmd_video.evaluation.metrics.distribution import frechet_estimate
from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import choose_scenes, evaluate_adherence
from cmd_video.sprites.scenes import SpriteScene, render

BATCH = 10
EXTRACTORS = {
    "content": "pixels",
    "motion": "pixel-motion",
    "appearance": "sprites-appearance",
    "action": "sprites-action",
}
PLAIN = {  # how the default model is sampled where a row says nothing else
    "content": {"num_inference_steps": 20, "guidance": {"scale": 4.0}},
    "motion": {"num_inference_steps": 10, "guidance": {"scale": 2.0}},
}
SHOWN_FRAMES = (2, 13)
Maker = Callable[[list[str], list[int]], torch.Tensor]  # prompts and seeds -> clips (B, 3, F, H, W) in [-1, 1]


@torch.inference_mode()
def compare(makers: dict[str, Maker], num_scenes: int) -> dict[str, dict[str, Any]]:
    """Seconds per clip, speed relative to the first model, adherence, Fréchet distances to the true clips."""
    for make in makers.values():
        make(["a red ring moves up"] * BATCH, list(range(BATCH)))  # warm-up
    scenes = choose_scenes(num_scenes)
    indices = list(scenes)
    clips: dict[str, list[torch.Tensor]] = {name: [] for name in makers}
    seconds = dict.fromkeys(makers, 0.0)
    for start in range(0, num_scenes, BATCH):
        batch = indices[start : start + BATCH]
        for name, make in makers.items():
            begin = time.perf_counter()
            clips[name].append(make([scenes[index].prompt for index in batch], batch))
            seconds[name] += time.perf_counter() - begin
        print(f"{start + len(batch)} of {num_scenes} clips", flush=True)
    truth = true_clips(num_scenes)
    first = next(iter(makers))
    values: dict[str, dict[str, Any]] = {}
    for name, parts in clips.items():
        order = iter(parts)
        adherence = evaluate_adherence(lambda prompts, seeds, order=order: next(order), num_scenes, batch_size=BATCH)
        values[name] = {
            "seconds_per_clip": seconds[name] / num_scenes,
            f"times_as_fast_as_{first}": seconds[first] / seconds[name],
            "adherence": adherence["accuracy"],
            "frechet": distances(parts, [truth]),
        }
        rates = ", ".join(f"{kind} {score['rate']:.1%}" for kind, score in adherence["accuracy"].items())
        print(f"{name:18s} {seconds[first] / seconds[name]:.2f} times as fast   {rates}")
    return values


def median_seconds(calls: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each call, once around in every round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(row) for name, row in seconds.items()}


def distances(made: list[torch.Tensor], real: list[torch.Tensor]) -> dict[str, Any]:
    """Fréchet distances between clips (B, 3, F, H, W) in [-1, 1], and under `standard_error` how sure they are.

    In averaged pixels (`content`, `motion`), and in features of the classifiers of sprites (`appearance`, `action`).
    """
    count = min(sum(map(len, side)) for side in (real, made))
    found = {}
    for name, extractor in {kind: build_extractor(each) for kind, each in EXTRACTORS.items()}.items():
        known, other = (
            torch.cat([extractor(torch.stack([to_uint8(clip) for clip in part])) for part in side])
            for side in (real, made)
        )
        found[name] = frechet_estimate(known, other, len(known) // sum(map(len, real)))
    errors = {name: estimate.error for name, estimate in found.items()} if count >= 10 else None
    return {name: estimate.value for name, estimate in found.items()} | {"standard_error": errors}


def protocol_of(num_scenes: int) -> dict[str, Any]:
    """What decides the numbers of `compare`, but for the models."""
    truth = true_clips(num_scenes)
    return {
        "clips": num_scenes,
        "batch": BATCH,
        "seed": 0,
        "size": list(truth.shape[2:]),
        "real": {"pixels_sha256": digest_all([digest_of(to_uint8(clip)) for clip in truth])},
        "extractors": {kind: [name, build_extractor(name).sha256] for kind, name in EXTRACTORS.items()},
        "threads": torch.get_num_threads(),
    }


def true_clips(num_scenes: int, seed: int = 0) -> torch.Tensor:
    """The scenes that are asked for, drawn: (num_scenes, 3, 16, 64, 64) in [-1, 1]."""
    return torch.stack([render(scene, 16, 64, 64) for scene in choose_scenes(num_scenes, seed).values()])


def encode_scenes(
    pipe: CMDPipeline, scenes: dict[int, SpriteScene], indices: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Content frames and motion latents of true clips; in place of a scene that is not there, the first."""
    chosen = [scenes.get(index, next(iter(scenes.values()))) for index in indices]  # the warm-up asks for any
    videos = torch.stack([render(scene, 16, 64, 64) for scene in chosen])
    return pipe.autoencoder.encode(encode_video(pipe.vae, videos), return_dict=False)


def clips_of(pipe: CMDPipeline) -> Maker:
    """What makes clips by a pipeline's own defaults."""
    pipe.set_progress_bar_config(disable=True)

    def make(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        frames: Any = pipe(prompts, generator=sources, output_type="pt").frames
        return frames.transpose(1, 2) * 2 - 1

    return make


@torch.inference_mode()
def draw(makers: dict[str, Maker], scenes: dict[int, SpriteScene], path: Path) -> None:
    """Scenes side by side, an early and a late frame of each maker below each other, enlarged twice."""
    strips = []
    for make in makers.values():
        clips = make([scene.prompt for scene in scenes.values()], list(scenes))  # (B, 3, F, H, W)
        strips += [torch.cat(list(clips[:, :, frame]), dim=2) for frame in SHOWN_FRAMES]
    pixels = (torch.cat(strips, dim=1).clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0)
    picture = Image.fromarray(pixels.numpy())
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)
    print(*(scene.prompt for scene in scenes.values()), sep="\n")


def seconds_of(run: Path) -> float:
    """Seconds that a run's steps and validations took, also if it was stopped in between: each start counts from 0."""
    seconds = [json.loads(line)["seconds"] for line in (run / "log.jsonl").read_text().splitlines()]
    return sum(now for now, after in zip(seconds, [*seconds[1:], 0.0], strict=True) if after < now)


def clips_of_stage(stage: Any) -> Maker:
    """What makes clips by a stage "video", with its recipe's steps and guidance."""
    data = stage.config.data

    def make(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        count = len(prompts)
        batch = {
            "prompt": prompts,
            "class_label": torch.zeros(count, dtype=torch.long),
            "number": torch.tensor(seeds),
            "video": torch.zeros(count, 3, data.num_frames, data.height, data.width),
        }
        _, condition = stage.denoiser.example(batch)
        return stage.denoiser.pixels(stage.draw_samples(batch), condition).clamp(-1, 1)

    return make
