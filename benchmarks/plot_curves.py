"""Plot a column of one or several runs' logs beside each other.

python benchmarks/plot_curves.py runs/sprites/content runs/sprites/content-scratch -o docs/images/content.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--kind", default="validation", choices=["train", "validation"])
    parser.add_argument("--column", default="loss")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for run in arguments.runs:
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        points = [(row["step"], row[arguments.column]) for row in records if row["kind"] == arguments.kind]
        axes.plot(*zip(*points, strict=True), label=run.name, marker=".")
    axes.set(xlabel="step", ylabel=f"{arguments.kind} {arguments.column}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
