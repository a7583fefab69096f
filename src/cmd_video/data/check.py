"""Look over a set of clips before training: every clip is decoded from end to end.

    report = check_clips(find_clips("clips/"), num_frames=16);  report.counts()        # {"ok": 40, "damaged": 2}

A clip is "ok"; "odd": usable, and the verdict says what is done with it; or has one of `clip.ClipProblem`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from .clip import ClipError, ClipInfo, ClipProblem, check_span, too_short
from .decode import probe
from .digests import check_digest
from .files import write_whole
from .frame_folders import probe_frame_folder
from .listing import LeftOut
from .manifest import Manifest, list_clips, paths_of
from .table import ClipTable

MOST = 10_000
VERDICTS = ("ok", "odd", *get_args(ClipProblem))


@dataclass(frozen=True)
class Verdict:
    """What was found about one clip.

    Attributes:
        path: the clip.
        verdict: one of `VERDICTS`.
        reason: why not "ok", or how an odd clip is handled; "" for "ok".
        num_frames: frames that decode; 0 where one does not.
    """

    path: str
    verdict: str
    reason: str = ""
    num_frames: int = 0


@dataclass(frozen=True)
class Report:
    """Verdicts about all clips of a set, in its order.

    Attributes:
        verdicts: one for each clip.
        left_out: what was found beside the clips and is not used.
        unseen: clips of the set that were not looked at, see `to_look_at`.
    """

    verdicts: list[Verdict]
    left_out: list[LeftOut] = field(default_factory=list)
    unseen: int = 0

    def counts(self) -> dict[str, int]:
        """Number of clips with each verdict that occurs; the sum is the number of clips."""
        found = Counter(verdict.verdict for verdict in self.verdicts)
        return {name: found[name] for name in VERDICTS if found[name]}

    def usable(self) -> set[Path]:
        """Clips that are "ok" or "odd"."""
        return {Path(verdict.path) for verdict in self.verdicts if verdict.verdict in ("ok", "odd")}

    def save(self, path: str | Path) -> None:
        """Write counts and every verdict as JSON.

        Raises:
            OSError: the file cannot be written.
        """
        clips = [vars(verdict) for verdict in self.verdicts]
        left_out = [{"path": str(each.path), "reason": each.reason} for each in self.left_out]
        record = {"total": len(clips), "counts": self.counts(), "clips": clips, "left_out": left_out}
        if self.unseen:
            record["not_looked_at"] = self.unseen
        write_whole(Path(path), json.dumps(record, indent=1))


def to_look_at(manifest: Manifest, most: int = MOST) -> Manifest:
    """A set as it is, or of a table of more rows than `most` so many that lie evenly in it: to decode ten million
    clips takes weeks.
    """
    records = manifest.records
    if not isinstance(records, ClipTable) or len(records) <= most:
        return manifest
    return Manifest(records.sample(most), manifest.class_names, manifest.left_out)


def find_clips(
    path: str | Path, kind: str = "auto", *, video_root: str | Path | None = None, split: str | None = None
) -> Sequence[Path]:
    """Paths of the clips below a path, each once, and of those that a set lists but that are not there.

    Arguments and errors as `list_clips`.
    """
    return paths_of(list_clips(path, kind, video_root=video_root, split=split))


def check_clips(
    paths: Iterable[Path], num_frames: int, stride: int = 1, digests: Mapping[Path, str | None] | None = None
) -> Report:
    """Decode clips and judge whether `num_frames` frames, `stride` apart, can be taken from each.

    Args:
        paths: the clips, files or folders of pictures; drawn one at a time.
        num_frames: frames of a training clip.
        stride: every stride-th frame is taken.
        digests: what files must hash to by their manifest, as training compares them.

    Raises:
        ValueError: num_frames or stride is out of range.
    """
    check_span(num_frames, stride, None, 0, None)
    stated = digests or {}
    return Report([check_clip(path, num_frames, stride, stated.get(path)) for path in paths])


def check_clip(path: Path, num_frames: int, stride: int = 1, digest: str | None = None) -> Verdict:
    """Judge one clip."""
    try:
        check_digest(path, digest)
        info = probe_frame_folder(path) if path.is_dir() else probe(path)
    except ClipError as error:
        where = "" if error.path == path else f"{error.path.name}: "
        return Verdict(str(path), error.problem, where + error.reason)
    if info.num_frames < (num_frames - 1) * stride + 1:
        short = too_short(path, info.num_frames, num_frames, stride, None)
        return Verdict(str(path), short.problem, short.reason, info.num_frames)
    odd = oddities(info)
    return Verdict(str(path), "odd" if odd else "ok", "; ".join(odd), info.num_frames)


def oddities(info: ClipInfo) -> list[str]:
    """What is unusual about a clip that can be used, and what reading does about it."""
    found = {
        f"rotated by {info.rotation} degrees, turned upright": info.rotation != 0,
        "variable frame rate, frames are counted unless fps is set": info.variable_fps,
        f"{info.bits} bits per channel, reduced to 8": info.bits > 8,
        "transparent, laid on black": info.has_alpha,
        f"odd size {info.height}x{info.width}, scaled and cropped like any other": info.height % 2 or info.width % 2,
        "pixels are not square, read as stored": not info.square_pixels,
        f"{info.num_frames} frames, the header says {info.header_frames}": 0
        < info.num_frames
        < info.header_frames - 1,
        f"more than {info.num_frames} frames, counted no further": not info.complete,
    }
    return [text for text, applies in found.items() if applies] + list(info.notes)
