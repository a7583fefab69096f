"""Encoding by Ray: the folder is that of one process to the byte, also when actors are killed.

Ray is large and no part of the packages for tests: `make test-ray` runs what needs it in an environment of its own.
"""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from cmd_video.cli import main
from cmd_video.data.shares import Share
from cmd_video.training.encode import encode_run

CLIPS, SIZE = 7, 1  # shards of a clip each


@pytest.fixture
def with_ray(monkeypatch):
    """Ray; what it starts must end."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = pytest.importorskip("ray", reason="ray is not installed; `make test-ray` runs this")
    yield ray
    assert not ray.is_initialized()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(run, folder):
    """The files that one process writes."""
    encode_run(run, folder, CLIPS, shard_size=SIZE)
    return files_of(folder)


def descendants(named):
    """Numbers of the processes below this one whose command line holds a word."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(entry.name)] if named in (entry / "cmdline").read_text() else []
        except OSError:  # it has ended
            continue

    def is_below(process):
        return process == os.getpid() or (process in parents and is_below(parents[process]))

    return [process for process in found if is_below(process)]


def test_actors_write_what_one_process_writes_from_a_relative_folder(with_ray, run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    done = []
    options = {"shard_size": SIZE, "processes": 2, "executor": "ray"}
    assert encode_run(Path("run"), Path("by-ray"), CLIPS, progress=done.append, **options) == CLIPS
    assert done == list(range(1, CLIPS + 1))
    assert files_of(run.parent / "by-ray") == alone(run, tmp_path / "alone")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the actors in /proc")
def test_a_killed_actors_shard_is_written_again_and_none_twice(with_ray, run, tmp_path):
    expected, killed, times, done = alone(run, tmp_path / "alone"), [], {}, []

    def kill_once(clips):
        done.append(clips)
        if not killed:
            times.update({path: path.stat().st_mtime_ns for path in (tmp_path / "by-ray").glob("shard-*")})
            killed.extend(descendants("ray::Encoder"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    options = {"shard_size": SIZE, "processes": 2, "executor": "ray"}
    assert encode_run(run, tmp_path / "by-ray", CLIPS, progress=kill_once, **options) == CLIPS
    assert killed and done == list(range(1, CLIPS + 1))
    assert files_of(tmp_path / "by-ray") == expected
    assert times and all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.skipif(sys.platform != "linux", reason="finds the actors in /proc")
def test_actors_that_die_again_and_again_end_the_work(with_ray, run, tmp_path):
    ended = threading.Event()

    def kill_all():
        while not ended.wait(0.05):
            for process in descendants("ray::Encoder"):
                os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(ChildProcessError, match="processes: actor 0: died 4 times"):
            encode_run(run, tmp_path, CLIPS, shard_size=SIZE, processes=1, executor="ray")
    finally:
        ended.set()
        killer.join()


def test_what_an_actor_says_is_one_line(with_ray, run, tmp_path):
    """A shard's place is a folder, which no file can replace."""
    encode_run(run, tmp_path, CLIPS, shard_size=SIZE, share=Share(0, 7))
    (tmp_path / "shard-00003.safetensors" / "something").mkdir(parents=True)
    with pytest.raises(ValueError) as caught:
        encode_run(run, tmp_path, CLIPS, shard_size=SIZE, processes=2, executor="ray")
    assert "shard-00003" in str(caught.value) and "\n" not in str(caught.value)


def test_a_cluster_that_is_running_is_used_and_stays(with_ray, run, tmp_path):
    with_ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        options = {"shard_size": SIZE, "processes": 9, "executor": "ray"}  # more than there is place for
        assert encode_run(run, tmp_path / "by-ray", CLIPS, **options) == CLIPS
        assert with_ray.is_initialized()
        with pytest.raises(ValueError, match="executor: an actor needs 1 GPU, and Ray's cluster has 0"):
            encode_run(run, tmp_path / "other", CLIPS, device="cuda", **options)
    finally:
        with_ray.shutdown()
    assert files_of(tmp_path / "by-ray") == alone(run, tmp_path / "alone")


def test_no_cluster_at_the_address_is_one_line(with_ray, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["data", "encode", str(run), "-o", str(tmp_path / "new"), "--executor", "ray"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "RAY_ADDRESS: '127.0.0.1:1': no such cluster" in line
    assert not list((tmp_path / "new").glob("shard-*"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_one_line_names_the_extra(run, tmp_path, capsys):
    order = ["data", "encode", str(run), "-o", str(tmp_path / "new"), "--num-clips", "3", "--executor", "ray"]
    assert main(order) == 2
    assert "pip install 'cmd-video[ray]'" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "new").glob("shard-*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--executor", "ray", "--shard", "0/2"], "--executor: ray deals out all shards"),
        (["--executor", "ray", "--finish"], "--executor: ray deals out all shards"),
        (["--executor", "spark"], "--executor: 'spark' is none of local, ray"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said, run, tmp_path, capsys):
    assert main(["data", "encode", str(run), "-o", str(tmp_path / "new"), *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_from_python_a_share_is_not_for_ray(run, tmp_path):
    with pytest.raises(ValueError, match="share: 1/2, but Ray deals out all shards itself"):
        encode_run(run, tmp_path / "new", CLIPS, share=Share(1, 2), executor="ray")
    assert not (tmp_path / "new").exists()
