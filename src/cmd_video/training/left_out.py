"""What of a run's data is not used is written down: clips that were left out or cannot be read, ends of captions.

remark(log, stage, {"data": dataset});  log_failures(run_folder, {"data": dataset})
...
tell_failures(log, step, {"data": dataset})                               # at the end: how many there were
"""

import logging
from pathlib import Path

from .captions import caption_remarks
from .data import ClipDataset
from .logs import RunLog
from .stage import Stage

logger = logging.getLogger(__name__)
FAILURES = "failures.jsonl"


def remark(log: RunLog, stage: Stage, datasets: dict[str, ClipDataset]) -> None:
    """Write into the log what is not used, as far as it is known before the first step."""
    for place, dataset in datasets.items():
        for line in getattr(dataset, "remarks", ()):
            log.remark(0, f"{place}: {line}")
        for line in caption_remarks(stage.components, dataset, place):
            logger.warning(line)
            log.remark(0, line)


def log_failures(run: Path, datasets: dict[str, ClipDataset]) -> None:
    """Let the sets that read files write those they cannot read into the run's folder."""
    for dataset in datasets.values():
        if hasattr(dataset, "failure_log"):
            dataset.failure_log = run / FAILURES


def tell_failures(log: RunLog, step: int, datasets: dict[str, ClipDataset]) -> None:
    """Say, and write into the log, how many clips could not be read since the run was started, if any."""
    for place, dataset in datasets.items():
        if failures := getattr(dataset, "failures", None):
            line = f"{place}: {len(failures)} of {len(dataset)} clips could not be read ({FAILURES})"
            logger.warning(line)
            log.remark(step, line)
