"""Plot what `recovery.py` measured: adherence and denoising loss of every row.

python benchmarks/plot_recovery.py benchmarks/results/sprites-recovery.json -o docs/images/recovery.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of recovery.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    values = json.loads(arguments.result.read_text())["values"]
    names, places = list(values), range(len(values))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for shift, attribute in zip((-0.25, 0, 0.25), ("color", "shape", "motion"), strict=True):
        rates = [100 * values[name]["adherence"][attribute]["rate"] for name in names]
        left.barh([place + shift for place in places], rates, height=0.25, label=attribute)
    left.set(xlabel="clips as asked for, %", xlim=(0, 100), yticks=places, yticklabels=names)
    left.invert_yaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    right.barh(places, [values[name].get("task_loss", float("nan")) for name in names], color="gray")
    right.set(xlabel="denoising loss on held-out clips, after training")
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
