"""Processes that do not outlive the one that started them.

end_with(parent)        # in the child, first of all
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when the one that started it dies


def end_with(parent: int) -> None:
    """Have this process killed when the one of this number dies, wherever it is stuck; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
