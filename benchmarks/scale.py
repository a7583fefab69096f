"""What large sets cost on this machine.

python benchmarks/scale.py all -o benchmarks/results/scale.json

`all` is the three parts that follow. `manifest`: a table of synthetic rows, no clip behind them, is written and
opened: seconds and memory, each in a process of its own; rows a second in the order of a training pass. Beside it the
csv of a small part of them, by `load_manifest`, without the look at every file that it would add, and how a csv is
sorted on disk. `latents`: see `scale_latents.py`. `first-step`: from the command to the first step of training on a
table of a million captions of a few clips, with small networks in place of Stable Diffusion's autoencoder and of the
paper's.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import scale_latents

from cmd_video.evaluation.protocol.results import write_result

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "webvid-sd15" / "autoencoder.yaml"
SMALL = {  # fields of the recipe that are others for the first step
    "components.vae": "{class: AutoencoderPixelUnshuffle, config: {patch_size: 2}}",
    "components.autoencoder": "{class: CMDAutoencoder, config: {in_channels: 12, sample_size: [16, 16], "
    "num_frames: 4, dim: 24, encoder_depth: 1, decoder_depth: 1, num_heads: 2}}",
    "data.height": 32, "data.width": 32, "data.num_frames": 4, "data.kind": "manifest", "data.video_root": "null",
    "validation.data.kind": "manifest", "validation.num_clips": 2, "loop.steps": 1, "loop.precision": "fp32",
}  # fmt: skip
WORDS = ("red", "ball", "rolls", "over", "green", "hill", "while", "two", "people", "watch", "camera", "pans", "left")
READ = 200_000  # rows that are read in order, where there are as many


def rss() -> float:
    """Megabytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def caption(number: int) -> str:
    return " ".join(WORDS[number * step % len(WORDS)] for step in range(3, 17)) + f" {number}"


def place(number: int) -> str:
    return f"{number // 1000:06d}_{number // 1000 + 50:06d}/{number}.mp4"


def write_table(path: Path, rows: int) -> None:
    from cmd_video.data.table_file import TableRow, table_writer

    facts = {"height": 336, "width": 596, "num_frames": 430, "fps": 25.0, "duration": 17.2}
    with table_writer(path, kind="webvid", root=path.parent / "videos") as writer:
        for number in range(rows):
            writer.add(TableRow(place(number), caption(number), bytes=2_000_000 + number, modified_ns=1, **facts))


def write_csv(path: Path, rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for number in range(rows):
            folder, name = place(number).split("/")
            writer.writerow([name.removesuffix(".mp4"), "", "PT00H00M17S", folder, caption(number)])


def open_table(path: Path) -> dict[str, float]:
    """Seconds and megabytes of opening a table as training does, and of a walk in its order."""
    from cmd_video.data.datasets import open_video_dataset

    before, start = rss(), time.perf_counter()
    dataset = open_video_dataset("manifest", path, num_frames=16, height=64, width=64)
    opened, with_it = time.perf_counter() - start, rss()
    dataset.class_labels, dataset.described()
    stated = time.perf_counter() - start - opened
    start = time.perf_counter()
    captions = len(dataset.prompts)
    sampled = time.perf_counter() - start
    count, start = min(READ, len(dataset)), time.perf_counter()
    for number in range(count):
        dataset.records[dataset._order(0, number)]
    return {
        "rows": len(dataset),
        "open_seconds": opened,
        "open_megabytes": with_it - before,
        "stated_seconds": stated,
        "captions_sampled": captions,
        "captions_seconds": sampled,
        "rows_per_second_in_order": count / (time.perf_counter() - start),
        "megabytes_after_reading": rss() - before,
        "process_megabytes": rss(),
        "bytes": path.stat().st_size,
    }


def open_csv(path: Path) -> dict[str, float]:
    """Seconds and megabytes of listing a csv, every file taken for there."""
    from cmd_video.data.manifest import load_manifest

    before, start = rss(), time.perf_counter()
    with mock.patch.object(Path, "is_file", lambda _: True), mock.patch.object(Path, "is_dir", lambda _: False):
        manifest = load_manifest("webvid", path)
    return {
        "rows": len(manifest.records),
        "open_seconds": time.perf_counter() - start,
        "open_megabytes": rss() - before,
    }


def sort_csv(path: Path) -> dict[str, float]:
    """Seconds and megabytes of listing a csv into a table, no file being there to be looked at."""
    from cmd_video.data.webvid import sorted_webvid

    before, start = rss(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        rows = sum(1 for _ in sorted_webvid(path, Path(scratch)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"rows": rows, "seconds": time.perf_counter() - start, "peak_megabytes": peak - before}


MEASURED = {"open_table": open_table, "open_csv": open_csv, "sort_csv": sort_csv}


def measured(name: str, path: Path) -> dict[str, Any]:
    """What a function measures in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "measure", name, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def manifest(rows: int = 10_000_000, csv_rows: int = 200_000, sort_rows: int = 1_000_000) -> dict[str, Any]:
    """Tables of clips, and how many rows each has."""
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name, count in (("table", rows), ("small_table", csv_rows)):
            path = folder / f"{name}.parquet"
            start = time.perf_counter()
            write_table(path, count)
            written = time.perf_counter() - start
            values[name] = {"write_seconds": written, **measured("open_table", path)}
            print(name, json.dumps(values[name]), flush=True)
        write_csv(folder / "small.csv", csv_rows)
        values["small_csv"] = measured("open_csv", folder / "small.csv")
        write_csv(folder / "sort.csv", sort_rows)
        values["sorting"] = measured("sort_csv", folder / "sort.csv")
    return values


def first_step(rows: int = 1_000_000, clips: int = 20) -> dict[str, Any]:
    """Seconds from the command to the end of a run of one step, start of the program and validation included."""
    import numpy as np

    from cmd_video.data.table_file import TableRow, table_writer
    from cmd_video.data.video_file import write_video

    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for clip in range(clips):
            write_video(draws.integers(0, 256, (8, 32, 32, 3), np.uint8), folder / f"{clip:02d}.mp4", 8)
        for kind, count in (("train", rows), ("validation", clips)):
            with table_writer(folder / f"{kind}.parquet", kind="webvid", root=folder) as writer:
                for number in range(count):
                    writer.add(TableRow(f"{number * clips // count:02d}.mp4", f"caption {number}"))
        changes = {**SMALL, "data.path": folder / "train.parquet", "output_dir": folder / "run"}
        changes["validation.data.path"] = folder / "validation.parquet"
        chosen = [part for field, value in changes.items() for part in ("--set", f"{field}={value}")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cmd_video.cli", "train", str(RECIPE), *chosen], check=True)
        return {"rows": rows, "clips": clips, "seconds": time.perf_counter() - start}


PARTS = {"manifest": manifest, "latents": scale_latents.measure_all, "first-step": first_step}


def run(arguments: argparse.Namespace) -> None:
    """One part, or all, into a file."""
    chosen = PARTS if arguments.part == "all" else {arguments.part: PARTS[arguments.part]}
    values = {}
    for name, part in chosen.items():
        values[name] = part()
        print(name, json.dumps(values[name], indent=1), flush=True)
    protocol = {"recipe": RECIPE.relative_to(ROOT).as_posix(), "changed": SMALL, "latents": scale_latents.PROTOCOL}
    write_result(arguments.output, "scale", values, protocol)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("all", *PARTS):
        part = parts.add_parser(name)
        part.add_argument("-o", "--output", type=Path, required=True)
        part.set_defaults(run=run)
    part = parts.add_parser("measure", help="one of the measurements, as the others call it")
    part.add_argument("name", choices=MEASURED)
    part.add_argument("path", type=Path)
    part.set_defaults(run=lambda arguments: print(json.dumps(MEASURED[arguments.name](arguments.path))))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
