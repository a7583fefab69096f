r"""CMD beside a video diffusion model of the usual kind, trained on the same clips: quality against what each cost.

python benchmarks/against_video_diffusion.py --row "video UNet" runs/sprites/video \
    --row CMD runs/versus/autoencoder runs/versus/content runs/versus/motion -o benchmarks/results/sprites-versus.json

A row is a run of the stage "video", or CMD's three. Training is counted per step, forward and backward, times the
steps, plus the encoding of latents; what a run started from is not in it. Sampling is counted for one clip, with
guidance. Rows take turns on the same prompts (`by_turns`).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, Maker, clips_of, clips_of_stage, compare, distances, draw, seconds_of, true_clips
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmd_video.benchmark.cost import count
from cmd_video.data.sprites import SpriteScene, render
from cmd_video.evaluation.adherence import choose_scenes
from cmd_video.evaluation.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig, LatentsData, TrainConfig, load_config
from cmd_video.training.data import build_dataset, collate
from cmd_video.training.export import export_pipeline


def trained(run: Path) -> tuple[TrainConfig, Any]:
    """A finished run's configuration and its stage with the weights that came out."""
    config = load_config(run / "config.json")
    parts = {name: ComponentConfig(path=str(run / "pipeline" / name)) for name in config.components}
    return config, build_stage(config, build_components(parts))


def training(runs: list[Path]) -> dict[str, Any]:
    """Operations (two per multiply-add, attention counted) and seconds of a row's training, in all and by stage."""
    parts: dict[str, dict[str, float]] = {}
    for run in runs:
        config, stage = trained(run)
        dataset, size = build_dataset(config.data), config.loop.batch_size
        batch = collate([{**dataset[number], "number": number} for number in range(size)])
        with sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
            step = count(lambda stage=stage, batch=batch: stage.train()(batch), backward=True).flops
        parts[config.stage] = {
            "steps": config.loop.steps,
            "clips_per_step": size,
            "operations": step * config.loop.steps,
            "seconds": seconds_of(run),
        }
    return {**{key: sum(part[key] for part in parts.values()) for key in ("operations", "seconds")}, "parts": parts}


def encoding(run: Path, num_clips: int) -> int:
    """Operations of encoding that many clips with the autoencoder of a run."""
    config, stage = trained(run)
    batch = collate([{**build_dataset(config.data)[0], "number": 0}])
    with sdpa_kernel(SDPBackend.MATH):
        one = count(lambda: stage.autoencoder.encode(stage._clip_latents(batch))).flops
    return one * num_clips


def cmd_row(runs: list[Path], steps: int, scale: float, motion_scale: float) -> tuple[dict[str, Any], Maker]:
    """Costs of CMD's three runs, and what samples from them."""
    costs = training(runs)
    autoencoder = next(run for run in runs if load_config(run / "config.json").stage == "autoencoder")
    for run in runs:
        config = load_config(run / "config.json")
        if isinstance(config.data, LatentsData):  # the same for both models
            costs["encoding_operations"] = encoding(autoencoder, len(build_dataset(config.data)))
    costs["operations"] += costs.get("encoding_operations", 0)
    with tempfile.TemporaryDirectory() as folder:
        pipe = CMDPipeline.from_pretrained(export_pipeline(runs, Path(folder) / "model", scale, motion_scale))
    pipe.register_to_config(num_inference_steps=steps, motion_num_inference_steps=steps)
    return costs, clips_of(pipe)


def video_row(run: Path, steps: int, scale: float) -> tuple[dict[str, Any], Maker]:
    """Costs of a run of the stage "video", and what samples from it."""
    costs = training([run])
    config, stage = trained(run)
    validation = config.validation.model_copy(update={"num_inference_steps": steps, "guidance_scale": scale})
    stage.config = config.model_copy(update={"validation": validation})
    return costs, clips_of_stage(stage.eval())


def render_all(scenes: dict[int, SpriteScene], numbers: list[int]) -> torch.Tensor:
    """True clips (B, 3, 16, 64, 64) in [-1, 1]."""
    return torch.stack([render(scenes[number], 16, 64, 64) for number in numbers])


def sampling(make: Maker) -> int:
    """Operations of making one clip."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        return count(lambda: make(["a red ring moves up"], [0])).flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", nargs="+", required=True, help="NAME RUN [RUN RUN]")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=60)
    parser.add_argument("--steps", type=int, default=25, help="of each denoiser, DDIM")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the video and of the content model")
    parser.add_argument("--motion-guidance", type=float, default=2.0)
    parser.add_argument("--picture", type=Path, help="first scenes of each row, below the true ones")
    arguments = parser.parse_args()
    makers: dict[str, Maker] = {}
    values: dict[str, Any] = {}
    for name, *folders in arguments.row:
        runs = [Path(folder) for folder in folders]
        if len(runs) == 1:
            costs, makers[name] = video_row(runs[0], arguments.steps, arguments.guidance)
        elif len(runs) == 3:
            costs, makers[name] = cmd_row(runs, arguments.steps, arguments.guidance, arguments.motion_guidance)
        else:
            parser.error(f"--row {name}: {len(runs)} runs; one of a video model or three of CMD")
        values[name] = {"training": costs, "sampling_operations": sampling(makers[name])}
        print(name, json.dumps(values[name]), flush=True)
    scenes = choose_scenes(arguments.num_scenes)
    if arguments.picture is not None:
        few = dict(list(scenes.items())[:8])
        draw({"truth": lambda _, seeds: render_all(few, seeds), **makers}, few, arguments.picture)
    objects = {len(scene.objects) for scene in scenes.values()}
    measured = compare(makers, arguments.num_scenes)
    values = {name: {**values[name], **measured[name]} for name in values}
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values["another set of true clips"] = {"frechet": distances([others], [truth])}
    protocol = {
        "clips": arguments.num_scenes,
        "objects_in_a_scene": sorted(objects),
        "batch": BATCH,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "motion_guidance_scale": arguments.motion_guidance,
        "threads": torch.get_num_threads(),
        "weights_sha256": {name: [digest(Path(run) / "pipeline") for run in runs] for name, *runs in arguments.row},
    }
    write_result(arguments.output, "CMD against video diffusion", values, protocol)


if __name__ == "__main__":
    main()
