"""Tar shards of others become a folder of captioned clips; what is wrong with one is named by shard and key."""

import io
import json
import tarfile

import pytest

from cmd_video.data.manifest import load_manifest
from cmd_video.data.tar_shards import expand, import_shards


def shard(path, members, mode="w"):
    """A tar file of (name, bytes or kind of member)."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content not in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content, "/etc/passwd"
                tar.addfile(member)
    return path


def pair(key, caption="a cat"):
    return [(f"{key}.mp4", key.encode() * 300), (f"{key}.txt", caption.encode())]


def reasons(found, folder):
    return {path.relative_to(folder).as_posix(): reason for path, reason in found.left_out}


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_clips_and_captions(tmp_path, ending):
    mode = "w:gz" if ending == "tar.gz" else "w"
    fields = json.dumps({"caption": "two  dogs", "fps": 8}).encode()
    shard(tmp_path / f"00000.{ending}", [*pair("a"), ("d/b.mp4", b"b"), ("d/b.json", fields)], mode)
    shard(tmp_path / f"00001.{ending}", pair("a", "another"), mode)
    found = import_shards([str(tmp_path / f"{{00000..00001}}.{ending}")], tmp_path / "clips")
    assert (found.clips, found.skipped, found.left_out) == (3, 0, [])
    records = load_manifest("captioned_folder", tmp_path / "clips").records
    assert [(record.path.relative_to(tmp_path / "clips").as_posix(), record.prompt) for record in records] == [
        ("00000/a.mp4", "a cat"), ("00000/d/b.mp4", "two dogs"), ("00001/a.mp4", "another"),
    ]  # fmt: skip
    assert records[0].path.read_bytes() == b"a" * 300
    again = import_shards([str(tmp_path / f"*.{ending}")], tmp_path / "clips")
    assert (again.clips, again.skipped) == (0, 2)


def test_what_is_wrong_is_named_by_shard_and_key(tmp_path):
    shard(tmp_path / "0.tar", [
        *pair("good"), *pair("good", "again"), ("bare.mp4", b"x"), ("../out.mp4", b"x"), ("/abs.mp4", b"x"),
        ("link.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE), ("dev.mp4", tarfile.CHRTYPE),
        ("bad.mp4", b"x"), ("bad.json", b"[1]"), (".hidden.mp4", b"x"), ("notes.npz", b"x"),
    ])  # fmt: skip
    found = import_shards([str(tmp_path / "0.tar")], tmp_path / "clips")
    told = reasons(found, tmp_path / "0.tar")
    assert found.clips == 1 and told["good"] == "its key is there twice"
    assert told["bare"] == told["bad"] == "a clip without a caption"
    assert told["link"] == told["hard"] == told["dev"] == "no regular file"
    assert [reason for _, reason in found.left_out].count("a path that leads out of the folder") == 2
    assert sorted(file.name for file in (tmp_path / "clips").rglob("*.*")) == ["good.mp4", "good.txt"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0.tar", "clips"]


CUTS = {"first video": (612, 0), "between clips": (2048, 1), "second video": (2660, 1), "header": (3172, 1)}
CUTS |= {"second caption": (3586, 1), "end": (4096, 2)}


@pytest.mark.parametrize("place", CUTS)
def test_a_shard_that_is_cut_off(tmp_path, place):
    cut, clips = CUTS[place]
    whole = shard(tmp_path / "w.tar", [*pair("a"), *pair("b")]).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:cut])
    shard(tmp_path / "1.tar", pair("c"))
    found = import_shards([str(tmp_path / "{0..1}.tar")], tmp_path / "clips")
    assert found.clips == clips + 1 and any(path.is_relative_to(tmp_path / "0.tar") for path, _ in found.left_out)
    assert all("cut" in reason or "read on" in reason or "caption" in reason for _, reason in found.left_out)


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "t.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(["s-{08..10}.tar"])] == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert [path.name for path in expand(["{s-0?,t}.tar", "t.tar"])] == ["s-08.tar", "s-09.tar", "t.tar"]
    with pytest.raises(FileNotFoundError, match="s-11.tar"):
        expand(["s-{08..11}.tar"])
    with pytest.raises(ValueError, match=r"\{9..2\} in 's-\{9..2\}.tar', allowed"):
        expand(["s-{9..2}.tar"])


def test_nothing_to_import_is_told(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="no clip with a caption in 1 of them; the first: .*0.tar: cannot be read on"):
        import_shards([str(tmp_path / "0.tar")], tmp_path / "clips")
    (tmp_path / "d").mkdir()
    for folder in (tmp_path, tmp_path / "d"):
        shard(folder / "1.tar", pair("a"))
    with pytest.raises(ValueError, match="1.tar and .*1.tar have one name"):
        import_shards([str(tmp_path / "1.tar"), str(tmp_path / "d" / "1.tar")], tmp_path / "clips")
