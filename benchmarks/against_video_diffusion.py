r"""CMD beside a video diffusion model of the usual kind, trained on the same clips: quality against what each cost.

python benchmarks/against_video_diffusion.py --row "video UNet" runs/sprites/video \
    --row CMD runs/versus/autoencoder runs/versus/content runs/versus/motion -o benchmarks/results/sprites-versus.json

A row is a run of the stage "video", or CMD's three. Training is a step's operations and seconds, forward, backward
and update, times the steps, plus the encoding of latents; the seconds are measured by turns in this call, without the
drawing of clips. What a run started from is in them where it was a run of the same stage, and otherwise not. Sampling
is that of one clip, with guidance. Rows take turns on the same prompts (`by_turns`).
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from by_turns import (
    BATCH,
    Maker,
    clips_of,
    clips_of_stage,
    compare,
    distances,
    draw,
    median_seconds,
    protocol_of,
    true_clips,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmd_video.benchmark.cost import count
from cmd_video.benchmark.memory import peak_bytes
from cmd_video.benchmark.training_step import BYTES_PER_PARAMETER
from cmd_video.evaluation.protocol.results import digest, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.sprites.adherence import choose_scenes
from cmd_video.sprites.scenes import SpriteScene, render
from cmd_video.training.build import build_stage
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig, LatentsData, TrainConfig, load_config
from cmd_video.training.data import collate
from cmd_video.training.export import export_pipeline


def trained(run: Path) -> tuple[TrainConfig, Any]:
    """A finished run's configuration and its stage with the weights that came out."""
    config = load_config(run / "config.json")
    parts = {name: ComponentConfig(path=str(run / "pipeline" / name)) for name in config.components}
    return config, build_stage(config, build_components(parts))


LEARNED = {"autoencoder": "autoencoder", "content": "unet", "motion": "motion_transformer", "video": "video_model"}


def history(run: Path) -> list[TrainConfig]:
    """Configurations of a run and of the runs of the same stage that it went on from."""
    config = load_config(run / "config.json")
    path = Path(config.components[LEARNED[config.stage]].path or "fresh")
    for before in (path.parent, path.parent.parent):  # of RUN/pipeline or RUN/pipeline/COMPONENT
        if before != run and (before / "config.json").is_file() and (before / "pipeline").is_dir():
            return [config, *(history(before) if load_config(before / "config.json").stage == config.stage else [])]
    return [config]


@dataclass
class Part:
    """One kind of work that training consists of.

    Attributes:
        name: the stage, or "encoding".
        times: how often it is done.
        clips: in a batch.
        learning: parameters that it updates.
        call: the loss of a batch; for encoding, the latents.
    """

    name: str
    times: int
    clips: int
    learning: list[torch.nn.Parameter]
    call: Callable[[], Any]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, that moves nothing here."""
        return torch.optim.AdamW(self.learning, lr=0.0)

    def work(self) -> None:
        """All of it once, the update included."""
        if not self.learning:
            with torch.no_grad():
                self.call()
            return
        self.optimizer.zero_grad()
        self.call().backward()
        self.optimizer.step()

    def cost(self, seconds: float) -> dict[str, float]:
        """Operations (two per multiply-add, attention counted), seconds, and bytes at the peak.

        The bytes are those of activations, and of the weights that learn with gradients and Adam's moments.
        """
        with sdpa_kernel(SDPBackend.MATH):  # attention written out: counted
            operations = count(self.call, backward=bool(self.learning)).flops
        parameters = sum(weight.numel() for weight in self.learning)
        for weight in self.learning:
            weight.grad = None
        return {
            "times": self.times,
            "clips": self.clips,
            "operations": self.times * operations,
            "seconds": self.times * seconds,
            "bytes": parameters * BYTES_PER_PARAMETER + peak_bytes(self.call, backward=bool(self.learning)),
        }


def parts_of(runs: list[Path]) -> list[Part]:
    """What the training of a row consists of; latents are encoded once for both of CMD's models."""
    parts: dict[str, Part] = {}
    for run in runs:
        config, stage = trained(run)
        dataset, size = config.data.open(), config.loop.batch_size
        batch = collate([{**dataset[number], "number": number} for number in range(size)])
        learning = [weight for weight in stage.train().parameters() if weight.requires_grad]
        whole = history(run)
        if {each.loop.batch_size for each in whole} != {size}:
            raise ValueError(f"{run}: went on from a run of another batch size")
        steps = sum(each.loop.steps for each in whole)
        parts[config.stage] = Part(config.stage, steps, size, learning, partial(stage, batch))
        if isinstance(config.data, LatentsData):
            autoencoder = next(folder for folder in runs if load_config(folder / "config.json").stage == "autoencoder")
            parts["encoding"] = encoding(autoencoder, sum(len(each.data.open()) for each in whole))
    return list(parts.values())


def encoding(run: Path, num_clips: int) -> Part:
    """Encoding that many clips with the autoencoder of a run."""
    config, stage = trained(run)
    dataset = config.data.open()
    batch = collate([{**dataset[number], "number": number} for number in range(BATCH)])

    def encode() -> Any:
        return stage.autoencoder.encode(stage._clip_latents(batch), return_dict=False)

    return Part("encoding", num_clips // BATCH, BATCH, [], encode)


def training(rows: dict[str, list[Path]]) -> dict[str, dict[str, Any]]:
    """Costs of each row's training, in all and part by part; bytes are those of the part that needs most."""
    parts = {name: parts_of(runs) for name, runs in rows.items()}
    seconds = median_seconds({f"{name} {part.name}": part.work for name, row in parts.items() for part in row})
    costs: dict[str, dict[str, Any]] = {}
    for name, row in parts.items():
        found = {part.name: part.cost(seconds[f"{name} {part.name}"]) for part in row}
        total = {key: sum(part[key] for part in found.values()) for key in ("operations", "seconds")}
        costs[name] = {**total, "bytes": max(part["bytes"] for part in found.values()), "parts": found}
    return costs


def cmd_maker(runs: list[Path], steps: int, scale: float, motion_scale: float) -> Maker:
    """What samples from CMD's three runs."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = CMDPipeline.from_pretrained(export_pipeline(runs, Path(folder) / "model", scale, motion_scale))
    pipe.sampling = pipe.sampling.changed({"num_inference_steps": steps})  # of both
    return clips_of(pipe)


def video_maker(run: Path, steps: int, scale: float) -> Maker:
    """What samples from a run of the stage "video"."""
    config, stage = trained(run)
    validation = config.validation.model_copy(update={"num_inference_steps": steps, "guidance_scale": scale})
    stage.config = config.model_copy(update={"validation": validation})
    return clips_of_stage(stage.eval())


def render_all(scenes: dict[int, SpriteScene], numbers: list[int]) -> torch.Tensor:
    """True clips (B, 3, 16, 64, 64) in [-1, 1]."""
    return torch.stack([render(scenes[number], 16, 64, 64) for number in numbers])


def sampling(make: Maker) -> dict[str, int]:
    """Operations of making one clip, and bytes of activations at the peak."""

    def one() -> Any:
        return make(["a red ring moves up"], [0])

    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        operations = count(one).flops
    return {"operations": operations, "activation_bytes": peak_bytes(one)}


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
    rows = {name: [Path(run) for run in runs] for name, *runs in arguments.row}
    for name, runs in rows.items():
        if len(runs) == 1:
            makers[name] = video_maker(runs[0], arguments.steps, arguments.guidance)
        elif len(runs) == 3:
            makers[name] = cmd_maker(runs, arguments.steps, arguments.guidance, arguments.motion_guidance)
        else:
            parser.error(f"--row {name}: {len(runs)} runs; one of a video model or three of CMD")
    costs = training(rows)
    values: dict[str, Any] = {
        name: {"training": costs[name], "sampling": sampling(make)} for name, make in makers.items()
    }
    print(json.dumps(values), flush=True)
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
        **protocol_of(arguments.num_scenes),
        "objects_in_a_scene": sorted(objects),
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "motion_guidance_scale": arguments.motion_guidance,
        "weights_sha256": {name: [digest(run / "pipeline") for run in runs] for name, runs in rows.items()},
    }
    write_result(arguments.output, "CMD against video diffusion", values, protocol)


if __name__ == "__main__":
    main()
