"""Files and folders appear whole or not at all, and nothing is left behind; a digest is that of hashlib."""

import hashlib
from pathlib import Path

import pytest

from cmd_video.data.files import sha256, whole_file, whole_folder, write_whole


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
    for name in ("a", ".a.tmp-4711"):  # the second one was left by a process that was killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("x")
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as temporary:
        (temporary / "new").write_text("x")
    assert names(tmp_path) == [".a.tmp-4711", ".a.tmp-4711/old", "a", "a/old"]
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


def test_the_digest_is_that_of_hashlib(tmp_path):
    parts = [b"", b"abc" * 100_000, bytes(range(256))]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).write_bytes(part)
    paths = [tmp_path / str(number) for number in range(3)]
    for path, part in zip(paths, parts, strict=True):
        assert sha256(path) == hashlib.sha256(part).hexdigest()
    assert sha256(*paths) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert sha256() == hashlib.sha256().hexdigest()
