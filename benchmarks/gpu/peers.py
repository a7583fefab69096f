"""CMD's peers beside it: seconds of a clip and of each part, with published configurations and random weights.

python benchmarks/gpu/peers.py -o benchmarks/results/gpu/peers.json [--rehearse] [--device cuda] [--seconds 55]

A whole clip is made where that does not take long; elsewhere `estimated_from_steps` is true and `end_to_end` is the
sum of the parts, each the median of a call times the number of calls.
"""

from argparse import Namespace
from functools import partial
from typing import Any

from rows import Results, Row, parse

from cmd_video.benchmark.peers import build_peer
from cmd_video.benchmark.timing import time_system

PEERS = ("ltx-video-2b", "modelscope", "wan2.1-1.3b")
RUNS = 3
LONGEST, LONGEST_REHEARSED = 15.0, 3.0  # seconds that the runs of whole clips may take, warm-up included


def measure(name: str, arguments: Namespace) -> dict[str, Any]:
    at = arguments.place
    system = build_peer(name, arguments.clip, at.device, at.dtype, at.changes)
    timing = time_system(system, at.device, RUNS, LONGEST_REHEARSED if arguments.rehearse else LONGEST)
    return {"name": system.name, "clip": str(system.size), "sampling": system.sampling, **timing}


def main() -> None:
    arguments = parse(__doc__)
    shown = ("end_to_end", "estimated_from_steps", "denoiser", "peak_bytes")
    results = Results("peers", arguments, {"clip": str(arguments.clip), "batch": 1}, shown)
    raise SystemExit(results.run([Row(name, partial(measure, name, arguments)) for name in PEERS]))


if __name__ == "__main__":
    main()
