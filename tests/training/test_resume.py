"""A run that was killed, stopped or spread over processes is the same run: to the last bit on one CPU process."""

import random
import shutil
import signal

import pytest
import torch
from diffusers.training_utils import EMAModel

from cmd_video.training import loop
from cmd_video.training.data import StepSampler

STAGES = {  # with a variation each
    "autoencoder": {"objective__motion_latents_noise": 0.1, "loop__keep_last": 1},
    "image": {"loop__checkpoint_every": 3},
    "content": {"loop__gradient_accumulation_steps": 2, "components__unet__config__dropout": 0.2},
    "motion": {"objective__content_frame_noise": 0.1, "loop__log_every": 3},
}
KILLS = ("cpu", "write", "cpu", "file", "cpu", "write", "cpu")


def kill_request(kind: str, rng: random.Random, cpu: float, writes: int) -> dict[str, float]:
    """A moment to die: any, or while a checkpoint is written."""
    if kind == "cpu":
        return {"kill_after_cpu": rng.uniform(0.1, 0.9) * cpu}
    if kind == "write":
        return {"kill_at_write": rng.randrange(1, writes // 2)}
    return {"kill_in_file": rng.randrange(1, 4)}


@pytest.mark.parametrize("kills", [7, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_runs_end_like_one_that_was_not(stage, kills, tiny_config, forked_train, differences, tmp_path):
    rng = random.Random(stage)
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    whole = forked_train(tiny_config(stage, reference, **STAGES[stage]))
    assert whole.codes == [0] and whole.writes > 40
    config = tiny_config(stage, killed, **STAGES[stage])
    hits = attempts = in_save = 0
    while hits < kills and attempts < 4 * kills:
        trial = forked_train(config, **kill_request(KILLS[hits % len(KILLS)], rng, whole.cpu, whole.writes))
        attempts += 1
        if trial.codes == [-signal.SIGKILL]:
            hits += 1
            in_save += trial.in_save
        else:  # it was done before the kill came: start over
            assert trial.codes == [0] and differences(reference, killed) == []
            shutil.rmtree(killed)
        if trial.codes != [0] and hits % len(KILLS) == 0:  # so many kills leave no step to do
            assert forked_train(config).codes == [0] and differences(reference, killed) == []
            shutil.rmtree(killed)
    print(f"{stage}: kills that hit / attempted: {hits} / {attempts}, while saving: {in_save}")
    assert hits == kills and in_save >= 2 * kills // 7
    assert forked_train(config).codes == [0]
    assert differences(reference, killed) == []
    assert not [path for path in killed.rglob("*") if "tmp" in path.name]


@pytest.mark.parametrize("part", ["data", "ema", "optimizer"])
def test_the_comparison_notices_a_resume_that_forgets(part, tiny_config, forked_train, differences, tmp_path):
    whole = forked_train(tiny_config("motion", tmp_path / "reference"))
    config = tiny_config("motion", tmp_path / "killed")
    assert forked_train(config, kill_at_write=whole.writes * 3 // 5).codes == [-signal.SIGKILL]
    assert forked_train(config, forget=part).codes == [0]
    assert differences(tmp_path / "reference", tmp_path / "killed")


def test_the_comparison_notices_checkpoints_that_are_written_in_place(
    tiny_config, forked_train, differences, tmp_path
):
    """As the ones of many trainers are: a kill in the second one takes the first with it."""
    assert forked_train(tiny_config("motion", tmp_path / "reference")).codes == [0]
    config = tiny_config("motion", tmp_path / "killed")
    assert forked_train(config, kill_in_file=5, forget="overwrite").codes == [-signal.SIGKILL]
    assert forked_train(config, forget="overwrite").codes != [0] or differences(
        tmp_path / "reference", tmp_path / "killed"
    )


SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_saves_and_leaves(number, code, tiny_config, forked_train, differences, tmp_path):
    changes = {"loop__log_every": 3, "loop__checkpoint_every": 4}
    assert forked_train(tiny_config("motion", tmp_path / "reference", **changes)).codes == [0]
    config = tiny_config("motion", tmp_path / "stopped", **changes)
    assert forked_train(config, signal=[number, 4]).codes == [code]
    steps = sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert steps == ["step-00000004", "step-00000005"]
    assert forked_train(config).codes == [0]
    assert differences(tmp_path / "reference", tmp_path / "stopped") == []


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        ({"signal_during": ["save"]}, [4, 5]),  # heard after the step that follows
        ({"signal_during": ["validation"]}, [4]),
        pytest.param({"signal_during": ["validation", "save"]}, [4], marks=pytest.mark.slow),
        pytest.param({"signal": [signal.SIGINT, 2], "signal_during": ["save"]}, [3], marks=pytest.mark.slow),
    ],
    ids=["in a save", "in a validation", "in both", "another one, and again in the save"],
)
def test_a_signal_does_no_harm_wherever_it_comes(when, steps, tiny_config, forked_train, differences, tmp_path):
    changes = {"loop__checkpoint_every": 4}
    assert forked_train(tiny_config("motion", tmp_path / "reference", **changes)).codes == [0]
    config = tiny_config("motion", tmp_path / "stopped", **changes)
    assert forked_train(config, **when).codes in ([143], [130])
    found = sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert found == [f"step-{step:08d}" for step in steps]
    assert forked_train(config).codes == [0]
    assert differences(tmp_path / "reference", tmp_path / "stopped") == []


def test_a_closed_terminal_is_nothing_to_a_run_under_nohup():
    from cmd_video.training.stopping import StopRequest

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        stop.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_the_whole_group_leaves_the_loading_processes_alone(
    tiny_config, forked_train, differences, tmp_path
):
    assert forked_train(tiny_config("autoencoder", tmp_path / "reference")).codes == [0]
    config = tiny_config("autoencoder", tmp_path / "stopped", loop__num_workers=2)
    assert forked_train(config, signal=[signal.SIGTERM, 4], signal_group=True).codes == [143]
    assert (tmp_path / "stopped" / "checkpoints" / "step-00000005").is_dir()
    assert forked_train(config).codes == [0]
    assert differences(tmp_path / "reference", tmp_path / "stopped") == []


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_two_processes_equal_one(stage, tiny_config, forked_train, assert_close_logs, tmp_path):
    assert forked_train(tiny_config(stage, tmp_path / "one")).codes == [0]
    assert forked_train(tiny_config(stage, tmp_path / "two"), processes=2).codes == [0, 0]
    assert_close_logs(tmp_path / "one", tmp_path / "two")


def test_two_processes_take_the_same_turns_as_one(tiny_config, forked_train, assert_close_logs, tmp_path):
    """Student and fake score learn by turns: in each step some weights have no gradient."""
    settings = {"kind": "distribution_matching", "num_timesteps": 10, "num_segments": 2, "starts": [999, 699]}
    changes = {"objective": settings, "validation__num_inference_steps": 2}
    assert forked_train(tiny_config("motion", tmp_path / "one", **changes)).codes == [0]
    assert forked_train(tiny_config("motion", tmp_path / "two", **changes), processes=2).codes == [0, 0]
    assert_close_logs(tmp_path / "one", tmp_path / "two")


def test_parts_of_the_loss_are_means_over_micro_batches_and_processes(tiny_config, forked_train, read_log, tmp_path):
    """As the loss is: task, content and adversarial of a recovery come out alike however a batch is dealt out."""
    config = tiny_config("content", tmp_path / "one", loop__steps=2, validation__num_samples=0)
    unet = config["components"]["unet"]
    config["components"]["teacher"] = unet
    config["objective"] = {"kind": "vdmini_recovery", "r1_weight": 0.0}
    assert forked_train(config).codes == [0]
    config["output_dir"] = str(tmp_path / "two")
    assert forked_train(config, processes=2).codes == [0, 0]
    config["output_dir"] = str(tmp_path / "parts")
    config["loop"]["gradient_accumulation_steps"] = 4
    assert forked_train(config).codes == [0]
    one = read_log(tmp_path / "one", "train")
    assert {"task", "content", "adversarial"} <= one[0].keys() and "discriminator" in one[1]
    for other in ("two", "parts"):
        for line, twin in zip(one, read_log(tmp_path / other, "train"), strict=True):
            assert {**line, "kind": 0} == pytest.approx({**twin, "kind": 0}, rel=1e-3, abs=1e-6)


def test_layers_that_draw_by_themselves_draw_otherwise_in_each_process_and_step():
    seeds = [loop.seed_of_layers(seed, step, rank) for seed in (0, 3) for step in range(50) for rank in range(4)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)  # of a seed torch's CPU generator takes 32 bits
    assert loop.seed_of_layers(3, 7, 0) == 3 * 1_000_003 + 7  # runs of one process stay what they were


@pytest.mark.parametrize("what", ["killed", "stopped"])
def test_a_process_that_is_lost_does_not_keep_the_other_waiting(what, tiny_config, forked_train, tmp_path):
    number = signal.SIGKILL if what == "killed" else signal.SIGSTOP
    config = tiny_config("autoencoder", tmp_path / "run", loop__timeout_s=5)
    codes = forked_train(config, processes=2, signal=[number, 3], signal_rank=1, end_with_the_first=True).codes
    assert codes == [2, -signal.SIGKILL]


@pytest.mark.slow
def test_a_signal_to_one_process_in_a_save_is_heard_by_both(tiny_config, forked_train, assert_close_logs, tmp_path):
    """The other one is a step ahead by then: they leave together, after the step that follows."""
    assert forked_train(tiny_config("motion", tmp_path / "one")).codes == [0]
    config = tiny_config("motion", tmp_path / "two", loop__timeout_s=20)
    assert forked_train(config, processes=2, signal_during=["save"]).codes == [143, 143]
    assert forked_train(config, processes=2).codes == [0, 0]
    assert_close_logs(tmp_path / "one", tmp_path / "two")


def test_all_processes_refuse_what_the_first_one_refuses(tiny_config, forked_train, tmp_path):
    assert forked_train(tiny_config("autoencoder", tmp_path / "run", loop__steps=2), processes=2).codes == [0, 0]
    config = tiny_config("autoencoder", tmp_path / "run", data__seed=5)
    assert forked_train(config, processes=2).codes == [2, 2]


def test_two_processes_leave_together_and_one_goes_on(tiny_config, forked_train, assert_close_logs, tmp_path):
    assert forked_train(tiny_config("motion", tmp_path / "one")).codes == [0]
    config = tiny_config("motion", tmp_path / "two")
    stopped = forked_train(config, processes=2, signal=[signal.SIGTERM, 4], signal_rank=1)
    assert stopped.codes == [143, 143]
    assert (tmp_path / "two" / "checkpoints" / "step-00000005").is_dir()
    assert forked_train(config).codes == [0]
    assert_close_logs(tmp_path / "one", tmp_path / "two")


def test_accumulation_changes_nothing(tiny_config, run_train, assert_close_logs, tmp_path):
    for parts in (1, 4):
        run_train(tiny_config("autoencoder", tmp_path / str(parts), loop__gradient_accumulation_steps=parts))
    assert_close_logs(tmp_path / "1", tmp_path / "4")


def test_loading_processes_change_nothing(tiny_config, run_train, differences, tmp_path):
    for workers in (0, 2):
        run_train(tiny_config("autoencoder", tmp_path / str(workers), loop__num_workers=workers))
    assert differences(tmp_path / "0", tmp_path / "2") == []


def test_data_order_after_a_resume():
    whole = list(StepSampler(0, 6, batch_size=12, micro_batches=3, rank=0, world=1))
    assert [number for batch in whole for number in batch] == list(range(72))
    assert list(StepSampler(4, 6, 12, 3, rank=0, world=1)) == whole[4 * 3 :]
    shares = [list(StepSampler(2, 6, 12, 3, rank=rank, world=2)) for rank in range(2)]
    assert [sorted(one + two) for one, two in zip(*shares, strict=True)] == whole[2 * 3 :]
    assert len(StepSampler(2, 6, 12, 3, rank=0, world=2)) == len(shares[0]) == 12


def test_weights_come_back_when_validation_fails(build_tiny, monkeypatch):
    stage, dataset = build_tiny("autoencoder")
    ema = EMAModel(stage.parameters(), decay=0.9)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(1.0)
    raw = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    seen = []

    def broken(batch):
        seen.append(next(stage.parameters()).clone())
        raise RuntimeError("no")

    monkeypatch.setattr(stage, "validate", broken)
    stage.train()
    with pytest.raises(RuntimeError, match="no"):
        loop._validate(stage, ema, loop.fixed_batches(dataset, 2, 2), None, 1, stage.config)
    assert not torch.equal(seen[0], raw["autoencoder.patch_embed.weight"])  # the averaged weights were in
    assert all(torch.equal(tensor, raw[name]) for name, tensor in stage.state_dict().items())
    assert stage.training


def test_validation_does_not_change_training(tiny_config, run_train, read_log, tmp_path):
    for every in (1, 8):
        run_train(tiny_config("image", tmp_path / str(every), loop__validate_every=every))
    assert read_log(tmp_path / "1", "train") == read_log(tmp_path / "8", "train")


def test_signals_and_log_are_given_back(tiny_config, run_train, monkeypatch, tmp_path):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    logs = []

    def broken(stage, ema, held_out, log, *args):
        logs.append(log)
        assert log.progress.live.is_started
        raise RuntimeError("no")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(loop, "_validate", broken)
        run_train(tiny_config("autoencoder", tmp_path / "run", loop__validate_every=1))
    assert not logs[0].progress.live.is_started
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    run_train(tiny_config("autoencoder", tmp_path / "run"))  # a second progress bar in this process
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
