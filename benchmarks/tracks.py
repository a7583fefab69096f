"""Objects dragged along tracks: how near they come to where they are wanted, and whether they stay what they are.

python benchmarks/tracks.py -o benchmarks/results/sprites-tracks.json --num-scenes 100

Held-out scenes with one object, of which the true content frame is given, the clip's middle. A track has the true
place of the object at every second frame and at the last one. Told nothing, the prompt, the track, or both; rows are
made a batch by turns, and the result is written after each, so that it may be stopped. "reconstruction" is what the
autoencoder makes of the true clip. Centres are those that the reader of sprites finds, of the true clip too; frames in
which it finds nothing of the object's color are left out of the distance and counted in `found`. "ends" are the first
and the last frame.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from by_turns import PLAIN, encode_scenes, protocol_of
from plan import centers, with_error

from cmd_video.denoisers.latent_space import decode_video
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import choose_scenes
from cmd_video.sprites.reader import read_scene, score_adherence
from cmd_video.sprites.scenes import SpriteScene, object_states, render
from cmd_video.techniques.tracks import Settings, Track

FRAMES, SIDE, BATCH = 16, 64, 5
POINTS = [*range(0, FRAMES, 2), FRAMES - 1]
ROWS = {"told nothing": (False, False), "words": (True, False), "tracks": (False, True), "both": (True, True)}
Maker = Callable[[list[int]], torch.Tensor]  # numbers of scenes -> clips (B, 3, F, H, W) in [-1, 1]


def track_of(scene: SpriteScene) -> Track:
    """Where the object of a scene really is."""
    places = object_states(scene, np.arange(FRAMES) / (FRAMES - 1))[0, :, :2] * SIDE  # (F, 2)
    return Track(points=tuple((frame, *places[frame].tolist()) for frame in POINTS))


def rows_of(pipe: CMDPipeline, scenes: dict[int, SpriteScene], truth: dict[int, torch.Tensor]) -> dict[str, Maker]:
    """The rows of the table."""

    def told(words: bool, tracks: bool) -> Maker:
        def make(numbers: list[int]) -> torch.Tensor:
            out: Any = pipe(
                [scenes[number].prompt if words else "" for number in numbers],
                content_frame=torch.stack([truth[number][:, FRAMES // 2] for number in numbers]) / 2 + 0.5,
                tracks=[[track_of(scenes[number])] for number in numbers] if tracks else None,
                generator=[torch.Generator().manual_seed(number) for number in numbers],
                output_type="pt",
            )
            return out.frames.transpose(1, 2) * 2 - 1

        return make

    def reconstruction(numbers: list[int]) -> torch.Tensor:
        clip = pipe.autoencoder.decode(*encode_scenes(pipe, scenes, numbers)).sample
        return decode_video(pipe.vae, clip).clamp(-1, 1)

    return {**{name: told(*what) for name, what in ROWS.items()}, "reconstruction": reconstruction}


def measured(clip: torch.Tensor, true: torch.Tensor, scene: SpriteScene) -> dict[str, float]:
    """Numbers of one clip (3, F, H, W)."""
    color = scene.objects[0].color
    off = (centers(clip, color) - centers(true, color)).norm(dim=1)  # (F,)
    error = ((clip.clamp(-1, 1) - true) / 2).square().mean()
    right = score_adherence(scene, read_scene(clip))
    return {
        "distance": float(off.nanmean()),
        "distance_of_ends": float(off[[0, -1]].nanmean()),
        "found": float(off.isfinite().float().mean()),
        "psnr": float(-10 * error.clamp(min=1e-6).log10()),
        **{name: float(right[name]) for name in ("color", "shape", "motion")},
    }


def table(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means over clips, with standard errors, and the numbers of each clip, in the order of the scenes."""
    values = {}
    for name, clips in found.items():
        columns = {key: torch.tensor([clip[key] for clip in clips]) for key in clips[0]}
        values[name] = {key: with_error(column) for key, column in columns.items()}
        values[name]["distances"] = [round(clip["distance"], 2) if clip["found"] else None for clip in clips]
        shown = "  ".join(f"{key} {values[name][key]['mean']:.2f}" for key in columns)
        print(f"{name:16s} {shown}", flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=100)
    arguments = parser.parse_args()
    scenes = choose_scenes(arguments.num_scenes)
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = PLAIN
    truth = {number: render(scene, FRAMES, SIDE, SIDE) for number, scene in scenes.items()}
    makers = rows_of(pipe, scenes, truth)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
    protocol = {
        **protocol_of(arguments.num_scenes), "batch": BATCH, "points": POINTS, "plain": PLAIN,
        "settings": Settings().model_dump(), "model_sha256": digest_model(None),
    }  # fmt: skip
    numbers = list(scenes)
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        with torch.inference_mode():
            for name, make in makers.items():
                found[name] += [measured(clip, truth[number], scenes[number])
                                for clip, number in zip(make(batch), batch, strict=True)]  # fmt: skip
        print(f"{start + len(batch)} of {len(numbers)} scenes", flush=True)
        values = {"clips": start + len(batch), "rows": table(found)}
        write_result(arguments.output, "tracks", values, protocol, "cpu")


if __name__ == "__main__":
    main()
