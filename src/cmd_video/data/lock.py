"""A folder that one process works in at a time, on this machine or on one that shares its disk.

lock = lock_folder(folder)  # until lock.release(), or until this process ends, however it does
"""

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two processes in a folder are not noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: set[int] = set()  # descriptors, which forks let go of


class FolderLock:
    """A lock that is held.

    Args:
        path: of its file.
        descriptor: of the same.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Let others in. The file goes while the lock is held: whoever waits finds another one, and looks again."""
        self.path.unlink(missing_ok=True)
        _held.discard(self.descriptor)
        os.close(self.descriptor)


def lock_folder(folder: Path) -> FolderLock:
    """Keep other processes out of a folder.

    Raises:
        ValueError: another process is in it.
        OSError: nothing can be written into it.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                logger.warning("%s: this disk has no locks (%s); nothing keeps a second process out", folder, error)
                return FolderLock(path, descriptor)
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(f"{folder} is in use by {holder}") from error
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
            return FolderLock(path, descriptor)
        os.close(descriptor)  # its last holder removed it in between


def _let_go() -> None:
    """In a fork, such as a loading process: the lock is its parent's alone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
