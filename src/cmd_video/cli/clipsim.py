"""`cmd-video evaluate clipsim`: how well clips fit their captions."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Output, Shard, progress_bar, share_of
from .sources import DrawSeed, Fps, Frames, NumClips, Span, Stride, parse_reading


def command(
    clips: Annotated[
        Path, typer.Argument(help="Manifest with captions (.jsonl, .csv), or a folder with clip.txt beside clip.mp4.")
    ],
    clip: Annotated[str, typer.Option(help="CLIP model: a hub id or a folder.")] = "openai/clip-vit-base-patch32",
    output: Output = Path("clipsim.json"),
    frames: Frames = 16,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    span: Span = "middle",
    draw_seed: DrawSeed = 0,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """Mean cosine of frames and caption in CLIP's space (CLIPSIM), beside that of captions of other clips.

    Example: cmd-video evaluate clipsim samples/prompts.jsonl -o clipsim.json
    """
    from cmd_video.data.manifest import load_manifest
    from cmd_video.evaluation.metrics.clipsim import ClipSim, measure_captions
    from cmd_video.evaluation.protocol.clips import FolderClips
    from cmd_video.evaluation.protocol.results import write_result
    from cmd_video.evaluation.protocol.shared_work import SharedRows, discard, processes, work_on

    share = share_of(shard)
    state, device = processes(device)
    kind = "captioned_folder" if clips.is_dir() else "manifest"
    manifest = load_manifest(kind, clips)
    manifest.warn(clips)
    records = [record for record in manifest.records if record.prompt]
    if not records:
        raise ValueError(f"{clips}: no clip with a caption")
    reading = parse_reading(frames, None, stride, fps, num_clips, span, draw_seed)
    source = FolderClips([record.path for record in records], reading)
    source.recipe["source"] = str(clips)
    records = [records[number] for number in reading.choose(len(records))]
    judge = ClipSim(clip, device)
    prompts = [record.prompt for record in records]
    work = output.with_name(f"{output.name}.parts")
    recipe = {"clips": [source.recipe, source.identity], "prompts": prompts, "clip_sha256": judge.sha256}
    with work_on(work, share), progress_bar("clips", len(records)) as progress:
        values, protocol = measure_captions(
            source, prompts, judge, progress,
            SharedRows(work, recipe, share),
        )  # fmt: skip
    if not state.is_main_process:
        return
    write_result(output, "clipsim", values, {**protocol, "clip_model": clip}, device)
    discard(work)
    unreadable = protocol["unreadable"]
    if unreadable:
        print(f"{len(unreadable)} clips left out, such as {unreadable[0]}", file=sys.stderr)
    for name, row in values.items():
        print(f"{name:28s} {row['value']:.4f}")
    print(output)
