"""What techniques do to the default model, each beside what it changes, in one run.

python benchmarks/techniques.py sampling -o benchmarks/results/sprites-techniques.json --num-scenes 100
python benchmarks/techniques.py search|merge|restore -o benchmarks/results/sprites-search.json
python benchmarks/techniques.py trained -o benchmarks/results/sprites-trained.json --runs runs/sprites

`sampling`: rows take turns on held-out prompts (`by_turns`). `search`: prompts with two objects, turbo's content
frames rewarded by the reader, its clips judged by a classifier, which the reward does not know. `merge`: between the
default's content model and turbo's, sampled with turbo's four steps. `restore`: held-out clips, damaged, against the
plainest restoration and the autoencoder. `trained`: motion models fine-tuned with a technique (recipes leakage-motion,
frame-dropout-motion and bridge-motion) beside one trained as long without: `leakage-motion` with
`objective.disturb=null` and `objective.content_frame_noise=0.1`, into the run constant-motion.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from by_turns import PLAIN, Maker, clips_of, compare, encode_scenes, protocol_of, true_clips

from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.evaluation.protocol.results import digest, digest_model, write_result
from cmd_video.models import CMDMotionTransformer
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.shipped import sprites_folder
from cmd_video.sprites.adherence import choose_scenes
from cmd_video.sprites.classifier import SpriteClassifier
from cmd_video.sprites.reader import read_scene, score_adherence
from cmd_video.sprites.reward import build as build_reward
from cmd_video.sprites.reward import objects_of
from cmd_video.sprites.scenes import SpriteScene, render
from cmd_video.sprites.words import COLORS, SHAPES
from cmd_video.techniques.variational_restoration import Operator
from cmd_video.techniques.weight_extrapolation import merge

CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # row -> what of PLAIN is another
    "plain": {},
    "cfg_plus_plus, content, scale 0.6": {"content": {"guidance": {"kind": "cfg_plus_plus", "scale": 0.6}}},
    "content, eta 1": {"content": {"eta": 1.0}},
    "guidance_interval, content, from 0.2": {
        "content": {"guidance": {"kind": "guidance_interval", "scale": 4.0, "low": 0.2}}
    },
    "feature_reuse, content, every 2": {"content": {"wraps": [{"kind": "feature_reuse", "interval": 2}]}},
    "joint_guidance, motion, scale 2": {"motion": {"guidance": {"kind": "joint_guidance", "scale": 2.0}}},
    "later_start, motion, from 0.9": {"motion": {"solver": {"kind": "later_start", "share": 0.9}}},
    "bridge, motion, aligned, untrained": {"motion": {"process": {"kind": "bridge"}}},
}

TRAINED: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # row -> run, what of PLAIN is another
    "plain": ("constant-motion", {}),
    "image_leakage": ("leakage-motion", {}),
    "image_leakage, later_start from 0.9": (
        "leakage-motion",
        {"motion": {"solver": {"kind": "later_start", "share": 0.9}}},
    ),
    "frame_dropout": ("frame-dropout-motion", {}),
    "frame_dropout, joint_guidance": (
        "frame-dropout-motion",
        {"motion": {"guidance": {"kind": "joint_guidance", "scale": 2.0}}},
    ),
    "bridge": ("bridge-motion", {"motion": {"process": {"kind": "bridge", "kappa": 25.005}}}),
}


def pipeline(model: str | None = None, changes: dict[str, dict[str, Any]] | None = None) -> CMDPipeline:
    """A shipped model, with PLAIN sampling and some changes; turbo as it is."""
    pipe = CMDPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if model is None:
        pipe.sampling = {part: {**PLAIN[part], **(changes or {}).get(part, {})} for part in PLAIN}
    return pipe


def sampling(num_scenes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of CHANGES."""
    makers = {row: clips_of(pipeline(changes=changes)) for row, changes in CHANGES.items()}
    return dict(compare(makers, num_scenes)), {**protocol_of(num_scenes), "plain": PLAIN, "changes": CHANGES}


def trained(num_scenes: int, runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of TRAINED, by prompts, and on the true content frames without one, where the motion is open."""
    makers, facts, scenes = {}, {}, choose_scenes(num_scenes)
    for row, (run, changes) in TRAINED.items():
        folder = runs / run / "pipeline" / "motion_transformer"
        if not folder.is_dir():
            print(f"{row}: no run {folder}", flush=True)
            continue
        pipe = pipeline(changes=changes)
        pipe.motion_transformer = CMDMotionTransformer.from_pretrained(folder)
        facts[row] = {"run": run, "sha256": digest(folder), "changes": changes}
        makers |= {row: clips_of(pipe), f"{row}, no prompt": clips_of_frames(pipe, scenes)}
    return dict(compare(makers, num_scenes)), {**protocol_of(num_scenes), "plain": PLAIN, "rows": facts}


def clips_of_frames(pipe: CMDPipeline, scenes: dict[int, SpriteScene]) -> Maker:
    """What moves true content frames, asked for nothing."""

    def make(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        frames, _ = encode_scenes(pipe, scenes, seeds)
        shown = decode_video(pipe.vae, frames[:, :, None])[:, :, 0]  # (B, 3, H, W)
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        out: Any = pipe(
            [""] * len(seeds), content_frame=(shown / 2 + 0.5).clamp(0, 1), generator=sources, output_type="pt"
        )
        return out.frames.transpose(1, 2) * 2 - 1

    return make


def search(num_scenes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turbo, with more and more evaluations of its content model for each clip."""
    pipe, reward = pipeline("turbo"), build_reward()
    scenes = [(i, s) for i, s in choose_scenes(4 * num_scenes).items() if len(s.objects) == 2 and objects_of(s.prompt)]
    chosen, own = dict(scenes[:num_scenes]), pipe.sampling.model_dump()
    classify = SpriteClassifier.from_pretrained(sprites_folder() / "classifiers" / "appearance").eval()
    truth = [shows(classify, scene, render(scene, 16, 64, 64)) for scene in chosen.values()]
    name = "all that is named, and nothing else, by the classifier"
    values: dict[str, Any] = {"true clips": {name: rate(sum(truth), len(truth))}}
    for budget, starts in ((1, 1), (8, 4), (16, 8), (32, 16)):
        settings = {"kind": "reward_particles", "budget": budget, "starts": starts}
        how = {**own, "content": {**own["content"], "eta": 1.0, "search": settings}}
        begin, read, seen = time.perf_counter(), [], []
        for index, scene in chosen.items():
            out: Any = pipe(
                scene.prompt, generator=torch.Generator().manual_seed(index), output_type="pt", reward=reward,
                sampling=how,
            )  # fmt: skip
            clip = out.frames[0].transpose(0, 1) * 2 - 1  # (3, F, H, W)
            read.append(score_adherence(scene, read_scene(clip)))
            seen.append(shows(classify, scene, clip))
        values[f"budget {budget}, {starts} starts" if budget > 1 else "no search"] = row = {
            name: rate(sum(seen), len(seen)),
            "color, by the reader": rate(sum(each["color"] for each in read), len(read)),
            "shape, by the reader": rate(sum(each["shape"] for each in read), len(read)),
            "seconds_per_clip": (time.perf_counter() - begin) / len(read),
        }
        print(budget, starts, row, flush=True)
    protocol = {"clips": len(chosen), "model_sha256": digest_model("turbo"), "reward": "the reader, on content frames"}
    return values, protocol


@torch.no_grad()
def shows(classify: SpriteClassifier, scene: SpriteScene, clip: torch.Tensor) -> bool:
    """Whether the likeliest shapes and colors of a clip (3, F, H, W) are its scene's, as many as the scene has."""
    logits = classify(clip.transpose(0, 1)[:, :, None])[0].mean(dim=0)  # (18,): shapes, then colors
    for names, found, field in (
        (SHAPES, logits[: len(SHAPES)], "shape"),
        ((*COLORS,), logits[len(SHAPES) :], "color"),
    ):
        wanted = {getattr(item, field) for item in scene.objects}
        if {names[number] for number in found.topk(len(wanted)).indices.tolist()} != wanted:
            return False
    return True


def rate(right: int, total: int) -> dict[str, float]:
    """A share and its standard error."""
    share = right / total
    return {"rate": share, "standard_error": (share * (1 - share) / total) ** 0.5, "total": total}


def merging(num_scenes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content models on the line through the default's and turbo's."""
    turbo, default = pipeline("turbo"), pipeline()
    tuned, makers = copy.deepcopy(turbo.unet), {}
    for scale in (1.0, 1.25, 0.75, 0.5, 0.0):
        pipe = pipeline("turbo")
        pipe.unet = merge(copy.deepcopy(default.unet), tuned, scale)
        makers[f"scale {scale:g}"] = clips_of(pipe)
    return dict(compare(makers, num_scenes)), protocol_of(num_scenes)


def operators() -> dict[str, Operator]:
    """What is done to clips of 64x64; of inpainting the square in the middle, a ninth of a frame, is not known."""
    mask = torch.ones(64, 64)
    mask[21:43, 21:43] = 0
    factors = {"superres": 4, "interpolate": 5, "predict": 4, "deblur": 2}
    return {name: Operator(name, factor) for name, factor in factors.items()} | {
        "inpaint": Operator("inpaint", mask=mask)
    }


def restore(num_scenes: int, tasks: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """PSNR of restored clips and of the plainest restorations."""
    pipe = pipeline()
    scenes, clips = choose_scenes(num_scenes), true_clips(num_scenes)
    values: dict[str, Any] = {}
    known, latents = pipe.autoencoder.encode(encode_video(pipe.vae, clips), return_dict=False)
    round_trip = decode_video(pipe.vae, pipe.autoencoder.decode(known, latents).sample)
    for task in tasks:
        operator = operators()[task]
        observed = operator(clips)
        begin = time.perf_counter()
        found = {}
        for weight in (0.05, 0.0):
            out: Any = pipe.restore(
                observed, operator, [scene.prompt for scene in scenes.values()],
                settings={"prior_weight": weight}, output_type="pt",
            )  # fmt: skip
            name = "variational" if weight else "variational without prior"
            found[name] = out.frames.transpose(1, 2) * 2 - 1
        seconds = (time.perf_counter() - begin) / 2 / num_scenes
        found |= {"plainest": operator.simplest(observed, 16), "autoencoder of the truth": round_trip}
        values[task] = {name: _psnr(clip, clips) for name, clip in found.items()} | {"seconds_per_clip": seconds}
        print(task, {name: value for name, value in values[task].items()}, flush=True)
    return values, {"clips": num_scenes, "model_sha256": digest_model(None)}


def _psnr(clips: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    each = 10 * torch.log10(4 / (clips.clamp(-1, 1) - truth).square().flatten(1).mean(dim=1))
    return {"psnr": each.mean().item(), "standard_error": (each.std() / len(each) ** 0.5).item()}


KINDS = {"sampling": sampling, "trained": trained, "search": search, "merge": merging, "restore": restore}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs/sprites"), help="of `trained`: where its runs lie")
    parser.add_argument("--tasks", nargs="+", default=[*operators()], help="of `restore`: which")
    arguments = parser.parse_args()
    more = {"trained": (arguments.runs,), "restore": (arguments.tasks,)}.get(arguments.kind, ())
    values, protocol = KINDS[arguments.kind](arguments.num_scenes, *more)
    protocol = {**protocol, "threads": torch.get_num_threads(), "models": {"default": digest_model(None)}}
    write_result(arguments.output, f"techniques: {arguments.kind}", values, protocol)


if __name__ == "__main__":
    main()
