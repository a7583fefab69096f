"""Tables of features: interruption, batches and processes change nothing, bad clips are named, files are whole."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cmd_video.data.clip import ClipError
from cmd_video.data.video_file import write_video
from cmd_video.evaluation.metrics.distances import measure
from cmd_video.evaluation.metrics.distribution import frechet_estimate
from cmd_video.evaluation.networks.extractors import Extractor, build_extractor
from cmd_video.evaluation.protocol import tables
from cmd_video.evaluation.protocol.clips import ArrayClips, FolderClips, MadeClips, Reading, open_clips
from cmd_video.evaluation.protocol.compare import compare
from cmd_video.evaluation.protocol.shared_work import discard
from cmd_video.evaluation.protocol.tables import FeatureTable
from cmd_video.evaluation.protocol.tables import extract as extract_and_keep


def pictures(count=10, frames=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 16, 24, 3), dtype=np.uint8)


def extract(clips, extractor, work, **options):
    table = extract_and_keep(clips, extractor, work, **options)
    discard(work)
    return table


@pytest.fixture
def clips(tmp_path):
    np.savez(tmp_path / "clips.npz", videos=pictures())
    return ArrayClips(tmp_path / "clips.npz")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 3)


PIXELS = build_extractor("pixels")


def test_batches_do_not_matter(clips, tmp_path):
    one = extract(clips, PIXELS, tmp_path / "a", batch_size=1)
    many = extract(clips, PIXELS, tmp_path / "b", batch_size=64)
    assert torch.allclose(one.features, many.features, atol=1e-6) and one.protocol == many.protocol
    assert torch.equal(one.dynamic, many.dynamic) and one.dynamic.shape == (10,)
    assert one.features.shape == (40, 192) and not (tmp_path / "a").exists()


def test_an_interrupted_evaluation_goes_on(clips, tmp_path):
    whole = extract(clips, PIXELS, tmp_path / "whole")
    calls = []

    def run(frames):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(frames))
        return PIXELS.run(frames)

    fails = Extractor(PIXELS.name, PIXELS.per, 1, PIXELS.resize, None, run)
    with pytest.raises(KeyboardInterrupt):
        extract(clips, fails, tmp_path / "work")
    assert len(list((tmp_path / "work").glob("chunk-*"))) == 2
    seen = []

    def count(frames):
        seen.append(len(frames))
        return PIXELS.run(frames)

    counts = Extractor(PIXELS.name, PIXELS.per, 1, PIXELS.resize, None, count)
    again = extract(clips, counts, tmp_path / "work")
    assert torch.equal(again.features, whole.features) and again.protocol == whole.protocol
    assert sum(seen) == 10 - 6  # two chunks of three were done


def test_what_is_left_of_something_else_is_not_mixed_in(clips, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an interrupted evaluation of something else"):
        extract(clips, PIXELS, tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no interrupted evaluation"):
        extract(clips, PIXELS, tmp_path / "other")


def test_bad_clips_are_named_and_left_out(tmp_path):
    (tmp_path / "clips").mkdir()
    for number, clip in enumerate(pictures(3)):
        write_video(clip, tmp_path / "clips" / f"{number}.mp4", fps=8)
    (tmp_path / "clips" / "1.mp4").write_bytes(b"no video")
    source = FolderClips(tmp_path / "clips", Reading(4, (16, 16)))
    assert isinstance(source.read([1])[0], ClipError)
    table = extract(source, PIXELS, tmp_path / "work")
    assert table.protocol["clips"] == 2 and len(table.features) == 8
    assert len(table.protocol["unreadable"]) == 1 and "1.mp4" in table.protocol["unreadable"][0]
    for path in (tmp_path / "clips").iterdir():
        path.write_bytes(b"no video")
    broken = FolderClips(tmp_path / "clips", Reading(4, (16, 16)))
    with pytest.raises(ValueError, match="clips: none of 3 can be read; the first: 0.mp4"):
        extract(broken, PIXELS, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_changed_and_mended_files_are_read_again(tmp_path):
    (tmp_path / "clips").mkdir()
    for number, clip in enumerate(pictures(4)):
        write_video(clip, tmp_path / "clips" / f"{number}.mp4", fps=8)
    good = (tmp_path / "clips" / "3.mp4").read_bytes()
    (tmp_path / "clips" / "3.mp4").write_bytes(good[:100])

    def source():
        return FolderClips(tmp_path / "clips", Reading(4))

    first = extract_and_keep(source(), PIXELS, tmp_path / "work")
    assert first.protocol["clips"] == 3 and first.protocol["codecs"] == ["h264"] and (tmp_path / "work").exists()
    stamps = [(tmp_path / "work" / f"chunk-00000{number}.safetensors").stat().st_mtime_ns for number in range(2)]
    again = extract_and_keep(source(), PIXELS, tmp_path / "work")
    assert torch.equal(again.features, first.features)
    after = [(tmp_path / "work" / f"chunk-00000{number}.safetensors").stat().st_mtime_ns for number in range(2)]
    assert after == stamps  # not done again, neither the whole one nor the one with a damaged clip
    (tmp_path / "clips" / "3.mp4").write_bytes(good)
    with pytest.raises(ValueError, match="holds an interrupted evaluation of something else"):
        extract_and_keep(source(), PIXELS, tmp_path / "work")


def test_a_command_that_fails_at_once_leaves_nothing(clips, tmp_path):
    long = Extractor("pixels", "frame", 99, PIXELS.resize, None, PIXELS.run)
    with pytest.raises(ValueError, match="frames: pixels needs 99 or more, got 4"):
        extract_and_keep(clips, long, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    for options in ({"fps": 0.0}, {"fps": 2.0, "stride": 2}, {"stride": 0}):
        with pytest.raises(ValueError, match="fps|stride"):
            FolderClips([tmp_path / "a.mp4"], Reading(4, **options))


def test_floors_do_not_split_a_clip(tmp_path):
    """Frames of one clip on both sides would make the real clips look alike."""
    still = np.repeat(pictures(40, 1), 4, axis=1)
    np.savez(tmp_path / "still.npz", videos=still)
    np.savez(tmp_path / "frames.npz", videos=still[:, :1])
    floors = []
    for name in ("still", "frames"):
        table = extract(ArrayClips(tmp_path / f"{name}.npz"), PIXELS, tmp_path / "work")
        floors.append(measure(table, table, neighbours=1)["frechet"]["real_against_real"])
    assert floors[0] == pytest.approx(floors[1], rel=0.2)


def test_files_round_trip_and_damage_is_noticed(clips, tmp_path):
    table = extract(clips, PIXELS, tmp_path / "work")
    table.save(tmp_path / "out" / "reference")
    again = FeatureTable.load(tmp_path / "out" / "reference.json")
    assert torch.equal(again.features, table.features) and again.protocol == json.loads(json.dumps(table.protocol))
    (tmp_path / "out" / "reference.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="reference: no table of features: .*not the file that its JSON describes"):
        FeatureTable.load(tmp_path / "out" / "reference")


def test_digests_tell_pixels_apart(clips, tmp_path):
    same = extract(MadeClips(lambda n: torch.zeros(len(n), 3, 4, 16, 16), 5, {"frames": 4}), PIXELS, tmp_path / "a")
    other = extract(MadeClips(lambda n: torch.ones(len(n), 3, 4, 16, 16), 5, {"frames": 4}), PIXELS, tmp_path / "b")
    assert same.protocol["pixels_sha256"] != other.protocol["pixels_sha256"]


def test_measures_tell_noise_and_order():
    """What FVD-like and FID-like distances must and must not see, on features of averaged pixels."""
    from cmd_video.data.transforms import to_uint8
    from cmd_video.sprites.scenes import SpritesDataset

    dataset = SpritesDataset(600, 32, 32, 8)
    videos = torch.stack([to_uint8(dataset[number]["video"]) for number in range(600)])
    real, others = videos[::2], videos[1::2]
    generator = torch.Generator().manual_seed(0)
    noise = (others.float() + 60 * torch.randn(others.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    dark = (others.float() * 0.6).to(torch.uint8)
    shuffled = others[:, torch.randperm(8, generator=generator)]
    frozen = others[:, :1].expand_as(others).contiguous()

    known = {name: build_extractor(name)(real) for name in ("pixels", "pixel-motion", "flow")}

    def distance(made, name):
        return frechet_estimate(known[name], build_extractor(name)(made.contiguous())).value

    frames, motion = distance(others, "pixels"), distance(others, "pixel-motion")
    assert distance(noise, "pixels") > 1.05 * frames and distance(dark, "pixels") > 2 * frames
    assert distance(shuffled, "pixels") < 1.2 * frames and distance(shuffled, "pixel-motion") > 1.3 * motion
    assert distance(frozen, "pixel-motion") > 1.3 * motion
    flowing = distance(others, "flow")
    assert distance(shuffled, "flow") > 2 * flowing and distance(dark, "flow") < 1.5 * flowing


def test_results_of_one_protocol_compare(clips, tmp_path):
    table = extract(clips, PIXELS, tmp_path / "work")
    values = measure(table, table, neighbours=3)
    assert values["frechet"]["value"] == pytest.approx(0, abs=1e-3) and values["precision"]["value"] == 1
    assert values["frechet"]["real_against_real"] > 0
    assert values["dynamic_degree"]["value"] == values["dynamic_degree"]["real_against_real"] > 0

    def record(place="x", **changes):
        made = {**table.protocol, "source": "a", "pixels_sha256": "1", "sampling": {"steps": 50}, **changes}
        protocol = {"real": {**table.protocol, "source": place}, "made": made, "seed": 0}
        return {"name": "distribution", "protocol": protocol, "values": {}, "versions": {"torch": "2"}}

    assert compare(record(), record("elsewhere", source="b", pixels_sha256="2", sampling={"steps": 9})).comparable
    found = compare(record(), record(clips=7, stride=2))
    assert not found.comparable and set(found.different) == {"made.clips", "made.stride"}
    other = record()
    other["protocol"]["real"]["pixels_sha256"] = "another set"
    other["versions"] = {"torch": "3"}
    found = compare(record(), other)
    assert set(found.different) == {"real.pixels_sha256"} and found.versions == {"torch": ("2", "3")}
    stored = record()  # the same pixels out of other files
    stored["protocol"]["real"] |= {"codecs": ["ffv1"], "kind": "folder", "resize": "none"}
    assert compare(record(), stored).comparable
    stored["protocol"]["real"]["extractor"] = "flow"
    assert set(compare(record(), stored).different) == {"real.extractor"}


def test_tables_of_different_features_do_not_mix(clips, tmp_path):
    tables = [extract(clips, build_extractor(name), tmp_path / name) for name in ("pixels", "pixel-motion")]
    with pytest.raises(ValueError, match="extractor: the reference has pixels, the clips to judge have pixel-motion"):
        measure(*tables)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: np.savez(p, videos=pictures().astype(np.float32)), "expected one array uint8"),
        (lambda p: np.savez(p, a=pictures(), b=pictures()), "expected one array uint8"),
        (lambda p: p.write_bytes(b"PK damaged"), "cannot be read"),
        (lambda p: (np.savez(p, videos=pictures()), p.write_bytes(p.read_bytes()[:5000])), "cannot be read"),
        (lambda p: np.savez(p, videos=np.array([{}], dtype=object)), "cannot be read: Object arrays"),
    ],
)
def test_arrays_of_something_else(make, message, tmp_path):
    path = tmp_path / "clips.npz"
    make(path)
    with pytest.raises(ValueError, match=message):
        ArrayClips(path)


def test_arrays_are_taken_as_they_are(clips, tmp_path):
    whole = open_clips(tmp_path / "clips.npz", Reading(4))
    some = open_clips(tmp_path / "clips.npz", Reading(4, (16, 24), num_clips=5, draw_seed=1))
    assert len(some) == 5 and some.recipe["chosen"] == f"drawn with seed 1 among {len(whole)}"
    everything = [clip.numpy().tobytes() for clip in whole.read(range(len(whole)))]
    places = [everything.index(clip.numpy().tobytes()) for clip in some.read(range(5))]
    assert places == sorted(set(places)) != list(range(5))
    for other in ({"frames": 8}, {"size": (8, 8)}, {"stride": 2}, {"fps": 4.0}, {"span": "random"}):
        with pytest.raises(ValueError, match="arrays are taken as they are"):
            open_clips(tmp_path / "clips.npz", Reading(**{"frames": 4, **other}))


def test_a_span_is_drawn_by_seed_and_number(tmp_path):
    """The span that a clip shows does not hang on which others are looked at, nor on the order of reading."""
    for number in range(6):
        frames = np.zeros((40, 16, 16, 3), np.uint8)
        frames[:] = (6 * np.arange(40)).reshape(-1, 1, 1, 1)  # a frame tells its number
        (tmp_path / "clips" / str(number)).mkdir(parents=True)
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / "clips" / str(number) / f"{place}.png")
    first = [[int(clip[0, 0, 0, 0]) // 6 for clip in source.read(range(len(source)))] for source in (
        FolderClips(tmp_path / "clips", Reading(4)),
        FolderClips(tmp_path / "clips", Reading(4, span="random")),
        FolderClips(tmp_path / "clips", Reading(4, span="random", draw_seed=1)),
    )]  # fmt: skip
    assert first[0] == [18] * 6
    assert len(set(first[1])) > 2 and first[1] != first[2] and max(first[1] + first[2]) <= 36
    reading = Reading(4, span="random", num_clips=3)
    some = FolderClips(tmp_path / "clips", reading)
    shown = [int(some.read([number])[0][0, 0, 0, 0]) // 6 for number in (2, 0, 1)]
    assert shown == [first[1][reading.choose(6)[number]] for number in (2, 0, 1)]
    assert some.recipe["span"] == "drawn with seed 0" and some.recipe["chosen"] == "drawn with seed 0 among 6"


def test_draws_are_uniform():
    places = torch.tensor([Reading(span="random").place(number) for number in range(2000)])
    counts = torch.histc(places, 10, 0, 1)
    assert counts.min() > 150 and counts.max() < 250
    taken = torch.tensor(Reading(num_clips=1000).choose(2000)).double()
    assert len(taken.unique()) == 1000 and abs(taken.mean() - 999.5) < 40


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 4, 8, 8, 3), "expected uint8"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "expected uint8"),
        (torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8), "pixel-motion needs 2 or more, got 1"),
    ],
)
def test_frames_of_another_kind(frames, message):
    with pytest.raises(ValueError, match=message):
        build_extractor("pixel-motion")(frames)


SHARED = """
import sys
from pathlib import Path
from cmd_video.evaluation.protocol import tables
from cmd_video.evaluation.protocol.clips import ArrayClips
from cmd_video.evaluation.networks.extractors import build_extractor
tables.CHUNK = 3
folder = Path(sys.argv[1])
table = tables.extract(ArrayClips(folder / "clips.npz"), build_extractor("pixels"), folder / "work")
table.save(folder / f"rank{tables.PartialState().process_index}")
tables.PartialState().destroy_process_group()
"""


def test_processes_share_the_work(clips, tmp_path):
    alone = extract(clips, PIXELS, tmp_path / "work")
    (tmp_path / "share.py").write_text(SHARED)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29577"]
    subprocess.run([sys.executable, *launch, tmp_path / "share.py", tmp_path], check=True, timeout=300)
    for rank in range(2):
        table = FeatureTable.load(tmp_path / f"rank{rank}")
        assert torch.equal(table.features, alone.features)
        assert table.protocol == json.loads(json.dumps(alone.protocol))


def test_clips_that_are_made_are_kept_batch_by_batch(tmp_path):
    made = []

    def make(numbers):
        if len(made) == 4:
            made.append(None)
            raise KeyboardInterrupt
        made.extend(numbers)
        return torch.zeros(len(numbers), 3, 4, 16, 16)

    clips = MadeClips(make, 7, {"frames": 4})
    with pytest.raises(KeyboardInterrupt):
        tables.extract(clips, PIXELS, tmp_path / "work", batch_size=2)
    table = tables.extract(clips, PIXELS, tmp_path / "work", batch_size=2)
    assert made == [0, 1, 2, 3, None, 4, 5, 6] and len(table.features) == 28
