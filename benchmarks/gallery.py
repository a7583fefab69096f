"""A strip of frames for each thing that the pipeline does, with the default model: the pictures of docs/gallery.md.

python benchmarks/gallery.py -o docs/images/gallery
python benchmarks/gallery.py -o docs/images/gallery --only tracks

Held-out scenes in front of plain backgrounds, the first of their motion; what is given stands before a strip, in a
white frame. Strips are eight frames of a clip, enlarged twice, and nothing is chosen among several seeds.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from by_turns import PLAIN
from PIL import Image, ImageDraw

from cmd_video.data.transforms import to_uint8
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.scenes import SpriteScene, object_states, render, sample_scene
from cmd_video.techniques.tracks import Track

SCALE, SHOWN, GAP = 2, 8, 4
Pictures = list[Image.Image]


def scene_of(motion: str) -> SpriteScene:
    """The first held-out scene with one object that moves like this, in front of a plain background."""
    scenes = (sample_scene(index, 0, "held_out") for index in range(10_000))
    return next(
        scene for scene in scenes
        if len(scene.objects) == 1 and scene.motion == motion and scene.background == "plain"
    )  # fmt: skip


def pictures_of(clip: torch.Tensor) -> Pictures:
    """Frames of a clip (3, F, H, W) in [-1, 1]."""
    return [Image.fromarray(frame) for frame in to_uint8(clip).numpy()]


def drag_of(scene: SpriteScene, picture: Image.Image) -> tuple[Track, Image.Image]:
    """The object of a picture, the middle of a scene's clip, dragged from below to above; and a picture of that."""
    x, y = (object_states(scene, np.array([8 / 15]))[0, 0, :2] * picture.width).tolist()
    drawn = picture.copy()
    ImageDraw.Draw(drawn).line([(x, y + 12), (x, y - 10.5)], "white")
    return Track(points=((0, x, y + 12), (8, x, y), (15, x, y - 10.5))), drawn


def strip(given: Pictures, frames: Pictures, path: Path) -> None:
    """What is given, then some frames, in one picture."""
    chosen = [frames[round(place * (len(frames) - 1) / (SHOWN - 1))] for place in range(SHOWN)]
    width, height = (side * SCALE for side in frames[0].size)
    sheet = Image.new("RGB", ((len(given) + SHOWN) * (width + GAP) + GAP, height + 2 * GAP), "black")
    for place, picture in enumerate([*given, *chosen]):
        left = GAP + place * (width + GAP)
        if place < len(given):
            sheet.paste("white", (left - GAP, 0, left + width + GAP, height + 2 * GAP))
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, GAP))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    print(path)


def strips(pipe: CMDPipeline) -> dict[str, Callable[[], tuple[Pictures, Pictures]]]:
    """What the pipeline does, by the name of its picture: what is given, and the frames of the clip."""
    scene, other = scene_of("right"), scene_of("rotate")
    clip, second = pictures_of(render(scene, 16, 64, 64)), pictures_of(render(other, 16, 64, 64))
    item = replace(scene.objects[0], color="blue" if scene.objects[0].color != "blue" else "red")
    painted = pictures_of(render(replace(scene, objects=(item,)), 16, 64, 64))[8]
    region = Image.new("RGB", clip[0].size)
    region.paste("white", (0, 0, region.width, region.height // 2))
    words = scene.prompt.replace(scene.objects[0].color, item.color)
    turned = f"a {scene.objects[0].color} {scene.objects[0].shape} moves up"

    def made(**arguments: Any) -> Pictures:
        out: Any = pipe(generator=torch.Generator().manual_seed(0), **arguments)
        return out.frames[0]

    def edited(**arguments: Any) -> Pictures:
        out: Any = pipe.edit(clip, generator=torch.Generator().manual_seed(0), **arguments)
        return out.frames[0]

    track, dragged = drag_of(scene, clip[8])
    print(scene.prompt, "|", other.prompt, "|", words, sep="\n")
    return {
        "text": lambda: ([], made(prompt=scene.prompt)),
        "first-frame": lambda: ([clip[0]], made(prompt=scene.prompt, image=clip[0])),
        "last-frame": lambda: ([clip[-1]], made(prompt=scene.prompt, last_image=clip[-1])),
        "both-frames": lambda: ([clip[0], clip[-1]], made(prompt=scene.prompt, image=clip[0], last_image=clip[-1])),
        "content-frame": lambda: ([second[8]], made(prompt=other.prompt, content_frame=second[8])),
        "tracks": lambda: ([dragged], made(prompt="", content_frame=clip[8], tracks=[track])),
        "region": lambda: (
            [clip[0], region],
            made(prompt=scene.prompt, image=clip[0], motion_region=region),
        ),
        "three-clips": lambda: ([second[0]], made(prompt=other.prompt, image=second[0], num_clips=3)),
        "edit-picture": lambda: ([clip[8], painted], edited(content_frame=painted)),
        "edit-words": lambda: ([clip[8]], edited(prompt=words, strength=0.9)),
        "another-ending": lambda: ([clip[0], clip[-1]], edited(prompt=turned, resample_frames=(8, 16))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", help="The name of one picture; all without it.")
    arguments = parser.parse_args()
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = PLAIN
    for name, make in strips(pipe).items():
        if arguments.only in (None, name):
            strip(*make(), arguments.output / f"{name}.png")


if __name__ == "__main__":
    main()
