"""Tables of features, computed in chunks that outlive an interruption and can be shared between processes.

    extract_share(clips, extractor, Path("features.parts"), Share(1, 8))  # of many processes each its share
    table = extract(clips, extractor, work=Path("features.parts"))        # what is missing, and the whole
    table.save(Path("reference"))                         # reference.safetensors and reference.json
    discard(Path("features.parts"))                       # only now: until the result is written, nothing is lost
    table = FeatureTable.load(Path("reference"))

N features of d numbers, F frames.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cmd_video.data.clip import ClipError
from cmd_video.data.files import read_json, sha256, whole_file, write_json
from cmd_video.data.shares import Share
from cmd_video.evaluation.networks.extractors import Extractor
from cmd_video.evaluation.networks.flow import dynamic_degree, optical_flow
from cmd_video.evaluation.protocol.clips import (
    ClipSource,
    MadeClips,
    NothingReadable,
    as_problem,
    storage_facts,
    stored_as,
)
from cmd_video.evaluation.protocol.finite import check_finite
from cmd_video.evaluation.protocol.results import provenance, shown_places
from cmd_video.evaluation.protocol.shared_work import (
    NotOurs,
    claim,
    claim_share,
    deal_out,
    discard,
    discard_empty,
)
from cmd_video.models.safetensors_header import check_header

CHUNK = 64  # clips, of files; of clips that are made first, one batch
FORMAT = 2  # of a chunk


@dataclass(frozen=True)
class FeatureTable:
    """Features with the protocol that made them.

    Attributes:
        features: float32 (N, d), in the order of the clips.
        dynamic: float32 (clips,), the dynamic degree of each; none for single frames.
        protocol: source, extractor and digests, JSON-able.
        made_by: of a table that was loaded, the command, versions and hardware that made it.

    Raises:
        ValueError: a number is NaN or infinite.
    """

    features: torch.Tensor
    dynamic: torch.Tensor
    protocol: dict[str, Any]
    made_by: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for values in (self.features, self.dynamic):
            check_finite("features: the table", values)

    def save(self, path: Path, device: str | None = None) -> None:
        """Write `path`.safetensors and `path`.json, each by rename; the JSON, last, holds the other's digest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = path.with_name(f"{path.name}.safetensors")
        with whole_file(weights) as temporary:
            save_file({"features": self.features.contiguous(), "dynamic": self.dynamic.contiguous()}, temporary)
        record = {"made_by": provenance(device), "protocol": shown_places(self.protocol), "sha256": sha256(weights)}
        write_json(path.with_name(f"{path.name}.json"), record)

    @classmethod
    def load(cls, path: Path) -> "FeatureTable":
        """The inverse of `save`.

        Raises:
            ValueError: there is no such table, or it is damaged.
        """
        base = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
        weights = base.with_name(f"{base.name}.safetensors")
        try:
            record = read_json(base.with_name(f"{base.name}.json"), dict)
            if sha256(weights) != record["sha256"]:
                raise ValueError(f"{weights.name} is not the file that its JSON describes")
            check_header(weights)
            tensors = load_file(weights)
            found = cls(tensors["features"], tensors["dynamic"], dict(record["protocol"]), record.get("made_by", {}))
            clips = int(found.protocol["clips"])
            if clips < 1 or len(found.features) % clips:
                raise ValueError(f"{len(found.features)} features of {clips} clips")
            return found
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{base}: no table of features: {error}") from error


def extract(
    clips: ClipSource,
    extractor: Extractor,
    work: Path,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Features of all clips that can be read.

    Started again with the same folder and the same clips it goes on where it stopped. Several processes share the
    chunks; each returns the whole table, which does not depend on them.

    Args:
        clips: what to read.
        extractor: what to compute.
        work: folder for finished chunks; stays until `discard`.
        batch_size: clips at a time.
        progress: called with (clips done, all clips) as far as this process knows.

    Raises:
        ValueError: no clip can be read, or they do not suit the extractor, or the folder belongs to something else.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    chunks = _chunks(clips, batch_size)
    if state.is_main_process:
        claim(work, _recipe(clips, extractor, batch_size))
    state.wait_for_everyone()
    missing = [number for number in range(len(chunks)) if not _is_whole(_path(work, number))]
    mine = deal_out(missing, state)
    done = len(clips) - sum(len(chunks[number]) for number in missing)
    try:
        for number in mine:
            _chunk(clips, chunks[number], extractor, batch_size, _path(work, number))
            done += len(chunks[number]) * state.num_processes
            if progress is not None:
                progress(min(done, len(clips)), len(clips))
    except BaseException:
        if state.num_processes == 1 and not any(work.glob("chunk-*")):
            discard(work)  # nothing is lost, and a corrected command is not kept out
        raise
    state.wait_for_everyone()
    table = _collect(work, len(chunks), clips, extractor)
    state.wait_for_everyone()
    return table


def extract_share(
    clips: ClipSource,
    extractor: Extractor,
    work: Path,
    share: Share,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Make the features of a share of the clips that are not there; `extract` makes the table, once all are.

    Args:
        clips: what to read, as of the next three for `extract`.
        extractor: what to compute.
        work: folder for finished chunks.
        share: of the chunks, of 64 clips each; where clips are made first, of a batch.
        batch_size: clips at a time.
        progress: called with (clips done, all clips of the share).

    Returns:
        how many chunks are there, to be shown.

    Raises:
        ValueError: the folder belongs to something else, or another process is at the same share.
    """
    chunks = _chunks(clips, batch_size)
    mine = range(share.first, len(chunks), share.step)
    total, done = sum(len(chunks[number]) for number in mine), 0
    try:
        with claim_share(work, _recipe(clips, extractor, batch_size), share):
            for number in mine:
                if not _is_whole(_path(work, number)):
                    _chunk(clips, chunks[number], extractor, batch_size, _path(work, number))
                done += len(chunks[number])
                if progress is not None:
                    progress(done, total)
    except NotOurs:
        raise
    except BaseException:
        discard_empty(work, "chunk-*")
        raise
    there = sum(_is_whole(_path(work, number)) for number in range(len(chunks)))
    return f"{work}: share {share} is done, {there} of {len(chunks)} chunks are there"


def _chunks(clips: ClipSource, batch_size: int) -> list[range]:
    """Numbers of the clips of each file of features."""
    size = batch_size if isinstance(clips.underneath, MadeClips) else CHUNK
    return [range(first, min(first + size, len(clips))) for first in range(0, len(clips), size)]


def _recipe(clips: ClipSource, extractor: Extractor, batch_size: int) -> dict[str, Any]:
    """What the features in a folder of work are of."""
    return {
        "clips": clips.recipe,
        "identity": clips.identity,
        "count": len(clips),
        "extractor": [extractor.name, extractor.sha256],
        "chunk": [FORMAT, batch_size if isinstance(clips.underneath, MadeClips) else CHUNK],
    }


def _path(work: Path, number: int) -> Path:
    return work / f"chunk-{number:06d}.safetensors"


def _is_whole(path: Path) -> bool:
    """Whether a chunk is there and undamaged."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt"):
            return True
    except SafetensorError:  # damaged: made anew
        return False


def _chunk(clips: ClipSource, numbers: range, extractor: Extractor, batch_size: int, path: Path) -> None:
    """Features, dynamic degrees and digests of some clips, as one file."""
    features, dynamic, problems, digests, stored = [], [], [], [], []
    for start in range(numbers.start, numbers.stop, batch_size):
        readable: list[torch.Tensor] = []
        batch = range(start, min(start + batch_size, numbers.stop))
        for clip_number, clip in zip(batch, clips.read(batch), strict=True):
            if isinstance(clip, ClipError):
                problems.append(as_problem(clip)["problem"])
                continue
            readable.append(clip)
            digests.append(digest_of(clip))
            stored.append(stored_as(clips, clip_number, clip))
            if len(clip) > 1:
                dynamic.append(dynamic_degree(optical_flow(clip)))
        together = len({clip.shape for clip in readable}) == 1
        groups = [readable] if together else [[clip] for clip in readable]
        features += [extractor(torch.stack(group)) for group in groups]
    tensors = {"features": torch.cat(features), "dynamic": torch.tensor(dynamic)} if features else {}
    facts = {"problems": problems, "digests": digests, "stored": stored}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in facts.items()})


def digest_of(clip: torch.Tensor) -> str:
    """sha256 of a clip's shape and pixels, uint8 (F, H, W, 3)."""
    digest = hashlib.sha256(f"{tuple(clip.shape)}".encode())
    digest.update(clip.contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_all(digests: list[str]) -> str:
    """sha256 over the digests of clips, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _collect(work: Path, count: int, clips: ClipSource, extractor: Extractor) -> FeatureTable:
    parts: dict[str, list[torch.Tensor]] = {"features": [], "dynamic": []}
    facts: dict[str, list[Any]] = {"problems": [], "digests": [], "stored": []}
    for number in range(count):
        with safe_open(_path(work, number), "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                parts[name].append(file.get_tensor(name))
            for name, values in facts.items():
                values += json.loads(file.metadata()[name])
    if not parts["features"]:
        state = PartialState(cpu=not torch.cuda.is_available())
        state.wait_for_everyone()  # all have looked
        if state.is_main_process:
            discard(work)
        raise NothingReadable(f"clips: none of {len(clips)} can be read; the first: {facts['problems'][0]}")
    features, dynamic = (torch.cat(part) for part in parts.values())
    protocol = {
        **clips.recipe,
        "clips": len(facts["digests"]),
        "unreadable": facts["problems"],
        **storage_facts(facts["stored"]),
        "pixels_sha256": digest_all(facts["digests"]),
        "extractor": extractor.name,
        "per": extractor.per,
        "extractor_resize": extractor.resize,
        "extractor_sha256": extractor.sha256,
        "features": len(features),
        "numbers": features.shape[1],
    }
    return FeatureTable(features, dynamic, protocol)
