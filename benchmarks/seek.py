"""What 16 frames far into a clip of a minute cost, against plain PyAV with one seek, on this machine.

python benchmarks/seek.py -o benchmarks/results/seek.json

Plain PyAV is told the time of the frame; `read_clip` is told a place, and must find the frame's number first. Both
give the same frames, scaled to 64x64. They take turns, and seconds are those that this process computes, so that a
busy machine does not matter.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from cmd_video.data.decode import read_clip
from cmd_video.data.transforms import resize_and_crop_frame
from cmd_video.evaluation.protocol.results import write_result

SECONDS, RATE, FRAMES, PLACES = 60, 30, 16, (0.0, 0.5, 1.0)
ENCODERS = {"h264.mp4": ("libx264", {"preset": "ultrafast", "crf": "23", "g": "30"})}
SMALL = partial(resize_and_crop_frame, size=(64, 64))


def make_clip(path: Path, codec: str, options: dict[str, str]) -> None:
    """A minute of a noise picture, 640x360, that moves by two pixels a frame; a key frame every second."""
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = 360, 640, "yuv420p"
        for number in range(SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def plain(path: Path, first: int) -> torch.Tensor:
    """Frames from a frame on, whose number and rate are known: uint8 (F, 64, 64, 3)."""
    taken = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(round(first / RATE / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time < (first - 0.5) / RATE:
                continue
            taken.append(SMALL(torch.from_numpy(frame.to_ndarray(format="rgb24"))))
            if len(taken) == FRAMES:
                return torch.stack(taken)
    raise ValueError("too few frames")


def measure(ways: dict[str, Callable[[], torch.Tensor]], runs: int) -> dict[str, float]:
    """Median seconds of computing of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, read in ways.items():
            start = time.process_time()
            read()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, options) in ENCODERS.items():
            path = Path(folder) / name
            make_clip(path, codec, options)
            for place in PLACES:
                first = round(place * (SECONDS * RATE - FRAMES))
                ways = {
                    "plain": partial(plain, path, first),
                    "read_clip": partial(read_clip, path, FRAMES, place=place, transform=SMALL),
                }
                apart = [way().float() for way in ways.values()]
                if (apart[0] - apart[1]).abs().mean() > 3:  # read_clip converts colours exactly, PyAV alone does not
                    raise ValueError(f"{name}, place {place}: not the same frames")
                found = measure(ways, arguments.runs)
                ratio = found["read_clip"] / found["plain"]
                values[f"{name}, place {place}"] = {**found, "ratio": ratio}
                print(f"{name}, place {place}: {found['read_clip']:.3f} s, {ratio:.2f} times plain PyAV")
    protocol = {"seconds": SECONDS, "rate": RATE, "size": "360x640", "frames": FRAMES, "runs": arguments.runs}
    write_result(arguments.output, "seek", values, {**protocol, "threads": 1})


if __name__ == "__main__":
    main()
