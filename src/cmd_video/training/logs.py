"""What a run tells while it goes: a line per report in `log.jsonl`, sample grids, a progress bar with ETA, and event
files where tensorboard is installed.

log = RunLog(run_folder, first_step=0, total_steps=1000);  log.step(1, loss=0.5);  log.write(1)
"""

import json
import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cmd_video.data.files import whole_file, write_whole

logger = logging.getLogger(__name__)


class RunLog:
    """Log of a run.

    Args:
        run: the run's folder.
        first_step: steps done before; lines of later ones (from before a kill) are dropped, since they come again.
        total_steps: for the progress bar.
        enabled: False on all processes but the first.
    """

    def __init__(self, run: Path, first_step: int, total_steps: int, enabled: bool = True) -> None:
        self.run, self.enabled = run, enabled
        self.pending: list[dict[str, float]] = []
        self.started = time.monotonic()
        if not enabled:
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.path = run / "log.jsonl"
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= first_step]
            write_whole(self.path, "".join(f"{line}\n" for line in kept))
        self.board = _open_board(run / "tensorboard", first_step)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns)
        self.progress.start()
        self.task = self.progress.add_task("training", total=total_steps, completed=first_step)

    def step(self, step: int, **values: float) -> None:
        """Note the values of one optimizer step."""
        self.pending.append(values)
        if self.enabled:
            self.progress.update(self.task, completed=step, description=f"loss {values['loss']:.4f}")

    def write(self, step: int) -> None:
        """Write the mean of the values noted since the last call."""
        means = {}
        for key in dict.fromkeys(key for values in self.pending for key in values):
            found = [values[key] for values in self.pending if key in values]  # some come only at some steps
            means[key] = sum(found) / len(found)
        self.pending.clear()
        self._line(step, means, "train")

    def remark(self, step: int, text: str) -> None:
        """Write a line about the run, such as what of its data is not used."""
        if self.enabled:
            seconds = round(time.monotonic() - self.started, 2)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "kind": "remark", "text": text, "seconds": seconds}) + "\n")

    def validation(self, step: int, metrics: dict[str, float], grid: torch.Tensor | None) -> None:
        """Write validation metrics and save the sample grid (3, height, width) in [-1, 1] as `samples/step-N.png`."""
        self._line(step, metrics, "validation")
        if grid is None or not self.enabled:
            return
        from PIL import Image

        pixels = ((grid + 1) * 127.5).round().byte()
        if self.board is not None:
            self.board.add_image("samples", pixels, step)
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        with whole_file(folder / f"step-{step:08d}.png") as temporary:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(temporary)

    def changed(self, step: int, changes: list[str]) -> None:
        """Say and note what is not as it was when the run was here last."""
        if not self.enabled or not changes:
            return
        for change in changes:
            logger.warning("%s goes on from step %d with another %s", self.run, step, change)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": "changed", "changes": changes, "seconds": 0.0}) + "\n")

    def close(self) -> None:
        """Finish the progress bar and the event file."""
        if self.enabled:
            self.progress.stop()
            if self.board is not None:
                self.board.close()

    def _line(self, step: int, values: dict[str, float], kind: str) -> None:
        if not self.enabled:
            return
        record: dict[str, Any] = {
            "step": step,
            "kind": kind,
            **values,
            "seconds": round(time.monotonic() - self.started, 2),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(f"{kind}/{key}", value, step)


def _open_board(folder: Path, first_step: int) -> Any | None:
    """Event files for tensorboard, where it is installed (extra `log`); `log.jsonl` has the same."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step + 1)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # a line that a kill cut short
