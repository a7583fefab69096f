"""Lists of clips with captions or classes, from the ways in which video sets lie on disk.

    manifest = load_manifest("captioned_folder", "clips/");  manifest.records[0].prompt

Kinds: "manifest" (.jsonl or .csv; for large sets .parquet, see `table`), "captioned_folder" (clip.mp4 + clip.txt),
"class_folder" (class/clip.mp4), "ucf101" (official splits), "webvid" (its csv) and "frame_folders" (folders of
pictures). Records are in sorted order. What was found or listed and is not used stands in `left_out`, with the reason.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .classes import check_text, class_name, name_classes
from .listing import NOT_THERE, VIDEO_SUFFIXES, Found, LeftOut, in_order, look_through, order_of, split_pictures, tell
from .records import ClipRecord, Manifest
from .rows import csv_rows, jsonl_rows, text_of
from .table import ClipTable, open_table, table_paths
from .webvid import is_webvid, webvid_rows

__all__ = [
    "KINDS",
    "VIDEO_SUFFIXES",
    "ClipRecord",
    "Manifest",
    "class_prompt",
    "list_clips",
    "load_manifest",
    "paths_of",
]

KINDS = ("manifest", "captioned_folder", "class_folder", "ucf101", "webvid", "frame_folders")
LISTS = (".jsonl", ".csv", ".parquet")  # suffixes of manifests
COLUMNS = {  # names that a manifest may use -> ours
    **dict.fromkeys(("path", "video", "file_name"), "path"),
    **dict.fromkeys(("prompt", "caption", "text"), "prompt"),
    **dict.fromkeys(("class_label", "label"), "class_label"),
    "sha256": "sha256",
}


def list_clips(
    path: str | Path, kind: str = "auto", *, video_root: str | Path | None = None, split: str | None = None
) -> Manifest:
    """List the clips below a path, of a set or of whatever lies there.

    Args:
        path: a video file, a folder or a manifest.
        kind: one of `KINDS`, or "auto": of a folder all video files at any depth and all folders of pictures that hold
            no video file, of a .csv, .jsonl or .parquet file what it lists, else the file itself.
        video_root: as in `load_manifest`.
        split: as in `load_manifest`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no clip there, or not of this kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    if kind == "auto" and path.suffix.lower() in LISTS:
        kind = "webvid" if is_webvid(path) else "manifest"
    if kind != "auto":
        if kind not in KINDS:
            raise ValueError(f"kind: {kind!r}, allowed: auto, {', '.join(KINDS)}")
        return load_manifest(kind, path, video_root=video_root, split=split)
    if video_root is not None or split is not None:
        raise ValueError("video_root, split: only with kind ucf101 or webvid")
    if not path.is_dir():
        return Manifest([ClipRecord(path)])
    found = look_through(path)
    folders, beside = split_pictures(found)
    manifest = Manifest([ClipRecord(clip) for clip in found.videos + folders], left_out=found.left_out + beside)
    if not manifest.records and not manifest.missing:
        raise ValueError(f"{path}: no video file and no folder of pictures{_but(manifest.left_out)}")
    return manifest


def paths_of(manifest: Manifest) -> Sequence[Path]:
    """Paths of all clips, each once however many captions it has, and of those that are listed and not there."""
    if isinstance(manifest.records, ClipTable):
        return table_paths(manifest.records)
    return list(dict.fromkeys([*(record.path for record in manifest.records), *manifest.missing]))


def load_manifest(
    kind: str, path: str | Path, *, video_root: str | Path | None = None, split: str | None = None
) -> Manifest:
    """List the clips of a set.

    Args:
        kind: one of `KINDS`.
        path: the manifest or csv file, or the folder; for "ucf101" the folder of the split files.
        video_root: "ucf101" and "webvid": folder of the clips; by default where the csv or the split files lie.
        split: "ucf101": "train1", "test1" ... "test3".

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: not of this kind, or no clip.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, allowed: {', '.join(KINDS)}")
    if video_root is not None and kind not in ("ucf101", "webvid"):
        raise ValueError(f"video_root: {str(video_root)!r}, not used by kind {kind!r}; leave it out")
    if split is not None and kind != "ucf101":
        raise ValueError(f"split: {split!r}, not used by kind {kind!r}; leave it out")
    for place in (path, *([Path(video_root)] if video_root is not None else [])):
        if not place.exists():
            raise FileNotFoundError(2, "no such file or folder", str(place))
    if path.is_dir() == (kind in ("manifest", "webvid")):
        raise ValueError(f"{path}: a {'folder' if path.is_dir() else 'file'}, kind {kind!r} needs the other")
    if kind == "ucf101":
        manifest = _read_ucf101(path, Path(video_root or path), split)
    elif kind == "webvid":
        manifest = _read_webvid(path, Path(video_root or path.parent))
    else:
        readers: dict[str, Callable[[Path], Manifest]] = {
            "manifest": _read_manifest,
            "captioned_folder": _read_captioned,
            "class_folder": _read_classes,
            "frame_folders": _read_frame_folders,
        }
        manifest = readers[kind](path)
    if not manifest.records:
        raise ValueError(f"{path}: no clip of kind {kind!r}{_but(manifest.left_out)}")
    return manifest


def class_prompt(name: str) -> str:
    """Words of a class name: "ApplyEyeMakeup" and "apply_eye_makeup" -> "apply eye makeup"."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower().split())


def _but(left_out: list[LeftOut]) -> str:
    """What there is in place of clips, for a message."""
    return "".join(f"; {line}" for line in tell(left_out))


def _read_manifest(path: Path) -> Manifest:
    suffix = path.suffix.lower()
    if suffix not in LISTS:
        raise ValueError(f"{path}: suffix {path.suffix!r}, allowed: {', '.join(LISTS)}")
    if suffix == ".parquet":
        return open_table(path)
    found = csv_rows(path) if suffix == ".csv" else jsonl_rows(path)
    rows = [_manifest_row(path, line, row) for line, row in found]
    lost = [str(row["path"]) for row in rows if not row["path"].exists()]
    if lost:
        raise ValueError(f"{path}: {len(lost)} of {len(rows)} clips are not there, the first {lost[0]}")
    labels = [row["label"] for row in rows if row["label"] is not None]
    try:
        class_names, numbers = name_classes(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    records = [
        ClipRecord(row["path"], row["prompt"], -1 if row["label"] is None else numbers[row["label"]], row["sha256"])
        for row in rows
    ]
    once, again = _once(path, records)
    return Manifest(sorted(once, key=lambda record: order_of(record.path)), class_names, again)


def _once(path: Path, records: list[ClipRecord]) -> tuple[list[ClipRecord], list[LeftOut]]:
    """Records without those that say the same of the same clip again; a clip may have several captions.

    Raises:
        ValueError: a clip has two classes, or two digests.
    """
    first: dict[str, ClipRecord] = {}
    once: dict[tuple[str, str], ClipRecord] = {}
    again = []
    for record in records:
        place = os.path.normpath(record.path)
        before = first.setdefault(place, record)
        if (before.class_label, before.sha256) != (record.class_label, record.sha256):
            raise ValueError(f"{path}: {record.path} is listed with two classes or two digests")
        if once.setdefault((place, record.prompt), record) is not record:
            again.append(LeftOut(record.path, "listed again with the same caption"))
    return list(once.values()), again


def _manifest_row(path: Path, line: int, row: dict[str, Any]) -> dict[str, Any]:
    """One row with our column names, values checked; empty ones are None, the prompt ""."""
    unknown = [name for name in row if name not in COLUMNS]
    if unknown:
        raise ValueError(f"{path}: line {line}: unknown column {unknown[0]!r}, allowed: {', '.join(COLUMNS)}")
    ours = [COLUMNS[name] for name in row]
    double = {name for name in ours if ours.count(name) > 1}
    if double or "path" not in ours:
        problem = f"{min(double)} is given twice" if double else "no path"
        raise ValueError(f"{path}: line {line}: {problem}, columns are {', '.join(row)}")
    values = {COLUMNS[name]: None if value in ("", None) else value for name, value in row.items()}
    for name, value in values.items():
        types = (str, int) if name == "class_label" else (str,)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise ValueError(f"{path}: line {line}: {name} is {value!r}, must be text")
        if isinstance(value, str):
            check_text(f"{path}: line {line}: {name}", value)
    label = None if values.get("class_label") is None else class_name(str(values["class_label"])) or None
    digest = (values.get("sha256") or "").lower()
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{path}: line {line}: sha256 is {digest!r}, must be 64 hexadecimal digits")
    if values["path"] is None:
        raise ValueError(f"{path}: line {line}: path is empty")
    return {
        "path": path.parent / values["path"],
        "prompt": " ".join((values.get("prompt") or "").split()),
        "label": label,
        "sha256": digest or None,
    }


def _read_captioned(path: Path) -> Manifest:
    found = look_through(path)
    videos, captions = found.videos, [video.with_suffix(".txt") for video in found.videos]
    lost = [video for video, caption in zip(videos, captions) if not caption.is_file()]
    if lost:
        raise ValueError(
            f"{path}: {len(lost)} of {len(videos)} clips have no caption .txt beside them, as {lost[0].name}"
        )
    records = [ClipRecord(video, " ".join(text_of(caption).split())) for video, caption in zip(videos, captions)]
    used = {*captions, *(each.path.with_suffix(".txt") for each in found.left_out)}
    alone = [LeftOut(text, "a text without a clip") for text in found.texts if text not in used]
    return Manifest(records, left_out=found.left_out + _no_videos(found) + alone)


def _read_classes(path: Path) -> Manifest:
    found = look_through(path)
    return _by_first_folder(path, found.videos, found.left_out + _no_videos(found))


def _read_frame_folders(path: Path) -> Manifest:
    found = look_through(path)
    folders = found.picture_folders
    left_out = found.left_out + [LeftOut(video, "a video, not a folder of pictures") for video in found.videos]
    if folders and all(len(folder.relative_to(path).parts) < 2 for folder in folders):
        return Manifest([ClipRecord(folder) for folder in folders], left_out=left_out)
    return _by_first_folder(path, folders, left_out)


def _no_videos(found: Found) -> list[LeftOut]:
    """Pictures where videos are asked for."""
    apart, beside = split_pictures(found)
    return beside + [LeftOut(folder, "a folder of pictures, not a video") for folder in apart]


def _by_first_folder(path: Path, clips: list[Path], left_out: list[LeftOut]) -> Manifest:
    loose = [clip for clip in clips if len(clip.relative_to(path).parts) < 2]
    if loose:
        raise ValueError(f"{path}: {loose[0].name} lies in no class folder, {len(clips) - len(loose)} other clips do")
    names = [clip.relative_to(path).parts[0] for clip in clips]
    for name in set(names):
        check_text(f"{path}: the name of a class", name)
    class_names = sorted({class_name(name) for name in names})
    numbers = {name: number for number, name in enumerate(class_names)}
    records = [ClipRecord(clip, class_prompt(name), numbers[class_name(name)]) for clip, name in zip(clips, names)]
    folders = in_order(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    known = set(names)
    empty = [LeftOut(folder, "a class without a clip") for folder in folders if folder.name not in known]
    return Manifest(records, class_names, left_out + empty)


def _read_ucf101(path: Path, video_root: Path, split: str | None) -> Manifest:
    match = re.fullmatch("(train|test)([123])", split or "")
    if not match:
        raise ValueError(f"split: {split!r}, allowed: train1, train2, train3, test1, test2, test3")
    listed, classes = path / f"{match[1]}list0{match[2]}.txt", path / "classInd.txt"
    for file in (listed, classes):
        if not file.is_file():
            raise FileNotFoundError(2, "no such file; UCF-101's official splits have it", str(file))
    numbers: dict[str, int] = {}
    for line, text in enumerate(text_of(classes).splitlines(), 1):
        if text.strip():
            number, _, name = text.strip().partition(" ")
            if number != str(len(numbers) + 1) or not name:
                raise ValueError(f"{classes}: line {line} is {text!r}, must be `{len(numbers) + 1} Name`")
            numbers[name] = len(numbers)
    records = []
    for line, text in enumerate(text_of(listed).splitlines(), 1):
        if text.strip():
            clip = PurePosixPath(text.split()[0])
            name = clip.parts[0]
            if name not in numbers or len(clip.parts) != 2 or ".." in clip.parts:
                raise ValueError(
                    f"{listed}: line {line} is {text!r}, must be `Class/file.avi`, a class of {classes.name}"
                )
            records.append(ClipRecord(video_root / clip, class_prompt(name), numbers[name]))
    return _present(records, list(numbers))


def _read_webvid(path: Path, video_root: Path) -> Manifest:
    return _present([ClipRecord(video_root / inside, caption) for inside, caption in webvid_rows(path)], [])


def _present(records: list[ClipRecord], class_names: list[str]) -> Manifest:
    records = sorted(records, key=lambda record: order_of(record.path))
    there = [record.path.is_file() for record in records]
    left_out = [LeftOut(record.path, NOT_THERE) for record, found in zip(records, there) if not found]
    return Manifest([record for record, found in zip(records, there) if found], class_names, left_out)
