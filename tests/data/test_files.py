"""Files and folders appear whole or not at all, and nothing is left behind; JSON without NaN; a digest is that of
hashlib.
"""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cmd_video.data.files import (
    holds_something,
    read_json,
    sha256,
    whole_file,
    whole_folder,
    write_json,
    write_whole,
)
from cmd_video.data.lock import lock_folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("content", "found"), [("a\n\u00e9\n", b"a\n\xc3\xa9\n"), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_a_file_takes_the_place_of_an_older_one(content, found, tmp_path):
    (tmp_path / "a.json").write_text("old")
    write_whole(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_bytes() == found
    assert names(tmp_path) == ["a.json"]


def test_a_file_is_not_there_before_it_is_whole(tmp_path):
    with whole_file(tmp_path / "a.mp4") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".mp4" and temporary.name.startswith(".")
        assert not (tmp_path / "a.mp4").exists()
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a.mp4").read_bytes() == b"whole"
    assert names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_that_fails_leaves_the_older_one_and_nothing_else(error, tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_the_longest_name_can_be_written(tmp_path):
    name = "\u00e9" * 125 + ".json"  # 255 bytes
    write_whole(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_no_such_folder(tmp_path):
    with pytest.raises(OSError, match="none"):
        write_whole(tmp_path / "none" / "a.json", "x")


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "new" / "a") as temporary:
        (temporary / "file").write_text("x")
        assert not (tmp_path / "new" / "a").exists()
    assert names(tmp_path) == ["new", "new/a", "new/a/file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_fails_leaves_the_older_one_and_nothing_else(error, replace, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("x")
    with pytest.raises(error), whole_folder(tmp_path / "a", replace) as temporary:
        (temporary / "half").write_text("x")
        raise error
    assert names(tmp_path) == ["a", "a/old"]


def test_a_folder_takes_the_place_of_another_only_if_asked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("x")
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as temporary:
        (temporary / "new").write_text("x")
    assert names(tmp_path) == ["a", "a/old"]
    with whole_folder(tmp_path / "a", replace=True) as temporary:
        (temporary / "new").write_text("x")
    assert names(tmp_path) == ["a", "a/new"]


def test_a_folder_is_begun_anew_by_a_process_of_the_same_number(tmp_path):
    with whole_folder(tmp_path / "a") as temporary:
        pass
    temporary.mkdir()
    (temporary / "half").write_text("x")
    with whole_folder(tmp_path / "b" / ".." / "c") as other:
        assert other != temporary
    (tmp_path / "a").rmdir()
    with whole_folder(tmp_path / "a") as again:
        assert again == temporary and not list(again.iterdir())


@pytest.fixture(scope="module")
def dead() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("of", ["the same", "another"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_killed_processes_left_goes_with_the_next_writing(what, of, dead, tmp_path):
    """And nothing else: not what a process that runs is at, nor one of another machine, nor a user's own file."""
    host, name = socket.gethostname().replace("-", "_").replace(".", "_"), "a" if of == "the same" else "b"
    left = [f".{name}.tmp-{host}-{dead}", f".{name}.tmp-{host}-{dead}.json", f".{name}.tmp-{dead}.mp4"]
    kept = [f".{name}.tmp-{host}-{os.getppid()}", f".{name}.tmp-other-{dead}", ".a.tmp", "a.tmp-3", ".tmp-notes"]
    for entry in (*left, *kept):
        (tmp_path / entry).write_text("x")
    (tmp_path / f".c.tmp-{host}-{dead}").mkdir()
    (tmp_path / f".c.tmp-{host}-{dead}" / "half").write_text("x")
    if what == "file":
        write_whole(tmp_path / "a", "x")
    else:
        with whole_folder(tmp_path / "a"):
            pass
    assert names(tmp_path) == sorted([*kept, "a"])


HOLD = "import sys, pathlib; from cmd_video.data.lock import lock_folder; " \
    "lock = lock_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"  # fmt: skip


def test_a_folder_is_one_process_s_until_it_ends_however_it_does(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process {other.pid} on "):
            lock_folder(tmp_path)
        other.kill()
    lock_folder(tmp_path).release()
    lock_folder(tmp_path).release()


@pytest.mark.parametrize(
    ("entries", "holds"),
    [
        ([], False), ([".lock"], False), ([".recipe.tmp-host-1.json"], False), ([".a.tmp-4711"], False),
        (["a"], True), ([".hidden"], True), ([".lock", "recipe.json"], True),
    ],
)  # fmt: skip
def test_what_a_killed_process_left_is_nothing(entries, holds, tmp_path):
    for entry in entries:
        (tmp_path / entry).write_text("x")
    assert holds_something(tmp_path) is holds
    assert not holds_something(tmp_path / "none")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("content", "place"),
    [(lambda x: {"values": {"psnr": x}}, "values.psnr"), (lambda x: [1, [2.0, (x,)]], "1.1.0"), (lambda x: x, "")],
)
def test_no_number_is_never_written(content, place, number, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{place}: -?(nan|inf), .*a.json is not written"):
        write_json(tmp_path / "a.json", content(number))
    assert (tmp_path / "a.json").read_text() == "{}" and names(tmp_path) == ["a.json"]


def test_json_comes_back(tmp_path):
    content = {"a": [1, 2.5, None, True, "\u00e9"], "b": {}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", dict) == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"), (b"", "is not JSON"), (b"\xff\xfe\x00", "is not JSON"), (b"[" * 100_000, "is not JSON"),
        (b'{"a": NaN}', "is not JSON: it holds NaN"), (b"[]", "holds a list, an object is needed"),
        (b"null", "an object is needed"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_one_line_with_the_file(content, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json .*{reason}|a.json {reason}") as found:
        read_json(tmp_path / "a.json", dict)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("what", [whole_file, whole_folder])
def test_what_safetensors_says_of_a_disk_is_an_oserror(what, tmp_path):
    """It has an error of its own, which would be no user's."""
    with pytest.raises(SafetensorError):
        save_file({"a": torch.zeros(1)}, tmp_path / "none" / "a")
    with pytest.raises(OSError, match=r"/x: cannot be written: "), what(tmp_path / "x") as temporary:
        save_file({"a": torch.zeros(1)}, temporary / "none" / "a")
    assert names(tmp_path) == []


def test_the_digest_is_that_of_hashlib(tmp_path):
    parts = [b"", b"abc" * 100_000, bytes(range(256))]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).write_bytes(part)
    paths = [tmp_path / str(number) for number in range(3)]
    for path, part in zip(paths, parts, strict=True):
        assert sha256(path) == hashlib.sha256(part).hexdigest()
    assert sha256(*paths) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert sha256() == hashlib.sha256().hexdigest()
