"""Clips by the hundred and clips of lies: nothing leaks, hangs or takes memory for what a header says."""

import os
import random
import resource
import shutil
import struct
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from cmd_video.data.check import check_clip
from cmd_video.data.clip import ClipError
from cmd_video.data.datasets import VideoDataset
from cmd_video.data.decode import probe, read_clip
from cmd_video.data.digests import check_digest
from cmd_video.data.files import sha256
from cmd_video.data.manifest import ClipRecord
from cmd_video.data.video_file import write_video

NOISE = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def held() -> tuple[int, int]:
    """Open files and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count() + len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory, files and threads are counted by Linux")
@pytest.mark.parametrize("opens", [150, *(pytest.param(many, marks=pytest.mark.slow) for many in (500, 5000))])
def test_decoding_leaks_nothing(opens, tmp_path, encode):
    """A fifth of the clips fails. What the first tenth takes is what decoding takes at all."""
    good = encode(tmp_path / "good.mp4", NOISE)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    failed = 0
    for number in range(opens):
        if number == opens // 10:
            before, memory = held(), resident()
        try:
            read_clip(bad if number % 5 == 0 else good, 8, place=number % 7 / 7)
        except ClipError:
            failed += 1
    assert failed == opens // 5 and held() == before
    assert resident() - memory <= 20 * 2**20


def try_out(path: Path, digest: str) -> tuple[str, bool]:
    """In a process of its own: what reading a damaged clip comes to, and whether its digest told."""
    try:
        check_digest(path, digest)
        told = False
    except ClipError:
        told = True
    try:
        return "read" if read_clip(path, 8).shape[0] == 8 else "short", told
    except ClipError as error:
        return "refused" if str(error).startswith(f"{path}: ") and "\n" not in str(error) else str(error), told


@pytest.mark.slow
def test_a_thousand_damaged_clips_kill_and_stop_nobody(tmp_path, encode, mutate):
    """In processes, each clip within ten seconds; a digest tells of every change."""
    good = encode(tmp_path / "good.mp4", NOISE, options={"crf": "30"})
    data, digest, rng = good.read_bytes(), sha256(good), random.Random(1)
    found = {"read": 0, "refused": 0}
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for first in range(0, 1000, 20):
            jobs = []
            for number in range(first, first + 20):
                changed = data
                while changed == data:
                    changed = mutate(data, number % 6, rng)
                path = tmp_path / f"{number}.mp4"
                path.write_bytes(changed)
                jobs.append(pool.submit(try_out, path, digest))
            for job in jobs:
                result, told = job.result(timeout=60 if first == 0 else 10)  # the first one imports
                assert told
                found[result] += 1
    print(found)
    assert sum(found.values()) == 1000 and min(found.values()) > 100


def gif(width: int, height: int) -> bytes:
    """A GIF of one pixel that says it has more."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(3) + b"\xff" * 3
    picture = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0" + b"\x02\x02D\x01\0"
    return screen + picture + b";"


@pytest.mark.parametrize("size", [(65535, 65535), (65535, 8000)])
def test_a_small_file_of_a_large_screen_is_refused_by_its_header(size, tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(gif(*size))
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (probe, lambda path: read_clip(path, 1)):
        with pytest.raises(ClipError, match="a.gif: "):
            read(path)
    assert time.process_time() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**18  # KiB


def test_a_duration_of_a_day_in_the_header_is_not_believed(tmp_path, encode):
    """Movie header and track of an MP4 of twelve frames say 24 hours."""
    path = encode(tmp_path / "a.mp4", NOISE)
    data = bytearray(path.read_bytes())
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = data.index(box) + place
        scale = 1000 if box != b"mdhd" else struct.unpack(">I", data[at - 4 : at])[0]
        data[at : at + 4] = struct.pack(">I", 86400 * scale % 2**32)
    path.write_bytes(data)
    begun = time.process_time()
    try:
        assert probe(path).num_frames == 12 and len(read_clip(path, 12, place=0.5)) == 12
    except ClipError as error:
        assert error.problem == "damaged"
    assert check_clip(path, 12).verdict in ("ok", "damaged")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
def test_a_clip_of_one_frame(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    write_video(np.full((1, 16, 16, 3), 200, np.uint8), path, fps=8)
    assert abs(read_clip(path, 1).float().mean() - 200) < 4
    assert check_clip(path, 1).verdict == "ok" and check_clip(path, 2).verdict == "too short"


NAMES = ["two words", "it's \"quoted\"", "two\nlines", "-dash", "--help", "$(touch x)", "ü漢字🎬", "שלום", "%s{0}",
         "a;b|c", "x" * 240, "file:a", "con", ".hidden", "a.mp4"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_odd_names_are_read_and_told_in_one_line(name, tmp_path, encode):
    path = tmp_path / f"{name}.mkv"
    shutil.move(encode(tmp_path / "plain.mkv", NOISE, "ffv1", "bgr0", options={}), path)
    assert len(read_clip(path, 12)) == 12 and check_clip(path, 12).verdict == "ok"
    sizes = {"num_frames": 4, "height": 16, "width": 16}
    assert VideoDataset([ClipRecord(path)], **sizes)[0]["path"] == str(path)
    path.write_bytes(b"x")
    with pytest.raises(ClipError) as error:
        read_clip(path, 12)
    assert error.value.reason and "\n" not in error.value.reason
