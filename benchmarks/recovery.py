"""What VDMini's losses win back on CMD's default model: pruned, then trained on in several ways, in one run.

python benchmarks/recovery.py --latents latents/sprites --work runs/recovery -o sprites-recovery.json

The content model loses its innermost stages and the middle in all rows but the teacher's, without training: measured
importance says that they carry nothing. The motion model loses the blocks that a measure says matter least, and is
trained on. Rows train for the same number of updates of the student; with MCA every other step is the discriminator's,
so those runs have twice the steps. "from scratch" has the pruned layout and fresh weights.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from by_turns import compare
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmd_video.benchmark.cmd_system import cmd_system, default_sampling
from cmd_video.benchmark.system import Size, measure_cost
from cmd_video.evaluation.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import DEFAULT_MODEL
from cmd_video.pruning.importance import importance_and_cost, measure_importance, weight_importance
from cmd_video.pruning.pruned_models import PrunedCMDMotionTransformer, prune
from cmd_video.pruning.selection import BlockSelection, select_by_importance
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import TrainConfig
from cmd_video.training.data import build_dataset, fixed_batches
from cmd_video.training.loop import train

CONTENT = ("down_blocks.2", "mid_block", "up_blocks.0")
ROWS: dict[str, tuple[str, float, float] | None] = {  # selection by, weight of ICD, of MCA; None = not trained
    "pruned": None,
    "task": ("loss", 0, 0),
    "task + ICD": ("loss", 0.1, 0),
    "task + MCA": ("loss", 0, 1),
    "task + ICD + MCA": ("loss", 0.1, 1),
    "magnitude, task": ("magnitude", 0, 0),
    "taylor, task": ("taylor", 0, 0),
    "from scratch": ("scratch", 0, 0),
}


def recipe(arguments: argparse.Namespace, model: str, output: Path, icd: float, mca: float) -> TrainConfig:
    """The distillation stage of the motion model, from the default model's parts."""
    names = ("vae", "autoencoder", "motion_tokenizer", "motion_text_encoder", "motion_scheduler")
    teacher = str(Path(arguments.model) / "motion_transformer")
    steps = arguments.steps * (2 if mca else 1)
    return TrainConfig.model_validate(
        {
            "stage": "distill",
            "output_dir": str(output),
            "components": {
                **{name: {"path": arguments.model} for name in names},
                "motion_transformer": {"path": model},
                "teacher": {"path": teacher},
            },
            "data": {"kind": "latents", "path": str(arguments.latents / "train")},
            "validation": {
                "data": {"kind": "latents", "path": str(arguments.latents / "held_out")},
                "guidance_scale": 2.0,
            },
            "objective": {
                "content_frame_noise": 0.1,
                "recovery": {"content_weight": icd, "adversarial_weight": mca},
            },
            "optimizer": {"lr": arguments.lr, "warmup_steps": 20, "schedule": "cosine", "betas": [0.9, 0.99]},
            "loop": {
                "steps": steps,
                "batch_size": 16,
                "ema_decay": 0.99,
                "validate_every": steps,
                "checkpoint_every": max(100, steps // 4),
                "keep_last": 1,
            },
        }
    )


def select(arguments: argparse.Namespace, pipe: CMDPipeline) -> dict[str, BlockSelection]:
    """The motion model's blocks that leave, by measure."""
    teacher = str(Path(arguments.model) / "motion_transformer")
    config = recipe(arguments, teacher, arguments.work, 0, 0)
    components = build_components(config.components)
    stage: Any = build_stage(config, components).eval()
    data = build_dataset(config.validation.data)
    batches = [stage.noisy_batch(batch) for batch in fixed_batches(data, 32, 16)]
    model = stage.components[stage.denoiser]
    loss, shares = importance_and_cost(measure_importance(model, batches))
    scores = {
        "loss": loss,
        "magnitude": weight_importance(model, batches, "magnitude"),
        "taylor": weight_importance(model, batches, "taylor"),
    }
    return {
        measure: select_by_importance(pipe.motion_transformer, score, shares, arguments.budget)
        for measure, score in scores.items()
    }


def train_rows(arguments: argparse.Namespace, pipe: CMDPipeline) -> tuple[dict[str, Any], dict[str, BlockSelection]]:
    """The motion model of every row, and the selections."""
    selections = select(arguments, pipe)
    models: dict[str, Any] = {}
    for row, settings in ROWS.items():
        measure, icd, mca = settings or ("loss", 0, 0)
        start = arguments.work / f"start-{measure}"
        if not start.exists():
            student = prune(pipe.motion_transformer, selections["loss" if measure == "scratch" else measure])
            if measure == "scratch":
                torch.manual_seed(0)
                student = PrunedCMDMotionTransformer.from_config(student.config)
            student.save_pretrained(start)
        if settings is None:
            models[row] = PrunedCMDMotionTransformer.from_pretrained(start)
            continue
        output = arguments.work / row.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
        train(recipe(arguments, str(start), output, icd, mca))
        models[row] = PrunedCMDMotionTransformer.from_pretrained(output / "pipeline" / "motion_transformer")
    return models, selections


def cost(pipe: CMDPipeline) -> dict[str, int]:
    """Parameters of all parts and of the denoisers; a clip's operations (two per multiply-add), with guidance."""
    with sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
        found = measure_cost(cmd_system(pipe, Size(64, 64), *default_sampling(pipe)))
    return {
        "parameters": found.parameters,
        "denoiser_parameters": found.denoiser_parameters,
        "content_operations": found.parts["content"].flops,
        "motion_operations": found.parts["motion"].flops,
        "operations": found.end_to_end.flops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True, help="folder with train/ and held_out/")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="a pipeline folder")
    parser.add_argument("--budget", type=float, default=0.55, help="share of the motion model's operations that stays")
    parser.add_argument("--steps", type=int, default=400, help="updates of each student")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--num-scenes", type=int, default=100)
    arguments = parser.parse_args()
    pipes = {"teacher": load_pipeline(arguments.model)}
    models, selections = train_rows(arguments, pipes["teacher"])
    content = BlockSelection("UNet2DConditionModel", CONTENT, "measured importance: nothing")
    unet = prune(pipes["teacher"].unet, content).eval()
    for row, model in models.items():
        pipes[row] = load_pipeline(arguments.model)
        pipes[row].register_modules(unet=unet, motion_transformer=model.eval())
    rows = compare(pipes, arguments.num_scenes)
    values = {row: {**cost(pipe), **rows[row]} for row, pipe in pipes.items()}
    protocol = {
        "clips": arguments.num_scenes,
        "student_updates": arguments.steps,
        "batch": 16,
        "lr": arguments.lr,
        "budget": arguments.budget,
        "removed": {"content": CONTENT, **{name: selection.removed for name, selection in selections.items()}},
        "threads": torch.get_num_threads(),
        "model_sha256": digest(Path(arguments.model)),
    }
    write_result(arguments.output, "recovery", values, protocol)


if __name__ == "__main__":
    main()
