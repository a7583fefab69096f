"""Precomputed latents: the same loss as running the autoencoder on the fly, written once, drawn in passes."""

import numpy as np
import pytest
import torch

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


def test_the_content_stage_trains_on_latents_alone(tiny_config, run_train, read_log, tmp_path):
    prompts = [f"clip {number}" for number in range(8)]
    draw = torch.Generator().manual_seed(0)
    frames, planes = torch.randn(8, 12, 8, 8, generator=draw), torch.randn(8, 4, 4, 8, generator=draw)
    batch = {"content_frame": frames, "motion_latents": planes, "prompt": prompts, "class_label": torch.zeros(8)}
    write_latents(tmp_path / "latents", [batch], {})
    data = {"kind": "latents", "path": str(tmp_path / "latents")}
    config = tiny_config("content", tmp_path / "run", data=data, validation__data=data)
    del config["components"]["autoencoder"]
    run_train(config)
    assert len(read_log(tmp_path / "run", "train")) == 8


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
