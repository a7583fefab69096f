"""What each preset costs and keeps on sprites: seconds, adherence, Fréchet distance to the ground truth, in one run.

python benchmarks/presets.py -o benchmarks/results/sprites-presets.json [--rows quality fast] [--num-scenes 200]

Rows take turns (`by_turns`): presets of the default model, and models made from it. Distances (`by_turns.distances`)
stand beside that between two sets of true clips. `--picture FILE` draws four prompts with one object and four with
two, an early and a late frame of each row.
"""

import argparse
from pathlib import Path
from typing import Any

from by_turns import clips_of, compare, distances, draw, protocol_of, true_clips

from cmd_video.data.sprites import SpriteScene
from cmd_video.evaluation.adherence import choose_scenes
from cmd_video.evaluation.results import digest_model, write_result
from cmd_video.pipelines.loading import load_pipeline

ROWS: dict[str, tuple[str | None, str | None]] = {  # model, preset; None = the default model, the model's own
    "quality": (None, "quality"),
    "fast": (None, "fast"),
    "turbo": ("turbo", None),
    "pruned": ("pruned", None),
    "pruned, fast": ("pruned", "fast"),
}


def to_show(num_scenes: int) -> dict[int, SpriteScene]:
    """Four scenes with one object and four with two."""
    scenes = choose_scenes(num_scenes)
    by_count = [[index for index, scene in scenes.items() if len(scene.objects) == count] for count in (1, 2)]
    return {index: scenes[index] for indices in by_count for index in indices[40:44]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), help="the first is what speeds refer to"
    )
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.picture is not None and arguments.num_scenes < 200:
        parser.error(f"--picture: {arguments.num_scenes} scenes are too few to have two objects in some")
    pipes = {row: load_pipeline(ROWS[row][0], preset=ROWS[row][1]) for row in arguments.rows}
    makers = {preset: clips_of(pipe) for preset, pipe in pipes.items()}
    if arguments.picture is not None:
        draw(makers, to_show(arguments.num_scenes), arguments.picture)
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values: dict[str, Any] = {"another set of true clips": {"frechet": distances([others], [truth])}}
    values |= compare(makers, arguments.num_scenes)
    protocol = {
        **protocol_of(arguments.num_scenes),
        "model_sha256": {row: digest_model(ROWS[row][0]) for row in arguments.rows},
    }
    write_result(arguments.output, "presets", values, protocol)


if __name__ == "__main__":
    main()
