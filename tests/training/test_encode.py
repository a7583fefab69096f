"""Encoding by several processes: whoever writes the shards, the folder is the same to the byte."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from cmd_video.cli import main
from cmd_video.data.shares import Share, read_share
from cmd_video.training.encode import encode_run
from cmd_video.training.encoding import Encoding

CLIPS, SIZE = 7, 1  # shards of a clip each


@pytest.fixture(scope="module")
def alone(run):
    """The files that one process writes."""
    assert encode_run(run, run.parent / "alone", CLIPS, shard_size=SIZE) == CLIPS
    return files_of(run.parent / "alone")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards_of(folder):
    return sorted(path.name for path in folder.glob("shard-*"))


def test_shares_together_are_the_whole(run, alone, tmp_path):
    for number, names in ((2, ("00002", "00005")), (0, ("00000", "00003", "00006"))):
        before = shards_of(tmp_path)
        assert encode_run(run, tmp_path, CLIPS, shard_size=SIZE, share=Share(number, 3)) is None
        assert set(shards_of(tmp_path)) - set(before) == {f"shard-{name}.safetensors" for name in names}
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors, shard-00004\.safetensors of 7 shards: missing"):
        Encoding(run, tmp_path, CLIPS, shard_size=SIZE).finish()
    assert not (tmp_path / "index.json").exists()
    encode_run(run, tmp_path, CLIPS, shard_size=SIZE, share=Share(1, 3))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    assert Encoding(run, tmp_path, CLIPS, shard_size=SIZE).finish() == CLIPS
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")} == times
    assert files_of(tmp_path) == alone


@pytest.mark.parametrize("spec", ["3/3", "0/0", "-1/3", "1", "a/b", "1/2/3", "", "01/0"])
def test_shares_that_are_none(spec, run, tmp_path, capsys):
    with pytest.raises(ValueError) as caught:
        read_share(spec)
    assert str(caught.value) == f"shard: {spec!r}, allowed: i/n with 0 <= i < n"
    if spec == "3/3":
        assert main(["data", "encode", str(run), "-o", str(tmp_path / "new"), "--shard", spec]) == 2
        assert "shard: '3/3', allowed: i/n with 0 <= i < n" in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "new").exists()


def test_a_share_splits_into_shares():
    parts = Share(1, 3).split(2)
    assert [[number for number in range(20) if part.has(number)] for part in parts] == [[1, 7, 13, 19], [4, 10, 16]]


@pytest.mark.parametrize("shard", [["--shard", "1/2"], ["--processes", "2"]])
def test_finishing_is_for_one_process(shard, run, tmp_path, capsys):
    assert main(["data", "encode", str(run), "-o", str(tmp_path / "new"), "--finish", *shard]) == 2
    assert "--finish: writes the index alone" in capsys.readouterr().err


def test_the_command_encodes_by_shares(run, tmp_path):
    order = ["data", "encode", str(run), "-o", str(tmp_path / "new"), "--num-clips", "3"]
    assert main([*order, "--shard", "1/2"]) == 0 and not shards_of(tmp_path / "new")  # there is one shard, the first
    assert main([*order, "--finish"]) == 2
    assert main([*order, "--shard", "0/2"]) == 0 and main([*order, "--finish"]) == 0
    assert main([*order]) == 0 and len(shards_of(tmp_path / "new")) == 1


@pytest.mark.slow
def test_processes_that_are_killed_do_their_shards_again(run, alone, tmp_path):
    killed = []

    def kill_all(done):
        if not killed:
            killed.extend(active_children())
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)

    assert encode_run(run, tmp_path, CLIPS, shard_size=SIZE, processes=2, progress=kill_all) == CLIPS
    assert killed and files_of(tmp_path) == alone


@pytest.mark.slow
def test_what_a_process_says_is_one_line(run, tmp_path):
    with pytest.raises(ValueError, match="holds latents of another recipe"):
        encode_run(run, tmp_path / "a", CLIPS, shard_size=SIZE)
        encode_run(run, tmp_path / "a", 2, shard_size=SIZE, processes=2)


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(run, alone, tmp_path):
    code = "import sys; from pathlib import Path; from cmd_video.training.encode import encode_run\n"
    code += f"encode_run(Path(sys.argv[1]), Path(sys.argv[2]), {CLIPS}, shard_size={SIZE})"
    import cmd_video

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cmd_video.__file__).parents[1]), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code, str(run), str(tmp_path)], env=environment)
    while len(shards_of(tmp_path)) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    assert encode_run(run, tmp_path, CLIPS, shard_size=SIZE) == CLIPS
    assert files_of(tmp_path) == alone
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize("stage", ["content", "motion"])
def test_networks_are_told_frames_from_latents_as_from_clips(run, tmp_path, stage, tiny_config, run_train, read_log):
    """Latents in half precision, so nearly; and latents that were encoded without ends say so."""
    told = {"edit": {"kind": "reference_frames", "count": 2}, "loop__steps": 1, "loop__validate_every": 1}
    parts = {
        "components__vae": {"path": str(run / "pipeline")},
        "components__autoencoder": {"path": str(run / "pipeline")},
    }
    losses = []
    for kind in ("clips", "ends", "none"):
        config = tiny_config(stage, tmp_path / kind, **told, **parts)
        config["validation"]["num_samples"] = 0
        if kind != "clips":
            for split, data in (("train", config), ("validation", config["validation"])):
                folder = tmp_path / f"{kind}-{split}"
                encode_run(run, folder, 16, split, end_frames=kind == "ends")
                data["data"] = {"kind": "latents", "path": str(folder)}
        if kind == "none":
            with pytest.raises(ValueError, match="holds? no first and last frames"):
                run_train(config)
        else:
            run_train(config)
            losses.append(read_log(tmp_path / kind, "validation")[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
