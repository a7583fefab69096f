"""Files of weights: what is missing, damaged or unknown is one line that says what to do."""

import hashlib
import socket
import threading
from dataclasses import replace

import pytest

from cmd_video.evaluation.networks import weights
from cmd_video.evaluation.networks.extractors import build_extractor
from cmd_video.evaluation.networks.weights import WEIGHT_FILES, find_weights, get_weights, weights_folder


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file, at a local address."""
    content = b"weights" * 1000
    (tmp_path / "web").mkdir()
    source = tmp_path / "web" / "file"
    source.write_bytes(content)
    known = replace(
        WEIGHT_FILES["i3d"], url=source.as_uri(), sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    monkeypatch.setitem(weights.WEIGHT_FILES, "i3d", known)
    return source


def test_get_verifies_and_find_finds(published, tmp_path):
    folder = tmp_path / "weights"
    with pytest.raises(
        ValueError, match=r"weights: no i3d_rgb_imagenet.pt in .*; put it there from .*sha256 .*get i3d"
    ):
        find_weights("i3d", folder)
    path = get_weights("i3d", folder)
    assert path == folder / "i3d_rgb_imagenet.pt" == find_weights("i3d", folder)
    (folder / "below").mkdir()
    path.rename(folder / "below" / path.name)
    assert find_weights("i3d", folder).parent.name == "below"


def test_damage_is_noticed_before_anything_is_read(published, tmp_path):
    folder = tmp_path / "weights"
    path = get_weights("i3d", folder)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="remove it and fetch it again"):
        find_weights("i3d", folder)
    with pytest.raises(ValueError, match="remove it and fetch it again"):
        build_extractor("i3d", folder)
    published.write_bytes(b"an error page")
    with pytest.raises(ValueError, match="expected"):
        get_weights("i3d", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_no_network_is_one_line(published, tmp_path):
    published.unlink()
    with pytest.raises(ValueError, match="weights: cannot fetch file:"):
        get_weights("i3d", tmp_path / "weights")


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("CMD_VIDEO_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path and weights_folder(tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "extractor: 'vgg' is none of i3d, "),
        ("pixels:here", "extractor: 'pixels:here' is none of"),
        ("videomae", "extractor: videomae needs a folder or hub id"),
        ("videomae:/nowhere", "extractor: /nowhere: "),
        ("i3d-torchscript", "weights: no i3d_torchscript.pt in"),
        ("squeezenet", "weights: no squeezenet_v1.0_imagenet_fp16.pt in .*songhan"),
    ],
)
def test_extractors_that_are_not_there(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_extractor(name, tmp_path)


def test_digests_are_of_published_files():
    for known in WEIGHT_FILES.values():
        assert known.source
        if known.size is None:  # openmmlab names files by the first digits, and publishes no more
            assert known.file.rpartition("-")[2] == f"{known.sha256}.pth"
        else:
            assert len(known.sha256) == 64 and known.size > 0


def test_nothing_is_loaded_that_could_run_code(tmp_path, published):
    """A file of the right name with another content is refused by its digest, whatever is in it."""
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"PK\x03\x04 planted")
    with pytest.raises(ValueError, match="has sha256"):
        build_extractor("i3d-torchscript", tmp_path)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_digest_is_whole_or_said_not_to_be(name):
    """Eight digits keep damage out, but no forger: whoever fetches the file is told."""
    known, shown = WEIGHT_FILES[name], weights.shown_digest(name)
    assert len(known.sha256) in (8, 64) and known.sha256 in shown
    assert ("no more is published" in shown) is (len(known.sha256) == 8) is (name == "c3d")


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 7000\r\n\r\nweig"], ids=["nothing", "a part"]
)
def test_a_server_that_falls_silent_is_not_waited_for(said, published, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        answered = []

        def answer():
            connection, _ = server.accept()
            answered.append(connection)  # stays open
            connection.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        monkeypatch.setitem(weights.WEIGHT_FILES, "i3d", replace(WEIGHT_FILES["i3d"], url=address))
        monkeypatch.setattr(weights, "TIMEOUT_S", 0.5)
        with pytest.raises(ValueError, match="weights: cannot fetch http.*timed out"):
            get_weights("i3d", tmp_path / "weights")
        assert not list((tmp_path / "weights").iterdir())
        answered[0].close()
