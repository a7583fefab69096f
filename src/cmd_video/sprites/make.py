"""Writes scenes of `sprites` as video files with a manifest, for other programs and for trying the data tools.

write_sprites(Path("sprites/"), num_clips=100)       # 000000.mp4 ..., manifest.jsonl, scenes.jsonl
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

from cmd_video.data.files import whole_folder, write_whole
from cmd_video.data.transforms import to_uint8
from cmd_video.data.video_file import write_video

from .scenes import Split, SpritesDataset, render


def write_sprites(
    output: Path,
    num_clips: int,
    height: int = 64,
    width: int = 64,
    num_frames: int = 16,
    seed: int = 0,
    split: str = "train",
    fps: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write clips, a manifest with prompt and motion of each, and the whole ground truth, `scenes.jsonl`.

    Args:
        output: folder to write; new or empty. It appears with all in it, or not at all.
        num_clips: scenes 0 to num_clips - 1.
        height: H in pixels.
        width: W in pixels.
        num_frames: F.
        seed: which world of scenes.
        split: "train" or "held_out".
        fps: frames per second of the files.
        progress: called with the number of clips written.

    Returns:
        The manifest, `output/manifest.jsonl`.

    Raises:
        ValueError: there is no such split, or the folder holds something.
    """
    if split not in get_args(Split):
        raise ValueError(f"split: {split!r} is none of {', '.join(get_args(Split))}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} is not empty")
    dataset = SpritesDataset(num_clips, height, width, num_frames, seed, cast("Split", split))
    rows, truths = [], []
    with whole_folder(output) as temporary:
        for number in range(num_clips):
            scene = dataset.scene(number)
            frames = to_uint8(render(scene, num_frames, height, width))
            name = f"{number:06d}.mp4"
            write_video(frames, temporary / name, fps)
            rows.append({"path": name, "prompt": scene.prompt, "label": scene.motion})
            truths.append({"path": name, **asdict(scene)})
            if progress is not None:
                progress(number + 1)
        for file, lines in (("scenes.jsonl", truths), ("manifest.jsonl", rows)):
            write_whole(temporary / file, "".join(json.dumps(line) + "\n" for line in lines))
    return output / "manifest.jsonl"
