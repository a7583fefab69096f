"""Where few steps of a content model should lie: its content frames under guided DDIM from several timesteps.

python benchmarks/few_steps.py --model pruned -o benchmarks/results/sprites-few-steps.json

Without any distillation; what is good here is a good choice of `objective.starts`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.sprites.adherence import evaluate_adherence

STARTS: tuple[tuple[int, ...], ...] = (
    tuple(range(999, -1, -50)),
    (999, 749, 499, 249),
    (999, 874, 749, 374),
    (999, 899, 749, 499),
    (999, 849, 649, 399),
    (999, 799, 599, 349),
    (999, 924, 799, 574),
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", help="as for `cmd-video generate`; default: the default model")
    parser.add_argument("--num-scenes", type=int, default=200)
    arguments = parser.parse_args()
    pipe = load_pipeline(arguments.model)
    values: dict[str, Any] = {}
    for starts in STARTS:
        accuracy = adherence_from(pipe, starts, arguments.num_scenes)
        values[" ".join(map(str, starts))] = {kind: accuracy[kind] for kind in ("color", "shape")}
        print(*starts, *(f"{kind} {accuracy[kind]['rate']:.1%}" for kind in ("color", "shape")), flush=True)
    protocol = {
        "clips": arguments.num_scenes,
        "shown": "the content frame, still",
        "guidance_scale": pipe.sampling.content.guidance_scale,
        "model_sha256": digest_model(arguments.model),
    }
    write_result(arguments.output, "few steps", values, protocol)


def adherence_from(pipe: CMDPipeline, starts: tuple[int, ...], num_scenes: int) -> dict[str, Any]:
    """Adherence of content frames, held still for 16 frames, when the content model's steps start here."""
    pipe.set_progress_bar_config(disable=True)
    few = {"starts": starts, "num_inference_steps": len(starts)}
    how = pipe.sampling.laid_over({"content": few, "motion": {"num_inference_steps": 1}})

    def make(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        frames: Any = pipe(prompts, generator=sources, output_type="pt", sampling=how).content_frames
        return (frames * 2 - 1)[:, :, None].expand(-1, -1, 16, -1, -1)

    return evaluate_adherence(make, num_scenes, batch_size=20)["accuracy"]


if __name__ == "__main__":
    main()
