"""Clips of sprites a second: drawn one by one by `sprites.render`, and in batches by `render_scenes` on a device.

python benchmarks/sprite_rendering.py --device cuda -o benchmarks/results/sprite-rendering.json

They take turns, so that a busy machine is busy for both. Scenes are sampled on one core: as they are, and as items of
`SceneDataset`, with prompt and vector; times by the number of a loader's workers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from by_turns import median_seconds

from cmd_video.evaluation.protocol.results import write_result
from cmd_video.sprites.renderer import SceneDataset, pack_scene, render_scenes
from cmd_video.sprites.scenes import render, sample_scene


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="render_scenes also compiled")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reference-clips", type=int, default=8, help="that the CPU renderer draws in a round")
    parser.add_argument("--scenes", type=int, default=1000, help="sampled in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=3, default=[16, 128, 128], metavar=("F", "H", "W"))
    arguments = parser.parse_args()
    size, device = tuple(arguments.size), torch.device(arguments.device)
    scenes = [sample_scene(index) for index in range(max(arguments.batch, arguments.reference_clips))]
    packed = torch.stack([pack_scene(scene) for scene in scenes[: arguments.batch]]).to(device)
    references = scenes[: arguments.reference_clips]
    dataset = SceneDataset(arguments.scenes, size[1], size[2], size[0])
    drawers = {"render_scenes": render_scenes}
    if arguments.compile:
        drawers["render_scenes, compiled"] = torch.compile(render_scenes, fullgraph=True)

    def draw(drawer: Callable[..., torch.Tensor]) -> torch.Tensor:
        videos = drawer(packed, *size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return videos

    truth = torch.stack([render(scene, *size) for scene in references[: arguments.batch]])
    differences = {
        name: (draw(drawer)[: len(truth)].cpu() - truth).abs().max().item() for name, drawer in drawers.items()
    }
    done = {
        "render": len(references),
        **dict.fromkeys(drawers, arguments.batch),
        "sample_scene": arguments.scenes,
        "SceneDataset": arguments.scenes,
    }
    calls = {
        "render": lambda: [render(scene, *size) for scene in references],
        **{name: lambda drawer=drawer: draw(drawer) for name, drawer in drawers.items()},
        "sample_scene": lambda: [sample_scene(index) for index in range(arguments.scenes)],
        "SceneDataset": lambda: [dataset[index] for index in range(arguments.scenes)],
    }
    seconds = median_seconds(calls, arguments.rounds)
    rates = {name: done[name] / seconds[name] for name in calls}
    values = {
        "clips_per_second": {name: rates[name] for name in ("render", *drawers)},
        "times_as_fast_as_render": {name: rates[name] / rates["render"] for name in drawers},
        "largest_difference": differences,
        "scenes_per_second_on_one_core": {name: rates[name] for name in ("sample_scene", "SceneDataset")},
    }
    if device.type == "cuda":
        values["peak_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
    for name, rate in rates.items():
        print(f"{name:24s} {rate:,.1f} a second")
    protocol = {
        "device": arguments.device,
        "size": list(size),
        "batch": arguments.batch,
        "reference_clips": arguments.reference_clips,
        "scenes": arguments.scenes,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
    }
    write_result(arguments.output, "sprite rendering", values, protocol, arguments.device)


if __name__ == "__main__":
    main()
