"""FVD between two folders of clips: python examples/measure_fvd.py made/ real/ [--extractor pixels].

`cmd-video weights get i3d-torchscript` fetches the network of FVD; the extractor `pixels` needs none.
"""

import argparse
from pathlib import Path

from cmd_video import evaluate
from cmd_video.evaluation.protocol.clips import Reading


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("made")
    parser.add_argument("real")
    parser.add_argument("--extractor", default="i3d-torchscript")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("-o", "--output", type=Path, help="JSON file with values and the whole protocol")
    asked = parser.parse_args(arguments)

    reading = Reading(frames=16, size=tuple(asked.size))
    found = evaluate(asked.made, asked.real, asked.extractor, asked.output, reading)
    frechet = found.values["frechet"]
    print(f"{frechet['value']:.2f} +- {frechet['standard_error'] or float('nan'):.2f}")
    print(f"real against real: {frechet['real_against_real']}")
    return frechet["value"]


if __name__ == "__main__":
    main()
