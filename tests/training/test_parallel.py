"""Sharded over processes a run is the same run: weights, averages, losses, checkpoints that any other one resumes."""

import re
import signal
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from cmd_video.models import CMDAutoencoder
from cmd_video.training.checkpoint import name_torn
from cmd_video.training.config import TrainConfig

SMALL = {"loop__steps": 10, "loop__validate_every": 5, "loop__checkpoint_every": 5, "loop__keep_last": 3}
TWO = {"shard": 2}
# before a softmax, and where two scores of opposite sign add up: their gradient is nothing but rounding
NOTHING_TO_LEARN = re.compile(r".*(content_logits|to_qkv|k_proj|_heads\.\d+\.conv_out)\.bias")


def saved(run, step=10):
    """The tensors of a checkpoint: "model/NAME" and so on."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    }
    return {
        f"{stem}/{name}": value
        for stem in ("model", "ema", "optimizer")
        for name, value in load_file(folder / f"{stem}.safetensors").items()
    }


def assert_close(one, two, step=10, tolerance=1e-6):
    """Weights and averages of two runs, but for those whose gradient is nothing but rounding, which Adam enlarges."""
    one, two = saved(one, step), saved(two, step)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    learned = [name for name in one if name.startswith(("model/", "ema/")) and not NOTHING_TO_LEARN.fullmatch(name)]
    for name in one:
        assert not name.endswith(".step") or one[name] == two[name]
    farthest = max(learned, key=lambda name: (one[name] - two[name]).abs().max())
    torch.testing.assert_close(one[farthest], two[farthest], atol=tolerance, rtol=0, msg=lambda text: farthest + text)


@pytest.fixture
def same(forked_train, read_log, tmp_path):
    """`same(config, 4, {...})`: a plain run and one of so many processes that share the weights end alike."""

    def check(config, processes=2, parallel=TWO, plain=1, rel=1e-4):
        for name, number, layout in (("plain", plain, None), ("shared", processes, parallel)):
            loop = {**config["loop"], "parallel": layout}
            run = forked_train({**config, "output_dir": str(tmp_path / name), "loop": loop}, processes=number)
            assert run.codes == [0] * number
        for kind in ("train", "validation"):
            lines = zip(*(read_log(tmp_path / name, kind) for name in ("plain", "shared")), strict=True)
            for line, twin in lines:
                del line["kind"], twin["kind"]
                assert line == pytest.approx(twin, rel=rel, abs=rel / 100)
        assert_close(tmp_path / "plain", tmp_path / "shared", config["loop"]["steps"])

    return check


def test_an_autoencoder_over_two_processes_is_that_of_one(tiny_config, same, read_log, tmp_path):
    same(tiny_config("autoencoder", tmp_path, loop__steps=3, loop__checkpoint_every=3, loop__validate_every=3))
    (remark,) = read_log(tmp_path / "shared", "remark")
    own, every = map(int, re.findall(r"holds (\d+) of (\d+)", remark["text"])[0])
    assert 0.5 <= own / every < 0.52
    autoencoder = CMDAutoencoder.from_pretrained(tmp_path / "shared" / "pipeline" / "autoencoder")
    averages = saved(tmp_path / "shared", 3)
    for name, value in autoencoder.named_parameters():
        assert torch.equal(value, averages[f"ema/autoencoder.{name}"])
    assert not list((tmp_path / "shared").rglob("*.distcp")) and not list((tmp_path / "shared").rglob("*.metadata"))


STEPS = {"kind": "distribution_matching", "num_timesteps": 10, "num_segments": 2, "starts": [999, 699]}
RECOVERY = {"kind": "vdmini_recovery", "discriminator_lr_scale": 1.0}
RUNS = {  # stage, what differs; where many gradients are small, steps are those of fine-tuning: Adam enlarges rounding
    "autoencoder": ("autoencoder", {}),
    "image": ("image", {"optimizer__lr": 1e-5}),
    "content": ("content", {"optimizer__lr": 1e-5, "loop__gradient_accumulation_steps": 2}),
    "motion": ("motion", {}),
    "motion, computed again": ("motion", {"loop__gradient_checkpointing": True}),
    "consistency": ("motion", {"objective": {**STEPS, "kind": "consistency"}}),
    "distribution matching": ("motion", {"objective": {**STEPS, "fake_score_steps": 2}}),
    "recovery": ("motion", {"objective": RECOVERY, "optimizer__lr": 1e-5}),
    "recovery of a UNet": ("content", {"objective": RECOVERY, "optimizer__lr": 1e-5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_that_share_the_weights_equal_one(name, tiny_config, tiny_components, same, tmp_path):
    stage, changes = RUNS[name]
    config = tiny_config(stage, tmp_path, **{**SMALL, "validation__num_inference_steps": 2, **changes})
    if config["objective"].get("kind") == "vdmini_recovery":
        network = {"content": "unet", "motion": "motion_transformer"}[stage]
        teacher = tiny_components(network)[network]
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in teacher.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        teacher.save_pretrained(tmp_path / "teacher")
        config["components"]["teacher"] = {"path": str(tmp_path / "teacher")}
    same(config, rel=2e-3 if "recovery" in name else 1e-4)  # the discriminator's last bias stands in its loss


@pytest.mark.slow
def test_two_copies_in_two_parts_each_are_four_whole_ones(tiny_config, same, tmp_path):
    changes = {"loop__batch_size": 8, "loop__gradient_accumulation_steps": 2}
    config = tiny_config("motion", tmp_path, **{**SMALL, **changes})
    same(config, processes=4, parallel={"shard": 2, "replicate": 2}, plain=4)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "objective"), [("autoencoder", {}), ("motion", {}), ("motion", RECOVERY)])
def test_half_precision_is_that_of_whole_copies(stage, objective, tiny_config, forked_train, read_log, tmp_path):
    for name, layout in (("whole", None), ("shared", TWO)):
        changes = {**SMALL, "objective": objective, "loop__precision": "bf16", "loop__parallel": layout}
        config = tiny_config(stage, tmp_path / name, **changes, optimizer__lr=1e-5)
        if objective:
            config["components"]["teacher"] = config["components"]["motion_transformer"]
        assert forked_train(config, processes=2).codes == [0, 0]
    whole, shared = ([line["loss"] for line in read_log(tmp_path / name, "train")] for name in ("whole", "shared"))
    assert shared == pytest.approx(whole, rel=2e-2)


@pytest.mark.slow
def test_a_run_goes_on_shared_or_not(tiny_config, forked_train, tmp_path):
    """Five steps shared and five alone, the other way round, and shared both times, are ten alone."""
    config = tiny_config("motion", tmp_path / "one", **SMALL)
    config["optimizer"] = {**config["optimizer"], "schedule": "constant"}
    assert forked_train(config).codes == [0]
    for name, first, then in (("21", 2, 1), ("12", 1, 2), ("22", 2, 2)):
        for steps, number in ((5, first), (10, then)):
            loop = {**config["loop"], "steps": steps, "parallel": TWO if number == 2 else None}
            run = {**config, "output_dir": str(tmp_path / name), "loop": loop}
            assert forked_train(run, processes=number).codes == [0] * number
        assert_close(tmp_path / "one", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_while_saving_costs_that_checkpoint_alone(rank, tiny_config, forked_train, tmp_path):
    changes = {"loop__parallel": TWO, "loop__timeout_s": 20, "loop__steps": 6, "loop__checkpoint_every": 2}
    changes |= {"loop__validate_every": 6}
    assert forked_train(tiny_config("autoencoder", tmp_path / "whole", **changes), processes=2).codes == [0, 0]
    config = tiny_config("autoencoder", tmp_path / "run", **changes)
    codes = forked_train(config, processes=2, kill_in_parts=[rank, 2]).codes
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 2
    checkpoints = tmp_path / "run" / "checkpoints"
    torn = [path.name for path in checkpoints.iterdir() if path.name != "step-00000002"]
    assert len(torn) == (rank == 0)  # the first process removes what it began, if it lives
    with pytest.warns(UserWarning, match="not written to its end") if torn else nullcontext():
        name_torn(checkpoints)
    assert forked_train(config, processes=2).codes == [0, 0]
    for stem in ("model", "ema", "optimizer"):
        whole, run = (
            load_file(tmp_path / name / "checkpoints" / "step-00000006" / f"{stem}.safetensors")
            for name in ("whole", "run")
        )
        assert whole.keys() == run.keys() and all(torch.equal(whole[name], run[name]) for name in whole)
    assert not [path for path in checkpoints.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("way", ["tensor", "pipeline", "context"])
def test_other_ways_to_divide_a_model_are_refused_with_the_reason(way, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=rf"{way}: not here; CMD's sequences are short .*sharded data parallel"):
        TrainConfig.model_validate(tiny_config("motion", tmp_path, loop__parallel={"shard": 2, way: 2}))


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("motion", {"loop__compile": True}, "loop.parallel: not together with loop.compile"),
        ("content", {"edit": {"kind": "lora", "rank": 2}}, "loop.parallel: not together with edit.kind 'lora'"),
        ("motion", {"objective": {**STEPS, "kind": "backward"}}, "objective.kind 'backward', whose number of passes"),
        ("classifier", {}, "loop.parallel: not for the stage 'classifier'"),
    ],
)
def test_what_cannot_be_shared_is_refused(stage, changes, message, tiny_config, tmp_path):
    changes = {"loop__parallel": TWO, "validation__num_inference_steps": 2, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.model_validate(tiny_config(stage, tmp_path, **changes))


def test_the_number_of_processes_must_be_theirs(tiny_config, run_train, tmp_path):
    config = tiny_config("autoencoder", tmp_path / "run", loop__parallel={"shard": 2, "replicate": 2})
    with pytest.raises(
        ValueError, match=r"loop\.parallel: shard 2 x replicate 2 = 4, but the number of processes is 1"
    ):
        run_train(config)
    assert not (tmp_path / "run").exists()
