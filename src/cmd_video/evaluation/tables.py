"""Tables of features, computed in chunks that outlive an interruption and can be shared between processes.

    table = extract(clips, extractor, work=Path("features.parts"))
    table.save(Path("reference"))                         # reference.safetensors and reference.json
    table = FeatureTable.load(Path("reference"))

N features of d numbers, F frames.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmd_video.data.clip import ClipError

from .clips import ClipSource
from .extractors import Extractor
from .flow import dynamic_degree, optical_flow

CHUNK = 64  # clips


@dataclass(frozen=True)
class FeatureTable:
    """Features with the protocol that made them.

    Attributes:
        features: float32 (N, d), in the order of the clips.
        dynamic: float32 (clips,), the dynamic degree of each; none for single frames.
        protocol: source, extractor and digests, JSON-able.
    """

    features: torch.Tensor
    dynamic: torch.Tensor
    protocol: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write `path`.safetensors and `path`.json, each by rename, the JSON last."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        save_file({"features": self.features.contiguous(), "dynamic": self.dynamic.contiguous()}, temporary)
        os.replace(temporary, path.with_name(f"{path.name}.safetensors"))
        temporary.write_text(json.dumps(self.protocol, indent=1))
        os.replace(temporary, path.with_name(f"{path.name}.json"))

    @classmethod
    def load(cls, path: Path) -> "FeatureTable":
        """The inverse of `save`.

        Raises:
            ValueError: there is no such table, or it is damaged.
        """
        base = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
        try:
            protocol = json.loads(base.with_name(f"{base.name}.json").read_text())
            tensors = load_file(base.with_name(f"{base.name}.safetensors"))
            features, dynamic = tensors["features"], tensors["dynamic"]
            if not isinstance(protocol, dict) or len(features) != protocol["features"]:
                raise ValueError("the number of features differs from the protocol's")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{base}: no table of features: {error}") from error
        return cls(features, dynamic, protocol)


def extract(
    clips: ClipSource,
    extractor: Extractor,
    work: Path,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Features of all clips that can be read.

    Started again with the same folder it goes on where it stopped. Several processes, as `accelerate launch` starts
    them, share the chunks; each returns the whole table, which does not depend on their number.

    Args:
        clips: what to read.
        extractor: what to compute.
        work: folder for finished chunks; removed at the end.
        batch_size: clips at a time.
        progress: called with (clips done by this process or found, all clips).

    Raises:
        ValueError: no clip can be read, or they do not suit the extractor, or the folder belongs to something else.
    """
    recipe = {"clips": clips.recipe, "count": len(clips), "extractor": extractor.name, "sha256": extractor.sha256}
    state = PartialState(cpu=not torch.cuda.is_available())  # by itself it would not see several CPU processes
    if state.is_main_process:
        _claim(work, recipe)
    state.wait_for_everyone()
    starts = range(0, len(clips), CHUNK)
    for number, start in enumerate(starts):
        path = work / f"chunk-{number:06d}.safetensors"
        if number % state.num_processes == state.process_index and not path.is_file():
            _chunk(clips, range(start, min(start + CHUNK, len(clips))), extractor, batch_size, path)
        if progress is not None:
            progress(min(start + CHUNK, len(clips)), len(clips))
    state.wait_for_everyone()
    table = _collect(work, len(starts), clips, extractor)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    return table


def _claim(work: Path, recipe: dict[str, Any]) -> None:
    path = work / "recipe.json"
    if path.is_file():
        if json.loads(path.read_text()) != json.loads(json.dumps(recipe)):
            raise ValueError(f"{work}: holds an interrupted evaluation of something else; remove it")
        return
    if work.exists() and any(work.iterdir()):
        raise ValueError(f"{work}: exists and holds no interrupted evaluation")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))


def _chunk(clips: ClipSource, numbers: range, extractor: Extractor, batch_size: int, path: Path) -> None:
    features, dynamic, problems, digest = [], [], {}, hashlib.sha256()
    for start in range(numbers.start, numbers.stop, batch_size):
        batch = range(start, min(start + batch_size, numbers.stop))
        readable = []
        for number, clip in zip(batch, clips.read(batch), strict=True):
            if isinstance(clip, ClipError):
                problems[number] = str(clip)
            else:
                readable.append(clip)
                if len(clip) > 1:
                    dynamic.append(dynamic_degree(optical_flow(clip)))
                digest.update(f"{tuple(clip.shape)}".encode())
                digest.update(clip.contiguous().numpy().tobytes())
        shapes = {tuple(clip.shape) for clip in readable}
        groups = [[clip for clip in readable if tuple(clip.shape) == shape] for shape in sorted(shapes)]
        if len(groups) > 1:  # of several sizes, in their own order: one at a time
            groups = [[clip] for clip in readable]
        features += [extractor(torch.stack(group)) for group in groups]
    tensors = {"features": torch.cat(features), "dynamic": torch.tensor(dynamic)} if features else {}
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    save_file(tensors, temporary, {"problems": json.dumps(problems), "sha256": digest.hexdigest()})
    os.replace(temporary, path)


def _collect(work: Path, count: int, clips: ClipSource, extractor: Extractor) -> FeatureTable:
    from safetensors import safe_open

    parts: dict[str, list[torch.Tensor]] = {"features": [], "dynamic": []}
    problems, digest = [], hashlib.sha256()
    for number in range(count):
        with safe_open(work / f"chunk-{number:06d}.safetensors", "pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118  # no mapping
                parts[name].append(file.get_tensor(name))
        problems += list(json.loads(metadata["problems"]).values())
        digest.update(bytes.fromhex(metadata["sha256"]))
    if not parts["features"]:
        raise ValueError(f"clips: none of {len(clips)} can be read; the first: {problems[0] if problems else 'none'}")
    features, dynamic = (torch.cat(part) for part in parts.values())
    protocol = {
        "clips": len(clips) - len(problems),
        "unreadable": problems,
        **{key: value for key, value in clips.recipe.items() if key != "source"},
        "source": clips.recipe.get("source"),
        "pixels_sha256": digest.hexdigest(),
        "extractor": extractor.name,
        "per": extractor.per,
        "extractor_resize": extractor.resize,
        "extractor_sha256": extractor.sha256,
        "features": len(features),
        "numbers": features.shape[1],
    }
    return FeatureTable(features, dynamic, protocol)
