"""CMD's tables at the size of the default model: its stages (as table 4a), guidance (as table 11), and steps.

python benchmarks/tables.py stages|guidance|steps --num-scenes 100 -o benchmarks/results/sprites-stages.json

Rows take turns on the same scenes and noise (`by_turns`). Guidance and steps change one model's setting at a time, the
other's stay at the default's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from by_turns import Maker, clips_of, compare, distances, encode_scenes, protocol_of, true_clips

from cmd_video.denoisers.latent_space import decode_video
from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines import CMDPipeline
from cmd_video.pipelines.sampling import ARGUMENTS, Sampling
from cmd_video.sprites.adherence import choose_scenes

GUIDANCE = {"content": (1.0, 2.0, 4.0, 7.0), "motion": (1.0, 2.0, 4.0)}
STEPS = {"content": (5, 10, 25, 50), "motion": (5, 10, 25, 50)}
NAMES = ("guidance_scale", "motion_guidance_scale", "num_inference_steps", "motion_num_inference_steps")


def stages(num_scenes: int) -> dict[str, Maker]:
    """What the autoencoder allows, what the motion model makes of true content frames, and everything generated."""
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    scenes = choose_scenes(num_scenes)

    def reconstruct(prompts: list[str], indices: list[int]) -> torch.Tensor:
        return decode_video(pipe.vae, pipe.autoencoder.decode(*encode_scenes(pipe, scenes, indices)).sample)

    def animate(prompts: list[str], indices: list[int]) -> torch.Tensor:
        content_frame, _ = encode_scenes(pipe, scenes, indices)
        still = decode_video(pipe.vae, content_frame[:, :, None])[:, :, 0]  # (B, 3, H, W)
        sources = [torch.Generator().manual_seed(index) for index in indices]
        frames: Any = pipe(
            prompts, content_frame=still.clamp(-1, 1) / 2 + 0.5, generator=sources, output_type="pt"
        ).frames
        return frames.transpose(1, 2) * 2 - 1

    return {
        "everything generated": clips_of(pipe),
        "motion on true content frames": animate,
        "reconstruction": reconstruct,
    }


def settings(field: str, motion_field: str, sweep: dict[str, tuple[Any, ...]]) -> dict[str, Maker]:
    """A row for each value of one model's setting; the first is the default model as it is."""
    rows = {"default": clips_of(CMDPipeline.from_pretrained())}
    for name, values in ((field, sweep["content"]), (motion_field, sweep["motion"])):
        for value in values:
            pipe = CMDPipeline.from_pretrained()
            if values_of(pipe.sampling)[name] != value:
                pipe.sampling = pipe.sampling.changed({**values_of(pipe.sampling), name: value})
                rows[f"{name} {value:g}"] = clips_of(pipe)
    return rows


def values_of(sampling: Sampling) -> dict[str, Any]:
    """The settings that are varied, by the names of a call's arguments."""
    places = {name: ARGUMENTS[name] for name in NAMES}
    return {name: getattr(getattr(sampling, str(part)), field) for name, (part, field) in places.items()}


TABLES: dict[str, Callable[[int], dict[str, Maker]]] = {
    "stages": stages,
    "guidance": lambda _: settings("guidance_scale", "motion_guidance_scale", GUIDANCE),
    "steps": lambda _: settings("num_inference_steps", "motion_num_inference_steps", STEPS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-scenes", type=int, default=100)
    arguments = parser.parse_args()
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values: dict[str, Any] = {"another set of true clips": {"frechet": distances([others], [truth])}}
    values |= compare(TABLES[arguments.table](arguments.num_scenes), arguments.num_scenes)
    protocol = {
        **protocol_of(arguments.num_scenes),
        "default": values_of(CMDPipeline.from_pretrained().sampling),
        "model_sha256": digest_model(None),
    }
    write_result(arguments.output, arguments.table, values, protocol)


if __name__ == "__main__":
    main()
