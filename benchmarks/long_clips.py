"""Clips in a row, each from the last frame of the one before: how smooth their seams are, and what drifts.

python benchmarks/long_clips.py -o benchmarks/results/sprites-long-clips.json --num-scenes 60

Held-out appearances, alone, whose motion can go on in the frame for ever (what slides, pans, grows or shrinks leaves
it), so many scenes of each in turn. A first clip from words, the same for all rows, then three more
(`num_clips`): 16 + 3 x 15 = 61 frames. "independent" is the first clip and another of the same words, cut together.

Seams: PSNR and warping error from the last frame of a clip to the next one, beside those from frame to frame within
clips; the flow is the clip's own, as there is no true one, and where it finds pixels covered they are left out. Drift:
what the reader of sprites reads off the last 16 frames, which are the fourth clip, beside the first 16, and the PSNR
of the last frame's border, where hardly an object comes, to the first frame's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from by_turns import PLAIN
from given_frames import pipeline
from plan import with_error
from safetensors.torch import load_file, save_file

from cmd_video.data.transforms import to_uint8
from cmd_video.evaluation.networks.flow import visible_flow, warping_error
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import all_combinations, wilson_interval
from cmd_video.sprites.reader import read_scene, score_adherence
from cmd_video.sprites.scenes import SpriteScene, sample_scene

FRAMES, CLIPS, BATCH, BORDER = 16, 4, 5, 4
MOTIONS = ("bounce", "orbit", "rotate", "still")  # that end where they can begin again
ROWS: dict[str, dict[str, Any]] = {  # settings of `roll_forward`
    "default": {},
    "refine_steps 0": {"refine_steps": 0},
    "redraw 0.3": {"redraw": 0.3},
    "refine_steps 15": {"refine_steps": 15},
    "redraw 0.5": {"redraw": 0.5},
}
Scenes = dict[int, SpriteScene]


def choose_scenes(count: int) -> Scenes:
    """The first held-out scenes with one object of each combination that can go on, by turns, by their index."""
    combinations = [each for each in all_combinations("held_out") if each[2] in MOTIONS]
    most = -(-count // len(combinations))
    by_combination: dict[tuple[str, str, str], list[int]] = {each: [] for each in combinations}
    index = 0
    while any(len(found) < most for found in by_combination.values()):
        found = by_combination.get(sample_scene(index, 0, "held_out", pairs=0).combinations()[0])
        if found is not None and len(found) < most:
            found.append(index)
        index += 1
    order = [found[turn] for turn in range(most) for found in by_combination.values()]
    return {index: sample_scene(index, 0, "held_out", pairs=0) for index in order[:count]}


def made(pipe: CMDPipeline, scenes: Scenes, settings: dict[str, Any], shift: int = 0, **given: Any) -> torch.Tensor:
    """Clips (B, 3, F, H, W) in [-1, 1] of these scenes' words, from seeds that are their index and more."""
    how = pipe.sampling.laid_over({"given_frames": {"kind": "roll_forward", **settings}})
    sources = [torch.Generator().manual_seed(shift + index) for index in scenes]
    prompts = [scene.prompt for scene in scenes.values()]
    out: Any = pipe(prompts, generator=sources, output_type="pt", sampling=how, **given)
    return out.frames.transpose(1, 2) * 2 - 1


@torch.inference_mode()
def clips_of(pipe: CMDPipeline, scenes: Scenes, rows: list[str]) -> dict[str, torch.Tensor]:
    """Every row's clips of some scenes."""
    first = made(pipe, scenes, {})
    last = first[:, :, -1] / 2 + 0.5
    clips = {"independent": torch.cat([first, made(pipe, scenes, {}, shift=10**6)], dim=2)}
    for name in rows:
        begun = made(pipe, scenes, ROWS[name], shift=2 * 10**6, image=last, num_clips=CLIPS - 1)
        clips[name] = torch.cat([first, begun[:, :, 1:]], dim=2)
    return clips


def all_clips(scenes: Scenes, rows: list[str], kept: Path | None, share: slice) -> dict[str, torch.Tensor]:
    """The same of all scenes, or of a share of the batches; those that are kept already are not made again."""
    pipe, numbers, parts = pipeline(None), list(scenes), {}
    for start in range(0, len(numbers), BATCH)[share]:
        path = None if kept is None else kept / f"{start:03d}.safetensors"
        if path is not None and path.exists():
            found = load_file(path)
        else:
            found = clips_of(pipe, {index: scenes[index] for index in numbers[start : start + BATCH]}, rows)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file({name: clips.contiguous() for name, clips in found.items()}, path)
        for name in ("independent", *rows):
            parts.setdefault(name, []).append(found[name])
        print(f"{min(start + BATCH, len(numbers))} of {len(numbers)} clips", flush=True)
    return {name: torch.cat(clips) for name, clips in parts.items()}


def decibels(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """PSNR (B,) between pixels (B, ...) in [-1, 1], at most 60."""
    error = ((one - other) / 2).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-6).log10()


def steps_of(clips: torch.Tensor) -> dict[str, torch.Tensor]:
    """PSNR, warping error and share of pixels that stay in sight, from each frame to the next: (B, F - 1) each."""
    found: dict[str, list[torch.Tensor]] = {"psnr": [], "warping_error": [], "seen": []}
    for clip in clips:
        frames = to_uint8(clip)
        flow, seen = visible_flow(frames)
        found["psnr"].append(decibels(clip[:, 1:].transpose(0, 1), clip[:, :-1].transpose(0, 1)))
        errors = [
            warping_error(frames[at : at + 2], flow[at : at + 1], seen[at : at + 1]) for at in range(len(frames) - 1)
        ]
        found["warping_error"].append(torch.tensor(errors))
        found["seen"].append(seen.float().mean(dim=(1, 2)))
    return {name: torch.stack(rows) for name, rows in found.items()}


def border(frames: torch.Tensor) -> torch.Tensor:
    """The outermost pixels (B, 3, N) of frames (B, 3, H, W)."""
    inside = torch.zeros(frames.shape[2:], dtype=torch.bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return frames[:, :, ~inside]


def read(scenes: Scenes, clips: torch.Tensor) -> dict[str, list[bool]]:
    """What is right of each clip, by attribute."""
    scores = [score_adherence(scene, read_scene(clip)) for scene, clip in zip(scenes.values(), clips, strict=True)]
    return {attribute: [score[attribute] for score in scores] for attribute in scores[0]}


def rates(right: dict[str, list[bool]]) -> dict[str, dict[str, float]]:
    """The share that is right, with its interval."""
    found = {}
    for attribute, scores in right.items():
        low, high = wilson_interval(sum(scores), len(scores))
        found[attribute] = {"rate": sum(scores) / len(scores), "low": low, "high": high}
    return found


def measure(scenes: Scenes, clips: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Every row's seams and drift."""
    values, default = {}, None
    for name, row in clips.items():
        seams = list(range(FRAMES - 1, row.shape[2] - 1, FRAMES if name == "independent" else FRAMES - 1))
        within = [at for at in range(row.shape[2] - 1) if at not in seams]
        places = {"seam": seams, "within": within}
        steps = steps_of(row)
        values[name] = {
            place: {kind: with_error(found[:, at].nanmean(dim=1)) for kind, found in steps.items()}
            for place, at in places.items()
        }
        right = read(scenes, row[:, :, -FRAMES:])
        values[name] |= {
            "first": rates(read(scenes, row[:, :, :FRAMES])),
            "last": rates(right),
            "border": with_error(decibels(border(row[:, :, -1]), border(row[:, :, 0]))),
        }
        default = right if name == "default" else default
        if default is not None and name != "default":  # on the same scenes: how many more, and how many fewer
            values[name]["beside_default"] = {kind: gains(scores, default[kind]) for kind, scores in right.items()}
        print(name, *(line(values[name], place) for place in ("seam", "within", "first", "last")), sep="\n    ")
    return values


def gains(scores: list[bool], other: list[bool]) -> dict[str, int]:
    """Clips that are right here and not there, and the reverse."""
    pairs = list(zip(scores, other, strict=True))
    return {"only_here": pairs.count((True, False)), "only_there": pairs.count((False, True))}


def line(row: dict[str, Any], place: str) -> str:
    """A part of a row in words."""
    shown = (f"{kind} {found.get('mean', found.get('rate')):.4g}" for kind, found in row[place].items())
    return f"{place}: {', '.join(shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=60)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--kept", type=Path, help="Folder of what was made, to go on from after an interruption.")
    parser.add_argument("--share", nargs=2, type=int, metavar=("N", "OF"), help="Make so much for --kept, no more.")
    arguments = parser.parse_args()
    scenes = choose_scenes(arguments.num_scenes)
    number, of = arguments.share or (0, 1)
    clips = all_clips(scenes, arguments.rows, arguments.kept, slice(number, None, of))
    if arguments.share:
        return
    values = measure(scenes, clips)
    protocol = {
        "scenes": arguments.num_scenes, "split": "held_out, one object", "motions": MOTIONS, "clips": CLIPS,
        "frames": FRAMES, "side": 64, "border": BORDER, "rows": ROWS, "plain": PLAIN, "threads": 1,
        "model_sha256": digest_model(None),
    }  # fmt: skip
    write_result(arguments.output, "long clips", values, protocol, "cpu")


if __name__ == "__main__":
    main()
