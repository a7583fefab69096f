"""Training on a machine that is lent for minutes: it stops in time, goes on, travels light, draws on the device."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cmd_video.training.light_checkpoint import pack_checkpoint, unpack_checkpoint


def test_a_run_that_always_runs_out_of_time_ends_like_one_that_does_not(tiny_config, run_train, differences, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_train(tiny_config("motion", whole))
    short = tiny_config("motion", parts, loop__max_minutes=1e-9)
    for step in range(1, 9):  # one step each
        assert run_train(short) == parts / "pipeline"
        assert (parts / "checkpoints" / f"step-{step:08d}").is_dir()
        assert (parts / "pipeline" / "motion_transformer" / "config.json").is_file()
    assert differences(whole, parts) == []


def test_time_that_is_not_up_changes_nothing(tiny_config, run_train, differences, tmp_path):
    for name, minutes in (("without", None), ("with", 60.0)):
        run_train(tiny_config("autoencoder", tmp_path / name, loop__max_minutes=minutes))
    assert differences(tmp_path / "without", tmp_path / "with") == []


def test_two_processes_run_out_of_time_together(tiny_config, forked_train, tmp_path):
    config = tiny_config("motion", tmp_path / "two", loop__max_minutes=1e-9)
    assert forked_train(config, processes=2).codes == [0, 0]
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_scenes_drawn_on_the_device_train_like_scenes_that_are_loaded(
    stage, tiny_config, run_train, assert_close_logs, tmp_path
):
    for place in ("loader", "device"):
        run_train(tiny_config(stage, tmp_path / place, data__render=place))
    assert_close_logs(tmp_path / "loader", tmp_path / "device")


def test_an_older_run_goes_on_under_a_newer_configuration(tiny_config, run_train, tmp_path):
    """Fields of the data that it does not know have their defaults."""
    config = tiny_config("image", tmp_path / "run")
    run_train(config | {"loop": config["loop"] | {"max_minutes": 1e-9}})
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    del old["data"]["render"]
    path.write_text(json.dumps(old))
    run_train(config)
    old["data"]["pairs"] = 0.5
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="another data"):
        run_train(config)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "content", "motion"])
def test_compiled_networks_learn_the_same(stage, tiny_config, run_train, assert_close_logs, tmp_path):
    for compiled in (False, True):
        run_train(tiny_config(stage, tmp_path / str(compiled), loop__compile=compiled))
    assert_close_logs(tmp_path / "False", tmp_path / "True")


@pytest.fixture
def packed(tiny_config, run_train, tmp_path):
    """A finished tiny run, and its weights in shards of 20 kB."""
    run_train(tiny_config("motion", tmp_path / "run"))
    return tmp_path / "run", pack_checkpoint(tmp_path / "run" / "checkpoints", tmp_path / "home", shard_bytes=20_000)


def test_shards_are_small_and_hold_the_averaged_weights(packed):
    run, files = packed
    assert len(files) > 3 and files[-1].name == "weights.json"
    assert all(path.stat().st_size <= 20_000 for path in files[:-1])
    averaged = load_file(run / "checkpoints" / "step-00000008" / "ema.safetensors")
    found = {name: value for path in files[:-1] for name, value in load_file(path).items()}
    assert all(torch.equal(found[name], value.half()) for name, value in averaged.items())


def test_training_goes_on_from_light_weights(packed, tiny_config, run_train, read_log, tmp_path):
    run, files = packed
    assert unpack_checkpoint(files[0].parent, tmp_path / "next" / "checkpoints") == 8
    run_train(tiny_config("motion", tmp_path / "next", loop__steps=12))
    steps = [line["step"] for line in read_log(tmp_path / "next", "train")]
    assert steps and min(steps) > 8 and max(steps) == 12
    before, after = (load_file(path / "pipeline/motion_transformer/diffusion_pytorch_model.safetensors")
                     for path in (run, tmp_path / "next"))  # fmt: skip
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all((before[name] - after[name]).abs().max() < 0.1 for name in before)


def test_a_finished_run_can_be_exported_again_from_light_weights(packed, tiny_config, run_train, tmp_path):
    run, files = packed
    unpack_checkpoint(files[0].parent, tmp_path / "again" / "checkpoints")
    run_train(tiny_config("motion", tmp_path / "again"))
    first, second = (load_file(path / "pipeline/motion_transformer/diffusion_pytorch_model.safetensors")
                     for path in (run, tmp_path / "again"))  # fmt: skip
    assert all(torch.equal(first[name].half().float(), second[name]) for name in first)


def test_what_does_not_fit_is_said(packed, tmp_path):
    run, files = packed
    with pytest.raises(ValueError, match="shard_bytes: 1000 are too few for"):
        pack_checkpoint(run / "checkpoints", tmp_path / "other", shard_bytes=1000)
    with pytest.raises(ValueError, match="total_bytes: 5000 are too few for"):
        pack_checkpoint(run / "checkpoints", tmp_path / "other", total_bytes=5000)
    assert not list(tmp_path.glob("other*"))
    with pytest.raises(ValueError, match="no whole checkpoint"):
        pack_checkpoint(tmp_path / "nowhere", tmp_path / "other")
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"weights-00001\.safetensors is missing or damaged"):
        unpack_checkpoint(files[0].parent, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"no weights\.json"):
        unpack_checkpoint(tmp_path / "nowhere", tmp_path / "broken")
