r"""Ablations of the paper's table 4b (autoencoder) and 4c (content patch of the motion model), in short runs.

python benchmarks/ablations.py autoencoder --work runs/ablations -o sprites-ablation-autoencoder.json
python benchmarks/ablations.py motion --work runs/ablations -o sprites-ablation-motion.json \
    --set data.path=latents/sprites/train --set validation.data.path=latents/sprites/held_out

Every row is the recipe of configs/sprites with a few fields changed, for as many steps, from fresh weights but for the
text encoder. Rows trained by an earlier call are taken from --work.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from by_turns import distances, seconds_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmd_video.benchmark.cost import count
from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.evaluation.metrics.reconstruction import reconstruction_metrics
from cmd_video.evaluation.protocol.results import digest, write_result
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig, TrainConfig, load_config
from cmd_video.training.data import collate, fixed_batches
from cmd_video.training.loop import train

RECIPES = Path(__file__).parents[1] / "configs" / "sprites"
AUTOENCODER, MOTION = "components.autoencoder.config", "components.motion_transformer.config"
ROWS: dict[str, dict[str, list[str]]] = {
    "autoencoder": {
        "recipe: D 8, patch 2, 2 + 3 layers, 16 frames": [],
        "plain mean": [f"{AUTOENCODER}.content_frame=mean", "objective.anchor_weight=0"],
        "D 16": [f"{AUTOENCODER}.latent_channels=16"],
        "patch 4": [f"{AUTOENCODER}.patch_size=4"],
        "1 + 1 layers": [f"{AUTOENCODER}.encoder_depth=1", f"{AUTOENCODER}.decoder_depth=1"],
        "4 + 6 layers": [f"{AUTOENCODER}.encoder_depth=4", f"{AUTOENCODER}.decoder_depth=6"],
        "24 frames": [
            f"{AUTOENCODER}.num_frames=24", "data.num_frames=24", "validation.data.num_frames=24",
        ],
    },
    "motion": {f"content patch {side}": [f"{MOTION}.content_patch_size={side}"] for side in (2, 4, 8)},
}  # fmt: skip


def run_row(table: str, row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a row, unless it was, and measure it."""
    output, steps = arguments.work / re.sub(r"\W+", "-", row), arguments.steps
    loop = [f"loop.steps={steps}", f"loop.validate_every={steps}", "validation.num_samples=0"]
    overrides = [f"output_dir={output}", *loop, *ROWS[table][row], *arguments.set]
    if not (output / "pipeline").is_dir():
        train(load_config(RECIPES / f"{table}.yaml", overrides))
    config = load_config(output / "config.json")
    parts = {name: ComponentConfig(path=str(output / "pipeline" / name)) for name in config.components}
    stage: Any = build_stage(config, build_components(parts)).eval()
    wanted = load_config(RECIPES / f"{table}.yaml", overrides)
    if config.model_dump(mode="json") != wanted.model_dump(mode="json"):
        raise ValueError(f"--work: {output} was trained with other settings than these; choose a new folder")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    measured = {
        "parameters": sum(weight.numel() for weight in stage.get_submodule(stage.trained[0]).parameters()),
        "validation_loss": [line["loss"] for line in lines if line["kind"] == "validation"][-1],
        "seconds": seconds_of(output),
        "weights_sha256": digest(output / "pipeline"),
    }
    return measured | MEASURES[table](stage, config, arguments.num_clips)


def measure_autoencoder(stage: Any, config: TrainConfig, num_clips: int) -> dict[str, Any]:
    """PSNR, SSIM, Fréchet distances of reconstructions, numbers in a clip's motion latents, operations of a clip."""
    data: Any = config.validation.data
    dataset = data.model_copy(update={"length": num_clips}).open()
    videos = [batch["video"] for batch in fixed_batches(dataset, num_clips, 8)]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
        latents = stage._clip_latents({"video": videos[0][:1]})
        cost = count(lambda: stage.autoencoder(latents))
        size = stage.autoencoder.encode(latents).motion_latents.numel()
    vae = stage.components["vae"]
    metrics = reconstruction_metrics(stage.autoencoder, vae, videos)
    with torch.no_grad():
        made = [decode_video(vae, stage.autoencoder(encode_video(vae, video)).sample) for video in videos]
    return {**metrics, "frechet": distances(made, videos), "motion_latents": size, "operations": cost.flops}


def measure_motion(stage: Any, config: TrainConfig, num_clips: int) -> dict[str, Any]:
    """Operations of one prediction for one clip; the loss is in the log."""
    batch, denoiser = collate([{**config.validation.data.open()[0], "number": 0}]), stage.denoiser
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        x_0, condition = denoiser.example(batch)
        t = torch.tensor([500])
        return {"operations": count(lambda: denoiser.predict(stage.model, x_0, t, denoiser.encode(condition))).flops}


MEASURES: dict[str, Callable[[Any, TrainConfig, int], dict[str, Any]]] = {
    "autoencoder": measure_autoencoder,
    "motion": measure_motion,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=ROWS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--num-clips", type=int, default=64, help="held-out clips that an autoencoder is measured on")
    parser.add_argument("--set", action="append", default=[], help="a field of every row's recipe, as data.path=...")
    arguments = parser.parse_args()
    values = {}
    for row in ROWS[arguments.table]:
        values[row] = run_row(arguments.table, row, arguments)
        print(row, json.dumps(values[row]), flush=True)
    config = load_config(RECIPES / f"{arguments.table}.yaml", arguments.set)
    protocol = {
        "steps": arguments.steps,
        "batch": config.loop.batch_size,
        "held_out_clips": arguments.num_clips if arguments.table == "autoencoder" else config.validation.num_clips,
        "threads": torch.get_num_threads(),
        "changed": ROWS[arguments.table],
    }
    write_result(arguments.output, f"ablation of the {arguments.table}", values, protocol)


if __name__ == "__main__":
    main()
