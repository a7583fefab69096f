"""One stage of `configs/sprites-128` for some minutes of one GPU, from the weights that earlier quarters brought home.

python benchmarks/gpu/train.py autoencoder 10 --home runs/home -o runs/home  # then image, content, motion, turbo ...
python benchmarks/gpu/train.py clips 2 --home runs/home -o runs/home         # what has come of it: frames, adherence

Each stage's home is a folder of its name: averaged weights in float16, in files of at most 16 MiB and 64 MiB together
(`training.light_checkpoint`), its log and its last sample grid. Stages before it are rebuilt from their homes in
seconds, so a machine that starts empty goes on where the last one ended.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cmd_video.evaluation.protocol.results import write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import evaluate_adherence
from cmd_video.training.config import TrainConfig, load_config
from cmd_video.training.export import export_pipeline
from cmd_video.training.light_checkpoint import INDEX, pack_checkpoint, unpack_checkpoint
from cmd_video.training.loop import train

CONFIGS = Path(__file__).parents[2] / "configs" / "sprites-128"
STAGES = ("autoencoder", "image", "content", "motion", "turbo-content", "turbo-content-matching")
NEEDS = {  # whose components a stage starts from
    "autoencoder": (),
    "image": (),
    "content": ("autoencoder", "image"),
    "motion": ("autoencoder", "image"),
    "turbo-content": ("content",),
    "turbo-content-matching": ("content", "turbo-content"),
    "clips": ("content", "motion"),
}
TURBO_CONTENT = ("turbo-content-matching", "turbo-content")  # the better one first
SMALL = {"data.height": 64, "data.width": 64, "validation.data.height": 64, "validation.data.width": 64}
SMALL |= {"loop.precision": "fp32", "loop.compile": False, "loop.num_workers": 0, "data.render": "loader"}
SMALL_MODELS = {
    "autoencoder": {"components.autoencoder.config.sample_size": [16, 16]},
    "image": {"components.unet.config.sample_size": 16},
}
REHEARSAL = SMALL | {  # a few steps of everything
    "loop.steps": 4,
    "loop.batch_size": 2,
    "loop.log_every": 1,
    "loop.validate_every": 4,
    "validation.num_clips": 2,
    "validation.num_samples": 2,
    "data.render": "device",
    "validation.data.length": 2,
    "data.length": 32,
    "optimizer.warmup_steps": 1,
}


def recipe(stage: str, work: Path, overrides: dict[str, Any], own: list[str] | None = None) -> TrainConfig:
    """The stage's recipe, its runs below `work`, with a user's own changes last."""
    text = (CONFIGS / f"{stage}.yaml").read_text().replace("runs/sprites-128/", f"{work}/")
    path = work / f"{stage}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return load_config(path, [f"{field}={json.dumps(value)}" for field, value in overrides.items()] + (own or []))


def rebuild(stage: str, home: Path, work: Path, overrides: dict[str, dict[str, Any]]) -> None:
    """An earlier stage's components from the weights that it brought home; first those that it started from."""
    if (work / stage / "pipeline").is_dir():
        return
    if not (home / stage / INDEX).is_file():
        raise SystemExit(f"{stage} comes first: no weights in {home / stage}")
    for needed in NEEDS[stage]:
        rebuild(needed, home, work, overrides)
    step = unpack_checkpoint(home / stage, work / stage / "checkpoints")
    config = recipe(stage, work, overrides[stage] | {"loop.compile": False})
    train(config.model_copy(update={"loop": config.loop.model_copy(update={"steps": step})}))  # none left: exports


def train_stage(stage: str, minutes: float, arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    """Go on with a stage, and bring home what came of it."""
    work, home = arguments.work, arguments.home
    if (home / stage / INDEX).is_file() and not (work / stage / "checkpoints").is_dir():
        step = unpack_checkpoint(home / stage, work / stage / "checkpoints")
        print(f"{stage}: goes on after step {step}", flush=True)
    train(recipe(stage, work, overrides | {"loop.max_minutes": minutes}, arguments.set))
    target = arguments.output / stage
    files = pack_checkpoint(work / stage / "checkpoints", target)
    if (work / stage / "log.jsonl").is_file():
        shutil.copy(work / stage / "log.jsonl", target / "log.jsonl")
    grids = sorted((work / stage / "samples").glob("*.png"))
    if grids:
        shutil.copy(grids[-1], target / "samples.png")
    print(f"{stage}: {len(files) - 1} files of weights in {target}", flush=True)


@torch.inference_mode()
def make_clips(arguments: argparse.Namespace, overrides: dict[str, dict[str, Any]]) -> None:
    """Frames of held-out prompts, and their adherence, of the whole model and of its turbo if there is one."""
    work, size = arguments.work, 64 if arguments.rehearse or arguments.small else 128
    rows = {"quality": [work / "content", work / "motion"]}
    for stage in TURBO_CONTENT:
        if (arguments.home / stage / INDEX).is_file() and "turbo" not in rows:
            rebuild(stage, arguments.home, work, overrides)
            rows["turbo"] = [work / "motion", work / stage]
    values: dict[str, Any] = {}
    strips: list[torch.Tensor] = []
    for row, runs in rows.items():
        folder = work / f"model-{row}"
        shutil.rmtree(folder, ignore_errors=True)
        export_pipeline(runs, folder, 4.0, 2.0, motion_starts=(999,) if row == "turbo" else None)
        pipe = CMDPipeline.from_pretrained(folder).to(arguments.device)
        pipe.set_progress_bar_config(disable=True)
        steps = {"num_inference_steps": 2} if arguments.rehearse and row == "quality" else {}
        shown: list[torch.Tensor] = []

        def generate(
            prompts: list[str], seeds: list[int], pipe: Any = pipe, steps: Any = steps, shown: Any = shown
        ) -> torch.Tensor:
            draws = [torch.Generator().manual_seed(seed) for seed in seeds]
            frames = pipe(prompts, generator=draws, output_type="pt", **steps).frames  # (B, F, 3, H, W) in [0, 1]
            shown += list(frames[: max(0, 8 - len(shown))])
            return frames.transpose(1, 2).cpu() * 2 - 1

        count = 2 if arguments.rehearse else arguments.num_scenes
        found = evaluate_adherence(generate, count, batch_size=20, height=size, width=size)
        values[row] = found["accuracy"]
        print(row, *(f"{kind} {score['rate']:.1%}" for kind, score in found["accuracy"].items()), flush=True)
        strips += [torch.cat(list(clip[::2].cpu()), dim=2) for clip in shown]  # each (3, H, 8 W)
    target = arguments.output / "clips"
    target.mkdir(parents=True, exist_ok=True)
    pixels = (torch.cat(strips, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(target / "clips.png")
    protocol = {"clips": arguments.num_scenes, "size": [16, size, size], "scenes": "sprites, held-out combinations"}
    write_result(target / "adherence.json", "sprites-128", values, protocol, arguments.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "clips"))
    parser.add_argument("minutes", type=float, help="of training (of `clips` none); rebuilding comes on top")
    parser.add_argument("--home", type=Path, required=True, help="where earlier stages' weights lie")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where this stage's go")
    parser.add_argument("--work", type=Path, default=Path("runs/sprites-128"), help="folder of the runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of `clips`")
    parser.add_argument("--num-scenes", type=int, default=200, help="of `clips`")
    parser.add_argument("--small", action="store_true", help="64x64 in fp32: the same recipe on a CPU")
    parser.add_argument("--rehearse", action="store_true", help="as --small, and only a few steps")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of this stage's recipe")
    arguments = parser.parse_args()
    base = REHEARSAL if arguments.rehearse else SMALL if arguments.small else {}
    overrides = {stage: base | (SMALL_MODELS.get(stage, {}) if base else {}) for stage in STAGES}
    for needed in NEEDS[arguments.stage]:
        rebuild(needed, arguments.home, arguments.work, overrides)
    if arguments.stage == "clips":
        make_clips(arguments, overrides)
        return
    train_stage(arguments.stage, arguments.minutes, arguments, overrides[arguments.stage])


if __name__ == "__main__":
    main()
