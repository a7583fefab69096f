"""`cmd-video evaluate paired MADE TRUE`: clips against the clips they should be, one by one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Output, Shard, progress_bar, share_of
from .sources import (
    DrawSeed,
    Fps,
    Frames,
    NumClips,
    Reconstruct,
    Size,
    Span,
    Stride,
    WeightsDir,
    check_reading,
    parse_reading,
)


def command(
    made: Annotated[str, typer.Argument(help="Clips to judge: a folder, manifest, .npz.")],
    true: Annotated[str, typer.Argument(help="What they should be: as many, of the same names.")],
    output: Output = Path("paired.json"),
    lpips: Annotated[str | None, typer.Option(help="Also LPIPS: alex or vgg; needs `weights get`.")] = None,
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    span: Span = "middle",
    draw_seed: DrawSeed = 0,
    reconstruct: Reconstruct = None,
    weights_dir: WeightsDir = None,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """PSNR, SSIM, MS-SSIM (from 176 pixels on), LPIPS, flicker and warping error.

    Example: cmd-video evaluate paired made/ clips/ --size 64x64 -o paired.json
    Of an autoencoder: cmd-video evaluate paired clips/ clips/ --reconstruct my-model --size 64x64
    """
    from cmd_video.evaluation.metrics.pairs import measure_pairs
    from cmd_video.evaluation.networks.lpips import build_lpips
    from cmd_video.evaluation.protocol.results import write_result
    from cmd_video.evaluation.protocol.shared_work import SharedRows, discard, processes, work_on
    from cmd_video.studies.clips import open_source, reconstructed

    share = share_of(shard)
    state, device = processes(device)
    reading = parse_reading(frames, size, stride, fps, num_clips, span, draw_seed)
    check_reading([made, true], reading)
    judged = reconstructed(open_source(made, reading, device), reconstruct, device)
    sources = judged, open_source(true, reading, device)
    network = build_lpips(lpips, weights_dir, device) if lpips is not None else None
    work = output.with_name(f"{output.name}.parts")
    recipe = {"lpips": lpips, "clips": [[source.recipe, source.identity] for source in sources]}
    with work_on(work, share), progress_bar("pairs", len(sources[0])) as progress:
        values, protocol = measure_pairs(
            *sources, network, device, progress,
            SharedRows(work, recipe, share),
        )  # fmt: skip
    if not state.is_main_process:
        return
    write_result(output, "paired", values, {**protocol, "lpips": lpips}, device)
    discard(work)
    unreadable = protocol["unreadable"]
    if unreadable:
        print(f"{len(unreadable)} pairs left out, such as {unreadable[0]}", file=sys.stderr)
    rates = [protocol[side]["source_fps"] for side in ("made", "real")]
    if fps is None and all(rates) and rates[0] != rates[1]:
        print(
            f"--fps: files of {rates[0]} frames per second to judge, of {rates[1]} true ones; frames were compared by "
            "their number, not by their moment",
            file=sys.stderr,
        )
    for name, row in values.items():
        print(f"{name:14s} {row['value']:.4f}" + (f" +- {row['standard_error']:.2g}" if row["standard_error"] else ""))
    print(output)
