"""When a run is to leave before its last step: a signal, or its minutes are over.

stop = StopRequest(minutes=10)
...
stop.agree(accelerator)                                        # after a step: all processes leave after the same one
"""

import math
import signal
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # USR1: a scheduler's warning; HUP: the terminal was closed


class StopRequest:
    """Remembers a signal, so that the loop can save and leave after the current step; and when time is up.

    Args:
        minutes: how long the loop may run; None = no limit.

    Attributes:
        requested: the signal's number, 0 for none, as of the last `agree`: one that comes after it, such as during a
            save, counts for the step that follows, in all processes alike.
        late: whether time is up, as of the last `agree`.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.requested, self._heard = 0, 0
        self.late = False
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.previous: dict[int, Any] = {}
        for name in SIGNALS:
            number = getattr(signal, name, None)  # not every system has all of them
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):  # under nohup
                continue
            try:
                self.previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not in the main thread: the caller handles signals
                return

    def agree(self, accelerator: Accelerator) -> None:
        """Let all processes leave after the same step, whichever got the signal or ran out of time first."""
        self.requested, self.late = self._heard, time.monotonic() >= self.deadline
        if accelerator.num_processes > 1:
            mine = torch.tensor([[self.requested, self.late]], device=accelerator.device)
            requested, late = accelerator.gather(mine).amax(dim=0).tolist()
            self.requested, self.late = requested, bool(late)

    def restore(self) -> None:
        """Let the signals act as they did before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._heard = number
