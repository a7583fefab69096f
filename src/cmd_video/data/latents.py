"""Precomputed content frames and motion latents, so that the diffusion stages do not run the autoencoder.

    write_latents("latents/", batches, recipe);  dataset = LatentsDataset("latents/")

A folder holds `index.json` and shards; see `latent_shards`. Content frames are in the scale that the content model
sees, motion latents normalised; both float16 on disk. Several processes write a folder together: each claims it and
writes shards of its own, the last one finishes it. Reading holds no more of a folder than what its shards are called;
64 of them are open at a time.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from .files import write_whole
from .latent_shards import AGAIN, FURTHER, OpenShard, Shard, captions_digest, read_shard, shard_path, write_shard
from .order import WINDOW, BlockOrder

OPEN_SHARDS = WINDOW  # a pass reads clips of so many shards in turn
MARK = ".empty"  # suffix in the place of a shard of which no clip could be read


def write_latents(
    folder: str | Path,
    batches: Iterable[dict[str, Any]],
    recipe: dict[str, Any],
    class_names: Sequence[str] | None = None,
) -> int:
    """Write shards, one per batch, then the index.

    Args:
        folder: where to write.
        batches: dicts with `content_frame`, `motion_latents`, `prompt`, `class_label`, and `end_frames` in all of them
            or in none, drawn one at a time; an empty one where the shard is there already and whole (`is_whole`), so
            that a second run goes on. One without a prompt, where no clip could be read, makes no shard.
        recipe: what made them, JSON-able.
        class_names: name of each class label; empty where labels are numbers, None where that is not known.

    Returns:
        Number of clips.

    Raises:
        ValueError: the folder holds latents of another recipe, or there is no clip.
    """
    folder = Path(folder)
    claim_latents(folder, recipe)
    number = -1
    for number, batch in enumerate(batches):
        if batch:
            write_batch(folder, number, batch)
    return finish_latents(folder, number + 1, recipe, class_names)


def claim_latents(folder: Path, recipe: dict[str, Any]) -> None:
    """Make a folder for latents, or go on in one of the same recipe.

    Raises:
        ValueError: it holds latents of another recipe; the message names what is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = folder / "recipe.json"
    begun = any(folder.glob("shard-*"))  # asked first: who writes beside us writes the recipe before a shard
    known: Any = None
    if stated.is_file():
        try:
            known = json.loads(stated.read_text())
        except ValueError as error:
            raise ValueError(f"{stated}: not JSON ({error}); remove {folder} to encode anew") from error
    if known == json.loads(json.dumps(recipe)):
        return
    if known is not None or begun:
        found = known if isinstance(known, dict) else {}
        other = [name for name in recipe if found.get(name) != json.loads(json.dumps(recipe[name]))]
        if other == ["files"] and "files" in found:
            raise ValueError(
                f"{folder}: holds latents of these clips as they were; files, captions or classes have changed since. "
                "Remove the folder to encode anew, or choose a new one"
            )
        raise ValueError(
            f"{folder}: holds latents of another recipe ({', '.join(other) or 'it says more'}); choose a new folder"
        )
    write_whole(stated, json.dumps(recipe, indent=1))


def write_batch(folder: Path, number: int, batch: dict[str, Any]) -> None:
    """Write a shard of a batch, as of `write_latents`; of one without a prompt a mark that there is none."""
    path = shard_path(folder, number)
    mark = path.with_suffix(MARK)
    if not batch["prompt"]:
        path.unlink(missing_ok=True)
        write_whole(mark, "")
        return
    names = ("content_frame", "motion_latents", *(name for name in FURTHER if name in batch))
    tensors = {name: batch[name].half().contiguous().cpu() for name in names}
    write_shard(path, Shard({**tensors, "class_label": batch["class_label"].long().cpu()}, list(batch["prompt"])))
    mark.unlink(missing_ok=True)


def finish_latents(folder: Path, shards: int, recipe: dict[str, Any], class_names: Sequence[str] | None = None) -> int:
    """Write the index of a folder all of whose shards are there.

    Args:
        folder: one that was claimed.
        shards: how many there must be, those of which no clip could be read counted.
        recipe: what made them.
        class_names: as of `write_latents`.

    Returns:
        Number of clips.

    Raises:
        ValueError: shards are missing, and the message names them, or one is damaged, or there is no clip.
    """
    paths = [shard_path(folder, number) for number in range(shards)]
    empty = {number for number, path in enumerate(paths) if path.with_suffix(MARK).exists() and not path.is_file()}
    full = [path for number, path in enumerate(paths) if number not in empty]
    missing = [path.name for path in full if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise ValueError(f"{folder}: {', '.join(missing[:8])}{more} of {shards} shards: missing, encode them first")
    if not full:
        raise ValueError(f"{folder}: no clip to write")
    entries = [_entry(path) for path in full]
    clips = sum(entry["clips"] for entry in entries)
    index = {"recipe": recipe, "clips": clips, "class_names": class_names, "shards": entries}
    if empty:
        index["without_clips"] = sorted(empty)
    write_whole(folder / "index.json", json.dumps(_as_before(folder, index), indent=1))
    return clips


def _entry(path: Path) -> dict[str, Any]:
    """What the index says of a shard."""
    shard = read_shard(path)
    captions = captions_digest(shard.prompts, shard.tensors["class_label"].tolist())
    size = path.stat().st_size
    return {"file": path.name, "clips": len(shard.prompts), "bytes": size, "captions_sha256": captions}


def _as_before(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The index in the form that it had, if an earlier version wrote it and nothing else has changed: runs know the
    clips by it.
    """
    try:
        before: Any = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError, RecursionError):
        return index
    old = {**index, "shards": [{"file": entry["file"], "clips": entry["clips"]} for entry in index["shards"]]}
    return old if json.loads(json.dumps(old)) == before else index


class _Entry(NamedTuple):
    """What an index says of a shard; None where an earlier version wrote it, which did not say that."""

    file: str
    clips: int
    bytes: int | None
    captions_sha256: str | None


class _Index(NamedTuple):
    """A folder's index; see `LatentsDataset`."""

    recipe: dict[str, Any]
    class_names: list[str] | None
    shards: list[_Entry]


def _read_index(folder: Path) -> _Index:
    """The index of a folder of latents: each shard once, in order, and as many clips as they hold together. Each is
    there, and as large as when it was written.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no index.json; `cmd-video data encode` writes it")
    again = "`cmd-video data encode` again writes it"
    try:
        index = json.loads(path.read_text())
        shards = [_entry_of(entry) for entry in index["shards"]]
        total, empty = int(index["clips"]), {int(number) for number in index.get("without_clips", [])}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not an index of latents ({type(error).__name__}: {error}); {again}") from error
    if not shards:
        raise ValueError(f"{path}: no shards; {again}")
    numbers = (number for number in count() if number not in empty)
    for place, (number, entry) in enumerate(zip(numbers, shards)):
        expected = shard_path(folder, number).name
        if entry.file != expected:
            raise ValueError(f"{path}: {entry.file!r} at place {place}, must be {expected!r}; {again}")
    if sum(entry.clips for entry in shards) != total:
        raise ValueError(f"{path}: {total} clips, its shards have {sum(entry.clips for entry in shards)}; {again}")
    for entry in shards:
        _check_size(folder / entry.file, entry.bytes)
    return _Index(index.get("recipe") or {}, index.get("class_names"), shards)


def _entry_of(entry: dict[str, Any]) -> _Entry:
    size, captions = entry.get("bytes"), entry.get("captions_sha256")
    return _Entry(
        str(entry["file"]),
        int(entry["clips"]),
        None if size is None else int(size),
        None if captions is None else str(captions),
    )


def _check_size(path: Path, size: int | None) -> None:
    """Raise a ValueError unless a shard is there, and as large as the index says."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: no such file; `cmd-video data encode` again writes it") from error
    if size not in (None, found):
        raise ValueError(f"{path}: damaged ({found} bytes, index.json says {size}); {AGAIN}")


class LatentsDataset(Dataset):
    """Items: `content_frame` (C, H, W), `motion_latents` (D, F, H' + W'), where they were encoded `end_frames`
    (2, C, H, W), float32; `prompt`, `class_label`.

    Item n for n >= len: the clips again, in a new order for each pass; see `order.BlockOrder`, whose blocks are the
    shards. A shard is compared with its digest once, when a process of the run first reads a clip of it.

    Args:
        path: folder written by `write_latents`.
        seed: orders the passes.

    Attributes:
        path: the folder.
        recipe: what made the latents.
        class_names: name of each class label; empty where labels are numbers, None in folders older than names.
        shapes: of one clip, by name of the tensor.

    Raises:
        ValueError: the folder has no finished index, or its shards are not those of the index, or the first is
            damaged. When an item is read: its shard is.
    """

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        self.path, self.seed = Path(path), seed
        index = _read_index(self.path)
        self.recipe, self.class_names, self._shards = index.recipe, index.class_names, index.shards
        self._order = BlockOrder([shard.clips for shard in self._shards], key=[seed])
        self._verified = torch.zeros(len(self._shards), dtype=torch.bool).share_memory_()  # by any loading process
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._verify(0)
        self.shapes = self._shard(0).shapes

    @property
    def prompts(self) -> Sequence[str]:
        """The caption of every clip, in the order of the shards; read when one is asked for."""
        return _Column(self, "prompts")

    @property
    def class_labels(self) -> Sequence[int]:
        """The class of every clip, as `prompts`."""
        return _Column(self, "labels")

    def described(self) -> list[Any]:
        """Which clips these are: what made them, and their captions and classes, or digests of those for each shard.

        Raises:
            ValueError: a shard of a folder of an earlier version is damaged.
        """
        digests = [shard.captions_sha256 for shard in self._shards]
        if None in digests:
            return [self.recipe, list(self.prompts), list(self.class_labels)]
        return [self.recipe, digests]

    def prompt(self, index: int) -> str:
        """The caption of item `index`."""
        shard, number = self._place(index)
        return self._shard(shard).prompts[number]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str | int]:
        place, number = self._place(index)
        self._verify(place)
        shard = self._shard(place)
        return {
            "content_frame": shard.read("content_frame", number).float(),
            "motion_latents": shard.read("motion_latents", number).float(),
            **{name: shard.read(name, number).float() for name in FURTHER if name in self.shapes},
            "prompt": shard.prompts[number],
            "class_label": shard.labels[number],
        }

    def column(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """Prompts or labels of clips, in the order of the shards."""
        place, first = self._order.block_of(start)
        while start < stop:
            values = getattr(self._shard(place), name)[first : first + stop - start]
            yield from values
            start, place, first = start + len(values), place + 1, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a process that does not fork opens its own

    def _place(self, index: int) -> tuple[int, int]:
        """(shard, place in it) of an item."""
        return self._order.block_of(self._order(*divmod(index, len(self))))

    def _verify(self, place: int) -> None:
        """Look once whether a shard is what was written."""
        if not self._verified[place]:
            read_shard(self.path / self._shards[place].file)
            self._verified[place] = True

    def _shard(self, place: int) -> OpenShard:
        """An open shard; the one that was used longest ago is closed."""
        if place in self._open:
            self._open.move_to_end(place)
            return self._open[place]
        known = self._shards[place]
        if known.captions_sha256 is None:  # then the whole says whether its captions are those that were written
            self._verify(place)
        shard = OpenShard(self.path / known.file)
        if len(shard.prompts) != known.clips:
            raise ValueError(f"{shard.path}: holds {len(shard.prompts)} clips, index.json says {known.clips}")
        for name, shape in self.shapes.items():
            if shard.shapes.get(name) != shape:
                raise ValueError(f"{shard.path}: {name} of shape {shard.shapes.get(name)}, {shape} in the first shard")
        if known.captions_sha256 not in (None, captions_digest(shard.prompts, shard.labels)):
            raise ValueError(f"{shard.path}: captions or classes are not those of index.json; {AGAIN}")
        while len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[place] = shard
        return shard


class _Column(Sequence[Any]):
    """Prompts or labels of all clips, read when one is asked for: a sequence that is not held."""

    def __init__(self, dataset: LatentsDataset, name: str) -> None:
        self._dataset, self._name = dataset, name

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return self._dataset.column(self._name, 0, len(self))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(self._dataset.column(self._name, start, stop))
            return [self[place] for place in range(start, stop, step)]
        place = range(len(self))[index]
        return next(self._dataset.column(self._name, place, place + 1))
