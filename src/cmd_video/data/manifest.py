"""Lists of clips with captions or classes, from the ways in which video sets lie on disk.

    manifest = load_manifest("captioned_folder", "clips/");  manifest.records[0].prompt

Kinds: "manifest" (.jsonl or .csv), "captioned_folder" (clip.mp4 + clip.txt), "class_folder" (class/clip.mp4), "ucf101"
(official splits), "webvid" (its csv) and "frame_folders" (folders of pictures). Records are in sorted order.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .frame_folders import PICTURE_SUFFIXES, natural_key

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif", ".apng")
KINDS = ("manifest", "captioned_folder", "class_folder", "ucf101", "webvid", "frame_folders")
COLUMNS = {  # names that a manifest may use -> ours
    **dict.fromkeys(("path", "video", "file_name"), "path"),
    **dict.fromkeys(("prompt", "caption", "text"), "prompt"),
    **dict.fromkeys(("class_label", "label"), "class_label"),
    "sha256": "sha256",
}
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")


@dataclass(frozen=True)
class ClipRecord:
    """One clip.

    Attributes:
        path: a video file or a folder of pictures.
        prompt: its caption; "" where there is none.
        class_label: number of its class; -1 where there is none.
        sha256: what the file must hash to, in lower case; None where the set does not say.
    """

    path: Path
    prompt: str = ""
    class_label: int = -1
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a set holds.

    Attributes:
        records: its clips.
        class_names: name of each class label; empty where clips have none.
        missing: clips that UCF-101 and WebVid list but that are not there.
    """

    records: list[ClipRecord]
    class_names: list[str] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)


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
        readers = {"manifest": _read_manifest, "captioned_folder": _read_captioned, "class_folder": _read_classes}
        manifest = readers.get(kind, _read_frame_folders)(path)
    if not manifest.records:
        missing = manifest.missing
        lost = f"; {len(missing)} listed are not there, the first {missing[0]}" if missing else ""
        raise ValueError(f"{path}: no clip of kind {kind!r}{lost}")
    return manifest


def find_videos(folder: Path) -> list[Path]:
    """Video files at any depth, by suffix, in natural order; hidden files and folders are left out."""
    return _sorted(file for file in _visible(folder) if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())


def find_frame_folders(folder: Path) -> list[Path]:
    """Folders that hold pictures, at any depth, `folder` itself included, in natural order."""
    return _sorted({file.parent for file in _visible(folder) if file.suffix.lower() in PICTURE_SUFFIXES})


def class_prompt(name: str) -> str:
    """Words of a class name: "ApplyEyeMakeup" and "apply_eye_makeup" -> "apply eye makeup"."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower().split())


def _visible(folder: Path) -> Iterator[Path]:
    return (f for f in folder.rglob("*") if not any(part[0] == "." for part in f.relative_to(folder).parts))


def _sorted(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda path: [natural_key(part) for part in path.parts])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, columns) of a csv file with a header."""
    reader = csv.DictReader(_text(path).splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                names = len(reader.fieldnames or ())
                raise ValueError(f"{path}: line {reader.line_num} does not have the {names} columns of the header")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is {type(row).__name__}, must be an object")
            yield number, row


def _read_manifest(path: Path) -> Manifest:
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: suffix {path.suffix!r}, allowed: {', '.join(readers)}")
    rows = [_manifest_row(path, line, row) for line, row in readers[path.suffix.lower()](path)]
    lost = [str(row["path"]) for row in rows if not row["path"].exists()]
    if lost:
        raise ValueError(f"{path}: {len(lost)} of {len(rows)} clips are not there, the first {lost[0]}")
    labels = [row["class_label"] for row in rows if row["class_label"] is not None]
    class_names = _class_names(path, labels)
    numbers = {name: number for number, name in enumerate(class_names)}
    records = [
        ClipRecord(row["path"], row["prompt"], numbers.get(str(row["class_label"]), -1), row["sha256"]) for row in rows
    ]
    return Manifest(sorted(records, key=lambda record: [natural_key(part) for part in record.path.parts]), class_names)


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
    digest = (values.get("sha256") or "").lower()
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{path}: line {line}: sha256 is {digest!r}, must be 64 hexadecimal digits")
    if values["path"] is None:
        raise ValueError(f"{path}: line {line}: path is empty")
    return {
        "path": path.parent / values["path"],
        "prompt": " ".join((values.get("prompt") or "").split()),
        "class_label": values.get("class_label"),
        "sha256": digest or None,
    }


def _class_names(path: Path, labels: Sequence[str | int]) -> list[str]:
    """Names in label order: numbers are taken as they are, names are numbered in sorted order."""
    numeric = [str(label).isdecimal() for label in labels]
    if any(numeric) and not all(numeric):
        raise ValueError(
            f"{path}: labels mix numbers and names: {labels[numeric.index(True)]}, {labels[numeric.index(False)]}"
        )
    if numeric:
        return (
            [str(number) for number in range(max(int(label) for label in labels) + 1)]
            if numeric[0]
            else sorted(set(map(str, labels)))
        )
    return []


def _read_captioned(path: Path) -> Manifest:
    videos = find_videos(path)
    lost = [video for video in videos if not video.with_suffix(".txt").is_file()]
    if lost:
        raise ValueError(
            f"{path}: {len(lost)} of {len(videos)} clips have no caption .txt beside them, as {lost[0].name}"
        )
    return Manifest([ClipRecord(video, " ".join(_text(video.with_suffix(".txt")).split())) for video in videos])


def _read_classes(path: Path) -> Manifest:
    return _by_first_folder(path, find_videos(path))


def _read_frame_folders(path: Path) -> Manifest:
    folders = find_frame_folders(path)
    if folders and all(len(folder.relative_to(path).parts) < 2 for folder in folders):
        return Manifest([ClipRecord(folder) for folder in folders])
    return _by_first_folder(path, folders)


def _by_first_folder(path: Path, clips: list[Path]) -> Manifest:
    loose = [clip for clip in clips if len(clip.relative_to(path).parts) < 2]
    if loose:
        raise ValueError(f"{path}: {loose[0].name} lies in no class folder, {len(clips) - len(loose)} other clips do")
    class_names = sorted({clip.relative_to(path).parts[0] for clip in clips})
    numbers = {name: number for number, name in enumerate(class_names)}
    names = [clip.relative_to(path).parts[0] for clip in clips]
    records = [ClipRecord(clip, class_prompt(name), numbers[name]) for clip, name in zip(clips, names)]
    return Manifest(records, class_names)


def _read_ucf101(path: Path, video_root: Path, split: str | None) -> Manifest:
    match = re.fullmatch("(train|test)([123])", split or "")
    if not match:
        raise ValueError(f"split: {split!r}, allowed: train1, train2, train3, test1, test2, test3")
    listed, classes = path / f"{match[1]}list0{match[2]}.txt", path / "classInd.txt"
    for file in (listed, classes):
        if not file.is_file():
            raise FileNotFoundError(2, "no such file; UCF-101's official splits have it", str(file))
    numbers: dict[str, int] = {}
    for line, text in enumerate(_text(classes).splitlines(), 1):
        if text.strip():
            number, _, name = text.strip().partition(" ")
            if number != str(len(numbers) + 1) or not name:
                raise ValueError(f"{classes}: line {line} is {text!r}, must be `{len(numbers) + 1} Name`")
            numbers[name] = len(numbers)
    records = []
    for line, text in enumerate(_text(listed).splitlines(), 1):
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
    records = []
    for line, row in _csv_rows(path):
        if set(row) != set(WEBVID_COLUMNS):
            raise ValueError(f"{path}: columns are {', '.join(row)}, must be {', '.join(WEBVID_COLUMNS)}")
        inside = PurePosixPath(row["page_dir"]) / f"{row['videoid']}.mp4"
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{path}: line {line}: {inside} does not lie below the video root")
        records.append(ClipRecord(video_root / inside, " ".join(row["name"].split())))
    return _present(records, [])


def _present(records: list[ClipRecord], class_names: list[str]) -> Manifest:
    records = sorted(records, key=lambda record: [natural_key(part) for part in record.path.parts])
    there = [record for record in records if record.path.is_file()]
    return Manifest(there, class_names, [record.path for record in records if not record.path.is_file()])
