"""Memory per card of the recipes that ship, computed: the table of docs/guide/scale-training.md.

python benchmarks/training_memory.py                       # writes benchmarks/results/training-memory.json
python benchmarks/training_memory.py wan/recover           # counts these recipes anew, and keeps the others' rows

Nothing is measured: each recipe's stage runs on the meta device (`cmd_video.studies.training_memory`). A quarter of an
hour on one CPU core; no weights, no clips, no network.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmd_video.evaluation.protocol.results import write_result
from cmd_video.studies.training_memory import CARDS, PROCESSES, CardMemory, recipe_memory
from cmd_video.training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "training-memory.json"


def row(recipe: Path) -> dict[str, Any]:
    """For each number of processes the parts in bytes, or why so many cannot run the recipe."""
    return {
        str(processes): {**asdict(card), "peak": card.peak, "fits": card.fits}
        if isinstance(card, CardMemory)
        else card
        for processes, card in zip(PROCESSES, recipe_memory(load_config(recipe), recipe), strict=True)
    }


def main() -> None:
    """Count the recipes that were asked for and those that have no row, or all, and write the result file."""
    asked = [f"configs/{name}.yaml" for name in sys.argv[1:]]
    known = json.loads(RESULT.read_text())["values"] if asked else {}
    rows: dict[str, Any] = {}
    for recipe in sorted(ROOT.glob("configs/*/*.yaml")):
        name = recipe.relative_to(ROOT).as_posix()
        rows[name] = row(recipe) if name in asked or name not in known else known[name]
        print(name, flush=True)
    protocol = {"measured": False, "counted_on": "meta device", "unit": "bytes on one card", "cards_gb": list(CARDS)}
    write_result(RESULT, "training-memory", rows, protocol)


if __name__ == "__main__":
    main()
