"""What each preset costs and keeps on sprites: seconds, adherence, Fréchet distance to the ground truth, in one run.

python benchmarks/presets.py -o benchmarks/results/sprites-presets.json [--rows quality fast] [--num-scenes 200]
    [--model "before=old-model" --model "before, fast=old-model:fast"]

Rows take turns (`by_turns`): presets of the default model, and models made from it. Distances (`by_turns.distances`)
stand beside that between two sets of true clips. `--picture FILE` draws four prompts with one object and four with
two, an early and a late frame of each row.
"""

import argparse
from pathlib import Path
from typing import Any

from by_turns import clips_of, compare, distances, draw, protocol_of, true_clips

from cmd_video.evaluation.protocol.results import digest_model, write_result
from cmd_video.pipelines.loading import load_pipeline
from cmd_video.sprites.adherence import choose_scenes
from cmd_video.sprites.scenes import SpriteScene

ROWS: dict[str, tuple[str | None, str | None]] = {  # model, preset; None = the default model, the model's own
    "quality": (None, "quality"),
    "fast": (None, "fast"),
    "turbo": ("turbo", None),
}


def to_show(num_scenes: int) -> dict[int, SpriteScene]:
    """Four scenes with one object and four with two."""
    scenes = choose_scenes(num_scenes)
    by_count = [[index for index, scene in scenes.items() if len(scene.objects) == count] for count in (1, 2)]
    return {index: scenes[index] for indices in by_count for index in indices[40:44]}


def own_row(text: str) -> tuple[str, tuple[str, str | None]]:
    """A row of a model that does not ship: "before=old-model:fast" -> ("before", ("old-model", "fast"))."""
    name, _, place = text.partition("=")
    model, _, preset = place.partition(":")
    if not (name and model):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROW=FOLDER[:PRESET]")
    return name, (model, preset or None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--rows", nargs="*", choices=ROWS, default=list(ROWS), help="beside --model; speeds refer to the first of all"
    )
    parser.add_argument(
        "--model", action="append", default=[], type=own_row, metavar="ROW=FOLDER[:PRESET]", help="a row of its own"
    )
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.picture is not None and arguments.num_scenes < 200:
        parser.error(f"--picture: {arguments.num_scenes} scenes are too few to have two objects in some")
    rows = dict(arguments.model) | {row: ROWS[row] for row in arguments.rows}
    pipes = {row: load_pipeline(model, preset=preset) for row, (model, preset) in rows.items()}
    makers = {preset: clips_of(pipe) for preset, pipe in pipes.items()}
    if arguments.picture is not None:
        draw(makers, to_show(arguments.num_scenes), arguments.picture)
    truth, others = true_clips(arguments.num_scenes), true_clips(arguments.num_scenes, seed=1)
    values: dict[str, Any] = {"another set of true clips": {"frechet": distances([others], [truth])}}
    values |= compare(makers, arguments.num_scenes)
    protocol = {
        **protocol_of(arguments.num_scenes),
        "model_sha256": {row: digest_model(model) for row, (model, _) in rows.items()},
    }
    write_result(arguments.output, "presets", values, protocol)


if __name__ == "__main__":
    main()
