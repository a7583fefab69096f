"""A kill in the moment before something has its name: no file is half-written under it, the same command goes on, and
what was left hidden goes. And no command asks the network for what lies on the disk.
"""

import os
import signal
import socket
from pathlib import Path

import pytest


def killed_at(number: int, run, arguments: list[str]) -> int:
    """Run a command in a process of its own, killed when it is about to rename for the n-th time; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    calls, replace, rename = [0], os.replace, Path.rename

    def count(*arguments: object) -> None:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def replaced(*arguments: object) -> None:
        count()
        replace(*arguments)

    def renamed(path: Path, target: Path) -> Path:
        count()
        return rename(path, target)

    os.replace, Path.rename = replaced, renamed
    try:
        code = run(*arguments)[0]
    except BaseException:
        code = 1
    os._exit(code)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_command_goes_on(writing, number, run, tmp_path):
    status = killed_at(number, run, writing)
    if os.waitstatus_to_exitcode(status) == 0:
        pytest.skip(f"it renames less than {number} times")
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL and hidden(tmp_path)
    code, _, err = run(*writing)
    assert code == 0, err
    assert not hidden(tmp_path) and not list(tmp_path.glob("*.parts"))


def test_no_network_is_asked_for_what_lies_on_the_disk(writing, run, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    code, _, err = run(*writing)
    assert code == 0, err
