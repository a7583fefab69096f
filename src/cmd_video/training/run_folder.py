"""A run's folder: one process works in it at a time, and the run that it belongs to goes on only as the same run.

    with locked(run):
        changes = compare(run, config, found)       # ValueError: what decides what is learned is another
        record(run, config, changes, first_step)

`config.json` is the configuration that holds now. What held up to a step where it was changed stays as
`config-00001000.json`.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cmd_video.data.files import write_whole
from cmd_video.data.lock import lock_folder

from .config import TrainConfig

logger = logging.getLogger(__name__)

FIXED = ("stage", "seed", "components", "edit", "data", "objective")  # what is learned, and from what
MOVABLE = ("data.path", "data.video_root")  # where clips lie; that they are the same ones their digest says
HARMLESS = ("data.max_bad_fraction", "data.render")  # not what a clip is
ABSENT = "not given"


class Change(NamedTuple):
    """A field that is not as it was when the run was here last."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.before)} -> {_short(self.now)}"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes, on this machine or one that shares the disk, out of a run's folder.

    A folder that was made for it goes again if nothing is written into it.

    Raises:
        ValueError: another process is in it.
    """
    missing = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(run)
    except ValueError as error:
        raise ValueError(f"output_dir: {error}; wait for its end, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()


def compare(
    run: Path, config: TrainConfig, first_step: int, state: dict[str, Any], digests: dict[str, str]
) -> list[Change]:
    """What is not as it was in the run that the folder belongs to, of what may change.

    Args:
        run: the folder.
        config: the run as it is to go on.
        first_step: steps that are done.
        state: of the checkpoint it goes on from; empty for none.
        digests: of frozen components, by name, and of the clips, as "data".

    Raises:
        ValueError: it is another run: something that decides what is learned is not the same, or fewer steps are
            asked for than are done.
    """
    if not state:  # nothing was learned here
        return []
    if config.loop.steps < first_step:
        raise ValueError(f"loop.steps: {config.loop.steps}, but {run} has done {first_step}; allowed: that or more")
    changes = _differences(run, config)
    known = state.get("digests", {})
    other_clips = known.get("data", digests.get("data")) != digests.get("data")
    moved = [change for change in changes if change.field in MOVABLE and "data" in known and not other_clips]
    allowed = {*HARMLESS, *(change.field for change in moved)}
    refused = [change for change in changes if change.field.partition(".")[0] in FIXED and change.field not in allowed]
    if refused:
        said = " and ".join(f"{field} ({_short(old)}, now {_short(new)})" for field, old, new in refused[:3])
        raise ValueError(f"output_dir: {run} belongs to a run with another {said}; choose a new folder")
    for name, digest in digests.items():
        if name != "data" and known.get(name, digest) != digest:
            raise ValueError(
                f"components.{name}: not the one that the run in {run} was trained with up to step {first_step}, "
                "though it is named alike; bring that one back, or choose a new output_dir"
            )
    if other_clips:
        changes.append(Change("data", "the clips and captions of before", "others at the same place"))
    return changes


def samples_drawn(run: Path, config: TrainConfig, first_step: int, state: dict[str, Any]) -> int:
    """How many samples the steps that are done have used; an older checkpoint does not say, but all of them were of
    the batch size that the folder's configuration has.
    """
    if "samples" in state or not first_step:
        return int(state.get("samples", 0))
    path = run / "config.json"
    loop = json.loads(path.read_text()).get("loop", {}) if path.is_file() else {}
    return first_step * int(loop.get("batch_size", config.loop.batch_size))


def record(run: Path, config: TrainConfig, changes: list[Change], first_step: int) -> None:
    """Write the configuration into the run's folder; the one that held up to now is kept under the step's name."""
    path, before = run / "config.json", run / f"config-{first_step:08d}.json"
    if changes and path.is_file() and not before.exists():
        write_whole(before, path.read_text())
    write_whole(path, json.dumps(config.model_dump(mode="json", by_alias=True), indent=1))


def _differences(run: Path, config: TrainConfig) -> list[Change]:
    """Fields of the configuration that are not as in the folder; `output_dir` is what it was called then."""
    path = run / "config.json"
    if not path.is_file():
        return []
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); bring a copy back, or choose a new output_dir") from error
    now = config.model_dump(mode="json", by_alias=True)
    try:  # fields that are newer than the run have their defaults
        before = TrainConfig.model_validate(before).model_dump(mode="json", by_alias=True)
        missing = ABSENT
    except ValidationError:  # written by a version that knew other fields: those that both know are compared
        missing = None
    old, new = _flat(before), _flat(now)
    names = [name for name in {**new, **old} if missing or (name in old and name in new)]
    found = [Change(name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in names if name != "output_dir"]
    return [change for change in found if change.before != change.now]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _short(value: Any) -> str:
    text = value if value == ABSENT else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
