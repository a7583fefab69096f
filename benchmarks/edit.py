"""Clips with one word changed: by a picture that was painted over, and by words from a share of diffusion time on.

python benchmarks/edit.py -o benchmarks/results/sprites-edit.json --num-scenes 40
python benchmarks/edit.py -o benchmarks/results/sprites-edit-baseline.json --num-scenes 12 --rows baseline

Held-out scenes with one object, whose color is changed for another; PSNR is to the clip of that scene. "own latents"
is the autoencoder's reconstruction of the changed clip, what a picture alone could at best come to.

The baseline edits every frame by itself, by the same content model from the same share of diffusion time on. How
steady a clip is: the warping error by the flow of the true clip, and the flicker, the mean absolute difference in
[0, 1] from frame to frame of the pixels that stand still in the true one.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, PLAIN
from given_frames import pipeline, psnr
from plan import with_error

from cmd_video.data.transforms import to_uint8
from cmd_video.denoisers.latent_space import decode_images, decode_video, encode_video
from cmd_video.evaluation.networks.flow import visible_flow, warping_error
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import choose_scenes, wilson_interval
from cmd_video.sprites.reader import read_scene, score_adherence
from cmd_video.sprites.scenes import SpriteScene, render
from cmd_video.sprites.words import COLORS

STRENGTHS = (0.4, 0.6, 0.8, 0.9, 1.0)
STRENGTH = 0.8  # of the rows beside the baseline, as `CMDPipeline.edit` has it
STILL = 0.5 / 255  # largest change in [0, 1] of a pixel of a true clip that stands still
Maker = Callable[[torch.Tensor, torch.Tensor, list[SpriteScene], list[int]], torch.Tensor]


def changed(scene: SpriteScene) -> SpriteScene:
    """The same scene in the color after its own."""
    item = scene.objects[0]
    names = [*COLORS]
    color = names[(names.index(item.color) + 1) % len(names)]
    return replace(scene, objects=(replace(item, color=color),), prompt=scene.prompt.replace(item.color, color))


def rows_of(pipe: CMDPipeline, which: str) -> dict[str, Maker]:
    """What makes the clips of each row: (clips, changed clips, changed scenes, seeds) to clips."""

    def shown(clips: torch.Tensor) -> torch.Tensor:
        return clips.transpose(1, 2) / 2 + 0.5  # (B, F, 3, H, W) in [0, 1]

    def edit(video: torch.Tensor, seeds: list[int], *arguments: Any, **settings: Any) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        out: Any = pipe.edit(shown(video), *arguments, generator=sources, output_type="pt", **settings)
        return out.frames.transpose(1, 2) * 2 - 1

    def frame_of(clips: torch.Tensor) -> torch.Tensor:
        content_frame, _ = pipe.autoencoder.encode(encode_video(pipe.vae, clips), return_dict=False)
        return (decode_video(pipe.vae, content_frame[:, :, None])[:, :, 0] / 2 + 0.5).clamp(0, 1)

    def by_words(strength: float) -> Maker:
        return lambda old, new, scenes, seeds: edit(old, seeds, [scene.prompt for scene in scenes], strength=strength)

    def each_frame(old: torch.Tensor, scenes: list[SpriteScene], seeds: list[list[int]]) -> torch.Tensor:
        """Every frame as a content frame of its own, with noise of a seed for each."""
        frames = old.shape[2]
        told, nothing, _ = pipe.encode([scene.prompt for scene in scenes], None, None, len(scenes), frames)
        sources = [torch.Generator().manual_seed(seed) for row in seeds for seed in row]
        pictures = pipe.encode_image(shown(old).flatten(0, 1).clamp(0, 1), 1)  # (B F, C, h, w)
        noise, how = pipe.prepare_latents(tuple(pictures.shape), sources), pipe.sampling.content
        drawn = pipe.generate("content", noise, told, nothing, how, sources, (pictures, STRENGTH))
        return decode_images(pipe.vae, drawn).unflatten(0, (len(old), frames)).transpose(1, 2).clamp(-1, 1)

    if which == "baseline":
        return {
            "true": lambda old, new, scenes, seeds: new,
            "own latents": lambda old, new, scenes, seeds: edit(new, seeds, strength=0.0),
            "by words": by_words(STRENGTH),
            "each frame, noise of its own": lambda old, new, scenes, seeds: each_frame(
                old, scenes, [[1000 * seed + frame for frame in range(old.shape[2])] for seed in seeds]
            ),
            "each frame, the same noise": lambda old, new, scenes, seeds: each_frame(
                old, scenes, [[seed] * old.shape[2] for seed in seeds]
            ),
        }
    return {
        "unchanged": lambda old, new, scenes, seeds: old,
        "own latents": lambda old, new, scenes, seeds: edit(new, seeds, strength=0.0),
        "by a picture": lambda old, new, scenes, seeds: edit(old, seeds, content_frame=frame_of(new)),
        **{f"by words, strength {strength:g}": by_words(strength) for strength in STRENGTHS},
    }


def steadiness(made: torch.Tensor, true: torch.Tensor) -> dict[str, Any]:
    """Warping error and flicker of clips (B, 3, F, H, W), means with standard errors over the clips that have them."""
    found: dict[str, list[float]] = {"warping_error": [], "flicker": []}
    for clip, real in zip(made, true, strict=True):
        found["warping_error"].append(warping_error(to_uint8(clip.clamp(-1, 1)), *visible_flow(to_uint8(real))))
        still = (real.diff(dim=1).abs() / 2 <= STILL).all(dim=0)  # (F - 1, H, W)
        change = clip.clamp(-1, 1).diff(dim=1).abs().mean(dim=0) / 2
        found["flicker"].append(float(change[still].mean()))  # not a number where everything moves
    return {name: with_error(torch.tensor(row)) for name, row in found.items()}


@torch.inference_mode()
def measure(num_scenes: int, which: str) -> dict[str, Any]:
    """A row for each way."""
    pipe = pipeline(None)
    chosen = [(index, scene) for index, scene in choose_scenes(num_scenes).items() if len(scene.objects) == 1]
    makers, values = rows_of(pipe, which), {}
    for name, make in makers.items():
        clips, true, scores, seconds = [], [], [], 0.0
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            scenes = [changed(scene) for _, scene in batch]
            old, new = (
                torch.stack([render(scene, 16, 64, 64) for scene in kind])
                for kind in ([scene for _, scene in batch], scenes)
            )
            begin = time.process_time()  # of this process alone, whatever else runs
            made = make(old, new, scenes, [index for index, _ in batch])
            seconds += time.process_time() - begin
            clips.append(made)
            true.append(new)
            scores += [
                score_adherence(scene, read_scene(clip.clamp(-1, 1))) for scene, clip in zip(scenes, made, strict=True)
            ]
        rates = {}
        for attribute in ("color", "shape", "motion"):
            right = sum(score[attribute] for score in scores)
            low, high = wilson_interval(right, len(scores))
            rates[attribute] = {"rate": right / len(scores), "low": low, "high": high}
        values[name] = {"psnr": psnr(torch.cat(clips), torch.cat(true)), "right": rates, "clips": len(scores)}
        if which == "baseline":
            values[name] |= {**steadiness(torch.cat(clips), torch.cat(true)), "cpu_seconds": seconds / len(scores)}
        shares = ", ".join(f"{attribute} {rate['rate']:.0%}" for attribute, rate in rates.items())
        print(f"{name:26s} {values[name]['psnr']['mean']:.1f} dB   {shares}", flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=40)
    parser.add_argument("--rows", choices=("strengths", "baseline"), default="strengths")
    arguments = parser.parse_args()
    values = measure(arguments.num_scenes, arguments.rows)
    protocol = {"scenes": "sprites, held_out combinations, one object", "plain": PLAIN, "size": [16, 64, 64]}
    write_result(arguments.output, "edit", values, {**protocol, "model_sha256": digest_model(None)}, "cpu")


if __name__ == "__main__":
    main()
