"""Pairs are of the same frames of the same clips at the same size, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmd_video.data.video_file import write_video
from cmd_video.evaluation.metrics.pairs import measure_pairs
from cmd_video.evaluation.metrics.reconstruction import ReconstructedClips
from cmd_video.evaluation.protocol.clips import Reading, open_clips


def moving(frames, first=0, height=32, width=48):
    """A square that goes on by a pixel with each frame: uint8 (F, H, W, 3)."""
    clip = np.full((frames, height, width, 3), 60, np.uint8)
    for number in range(frames):
        clip[number, 8:16, first + number : first + number + 8] = (230, 80, 60)
    return clip


def as_files(folder, clips, names, suffix=".mp4", fps=8):
    folder.mkdir()
    for name, clip in zip(names, clips, strict=True):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write_video(clip, folder / f"{name}{suffix}", fps)
    return folder


def as_pictures(folder, clips, names):
    for name, clip in zip(names, clips, strict=True):
        (folder / name).mkdir(parents=True)
        for number, frame in enumerate(clip):
            Image.fromarray(frame).save(folder / name / f"{number:04d}.png")
    return folder


def as_array(folder, clips, names):
    folder.mkdir()
    np.save(folder / "clips.npy", np.stack(clips))
    return folder / "clips.npy"


WRITERS = {"files": as_files, "pictures": as_pictures, "array": as_array}
PAIRS = [
    ("files", "files"),
    ("files", "pictures"),
    ("pictures", "pictures"),
    ("array", "files"),
    ("array", "pictures"),
]
NAMES = ("0", "1")


def measure(made, true, reading):
    return measure_pairs(open_clips(made, reading), open_clips(true, reading))


@pytest.mark.parametrize(("made", "true"), PAIRS)
@pytest.mark.parametrize("span", ["middle", "random"])
def test_clips_of_other_lengths_are_pairs_from_their_start_only(made, true, span, tmp_path):
    """Copies of the first 8 frames of 20: with the middle of each by itself they would look like other clips."""
    copies = WRITERS[made](tmp_path / "made", [moving(8)] * 2, NAMES)
    whole = WRITERS[true](tmp_path / "true", [moving(20)] * 2, NAMES)
    if made == "array" and span == "random":
        pytest.skip("an array has no span to draw")
    with pytest.raises(ValueError, match=r"^span: pair .*frame 0 .*frame [1-9]\d*, .*allowed: span start") as found:
        measure(copies, whole, Reading(8, span=span))
    assert "\n" not in str(found.value)
    values, _ = measure(copies, whole, Reading(8, span="start"))
    assert values["psnr"]["value"] > 30 and values["ssim"]["value"] > 0.95


@pytest.mark.parametrize(("made", "true"), PAIRS)
@pytest.mark.parametrize("span", ["start", "middle", "random"])
def test_clips_of_one_length_are_pairs_in_every_span(made, true, span, tmp_path):
    if made == "array" and span == "random":
        pytest.skip("an array has no span to draw")
    frames = 8 if "array" in (made, true) else 14
    sources = [
        WRITERS[kind](tmp_path / side, [moving(frames, first) for first in (0, 5)], NAMES)
        for side, kind in (("made", made), ("true", true))
    ]
    values, protocol = measure(*sources, Reading(8, span=span))
    assert protocol["clips"] == 2 and values["psnr"]["value"] > 30


def test_an_autoencoder_s_clips_begin_where_those_do_that_went_in(tmp_path):
    clips = open_clips(as_files(tmp_path / "true", [moving(20)] * 2, NAMES), Reading(8))
    passed = ReconstructedClips(clips, None, None, {})
    assert [passed.start(number) for number in range(2)] == [6, 6]


@pytest.mark.parametrize(("seconds", "fits"), [(4, True), (2, False)])
def test_by_a_rate_pairs_are_of_the_same_moments(seconds, fits, tmp_path):
    """The same clip at 8 and at 24 frames per second, whole or its first half."""
    true = as_files(tmp_path / "true", [moving(32)], "0", fps=8)
    made = as_files(tmp_path / "made", [np.repeat(moving(8 * seconds), 3, axis=0)], "0", fps=24)
    reading = Reading(8, fps=8)
    if fits:
        assert measure(made, true, reading)[0]["psnr"]["value"] > 25
    else:
        with pytest.raises(ValueError, match=r"span: pair 0.mp4: .*begins at 0.5\d* s .*at 1.5 s"):
            measure(made, true, reading)


@pytest.mark.parametrize(("made", "true"), PAIRS)
def test_pairs_of_other_sizes_are_named(made, true, tmp_path):
    small = WRITERS[made](tmp_path / "made", [moving(8)] * 2, NAMES)
    large = WRITERS[true](tmp_path / "true", [moving(8, height=64, width=96)] * 2, NAMES)
    with pytest.raises(ValueError, match=r"^size: pair 0.*: the clip to judge is 32x48, the true one 64x96"):
        measure(small, large, Reading(8))
    assert measure(small, large, Reading(8, size=(32, 48)))[1]["clips"] == 2


def test_arrays_of_other_lengths(tmp_path):
    made, true = (as_array(tmp_path / str(frames), [moving(frames)] * 2, NAMES) for frames in (8, 12))
    with pytest.raises(ValueError, match="frames: those to judge have 8, the true ones 12"):
        measure_pairs(open_clips(made, Reading(8)), open_clips(true, Reading(12)))


@pytest.mark.parametrize(
    ("made", "true", "fits"),
    [
        (("0", "1"), ("0", "2"), False),
        (("a/0", "b/0"), ("a/0", "b/0"), True),
        (("a/0", "b/0"), ("a/0", "c/0"), False),  # 0 is not enough of a name where two are called so
        (("0", "1"), ("a/0", "b/1"), True),
        (("0.5", "0.7"), ("0.5", "0.6"), False),
    ],
)
@pytest.mark.parametrize("kind", ["files", "pictures"])
def test_pairs_go_by_name(kind, made, true, fits, tmp_path):
    sources = [WRITERS[kind](tmp_path / side, [moving(8)] * 2, names) for side, names in (("m", made), ("t", true))]
    if fits:
        assert measure(*sources, Reading(8))[1]["clips"] == 2
    else:
        with pytest.raises(ValueError, match="stands where the true ones have .*; pairs go by name"):
            measure(*sources, Reading(8))


def test_other_rates_are_said(tmp_path, capsys):
    from cmd_video.cli import main

    made = as_files(tmp_path / "made", [moving(8)] * 2, NAMES, fps=24)
    true = as_files(tmp_path / "true", [moving(8)] * 2, NAMES, fps=8)
    command = ["evaluate", "paired", made, true, "--frames", 8, "-o", tmp_path / "a.json"]
    assert main(list(map(str, command))) == 0
    assert "--fps: files of [24.0] frames per second to judge, of [8.0] true ones" in capsys.readouterr().err


def test_what_is_mended_is_not_kept_out_by_what_was_begun(tmp_path, capsys):
    """A second pair of another size: refused, and the right command works at once."""
    from cmd_video.cli import main

    made = as_pictures(tmp_path / "made", [moving(8), moving(8, height=64)], NAMES)
    true = as_pictures(tmp_path / "true", [moving(8), moving(8)], NAMES)
    command = list(map(str, ["evaluate", "paired", made, true, "--frames", 8, "-o", tmp_path / "a.json"]))
    assert main(command) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: --size: pair 1")
    assert not [path for path in Path(tmp_path).iterdir() if path.name.startswith("a.json")]
    assert main([*command, "--size", "32x48"]) == 0
