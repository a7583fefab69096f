"""What VDMini's losses win back after pruning: rows trained in several ways for as long, in one run.

python benchmarks/recovery.py motion --latents latents/sprites --work runs/recovery -o sprites-recovery.json
python benchmarks/recovery.py video --teacher runs/sprites/video --work runs/video-recovery -o recovery-video.json

"motion" is CMD's default model: in all rows but the teacher's its content model has lost its innermost stages and the
middle, without training, for the denoising loss grows by 0.3% without them; the motion model loses the blocks that
a measure says matter least, and is trained on. "video" is a video UNet of the usual kind, of which the same is done.
All rows are updated as often; with MCA every other step is the discriminator's, so those runs have twice the steps.
"from scratch" has the pruned layout and fresh weights. Rows trained by an earlier call are taken from --work.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from by_turns import BATCH, Maker, clips_of, clips_of_stage, compare, median_seconds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmd_video.benchmark.cmd_system import cmd_system
from cmd_video.benchmark.system import Size, measure_cost
from cmd_video.evaluation.protocol.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.pipelines.shipped import model_folder
from cmd_video.pruning.importance import importance_and_cost, measure_importance, weight_importance
from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.selection import BlockSelection, select_by_importance
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import TrainConfig, load_config
from cmd_video.training.data import fixed_batches
from cmd_video.training.loop import train

CONTENT = ("down_blocks.2", "mid_block", "up_blocks.0")
ROWS: dict[str, tuple[str, float, float] | None] = {  # selection, weight of ICD, of MCA; None = not trained
    "pruned": None,
    "task": ("chosen", 0, 0),
    "task + ICD": ("chosen", 0.1, 0),
    "task + MCA": ("chosen", 0, 1),
    "task + ICD + MCA": ("chosen", 0.1, 1),
    "magnitude, task": ("magnitude", 0, 0),
    "taylor, task": ("taylor", 0, 0),
    "from scratch": ("scratch", 0, 0),
}


@dataclass
class Case:
    """A denoiser that is pruned and trained on.

    Attributes:
        stage: the stage it belongs to.
        denoiser: its name among the components.
        components: all others, by folder.
        teacher: its folder.
        data: training data.
        held_out: validation data.
        objective: of its stage.
        batch_size: clips in a step.
        guidance_scale: for samples.
        num_inference_steps: for samples.
    """

    stage: str
    denoiser: str
    components: dict[str, str]
    teacher: str
    data: dict[str, Any]
    held_out: dict[str, Any]
    objective: dict[str, Any]
    batch_size: int
    guidance_scale: float
    num_inference_steps: int

    def recipe(self, model: str, **loop: Any) -> dict[str, Any]:
        """The recipe of its own stage, from the weights in a folder."""
        paths = {**self.components, self.denoiser: model}
        return {
            "stage": self.stage,
            "output_dir": "unused",
            "components": {name: {"path": path} for name, path in paths.items()},
            "data": self.data,
            "validation": {
                "data": self.held_out,
                "guidance_scale": self.guidance_scale,
                "num_inference_steps": self.num_inference_steps,
            },
            "objective": self.objective,
            "loop": {"steps": 1, "batch_size": self.batch_size, **loop},
        }

    def recovery(self, model: str, output: Path, icd: float, mca: float, steps: int, lr: float) -> TrainConfig:
        """Of the same stage: as many updates of the student whatever the losses are."""
        steps *= 2 if mca else 1
        every = {"validate_every": steps, "checkpoint_every": max(100, steps // 4), "keep_last": 1}
        recipe = self.recipe(model, steps=steps, ema_decay=0.99, **every)
        recipe |= {"output_dir": str(output)}
        recipe["components"]["teacher"] = {"path": self.teacher}
        losses = {"content_weight": icd, "adversarial_weight": mca}
        recipe["objective"] = {"kind": "vdmini_recovery", **self.objective, **losses}
        recipe["optimizer"] = {"lr": lr, "warmup_steps": 20, "schedule": "cosine", "betas": [0.9, 0.99]}
        return TrainConfig.model_validate(recipe)

    def measures(self, num_clips: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Importance of what can leave, by measure, and shares of the operations."""
        config = TrainConfig.model_validate(self.recipe(self.teacher))
        stage: Any = build_stage(config, build_components(config.components)).eval()
        held_out = fixed_batches(config.validation.data.open(), num_clips, self.batch_size)
        batches = [stage.noisy_batch(batch) for batch in held_out]
        model = stage.components[self.denoiser]
        loss, shares = importance_and_cost(measure_importance(model, batches))
        scores = {
            "chosen": loss,
            "magnitude": weight_importance(model, batches, "magnitude"),
            "taylor": weight_importance(model, batches, "taylor"),
        }
        return scores, shares


def select(
    case: Case, teacher: Any, num_clips: int, budget: float
) -> tuple[dict[str, BlockSelection], dict[str, dict[str, float]]]:
    """What leaves, by measure, and the scores behind it; "chosen" is measured by the denoising loss."""
    scores, shares = case.measures(num_clips)
    for unit, share in shares.items():
        print(unit, f"{share:.3f}", *(f"{name} {score[unit]:.4g}" for name, score in scores.items()), flush=True)
    selections = {name: select_by_importance(teacher, score, shares, budget) for name, score in scores.items()}
    return selections, {"share of the operations": shares, **scores}


def train_rows(
    case: Case, teacher: Any, selections: dict[str, BlockSelection], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The denoiser of every row, trained anew or as an earlier call left it; selections by measure."""
    models: dict[str, Any] = {}
    for row, settings in ROWS.items():
        measure, icd, mca = settings or ("chosen", 0, 0)
        start = arguments.work / f"start-{measure}"
        student = prune(teacher, selections["chosen" if measure == "scratch" else measure])
        if measure == "scratch":
            torch.manual_seed(0)
            student = type(student).from_config(student.config)
        if not start.exists():
            student.save_pretrained(start)
        kind, output = type(student), run_folder(arguments.work, row)
        recipe = case.recovery(str(start), output, icd, mca, arguments.steps, arguments.lr)
        if settings is not None and not (output / "pipeline").is_dir():
            train(recipe)
        elif settings is not None:
            earlier = load_config(output / "config.json")
            if (earlier.loop, earlier.optimizer) != (recipe.loop, recipe.optimizer):
                raise ValueError(f"--work: {output} was trained with other arguments; choose a new folder")
        found = start if settings is None else output / "pipeline" / case.denoiser
        models[row] = kind.from_pretrained(found).eval()
    return models


def run_folder(work: Path, row: str) -> Path:
    """Where a row is trained."""
    return work / re.sub(r"\W+", "-", row)


@torch.no_grad()
def task_loss(case: Case, model: Any) -> float:
    """A row's denoising loss on held-out clips, without the losses of recovery."""
    stage = stage_of(case, case.teacher)
    stage.components[case.denoiser] = model
    settings = stage.config.validation
    batches = fixed_batches(settings.data.open(), settings.num_clips, settings.batch_size)
    losses = [stage.validate(batch)["loss"].item() for batch in batches]
    return sum(losses) / len(losses)


def recover_motion(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """CMD's default model: its rows, and what was done."""
    folder = str(arguments.teacher or model_folder(None))
    parts = ("vae", "autoencoder", "motion_tokenizer", "motion_text_encoder", "motion_scheduler")
    latents = {split: {"kind": "latents", "path": str(arguments.latents / split)} for split in ("train", "held_out")}
    case = Case(
        "motion", "motion_transformer", dict.fromkeys(parts, folder), f"{folder}/motion_transformer",
        latents["train"], latents["held_out"], {"content_frame_noise": 0.1}, 16, 2.0,
        arguments.inference_steps,
    )  # fmt: skip
    pipes = {"teacher": load_pipeline(folder)}
    teacher = pipes["teacher"].motion_transformer
    selections, scores = select(case, teacher, 32, arguments.budget)
    models = train_rows(case, teacher, selections, arguments)
    content = BlockSelection("UNet2DConditionModel", CONTENT, "measured importance: loss + 0.3%")
    unet = prune(pipes["teacher"].unet, content).eval()
    for row, model in models.items():
        pipes[row] = load_pipeline(folder)
        pipes[row].register_modules(unet=unet, motion_transformer=model)
    for pipe in pipes.values():
        pipe.sampling = pipe.sampling.changed({"num_inference_steps": arguments.inference_steps})  # of both
    rows = compare({row: clips_of(pipe) for row, pipe in pipes.items()}, arguments.num_scenes)
    values = {
        row: {**pipeline_cost(pipe), "task_loss": task_loss(case, pipe.motion_transformer), **rows[row]}
        for row, pipe in pipes.items()
    }
    return values, protocol(arguments, case, selections, scores, {"content": CONTENT})


def recover_video(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """A video UNet of the usual kind: its rows, and what was done."""
    folder = str(arguments.teacher / "pipeline")
    parts = ("vae", "tokenizer", "text_encoder", "video_scheduler")
    case = Case(
        "video", "video_model", dict.fromkeys(parts, folder), f"{folder}/video_model",
        {"kind": "sprites"}, {"kind": "sprites", "split": "held_out", "length": 32},
        {"snr_power": 0.25, "logit_normal": [1.4, 1.2]}, 4, 3.0,
        arguments.inference_steps,
    )  # fmt: skip
    teacher = stage_of(case, case.teacher).components[case.denoiser]
    selections, scores = select(case, teacher, 16, arguments.budget)
    models = {"teacher": teacher, **train_rows(case, teacher, selections, arguments)}
    rows = compare({row: video_maker(case, model) for row, model in models.items()}, arguments.num_scenes)
    seconds = median_seconds({row: prediction(case, model, BATCH) for row, model in models.items()})
    costs = {
        row: {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "operations_per_step": operations(case, model),
            "seconds_per_step": seconds[row] / BATCH,
        }
        for row, model in models.items()
    }
    values = {row: {**costs[row], "task_loss": task_loss(case, models[row]), **rows[row]} for row in rows}
    return values, protocol(arguments, case, selections, scores, {})


def stage_of(case: Case, model: str) -> Any:
    """The denoiser's own stage, ready to sample."""
    config = TrainConfig.model_validate(case.recipe(model))
    return build_stage(config, build_components(config.components)).eval()


def video_maker(case: Case, model: Any) -> Maker:
    """Clips by a video model, with the recipe's steps and guidance."""
    stage = stage_of(case, case.teacher)
    stage.components[case.denoiser] = model

    return clips_of_stage(stage)


def operations(case: Case, model: Any) -> int:
    """Operations (two per multiply-add, attention counted) of a prediction for one clip."""
    call = prediction(case, model, 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def prediction(case: Case, model: Any, num_clips: int) -> Callable[[], Any]:
    """A prediction of a video model for a batch of clips, to be counted or timed."""
    stage = stage_of(case, case.teacher)
    stage.components[case.denoiser] = model
    denoiser, t = stage.denoiser, torch.tensor([500])
    with torch.no_grad():
        clips = {"video": torch.zeros(num_clips, 3, 16, 64, 64), "prompt": [""] * num_clips}
        x_0, condition = denoiser.example(clips)
    return torch.no_grad()(lambda: denoiser.predict(model, x_0, t, denoiser.encode(condition)))


def pipeline_cost(pipe: CMDPipeline) -> dict[str, int]:
    """Parameters of all parts and of the denoisers; a clip's operations (two per multiply-add), with guidance."""
    with sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
        found = measure_cost(cmd_system(pipe, Size(64, 64)))
    return {
        "parameters": found.parameters,
        "denoiser_parameters": found.denoiser_parameters,
        "content_operations": found.parts["content"].flops,
        "motion_operations": found.parts["motion"].flops,
        "operations": found.end_to_end.flops,
    }


def protocol(
    arguments: argparse.Namespace,
    case: Case,
    selections: dict[str, BlockSelection],
    scores: dict[str, dict[str, float]],
    more: dict[str, Any],
) -> dict[str, Any]:
    """What was done, for the result file."""
    return {
        "clips": arguments.num_scenes,
        "student_updates": arguments.steps,
        "batch": case.batch_size,
        "lr": arguments.lr,
        "num_inference_steps": case.num_inference_steps,
        "importance": scores,
        "removed": {**more, **{name: selection.removed for name, selection in selections.items()}},
        "threads": torch.get_num_threads(),
        "teacher_sha256": digest(Path(case.teacher)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("motion", "video"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--teacher", type=Path, help="motion: a pipeline folder; video: a run of the stage video")
    parser.add_argument("--latents", type=Path, help="motion: folder with train/ and held_out/")
    parser.add_argument("--budget", type=float, default=0.55, help="share of the operations that stays")
    parser.add_argument("--steps", type=int, default=400, help="updates of each student")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--inference-steps", type=int, default=50, help="when sampling; motion: of both models")
    parser.add_argument("--num-scenes", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.case == "motion" and arguments.latents is None:
        parser.error("motion needs --latents")
    if arguments.case == "video" and arguments.teacher is None:
        parser.error("video needs --teacher")
    values, done = {"motion": recover_motion, "video": recover_video}[arguments.case](arguments)
    write_result(arguments.output, f"recovery of {arguments.case}", values, done)


if __name__ == "__main__":
    main()
