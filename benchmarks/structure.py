"""Content frames in the structure of a silhouette, in another color, said in words: overlap, and what is right.

python benchmarks/structure.py -o benchmarks/results/sprites-structure.json --picture docs/images/structure.png

Held-out single-object scenes at the moment of their content frame, as white silhouettes on black; the words ask for
the same shape and motion in the color after the scene's own. Overlap is intersection over union of the silhouette and
what the reader of sprites finds in the content frame, of whatever color; color, shape and motion are those of the
clip. "noised picture" begins the content model's sampling at the silhouette with noise on it (SDEdit, arXiv
2108.01073), from a share of diffusion time on. Rows make a batch by turns.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from by_turns import BATCH, PLAIN
from edit import changed
from PIL import Image
from plan import with_error

from cmd_video.data.transforms import to_uint8
from cmd_video.denoisers.latent_space import decode_images
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import choose_scenes, wilson_interval
from cmd_video.sprites.reader import find_objects, read_scene, score_adherence
from cmd_video.sprites.scenes import SpriteScene, render

FRAMES, SIDE, ANCHOR = 16, 64, 8
BLACK = ((-1e-6, -1e-6, -1e-6), (0.0, 0.0, 0.0))
Made = tuple[torch.Tensor, torch.Tensor]  # clips (B, 3, F, H, W) in [-1, 1], their content frames (B, 3, H, W)
Maker = Callable[[torch.Tensor, list[str], list[int]], Made]  # silhouettes (B, 3, H, W) in [0, 1], prompts, seeds
ROWS: dict[str, dict[str, Any] | float | None] = {  # settings of the injection, strength of noise, or words alone
    "words alone": None,
    "injected": {},
    **{f"noised picture, {strength:g}": strength for strength in (0.8, 0.9, 0.95)},
}


def silhouette(scene: SpriteScene) -> torch.Tensor:
    """What a scene shows at its content frame's moment, white on black: (3, H, W) in [0, 1]."""
    item = replace(scene.objects[0], color="white")
    flat = replace(scene, objects=(item,), background="plain", background_colors=((0.0,) * 3, (0.0,) * 3))
    return render(flat, FRAMES, SIDE, SIDE, [ANCHOR])[:, 0] / 2 + 0.5


def maker(pipe: CMDPipeline, way: dict[str, Any] | float | None) -> Maker:
    """What makes the clips of a row."""

    def sources(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def call(prompts: list[str], seeds: list[int], **arguments: Any) -> Made:
        out: Any = pipe(prompts, generator=sources(seeds), output_type="pt", **arguments)
        return out.frames.transpose(1, 2) * 2 - 1, out.content_frames * 2 - 1

    def injected(pictures: torch.Tensor, prompts: list[str], seeds: list[int]) -> Made:
        wrap = {"kind": "structure_injection", **way} if isinstance(way, dict) else {}
        how = pipe.sampling.laid_over({"content": {"wraps": [wrap]}})
        return call(prompts, seeds, structure_image=pictures, sampling=how)

    def noised(pictures: torch.Tensor, prompts: list[str], seeds: list[int]) -> Made:
        assert isinstance(way, float)
        told, nothing, _ = pipe.encode(prompts, None, None, len(prompts), 1)
        begin = pipe.encode_image(pictures, 1)
        noise = pipe.prepare_latents(tuple(begin.shape), sources(seeds))
        made = pipe.generate("content", noise, told, nothing, pipe.sampling.content, None, (begin, way))
        return call(prompts, seeds, content_frame=(decode_images(pipe.vae, made) / 2 + 0.5).clamp(0, 1))

    if way is None:
        return lambda pictures, prompts, seeds: call(prompts, seeds)
    return injected if isinstance(way, dict) else noised


def overlap(pictures: torch.Tensor, silhouettes: torch.Tensor) -> torch.Tensor:
    """Intersection over union (B,) of what is found in pictures (B, 3, H, W) in [-1, 1] and silhouettes in [0, 1]."""
    found = []
    for picture, wanted in zip(pictures, silhouettes, strict=True):
        _, coverage = find_objects((picture.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0)[None])
        drawn, mask = coverage.sum(0)[0] > 0.5, wanted.mean(0) > 0.5  # (H, W)
        found.append((drawn & mask).sum() / (drawn | mask).sum())
    return torch.stack(found)


def measure(
    made: dict[str, list[Made]], scenes: list[SpriteScene], silhouettes: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """Of each row the overlap with its standard error over clips, and the shares of clips that are right."""
    values = {}
    for name, parts in made.items():
        clips, pictures = (torch.cat(part) for part in zip(*parts, strict=True))
        scores = [score_adherence(scene, read_scene(clip)) for scene, clip in zip(scenes, clips, strict=True)]
        rates = {}
        for attribute in ("color", "shape", "motion"):
            right = sum(score[attribute] for score in scores)
            low, high = wilson_interval(right, len(scores))
            rates[attribute] = {"rate": right / len(scores), "low": low, "high": high}
        values[name] = {"overlap": with_error(overlap(pictures, silhouettes)), "right": rates}
        shown = ", ".join(f"{attribute} {rate['rate']:.0%}" for attribute, rate in rates.items())
        print("{:24s} overlap {mean:.3f} ± {standard_error:.3f}".format(name, **values[name]["overlap"]), shown)
    return values


def draw(made: dict[str, list[Made]], silhouettes: torch.Tensor, path: Path, count: int = 8) -> None:
    """The first silhouettes, and below each the content frames of the rows, enlarged twice."""
    rows = [silhouettes * 2 - 1, *(torch.cat([pictures for _, pictures in parts]) for parts in made.values())]
    strips = [torch.cat(list(row[:count].clamp(-1, 1)), dim=2) for row in rows]
    whole = Image.fromarray(np.ascontiguousarray(to_uint8(torch.cat(strips, dim=1)[:, None]).numpy()[0]))
    whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=100)
    parser.add_argument("--picture", type=Path, help="Also some content frames of each row, to this PNG.")
    arguments = parser.parse_args()
    chosen = [(index, scene) for index, scene in choose_scenes(200).items() if len(scene.objects) == 1]
    chosen = chosen[:: max(1, len(chosen) // arguments.num_scenes)][: arguments.num_scenes]
    scenes = [changed(scene) for _, scene in chosen]
    silhouettes = torch.stack([silhouette(scene) for scene in scenes])
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = pipe.sampling.laid_over(PLAIN)
    makers = {name: maker(pipe, way) for name, way in ROWS.items()}
    made: dict[str, list[Made]] = {name: [] for name in makers}
    with torch.inference_mode():
        for start in range(0, len(chosen), BATCH):
            batch = slice(start, start + BATCH)
            prompts, seeds = [scene.prompt for scene in scenes[batch]], [index for index, _ in chosen[batch]]
            for name, make in makers.items():
                made[name].append(make(silhouettes[batch], prompts, seeds))
            print(f"{start + len(prompts)} of {len(chosen)} clips", flush=True)
    values = measure(made, scenes, silhouettes)
    protocol = {
        "scenes": len(scenes), "split": "held_out", "size": [FRAMES, SIDE, SIDE], "moment": ANCHOR, "plain": PLAIN,
        "rows": ROWS, "threads": torch.get_num_threads(), "model_sha256": digest_model(None),
    }  # fmt: skip
    write_result(arguments.output, "structure", values, protocol, "cpu")
    if arguments.picture is not None:
        draw(made, silhouettes, arguments.picture)


if __name__ == "__main__":
    main()
