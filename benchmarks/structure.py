r"""Content frames in the structure of a silhouette, in another color, said in words: overlap, and what is right.

python benchmarks/structure.py -o benchmarks/results/sprites-structure.json --num-scenes 40 \
    --picture docs/images/structure.png

Held-out single-object scenes at the moment of their content frame, as white silhouettes on black or on gray; the words
ask for the same shape and motion in the color after the scene's own. Overlap is intersection over union of the
silhouette and what the reader of sprites finds in the content frame, of whatever color; color and shape are what it
reads in that frame standing still. "noised" begins the content model's sampling at the silhouette with noise on it
(SDEdit, arXiv 2108.01073), from a share of diffusion time on. Rows make a batch by turns.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

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

FRAMES, SIDE, ANCHOR, GRAY = 16, 64, 8, 0.45
STRONG = {"resnets": (0.0, 1.0), "queries": None, "patch": 64}  # all residual blocks, their maps one patch each
ROWS: dict[str, tuple[float, dict[str, Any] | float | None]] = {
    # brightness of the ground; settings of the injection, or strength of noise, or words alone
    "words alone": (0.0, None),
    "black, injected": (0.0, {}),
    "black, noised, 0.8": (0.0, 0.8),
    "gray, injected, strong, share 0.5": (GRAY, {**STRONG, "share": 0.5}),
    "gray, injected, inner, share 0.7": (GRAY, {**STRONG, "resnets": (0.0, 0.6), "share": 0.7, "level": 0.5}),
    "gray, noised, 0.7": (GRAY, 0.7),
}


def silhouette(scene: SpriteScene) -> torch.Tensor:
    """What a scene shows at its content frame's moment, white on black: (3, H, W) in [0, 1]."""
    item = replace(scene.objects[0], color="white")
    flat = replace(scene, objects=(item,), background="plain", background_colors=((0.0,) * 3, (0.0,) * 3))
    return render(flat, FRAMES, SIDE, SIDE, [ANCHOR])[:, 0] / 2 + 0.5


def content_frames(
    pipe: CMDPipeline, way: dict[str, Any] | float | None, pictures: torch.Tensor, prompts: list[str],
    seeds: list[int],
) -> torch.Tensor:  # fmt: skip
    """What a row makes of pictures (B, 3, H, W) in [0, 1] and prompts: (B, 3, H, W) in about [-1, 1]."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    told, nothing, _ = pipe.encode(prompts, None, None, len(prompts), 1)
    how, given = pipe.sampling, pipe.encode_image(pictures, 1)
    noise = pipe.prepare_latents(tuple(given.shape), sources)
    if isinstance(way, dict):
        how = how.laid_over({"content": {"wraps": [{"kind": "structure_injection", **way}]}})
        told = told.having(structure=given)
    begin = (given, way) if isinstance(way, float) else None
    return decode_images(pipe.vae, pipe.generate("content", noise, told, nothing, how.content, None, begin))


def overlap(pictures: torch.Tensor, silhouettes: torch.Tensor) -> torch.Tensor:
    """Intersection over union (B,) of what is found in pictures (B, 3, H, W) in [-1, 1] and silhouettes in [0, 1]."""
    found = []
    for picture, wanted in zip(pictures, silhouettes, strict=True):
        _, coverage = find_objects((picture.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0)[None])
        drawn, mask = coverage.sum(0)[0] > 0.5, wanted.mean(0) > 0.5  # (H, W)
        found.append((drawn & mask).sum() / (drawn | mask).sum())
    return torch.stack(found)


def measure(
    made: dict[str, list[torch.Tensor]], scenes: list[SpriteScene], silhouettes: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """Of each row the overlap with its standard error over frames, and the shares of frames that are right."""
    values = {}
    for name, parts in made.items():
        pictures = torch.cat(parts)
        scores = [
            score_adherence(scene, read_scene(picture[:, None].repeat(1, 4, 1, 1)))
            for scene, picture in zip(scenes, pictures, strict=True)
        ]
        rates = {}
        for attribute in ("color", "shape"):
            right = sum(score[attribute] for score in scores)
            low, high = wilson_interval(right, len(scores))
            rates[attribute] = {"rate": right / len(scores), "low": low, "high": high}
        values[name] = {"overlap": with_error(overlap(pictures, silhouettes)), "right": rates}
        shown = ", ".join(f"{attribute} {rate['rate']:.0%}" for attribute, rate in rates.items())
        print("{:36s} overlap {mean:.3f} ± {standard_error:.3f}".format(name, **values[name]["overlap"]), shown)
    return values


def draw(made: dict[str, list[torch.Tensor]], silhouettes: torch.Tensor, path: Path, count: int = 10) -> None:
    """The first silhouettes, and below each the content frames of the rows, enlarged half as much again."""
    rows = [silhouettes * 2 - 1, *(torch.cat(parts) for parts in made.values())]
    strips = [torch.cat(list(row[:count].clamp(-1, 1)), dim=2) for row in rows]
    whole = Image.fromarray(to_uint8(torch.cat(strips, dim=1)[:, None]).numpy()[0])
    larger = whole.resize((whole.width * 3 // 2, whole.height * 3 // 2), Image.Resampling.NEAREST)
    larger.quantize(128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=100)
    parser.add_argument("--picture", type=Path, help="Also the first content frames of each row, to this PNG.")
    arguments = parser.parse_args()
    chosen = [(index, scene) for index, scene in choose_scenes(200).items() if len(scene.objects) == 1]
    chosen = chosen[:: max(1, len(chosen) // arguments.num_scenes)][: arguments.num_scenes]
    scenes = [changed(scene) for _, scene in chosen]
    silhouettes = torch.stack([silhouette(scene) for scene in scenes])
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = pipe.sampling.laid_over(PLAIN)
    made: dict[str, list[torch.Tensor]] = {name: [] for name in ROWS}
    with torch.inference_mode():
        for start in range(0, len(chosen), BATCH):
            batch = slice(start, start + BATCH)
            prompts, seeds = [scene.prompt for scene in scenes[batch]], [index for index, _ in chosen[batch]]
            for name, (ground, way) in ROWS.items():
                pictures = silhouettes[batch] * (1 - ground) + ground
                made[name].append(content_frames(pipe, way, pictures, prompts, seeds))
            print(f"{start + len(prompts)} of {len(chosen)} frames", flush=True)
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
