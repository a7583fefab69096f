"""Precomputed latents: the same loss as running the autoencoder on the fly, written once, drawn in passes."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cmd_video.data.latent_shards import read_shard
from cmd_video.data.latents import LatentsDataset, write_latents
from cmd_video.denoisers.latent_space import encode_video


@pytest.mark.parametrize("name", ["content", "motion"])
def test_precomputed_latents_give_the_same_loss(name, build_tiny, batch_of, tmp_path):
    stage, dataset = build_tiny(name, weights=0.2)
    autoencoder = stage.components["autoencoder"]
    autoencoder.register_to_config(latents_mean=[0.1] * 4, latents_std=[0.5] * 4)
    batches = []
    for first in range(0, 24, 8):
        batch = batch_of(dataset, range(first, first + 8))
        with torch.no_grad():
            content_frame, motion_latents = autoencoder.encode(
                encode_video(stage.components["vae"], batch["video"]), return_dict=False
            )
        motion_latents = autoencoder.normalize_latents(motion_latents)
        batches.append({**batch, "content_frame": content_frame, "motion_latents": motion_latents})
    assert write_latents(tmp_path, iter(batches), {"what": "test"}) == 24
    latents = LatentsDataset(tmp_path, seed=5)
    order = np.random.default_rng([5, 0]).permutation(24)  # the documented order of the first pass
    for numbers in ([0, 1, 2, 3], [20, 21, 22, 23]):
        precomputed = batch_of(latents, numbers)
        on_the_fly = batch_of(dataset, [int(order[number]) for number in numbers])
        on_the_fly["number"] = torch.tensor(numbers)
        assert precomputed["prompt"] == on_the_fly["prompt"]
        assert torch.equal(precomputed["class_label"], on_the_fly["class_label"])
        with torch.no_grad():
            assert stage(precomputed).item() == pytest.approx(stage(on_the_fly).item(), rel=2e-3)


def test_latents_are_written_once_and_drawn_in_passes(tmp_path):
    def batch(value: float) -> dict:
        frames, planes = torch.full((3, 2, 4, 4), value), torch.zeros(3, 2, 4, 4)
        labels = torch.arange(3)
        return {"content_frame": frames, "motion_latents": planes, "prompt": ["a", "b", "c"], "class_label": labels}

    with pytest.raises(ValueError, match="index.json"):
        LatentsDataset(tmp_path)
    assert write_latents(tmp_path, [batch(1.0)], {}) == 3
    assert write_latents(tmp_path, iter([{}, batch(2.0)]), {}) == 6  # the first shard is kept
    dataset = LatentsDataset(tmp_path, seed=1)
    assert len(dataset) == 6 and sorted(path.suffix for path in tmp_path.iterdir()) == 2 * [".json"] + 2 * [
        ".safetensors"
    ]
    passes = [
        [(dataset[n]["prompt"], dataset[n]["content_frame"][0, 0, 0].item()) for n in range(6 * turn, 6 * turn + 6)]
        for turn in range(3)
    ]
    assert [sorted(one) for one in passes] == 3 * [sorted((p, v) for p in "abc" for v in (1.0, 2.0))]
    assert passes[0] != passes[1] or passes[1] != passes[2]
    assert [dataset[n]["prompt"] for n in range(6)] == [prompt for prompt, _ in passes[0]]


@pytest.fixture
def content_config(tiny_config, tmp_path):
    """`content_config("run", broken=5)`: a content stage on drawn latents alone, of which one may hold a NaN."""

    def write(name: str, broken: int | None) -> dict:
        draw = torch.Generator().manual_seed(0)
        frames, planes = torch.randn(8, 12, 8, 8, generator=draw), torch.randn(8, 4, 4, 8, generator=draw)
        if broken is not None:
            frames[broken, 0, 0, 0] = torch.nan
        prompts = [f"clip {number}" for number in range(8)]
        batch = {"content_frame": frames, "motion_latents": planes, "prompt": prompts, "class_label": torch.zeros(8)}
        write_latents(tmp_path / name, [batch], {})
        return {"kind": "latents", "path": str(tmp_path / name)}

    def make(run: str, broken: int | None = None) -> dict:
        data = {"data": write("latents", broken), "validation__data": write("held_out", None)}
        config = tiny_config("content", tmp_path / run, **data)
        del config["components"]["autoencoder"]
        return config

    return make


def test_the_content_stage_trains_on_latents_alone(content_config, run_train, read_log, tmp_path):
    run_train(content_config("run"))
    assert len(read_log(tmp_path / "run", "train")) == 8


def test_latents_that_are_no_numbers_stop_a_run_and_are_named(content_config, run_train):
    with pytest.raises(ValueError, match=r"the loss is nan, of samples \d+ 'clip 5', which hold values that are not"):
        run_train(content_config("run", broken=5))


def test_a_run_encodes_its_clips_or_others(tiny_config, run_train, tmp_path):
    from cmd_video.training.encode import encode_run

    config = tiny_config("autoencoder", tmp_path / "run")
    run_train(config)

    def encode(name, count=5, **options):
        encode_run(tmp_path / "run", tmp_path / name, count, shard_size=2, **options)
        return LatentsDataset(tmp_path / name)

    own = encode("own")
    assert len(own) == 5 and own[0]["content_frame"].shape == (12, 8, 8)
    (tmp_path / "own" / "shard-00001.safetensors").unlink()
    before = (tmp_path / "own" / "shard-00000.safetensors").stat().st_mtime_ns
    assert len(encode("own")) == 5  # goes on
    assert (tmp_path / "own" / "shard-00000.safetensors").stat().st_mtime_ns == before
    pairs = encode("pairs", overrides=["data.pairs=1.0"])
    assert {item["prompt"] for item in (pairs[n] for n in range(5))} != {own[n]["prompt"] for n in range(5)}
    for change in ({"count": 6}, {"overrides": ["data.pairs=1.0"]}, {"split": "validation"}):
        with pytest.raises(ValueError, match="holds latents of another recipe"):
            encode("own", **change)
    with pytest.raises(ValueError, match="overrides: 'loop.steps=3': encoding uses the fields of `data`"):
        encode("new", overrides=["loop.steps=3"])
    assert not (tmp_path / "new").exists()


# --- what latents are of ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(tiny_config, run_train, tmp_path_factory):
    """A folder with clips, a run of an autoencoder on them, and their latents in shards of two."""
    from cmd_video.data.video_file import write_video
    from cmd_video.training.encode import encode_run

    root = tmp_path_factory.mktemp("encoded")
    (root / "clips").mkdir()
    for number in range(6):
        frames = np.random.default_rng(number).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
        write_video(frames, root / "clips" / f"{number}.mp4", fps=8)
        (root / "clips" / f"{number}.txt").write_text(f"old {number}")
    data = {"kind": "captioned_folder", "path": str(root / "clips"), "num_frames": 4, "height": 16, "width": 16}
    data["train"] = False
    run_train(tiny_config("autoencoder", root / "run", loop__steps=2, data=data, validation__data=data))
    encode_run(root / "run", root / "latents", 6, shard_size=2)

    return root


def change_a_clip(clips):
    (clips / "1.mp4").write_bytes((clips / "2.mp4").read_bytes())


def touch_a_clip(clips):
    os.utime(clips / "3.mp4", (1, 1))


def change_a_caption(clips):
    (clips / "4.txt").write_text("new")


def swap_a_clip(clips):
    for suffix in (".mp4", ".txt"):
        (clips / f"5{suffix}").rename(clips / f"7{suffix}")


@pytest.mark.parametrize("change", [change_a_clip, touch_a_clip, change_a_caption, swap_a_clip])
def test_latents_of_clips_that_changed_are_not_taken_for_new_ones(change, encoded):
    from cmd_video.training.encode import encode_run

    root = encoded
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (root / "clips").iterdir()}
    assert encode_run(root / "run", root / "latents", 6, shard_size=2) == 6  # as they are
    shards = {path: path.read_bytes() for path in (root / "latents").iterdir()}
    change(root / "clips")
    try:
        with pytest.raises(ValueError, match="latents: holds latents of these clips as they were; files, captions or"):
            encode_run(root / "run", root / "latents", 6, shard_size=2)
        assert {path: path.read_bytes() for path in (root / "latents").iterdir()} == shards
        assert encode_run(root / "run", root / f"new-{change.__name__}", 6, shard_size=2) == 6
    finally:
        for path in (root / "clips").iterdir():
            path.unlink()
        for path, (content, time) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(time, time))


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_latents_of_another_autoencoder_are_refused(name, encoded, tiny_config, tiny_components, run_train, tmp_path):
    root = encoded
    data = {"kind": "latents", "path": str(root / "latents")}
    config = tiny_config("motion", tmp_path / "run", data=data, validation__data=data, loop__steps=1)
    for part in ("autoencoder", "vae"):
        config["components"][part] = {"path": str(root / "run" / "pipeline")}
    config["validation"]["num_samples"] = 0
    run_train(config)
    other = tiny_components(name, seed=5)[name]
    if name == "vae":
        other.register_to_config(scaling_factor=1.0)
    other.save_pretrained(tmp_path / "other" / name)
    config["components"][name] = {"path": str(tmp_path / "other")}
    config["output_dir"] = str(tmp_path / "another")
    with pytest.raises(ValueError, match=rf"data\.path: .* holds latents of another {name} than components\.{name}"):
        run_train(config)
    assert not (tmp_path / "another").exists()


def test_what_an_earlier_version_said_of_the_autoencoder_is_read(encoded, tiny_config, tiny_components, tmp_path):
    """The sha256 of its files; and latents that say nothing are taken."""
    from cmd_video.training.config import TrainConfig
    from cmd_video.training.fit import check_latents

    root = encoded
    shutil.copytree(root / "latents", tmp_path / "latents")
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    tiny_components("autoencoder", seed=5)["autoencoder"].save_pretrained(tmp_path / "other" / "autoencoder")

    def check(recipe, folder):
        (tmp_path / "latents" / "index.json").write_text(json.dumps({**index, "recipe": recipe}))
        data = {"kind": "latents", "path": str(tmp_path / "latents")}
        config = tiny_config("motion", tmp_path / "run", data=data, validation__data=data)
        config["components"]["autoencoder"] = {"path": str(folder)}
        config = TrainConfig.model_validate(config)
        parts = tiny_components("motion_transformer") | {"autoencoder": None}
        check_latents(config, parts, config.data.open(), config.validation.data.open())

    old = {"autoencoder_sha256": index["recipe"]["autoencoder_sha256"]}
    check(old, root / "run" / "pipeline")
    check({}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds latents of another autoencoder"):
        check(old, tmp_path / "other")


def read_all(folder):
    """The items of a folder's first pass."""
    latents = LatentsDataset(folder)
    return [latents[number] for number in range(len(latents))]


# --- damage ----------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(bytes(content))


def cut_the_prompts(path):
    with safe_open(path, "pt") as shard:
        metadata = shard.metadata()
    save_file(load_file(path), path, metadata={**metadata, "prompts": json.dumps(["only one"])})


def reverse(path):
    with safe_open(path, "pt") as shard:
        metadata = shard.metadata()
    tensors = load_file(path)
    save_file({**tensors, "content_frame": tensors["content_frame"].flip(0).contiguous()}, path, metadata=metadata)


SHARD_DAMAGE = [
    truncate, flip_a_bit, cut_the_prompts, reverse,
    lambda path: path.write_bytes(b""), lambda path: path.unlink(), lambda path: path.write_bytes(b"\x80\x04N."),
]  # fmt: skip


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_a_damaged_shard_is_noticed_and_mended(damage, encoded, tmp_path):
    from cmd_video.training.encode import encode_run

    root = encoded
    path = root / "latents" / "shard-00001.safetensors"
    whole, others = read_shard(path), (root / "latents" / "shard-00000.safetensors").stat().st_mtime_ns
    tensors = {name: tensor.clone() for name, tensor in whole.tensors.items()}  # those lie in the file itself
    damage(path)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors: ") as caught:
        read_all(root / "latents")
    assert "\n" not in str(caught.value)
    assert encode_run(root / "run", root / "latents", 6, shard_size=2) == 6
    mended = read_shard(path)
    assert mended.prompts == whole.prompts
    assert all(torch.equal(mended.tensors[name], tensor) for name, tensor in tensors.items())
    assert (root / "latents" / "shard-00000.safetensors").stat().st_mtime_ns == others


def entry(number, clips=2):
    return {"file": f"shard-{number:05d}.safetensors", "clips": clips}


INDEXES = {
    "a list": ([], "not an index of latents"),
    "no shards": ({"clips": 0}, "not an index of latents"),
    "none of them": ({"clips": 0, "shards": []}, "no shards"),
    "a wrong total": ({"clips": 7, "shards": [entry(0), entry(1), entry(2)]}, "7 clips, its shards have 6"),
    "one twice": ({"clips": 6, "shards": [entry(0), entry(0), entry(1)]}, "'shard-00000.safetensors' at place 1"),
    "reversed": ({"clips": 6, "shards": [entry(2), entry(1), entry(0)]}, "'shard-00002.safetensors' at place 0"),
    "outside": ({"clips": 2, "shards": [{"file": "../shard-00000.safetensors", "clips": 2}]}, "at place 0, must be"),
    "absolute": ({"clips": 2, "shards": [{"file": "/etc/passwd", "clips": 2}]}, "at place 0, must be"),
    "a missing one": ({"clips": 8, "shards": [entry(0), entry(1), entry(2), entry(3)]}, "no such file"),
    "other counts": ({"clips": 6, "shards": [entry(0, 1), entry(1, 3), entry(2)]}, "holds 2 clips, index.json says 1"),
    "no number": ({"clips": None, "shards": [entry(0)]}, "not an index of latents"),
    "nested": ("[" * 20_000, "not an index of latents"),
    "not JSON": ("{", "not an index of latents"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_is_wrong(kind, encoded, tmp_path):
    root = encoded
    shutil.copytree(root / "latents", tmp_path / "latents")
    content, message = INDEXES[kind]
    (tmp_path / "latents" / "index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as caught:
        LatentsDataset(tmp_path / "latents")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def of_an_earlier_version(folder):
    """Make a folder what it would be: nothing says what shards hash to, or how large they are."""
    for path in folder.glob("shard-*"):
        with safe_open(path, "pt") as shard:
            prompts = shard.metadata()["prompts"]
        save_file(load_file(path), path, metadata={"prompts": prompts})
    index = json.loads((folder / "index.json").read_text())
    index["shards"] = [{"file": entry["file"], "clips": entry["clips"]} for entry in index["shards"]]
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def test_a_folder_of_an_earlier_version_is_read_and_stays_what_it_was(encoded, tmp_path):
    """Runs on it know their clips by what it says of them."""
    from cmd_video.training.encode import encode_run

    shutil.copytree(encoded / "latents", tmp_path / "latents")
    of_an_earlier_version(tmp_path / "latents")
    for one, other in zip(read_all(encoded / "latents"), read_all(tmp_path / "latents"), strict=True):
        assert torch.equal(one["content_frame"], other["content_frame"]) and one["prompt"] == other["prompt"]
    recipe = json.loads((tmp_path / "latents" / "recipe.json").read_text())
    described = [recipe, [f"old {number}" for number in range(6)], 6 * [-1]]
    assert LatentsDataset(tmp_path / "latents").described() == described
    encode_run(encoded / "run", tmp_path / "latents", 6, shard_size=2)
    assert LatentsDataset(tmp_path / "latents").described() == described
    assert LatentsDataset(encoded / "latents").described() != described


def test_a_small_set_is_encoded_several_times_at_other_places(tiny_config, run_train, tmp_path):
    from cmd_video.data.video_file import write_video
    from cmd_video.training.encode import encode_run

    (tmp_path / "clips").mkdir()
    for name in "ab":
        frames = np.random.default_rng(ord(name)).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        write_video(frames, tmp_path / "clips" / f"{name}.mp4", fps=8)
        (tmp_path / "clips" / f"{name}.txt").write_text(name)
    data = {"kind": "captioned_folder", "path": str(tmp_path / "clips"), "num_frames": 4, "height": 16, "width": 16}
    run_train(tiny_config("autoencoder", tmp_path / "run", data=data, validation__data={**data, "train": False}))
    assert encode_run(tmp_path / "run", tmp_path / "once", 100) == 2
    assert encode_run(tmp_path / "run", tmp_path / "latents", 100, passes=3) == 6
    latents = LatentsDataset(tmp_path / "latents")
    items = [latents[number] for number in range(6)]
    assert sorted(item["prompt"] for item in items) == ["a", "a", "a", "b", "b", "b"]
    assert len({item["content_frame"].sum().item() for item in items if item["prompt"] == "a"}) > 1
    with pytest.raises(ValueError, match="passes: 3, but these clips are the same in each pass"):
        encode_run(tmp_path / "run", tmp_path / "none", 100, "validation", passes=3)
