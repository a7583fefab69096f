"""Clips that follow boxes over time: how near the object comes to a path that no word describes.

python benchmarks/plan.py -o benchmarks/results/sprites-plan.json --picture docs/images/plan.png

Held-out appearances, alone, on an L-shaped path, of which the first frame is given. With a plan: the boxes of the true
path at its start, corner and end, a sketch by `pipelines.box_plan`, encoded, its motion drawn anew from a share of
diffusion time on, without words. Without one: image to video, told the diagonal between the path's ends, or nothing.
"reconstruction" is what the autoencoder makes of the true clip, "sketch" the pasted clip itself. Centres are those
that the reader of sprites finds, of the true clip too; frames in which it finds nothing of the object's color are left
out of the error and counted in `found`.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from by_turns import PLAIN
from PIL import Image

from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.box_plan import Plan, boxes_at, sketch
from cmd_video.sprites.reader import MIN_AREA, find_objects
from cmd_video.sprites.scenes import SpriteScene, render, sample_scene
from cmd_video.sprites.words import SIZES

FRAMES, SIDE, CORNER, BATCH = 16, 64, 8, 8
LEG = (0.38, 0.48)  # lengths of the path's two legs as fractions of the frame: those of clips that slide
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.45)
SHOWN = (0, 4, 8, 12, 15)


class Course(NamedTuple):
    """A clip on an L-shaped path: its plan, a sentence for its diagonal, the object's color, and (3, F, H, W)."""

    plan: Plan
    prompt: str
    color: str
    video: torch.Tensor


Maker = Callable[[list[Course], list[int]], torch.Tensor]  # courses and seeds -> clips (B, 3, F, H, W) in [-1, 1]


def choose_courses(count: int) -> list[Course]:
    """The first `count` single-object scenes of the held-out split, each put on a path of its own."""
    found, index = [], 0
    while len(found) < count:
        scene = sample_scene(index, split="held_out", pairs=0)
        found.append(course_of(scene, np.random.default_rng([index, 5])))
        index += 1
    return found


def course_of(scene: SpriteScene, rng: np.random.Generator) -> Course:
    """A scene's object and background, on two legs at a right angle, inside the frame."""
    item = scene.objects[0]
    radius = SIZES[item.size]
    turns = rng.choice([-1, 1], 2)
    legs = turns * rng.uniform(*LEG, 2)  # along x and y
    low = radius + 0.01 + np.maximum(-legs, 0)
    start = rng.uniform(low, 1 - radius - 0.01 - np.maximum(legs, 0))
    corner = start + legs * (np.array([1, 0]) if rng.random() < 0.5 else np.array([0, 1]))
    places = {0: start, CORNER: corner, FRAMES - 1: start + legs}
    keyframes = [
        {"frame": frame, "box": [*((place - radius) * SIDE).tolist(), 2 * radius * SIDE, 2 * radius * SIDE]}
        for frame, place in places.items()
    ]
    plan = Plan.model_validate({"objects": [{"id": item.shape, "keyframes": keyframes}]})
    boxes = boxes_at(plan.objects[0], FRAMES)
    centers = ((boxes[:, :2] + boxes[:, 2:] / 2) / SIDE).tolist()
    frames = [
        render(replace(scene, motion="still", objects=(replace(item, x=x, y=y),)), 1, SIDE, SIDE) for x, y in centers
    ]
    words = f"{'down' if legs[1] > 0 else 'up'} and to the {'right' if legs[0] > 0 else 'left'}"
    return Course(plan, f"a {item.color} {item.shape} moves {words}", item.color, torch.cat(frames, dim=1))


def rows_of(pipe: CMDPipeline) -> dict[str, Maker]:
    """The rows of the table."""

    def clips(out: Any) -> torch.Tensor:
        return out.frames.transpose(1, 2) * 2 - 1

    def sources(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def first(courses: list[Course]) -> torch.Tensor:
        return torch.stack([course.video[:, 0] for course in courses]) / 2 + 0.5

    def told(words: bool) -> Maker:
        def make(courses: list[Course], seeds: list[int]) -> torch.Tensor:
            prompts = [course.prompt if words else "" for course in courses]
            return clips(pipe(prompts, image=first(courses), generator=sources(seeds), output_type="pt"))

        return make

    def sketches(courses: list[Course], seeds: list[int]) -> torch.Tensor:
        pictures = first(courses)
        drawn = [sketch(course.plan, picture, FRAMES) for course, picture in zip(courses, pictures, strict=True)]
        return torch.stack(drawn).transpose(1, 2) * 2 - 1

    def edited(clip: torch.Tensor, seeds: list[int], strength: float) -> torch.Tensor:
        how = {"strength": 0.0, "motion_strength": strength, "generator": sources(seeds), "output_type": "pt"}
        return clips(pipe.edit((clip / 2 + 0.5).transpose(1, 2).clamp(0, 1), "", **how))

    def reconstruction(courses: list[Course], seeds: list[int]) -> torch.Tensor:
        return edited(torch.stack([course.video for course in courses]), seeds, 0.0)

    def planned(strength: float) -> Maker:
        return lambda courses, seeds: edited(sketches(courses, seeds), seeds, strength)

    rows: dict[str, Maker] = {"no plan, words": told(True), "no plan, no words": told(False), "sketch": sketches}
    rows |= {f"plan, motion strength {strength:g}": planned(strength) for strength in STRENGTHS}
    return {**rows, "reconstruction": reconstruction}


def centers(video: torch.Tensor, color: str) -> torch.Tensor:
    """Centres (F, 2) of what has a color in a clip (3, F, H, W), in pixels; not a number where there is none."""
    names, masks = find_objects(((video.clamp(-1, 1) + 1) / 2).movedim(0, -1))
    if color not in names:
        return torch.full((video.shape[1], 2), torch.nan)
    mask = masks[names.index(color)]  # (F, H, W)
    area = mask.sum((1, 2))
    grid = torch.arange(SIDE) + 0.5
    found = torch.stack([mask.sum(1) @ grid, mask.sum(2) @ grid], dim=-1) / area[:, None]
    return found.masked_fill(area[:, None] < MIN_AREA, torch.nan)


def measure(clips: dict[str, torch.Tensor], courses: list[Course]) -> dict[str, Any]:
    """Of each row: the mean distance of centres, PSNR to the true clip, both with standard errors over clips."""
    true = [centers(course.video, course.color) for course in courses]
    videos = torch.stack([course.video for course in courses])
    values = {}
    for name, made in clips.items():
        pairs = zip(made, courses, true, strict=True)
        off = torch.stack([(centers(clip, course.color) - wanted).norm(dim=1) for clip, course, wanted in pairs])
        error = ((made.clamp(-1, 1) - videos) / 2).square().flatten(1).mean(dim=1)
        values[name] = {
            "center_error": with_error(off.nanmean(dim=1)),
            "found": float(off.isfinite().float().mean()),
            "psnr": with_error(-10 * error.clamp(min=1e-6).log10()),
        }
        shown = "   ".join(f"{key} {values[name][key]['mean']:5.2f} ± {values[name][key]['standard_error']:.2f}"
                           for key in ("center_error", "psnr"))  # fmt: skip
        print(f"{name:28s} {shown}   found {values[name]['found']:.0%}", flush=True)
    return values


def with_error(found: torch.Tensor) -> dict[str, float]:
    """Mean of values of clips and its standard error; clips without a value are left out."""
    known = found[found.isfinite()]
    return {"mean": float(known.mean()), "standard_error": float(known.std() / len(known) ** 0.5)}


def picture(clips: dict[str, torch.Tensor], courses: list[Course], path: Path, number: int) -> None:
    """One clip: a strip of frames for the truth and for some of the rows."""
    rows = [courses[number].video, *(clips[name][number] for name in
            ("sketch", "plan, motion strength 0", "plan, motion strength 0.3", "no plan, words"))]  # fmt: skip
    strips = [np.concatenate(list(to_uint8(row).numpy()[list(SHOWN)]), axis=1) for row in rows]
    whole = Image.fromarray(np.concatenate(strips, axis=0))
    larger = whole.resize((whole.width * 3 // 2, whole.height * 3 // 2), Image.Resampling.NEAREST)
    larger.quantize(128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=32)
    parser.add_argument("--picture", type=Path, help="Also frames of one clip, to this PNG.")
    parser.add_argument("--shown", type=int, default=1, help="Which clip.")
    arguments = parser.parse_args()
    courses = choose_courses(arguments.num_scenes)
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.sampling = PLAIN
    clips: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(courses), BATCH):
            batch = courses[start : start + BATCH]
            for name, make in rows_of(pipe).items():
                clips.setdefault(name, []).append(make(batch, list(range(start, start + len(batch)))))
    made = {name: torch.cat(parts) for name, parts in clips.items()}
    values = measure(made, courses)
    protocol = {
        "scenes": arguments.num_scenes, "split": "held_out", "frames": FRAMES, "side": SIDE, "corner": CORNER,
        "leg": LEG, "plain": PLAIN, "threads": torch.get_num_threads(), "model_sha256": digest_model(None),
    }  # fmt: skip
    write_result(arguments.output, "plan", values, protocol, "cpu")
    if arguments.picture is not None:
        picture(made, courses, arguments.picture, arguments.shown)


if __name__ == "__main__":
    main()
