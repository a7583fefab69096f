"""A folder that one process works in at a time, on this machine or on one that shares its disk.

lock = lock_folder(folder)  # until lock.release(), or until this process ends, however it does
lock = lock_folder(folder, together=True)  # beside others who say so; whoever wants it alone is kept out
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
        together: others may hold it, too.
    """

    def __init__(self, path: Path, descriptor: int, together: bool = False) -> None:
        self.path, self.descriptor, self.together = path, descriptor, together
        _held.add(descriptor)

    def release(self) -> None:
        """Let others in. The file goes while the lock is held: whoever waits finds another one, and looks again."""
        if not self.together:
            self.path.unlink(missing_ok=True)
        _held.discard(self.descriptor)
        os.close(self.descriptor)


def is_lock(name: str) -> bool:
    """Whether a file of this name is a lock: of a folder, or of a part of it."""
    return name.startswith(".") and name.endswith(LOCK)


def lock_folder(folder: Path, part: str = "", together: bool = False) -> FolderLock:
    """Keep other processes out of a folder.

    Args:
        folder: the folder.
        part: of which part others are kept out; by default the whole folder.
        together: let those in who want it together with others, and only keep out who wants it alone.

    Raises:
        ValueError: another process is in it.
        OSError: nothing can be written into it.
    """
    path = folder / (f".{part}{LOCK}" if part else LOCK)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                logger.warning("%s: this disk has no locks (%s); nothing keeps a second process out", folder, error)
                return FolderLock(path, descriptor, together)
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(f"{folder} is in use by {holder}") from error
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.truncate(descriptor, 0)
                holder = "several processes" if together else f"process {os.getpid()} on {os.uname().nodename}"
                os.write(descriptor, f"{holder}\n".encode())
            return FolderLock(path, descriptor, together)
        os.close(descriptor)  # its last holder removed it in between


def _let_go() -> None:
    """In a fork, such as a loading process: the lock is its parent's alone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
