"""Clips in a row, each from the last frame of the one before: how smooth their seams are, and what drifts.

python benchmarks/long_clips.py -o benchmarks/results/sprites-long-clips.json --num-scenes 30 --kept runs/long-clips

Held-out appearances, alone, whose motion can go on in the frame for ever (what slides, pans, grows or shrinks leaves
it), so many scenes of each in turn. A first clip from words, the same for all rows, then three more
(`num_clips`): 16 + 3 x 15 = 61 frames. "independent" is the first clip and another of the same words, cut together.

Seams: PSNR and warping error from the last frame of a clip to the next one, beside those from frame to frame within
clips; the flow is the clip's own, as there is no true one, and where it finds pixels covered they are left out. Drift:
what the reader of sprites reads off the last 16 frames, which are the fourth clip, beside the first 16, and the PSNR
of the last frame's border, where hardly an object comes, to the first frame's.
"""

import argparse
from collections.abc import Callable, Mapping
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
from cmd_video.sprites.adherence import ATTRIBUTES, all_combinations, wilson_interval
from cmd_video.sprites.reader import read_scene, score_adherence
from cmd_video.sprites.scenes import SpriteScene, sample_scene
from cmd_video.techniques.roll_forward import Decode, Draw, Settings, anchor, nearest_to_anchor, roll

FRAMES, CLIPS, BATCH, BORDER = 16, 4, 5, 4
MOTIONS = ("bounce", "orbit", "rotate", "still")  # that end where they can begin again
ROWS: dict[str, dict[str, Any]] = {  # settings of `Redrawn`
    "default": {},
    "refine_steps 0": {"refine_steps": 0},
    "redraw 0.3": {"redraw": 0.3},
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


class Redrawn(Settings):
    """`roll_forward`, with the content model between its passes: no part of the library, as it mends too little."""

    redraw: float = 0.0
    """Share of diffusion time from which on the rolled content frame is drawn anew, under the prompt; 0 = it stays."""
    anew: Callable[[torch.Tensor, float], torch.Tensor]
    """Content frames and that share to such as are drawn anew (SDEdit, arXiv 2108.01073)."""

    def frames(
        self, given: Mapping[int, torch.Tensor], frames: int, weights: list[float], patch: int, draw: Draw,
        decode: Decode,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """As `roll_forward` has it."""
        nearest, place = nearest_to_anchor(given, frames, weights), anchor(weights, frames)
        content_frame = roll(given[nearest], place - nearest, frames, weights, patch, self.roll_steps, draw, decode)
        if self.redraw:
            content_frame = self.anew(content_frame, self.redraw)
        return self.refine(given, content_frame, draw(content_frame, frames, None), decode)


def made(pipe: CMDPipeline, scenes: Scenes, settings: dict[str, Any], shift: int = 0, **given: Any) -> torch.Tensor:
    """Clips (B, 3, F, H, W) in [-1, 1] of these scenes' words, from seeds that are their index and more."""
    sources = [torch.Generator().manual_seed(shift + index) for index in scenes]
    prompts = [scene.prompt for scene in scenes.values()]
    told, nothing, _ = pipe.encode(prompts, None, None, len(prompts), 1)

    def anew(content_frame: torch.Tensor, share: float) -> torch.Tensor:
        noise, content = pipe.prepare_latents(tuple(content_frame.shape), sources), pipe.sampling.content
        return pipe.generate("content", noise, told, nothing, content, sources, (content_frame, share))

    how = pipe.sampling.model_copy(update={"given_frames": Redrawn(**settings, anew=anew)})
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


def all_numbers(scenes: Scenes, rows: list[str], kept: Path, share: slice) -> dict[str, torch.Tensor]:
    """What `numbers_of` finds of all scenes, or of a share of the batches; what is kept already is not made again."""
    pipe, indices = pipeline(None), list(scenes)
    parts: dict[str, list[torch.Tensor]] = {}
    kept.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(indices), BATCH)[share]:
        batch = {index: scenes[index] for index in indices[start : start + BATCH]}
        clips_path, numbers_path = (kept / f"{start:03d}{name}.safetensors" for name in ("", "-numbers"))
        if not numbers_path.exists():
            if not clips_path.exists():
                made_now = {name: clips.contiguous() for name, clips in clips_of(pipe, batch, rows).items()}
                save_file(made_now, clips_path)
            save_file(numbers_of(batch, load_file(clips_path)), numbers_path)
        for name, found in load_file(numbers_path).items():
            parts.setdefault(name, []).append(found)
        print(f"{start + len(batch)} of {len(indices)} clips", flush=True)
    return {name: torch.cat(found) for name, found in parts.items()}


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


def read(scenes: Scenes, clips: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """What is right of each clip (B,), by a name and the attribute."""
    scores = [score_adherence(scene, read_scene(clip)) for scene, clip in zip(scenes.values(), clips, strict=True)]
    return {f"{name}/{kind}": torch.tensor([float(score[kind]) for score in scores]) for kind in scores[0]}


def numbers_of(scenes: Scenes, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is measured of each clip (B,), by row, place and kind."""
    found = read(scenes, clips["independent"][:, :, :FRAMES], "first")
    for name, row in clips.items():
        seams = list(range(FRAMES - 1, row.shape[2] - 1, FRAMES if name == "independent" else FRAMES - 1))
        within = [at for at in range(row.shape[2] - 1) if at not in seams]
        for kind, values in steps_of(row).items():
            found[f"{name}/seam/{kind}"] = values[:, seams].nanmean(dim=1)
            found[f"{name}/within/{kind}"] = values[:, within].nanmean(dim=1)
        found |= read(scenes, row[:, :, -FRAMES:], f"{name}/last")
        found[f"{name}/border"] = decibels(border(row[:, :, -1]), border(row[:, :, 0]))
    return found


def rate(scores: torch.Tensor) -> dict[str, float]:
    """The share that is right, with its interval."""
    low, high = wilson_interval(int(scores.sum()), len(scores))
    return {"rate": float(scores.mean()), "low": low, "high": high}


def summary(numbers: dict[str, torch.Tensor], rows: list[str]) -> dict[str, Any]:
    """Means with standard errors, rates with intervals, and on how many clips a row and the default differ."""
    values: dict[str, Any] = {"first": {kind: rate(numbers[f"first/{kind}"]) for kind in ATTRIBUTES}}
    for name in ("independent", *rows):
        right = {kind: numbers[f"{name}/last/{kind}"] for kind in ATTRIBUTES}
        values[name] = {
            place: {kind: with_error(numbers[f"{name}/{place}/{kind}"]) for kind in ("psnr", "warping_error", "seen")}
            for place in ("seam", "within")
        }
        values[name] |= {"last": {kind: rate(scores) for kind, scores in right.items()}}
        values[name]["border"] = with_error(numbers[f"{name}/border"])
        if "default" in rows:
            default = {kind: numbers[f"default/last/{kind}"] for kind in ATTRIBUTES}
            values[name]["beside_default"] = {
                kind: {
                    "only_here": int((scores > default[kind]).sum()),
                    "only_there": int((scores < default[kind]).sum()),
                }
                for kind, scores in right.items()
            }
        parts = (f"{place} {kind} {found['mean']:.4g}" for place in ("seam", "within")
                 for kind, found in values[name][place].items())  # fmt: skip
        shares = (f"{kind} {found['rate']:.0%}" for kind, found in values[name]["last"].items())
        print(name, *parts, *shares, f"border {values[name]['border']['mean']:.1f}", sep="  ", flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=30)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--kept", type=Path, required=True, help="Folder of what was made, to go on from.")
    parser.add_argument("--share", nargs=2, type=int, metavar=("N", "OF"), help="Make so much for --kept, no more.")
    arguments = parser.parse_args()
    scenes = choose_scenes(arguments.num_scenes)
    number, of = arguments.share or (0, 1)
    numbers = all_numbers(scenes, arguments.rows, arguments.kept, slice(number, None, of))
    if arguments.share:
        return
    values = summary(numbers, arguments.rows)
    protocol = {
        "scenes": arguments.num_scenes, "split": "held_out, one object", "motions": MOTIONS, "clips": CLIPS,
        "frames": FRAMES, "side": 64, "border": BORDER, "rows": ROWS, "plain": PLAIN, "threads": 1,
        "model_sha256": digest_model(None),
    }  # fmt: skip
    write_result(arguments.output, "long clips", values, protocol, "cpu")


if __name__ == "__main__":
    main()
