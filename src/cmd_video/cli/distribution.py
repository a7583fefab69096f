"""`cmd-video evaluate reference|calc|compare`: distances between sets of clips, with the protocol in every file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmd_video.data.shares import ShareDone

from .options import Device, Output, Shard, progress_bar, read_lines, share_of, writable_pair
from .sources import (
    BatchSize,
    DrawSeed,
    Fps,
    Frames,
    NumClips,
    Prompts,
    Reconstruct,
    Size,
    Span,
    Split,
    Steps,
    Stride,
    WeightsDir,
    check_reading,
    parse_reading,
)

if TYPE_CHECKING:
    from cmd_video.evaluation.protocol.tables import FeatureTable

Extractor = Annotated[
    str,
    typer.Option(
        help="i3d-torchscript (FVD), i3d (another I3D), c3d (Inception score), videomaev2:FILE (content-debiased), "
        "videomae:PATH, vjepa2:PATH, inception (FID of frames), squeezenet, "
        "sprites-action, sprites-appearance, flow, pixels, pixel-motion."
    ),
]


def reference(
    source: Annotated[str, typer.Argument(help="Clips: a folder, manifest, .npz, or training configuration (.yaml).")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Writes OUTPUT.safetensors and OUTPUT.json.", callback=writable_pair)
    ],
    extractor: Extractor = "i3d-torchscript",
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    span: Span = "middle",
    draw_seed: DrawSeed = 0,
    split: Split = "validation",
    batch_size: BatchSize = 8,
    weights_dir: WeightsDir = None,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """Features of real clips, to compare others with.

    Example: cmd-video evaluate reference ucf101/ -o ucf101-i3d --size 256x256
    """
    if output.suffix in (".json", ".safetensors"):
        output = output.with_suffix("")
    from cmd_video.evaluation.networks.extractors import build_extractor
    from cmd_video.evaluation.protocol.shared_work import discard, processes
    from cmd_video.evaluation.protocol.tables import extract, extract_share
    from cmd_video.studies.clips import open_source

    share = share_of(shard)
    state, device = processes(device)
    built = build_extractor(extractor, weights_dir, device)
    reading = parse_reading(frames, size, stride, fps, num_clips, span, draw_seed)
    check_reading([source], reading, split)
    clips = open_source(source, reading, device, split=split)
    work = output.with_name(f"{output.name}.parts")
    with progress_bar("clips", len(clips)) as progress:
        if share is not None:
            raise ShareDone(extract_share(clips, built, work, share, batch_size, progress))
        table = extract(clips, built, work, batch_size, progress)
    if not state.is_main_process:
        return
    table.save(output, device)
    discard(work)
    _warn(table)
    print(f"{len(table.features)} features of {table.protocol['clips']} clips")
    print(output)


def calc(
    made: Annotated[
        str, typer.Argument(help="Clips to judge: as for `reference`, or `default`, or a model's folder.")
    ],
    real: Annotated[str, typer.Option("--reference", help="What `evaluate reference` wrote, or real clips.")],
    output: Output = Path("distance.json"),
    extractor: Extractor = "i3d-torchscript",
    frames: Frames = 16,
    size: Size = None,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    span: Span = "middle",
    draw_seed: DrawSeed = 0,
    split: Split = "validation",
    steps: Steps = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Of precision, recall and coverage.")] = 5,
    correction: Annotated[
        int, typer.Option(min=0, max=1, help="Covariances over N - 1, unbiased, or with 0 over N, as StyleGAN-V's.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of a model's prompts and noise.")] = 0,
    prompts: Prompts = None,
    reconstruct: Reconstruct = None,
    batch_size: BatchSize = 8,
    weights_dir: WeightsDir = None,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """Fréchet and kernel distance, precision, recall and coverage, each beside what real clips give among themselves.

    With `--extractor i3d-torchscript` the Fréchet distance is FVD and the kernel distance KVD; `i3d` is the network of
    the I3D paper, whose weights are others. Extractors that know classes (those, c3d, sprites-action) give the
    Inception score as well. With `--reconstruct` clips are judged as an autoencoder gives them back: rFVD.

    Example: cmd-video evaluate calc made/ --reference ucf101-i3d -o fvd.json
    """
    from cmd_video.evaluation.evaluate import evaluate, is_table
    from cmd_video.evaluation.networks.extractors import build_extractor
    from cmd_video.evaluation.protocol.shared_work import processes
    from cmd_video.studies.clips import open_source, reconstructed

    share = share_of(shard)
    _, device = processes(device)
    built = build_extractor(extractor, weights_dir, device)
    has_table = is_table(real)
    reading = parse_reading(frames, size, stride, fps, num_clips, span, draw_seed)
    check_reading([made] if has_table else [made, real], reading, split)
    lines = None if prompts is None else read_lines(prompts)
    clips = reconstructed(open_source(made, reading, device, steps, seed, lines, split), reconstruct, device)
    known = real if has_table else open_source(real, reading, device, split=split)
    with progress_bar("clips", len(clips)) as progress:
        found = evaluate(
            clips, known, built, output, neighbours=neighbours, correction=correction, batch_size=batch_size,
            device=device, share=share, progress=progress,
        )  # fmt: skip
    if found.values:
        _print(found.values, found.real, found.made)
        print(output)


def compare(
    first: Annotated[Path, typer.Argument(help="A result file.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Whether two results may stand in one table; exit code 1 and the fields that differ if not.

    Example: cmd-video evaluate compare mine.json theirs.json
    """
    from cmd_video.evaluation.protocol.compare import compare as compare_results
    from cmd_video.evaluation.protocol.compare import read_result

    found = compare_results(read_result(first), read_result(second))
    for name, (mine, other) in found.versions.items():
        print(f"version of {name}: {mine} and {other}")
    if found.comparable:
        print("comparable")
        return
    print("not comparable:")
    for name, (mine, other) in found.different.items():
        print(f"  {name}: {mine} and {other}")
    raise typer.Exit(1)


def _print(values: dict[str, dict[str, Any]], known: "FeatureTable", found: "FeatureTable") -> None:
    for table in (known, found):
        _warn(table)
    _warn_apart(known, found)
    for name, row in values.items():
        floor = "" if row["real_against_real"] is None else f"   real against real {row['real_against_real']:.4g}"
        error = "" if row["standard_error"] is None else f" +- {row['standard_error']:.2g}"
        print(f"{name:18s} {row['value']:.5g}{error}{floor}")


def _warn_apart(known: "FeatureTable", found: "FeatureTable") -> None:
    """What was read differently on the two sides, for then the number says that, too."""
    import sys

    for field in ("sizes", "stride", "fps", "span", "source_fps"):
        mine, other = (table.protocol.get(field) for table in (found, known))
        if mine and other and mine != other:
            print(f"{field}: {mine} for the clips to judge, {other} for the reference", file=sys.stderr)


def _warn(table: "FeatureTable") -> None:
    import sys

    unreadable = table.protocol["unreadable"]
    if unreadable:
        print(f"{len(unreadable)} clips left out, such as {unreadable[0]}", file=sys.stderr)
    clips, numbers = int(table.protocol["clips"]), table.features.shape[1]
    if clips < numbers:
        print(f"{clips} clips, features of {numbers} numbers: the Fréchet distance is far too large", file=sys.stderr)
