"""`cmd-video evaluate clipsim`: how well clips fit their captions."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from .sources import Device, Fps, Frames, NumClips, Stride


def command(
    clips: Annotated[
        Path, typer.Argument(help="Manifest with captions (.jsonl, .csv), or a folder with clip.txt beside clip.mp4.")
    ],
    clip: Annotated[str, typer.Option(help="CLIP model: a hub id or a folder.")] = "openai/clip-vit-base-patch32",
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")] = Path("clipsim.json"),
    frames: Frames = 16,
    stride: Stride = 1,
    fps: Fps = None,
    num_clips: NumClips = None,
    device: Device = "cpu",
) -> None:
    """Mean cosine of frames and caption in CLIP's space (CLIPSIM), beside that of captions of other clips.

    Example: cmd-video evaluate clipsim samples/prompts.jsonl -o clipsim.json
    """
    import torch
    from rich.progress import track

    from cmd_video.data.clip import ClipError
    from cmd_video.data.manifest import load_manifest
    from cmd_video.evaluation.clips import FolderClips
    from cmd_video.evaluation.clipsim import ClipSim
    from cmd_video.evaluation.results import write_result
    from cmd_video.evaluation.tables import digest_all, digest_of

    kind = "captioned_folder" if clips.is_dir() else "manifest"
    records = [record for record in load_manifest(kind, clips).records if record.prompt][:num_clips]
    if not records:
        raise ValueError(f"{clips}: no clip with a caption")
    judge = ClipSim(clip, device)
    source = FolderClips([record.path for record in records], frames, None, stride, fps)
    prompts = [record.prompt for record in records]
    own: list[float] = []
    others: list[float] = []
    unreadable: list[str] = []
    digests: list[str] = []
    for number in track(range(len(source)), "clips"):
        found = source.read([number])[0]
        if isinstance(found, ClipError):
            unreadable.append(str(found))
            continue
        pair = [prompts[number], prompts[(number + 1) % len(prompts)]]
        scores = judge(found[None].expand(2, *found.shape), pair)
        digests.append(digest_of(found))
        own.append(float(scores[0]))
        others.append(float(scores[1]))
    if not own:
        raise ValueError(f"clips: none can be read; the first: {unreadable[0]}")
    spread = torch.tensor(own, dtype=torch.float64)
    error = float(spread.std()) / math.sqrt(len(own)) if len(own) > 1 else None
    values = {
        "clipsim": {"value": float(spread.mean()), "standard_error": error},
        "clipsim_of_another_caption": {"value": sum(others) / len(others), "standard_error": None},
    }
    protocol = {
        "clips": len(own),
        "unreadable": unreadable,
        "captions_cut": judge.num_cut,
        "clip_model": clip,
        "captions_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "clip_sha256": judge.sha256,
        "clip_resize": f"antialiased bicubic to {judge.size}x{judge.size}",
        "made": {**source.recipe, "source": str(clips), "pixels_sha256": digest_all(digests)},
    }
    write_result(output, "clipsim", values, protocol)
    if unreadable:
        print(f"{len(unreadable)} clips left out, such as {unreadable[0]}", file=sys.stderr)
    for name, row in values.items():
        print(f"{name:28s} {row['value']:.4f}")
    print(output)
