"""`cmd-video evaluate paired MADE TRUE`: clips against the clips they should be, one by one."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from .sources import Device, Fps, Frames, NumClips, Size, Stride, WeightsDir, open_source


def command(
    made: Annotated[str, typer.Argument(help="Clips to judge: a folder, manifest, .npz.")],
    true: Annotated[str, typer.Argument(help="What they should be: as many, in the same order of names.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")] = Path("paired.json"),
    lpips: Annotated[str | None, typer.Option(help="Also LPIPS: alex or vgg; needs `weights get`.")] = None,
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    weights_dir: WeightsDir = None,
    device: Device = "cpu",
) -> None:
    """PSNR, SSIM, MS-SSIM (from 176 pixels on), LPIPS, flicker and warping error.

    Example: cmd-video evaluate paired reconstructions/ clips/ --size 64x64 -o paired.json
    """
    import torch
    from rich.progress import track

    from cmd_video.data.clip import ClipError
    from cmd_video.data.transforms import to_float
    from cmd_video.evaluation.clips import FolderClips
    from cmd_video.evaluation.flow import optical_flow, warping_error
    from cmd_video.evaluation.lpips import build_lpips
    from cmd_video.evaluation.metrics import paired_metrics
    from cmd_video.evaluation.results import write_result
    from cmd_video.evaluation.tables import digest_all, digest_of

    options = (frames, size, stride, fps, num_clips, device, None)
    sources = open_source(made, *options), open_source(true, *options)
    if len(sources[0]) != len(sources[1]):
        raise ValueError(f"clips: {len(sources[0])} in {made}, {len(sources[1])} in {true}; they must be pairs")
    names = [[path.stem for path in source.paths] for source in sources if isinstance(source, FolderClips)]
    if len(names) == 2:
        apart = next(((one, other) for one, other in zip(*names, strict=True) if one != other), None)
        if apart is not None:
            raise ValueError(f"clips: {apart[0]} in {made} stands where {true} has {apart[1]}; pairs go by name")
    network = build_lpips(lpips, weights_dir, device) if lpips is not None else None
    collected: dict[str, list[float]] = {}
    unreadable: list[str] = []
    digests: tuple[list[str], list[str]] = ([], [])
    for number in track(range(len(sources[0])), "clips"):
        one, other = (source.read([number])[0] for source in sources)
        if isinstance(one, ClipError) or isinstance(other, ClipError):
            unreadable.append(str(one if isinstance(one, ClipError) else other))
            continue
        for digest, clip in zip(digests, (one, other), strict=True):
            digest.append(digest_of(clip))
        prediction, target = (to_float(clip)[None].to(device) for clip in (one, other))
        found = {name: float(value) for name, value in paired_metrics(prediction, target, network).items()}
        if len(one) > 1:
            found["warping_error"] = warping_error(one, optical_flow(one))
        for name, value in found.items():
            if not math.isnan(value):  # the warping error where everything is covered
                collected.setdefault(name, []).append(value)
    if not collected:
        raise ValueError(f"clips: no pair can be read; the first: {unreadable[0]}")
    values = {}
    for name, numbers in collected.items():
        spread = torch.tensor(numbers, dtype=torch.float64)
        error = float(spread.std()) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
        values[name] = {"value": float(spread.mean()), "standard_error": error}
    protocol = {
        "clips": len(sources[0]) - len(unreadable),
        "unreadable": unreadable,
        "lpips": lpips,
        "real": {**sources[1].recipe, "pixels_sha256": digest_all(digests[1])},
        "made": {**sources[0].recipe, "pixels_sha256": digest_all(digests[0])},
    }
    write_result(output, "paired", values, protocol)
    if unreadable:
        print(f"{len(unreadable)} pairs left out, such as {unreadable[0]}", file=sys.stderr)
    for name, row in values.items():
        print(f"{name:14s} {row['value']:.4f}" + (f" +- {row['standard_error']:.2g}" if row["standard_error"] else ""))
    print(output)
