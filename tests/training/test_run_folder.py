"""A run's folder: one process at a time, the same run when it goes on, and what changed is said and kept."""

import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmd_video.sprites.scenes import SpritesDataset
from cmd_video.training.checkpoint import load_latest
from cmd_video.training.run_folder import locked

# --- one process at a time -------------------------------------------------------------------------------------------


def test_a_second_process_is_kept_out_while_the_first_is_there(tmp_path):
    run = tmp_path / "a" / "run"
    script = "import sys; from pathlib import Path; from cmd_video.training.run_folder import locked\n"
    script += "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=rf"output_dir: {run} is in use by process {other.pid} on "), locked(run):
        pass
    other.kill()  # -9: what it leaves holds nobody up
    other.wait()
    assert (run / ".lock").is_file()
    with locked(run), pytest.raises(ValueError, match="is in use by"), locked(run):
        pass
    assert list(run.iterdir()) == []


def test_a_lock_that_was_removed_in_between_is_none(tmp_path, monkeypatch):
    """The one before removes its file while it holds it: who opened it before that must look again."""
    flock, calls = fcntl.flock, []

    def removed_first(descriptor, how):
        flock(descriptor, how)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / ".lock").is_file()


def test_a_fork_does_not_keep_the_lock(tmp_path):
    read, write = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # as long as the parent lives
            os._exit(0)
    with locked(tmp_path):
        pass
    os.close(write)
    os.waitpid(child, 0)


def test_a_run_leaves_no_lock_and_refuses_to_join_another(tiny_config, run_train, tmp_path):
    config = tiny_config("autoencoder", tmp_path / "run", loop__steps=2)
    with locked(tmp_path / "run"):
        before = sorted((tmp_path / "run").rglob("*"))
        with pytest.raises(ValueError, match="is in use by"):
            run_train(config)
        assert sorted((tmp_path / "run").rglob("*")) == before
    run_train(config)
    assert not (tmp_path / "run" / ".lock").exists()


# --- the same run ----------------------------------------------------------------------------------------------------

REFUSED = [
    ("seed", 4, "seed (3, now 4)"),
    ("data__seed", 1, "data.seed (0, now 1)"),
    ("data__length", 25, "data.length (24, now 25)"),
    ("data__pairs", 0.5, "data.pairs (0.25, now 0.5)"),
    ("data__split", "held_out", "data.split ('train', now 'held_out')"),
    ("objective__reconstruction", "l1", "objective.reconstruction ('l2', now 'l1')"),
    ("objective__anchor_weight", 0.5, "objective.anchor_weight (0.0, now 0.5)"),
    ("components__autoencoder__config__decoder_depth", 2, "components.autoencoder.config.decoder_depth (1, now 2)"),
    ("components__vae__config__scaling_factor", 1.5, "components.vae.config.scaling_factor (2.0, now 1.5)"),
]
SAID = [
    ("optimizer__lr", 1e-3, "optimizer.lr: 0.002 -> 0.001"),
    ("optimizer__betas", [0.5, 0.9], "optimizer.betas: [0.9, 0.999] -> [0.5, 0.9]"),
    ("optimizer__max_grad_norm", None, "optimizer.max_grad_norm: 1.0 -> None"),
    ("loop__steps", 9, "loop.steps: 8 -> 9"),
    ("loop__batch_size", 8, "loop.batch_size: 4 -> 8"),
    ("loop__ema_decay", 0.5, "loop.ema_decay: 0.9 -> 0.5"),
    ("loop__precision", "bf16", "loop.precision: 'fp32' -> 'bf16'"),
    ("loop__gradient_accumulation_steps", 2, "loop.gradient_accumulation_steps: 1 -> 2"),
    ("validation__num_clips", 2, "validation.num_clips: 4 -> 2"),
    ("validation__data__length", 3, "validation.data.length: 4 -> 3"),
]


@pytest.fixture(scope="module")
def begun(tiny_config, run_train, tmp_path_factory):
    """A copy of a run of 8 steps that ran out of time after one."""
    import shutil

    run = tmp_path_factory.mktemp("begun") / "run"
    run_train(tiny_config("autoencoder", run, loop__max_minutes=1e-9))

    def copy(target: Path) -> Path:
        shutil.copytree(run, target)
        return target

    return copy


@pytest.mark.parametrize(("field", "value", "said"), REFUSED, ids=[field for field, *_ in REFUSED])
def test_what_decides_what_is_learned_cannot_change(field, value, said, begun, tiny_config, run_train, tmp_path):
    run = begun(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as caught:
        run_train(tiny_config("autoencoder", run, **{field: value}))
    assert f"output_dir: {run} belongs to a run with another {said}; choose a new folder" == str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("field", "value", "said"), SAID, ids=[field for field, *_ in SAID])
def test_what_may_change_is_said_and_kept(
    field, value, said, begun, tiny_config, run_train, caplog, read_log, tmp_path
):
    run = begun(tmp_path / "run")
    before = (run / "config.json").read_text()
    with caplog.at_level(logging.WARNING):
        run_train(tiny_config("autoencoder", run, loop__max_minutes=1e-9, **{field: value}))
    assert f"{run} goes on from step 1 with another {said}" in caplog.messages
    assert (run / "config-00000001.json").read_text() == before
    assert json.loads((run / "config.json").read_text()) != json.loads(before)
    (line,) = read_log(run, "changed")
    assert line == {"step": 1, "kind": "changed", "changes": [said]}


def test_nothing_is_said_of_a_run_that_goes_on_as_it_was(begun, tiny_config, run_train, caplog, tmp_path):
    run = begun(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        run_train(tiny_config("autoencoder", run, loop__max_minutes=1e-9))
    assert not [message for message in caplog.messages if "goes on from" in message]
    assert not list(run.glob("config-*.json"))


def test_fewer_steps_than_are_done_are_refused(begun, tiny_config, run_train, tmp_path):
    run = begun(tmp_path / "run")
    run_train(tiny_config("autoencoder", run, loop__steps=3))
    with pytest.raises(ValueError, match=r"^loop\.steps: 2, but .* has done 3; allowed: that or more$"):
        run_train(tiny_config("autoencoder", run, loop__steps=2))


# --- the samples -----------------------------------------------------------------------------------------------------


def drawn(monkeypatch) -> list[int]:
    numbers, get = [], SpritesDataset.__getitem__

    def watched(self, number):
        if self.split == "train":
            numbers.append(number)
        return get(self, number)

    monkeypatch.setattr(SpritesDataset, "__getitem__", watched)
    return numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"loop__batch_size": 2},
        {"loop__batch_size": 8},
        {"loop__batch_size": 6, "loop__gradient_accumulation_steps": 3},
        {"loop__gradient_accumulation_steps": 2},
        {"loop__num_workers": 0, "loop__precision": "bf16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("count_kept", [True, False])
def test_a_run_goes_on_behind_the_last_sample(
    changes, count_kept, begun, tiny_config, run_train, monkeypatch, tmp_path
):
    """Also from a checkpoint of before samples were counted: the configuration of then says how many there were."""
    run = begun(tmp_path / "run")
    if not count_kept:
        forget(run, "samples", "digests")
    numbers = drawn(monkeypatch)
    config = tiny_config("autoencoder", run, loop__steps=3, **changes)
    run_train(config)
    size = config["loop"]["batch_size"]
    assert numbers[: 2 * size] == list(range(4, 4 + 2 * size))  # behind them the clips for statistics
    assert load_latest(run / "checkpoints")[2]["samples"] == 4 + 2 * size
    config = tiny_config("autoencoder", run, loop__steps=4)
    del numbers[:]
    run_train(config)
    assert numbers[:4] == list(range(4 + 2 * size, 8 + 2 * size))


def forget(run: Path, *names: str) -> None:
    """Make a run's newest checkpoint one that an earlier version wrote."""
    from cmd_video.data.files import sha256

    path = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((path / "state.json").read_text())
    for name in names:
        del state[name]
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = {"sha256": sha256(path / "state.json"), "bytes": (path / "state.json").stat().st_size}
    (path / "manifest.json").write_text(json.dumps(manifest))


# --- what it is trained with -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["autoencoder", "vae", "motion_text_encoder", "motion_tokenizer", "motion_scheduler"])
def test_frozen_parts_cannot_be_replaced_under_the_same_path(name, tiny_config, tiny_components, run_train, tmp_path):
    config = tiny_config("motion", tmp_path / "run", loop__max_minutes=1e-9)
    config["objective"] = {}
    config["validation"]["num_samples"] = 0
    frozen = [part for part in config["components"] if part != "motion_transformer"]

    def save(part: str, seed: int) -> None:
        component = tiny_components(*frozen, seed=seed)[part]
        if seed and part == "vae":
            component.register_to_config(scaling_factor=1.9)
        elif seed and part == "motion_scheduler":
            component = type(component)(beta_end=0.03, prediction_type="v_prediction", clip_sample=False)
        elif seed and part == "motion_tokenizer":
            from cmd_video.training.tokenizer import train_tokenizer

            component = train_tokenizer(["quite other words"] * 9, vocab_size=540, model_max_length=12)
        component.save_pretrained(tmp_path / "parts" / part)

    for part in frozen:
        save(part, 0)
        config["components"][part] = {"path": str(tmp_path / "parts")}
    run_train(config)
    run_train(config)  # as it is
    save(name, 1)
    message = rf"components\.{name}: not the one that the run in .* was trained with up to step 2"
    with pytest.raises(ValueError, match=message):
        run_train(config)
    forget(tmp_path / "run", "digests")  # an earlier version kept none
    run_train(config)


def test_the_same_part_in_half_precision_is_no_other(tiny_components):
    from cmd_video.training.digests import digest_of

    one = tiny_components("autoencoder")["autoencoder"]
    before = digest_of(one)
    assert digest_of(one.half()) == before
    with torch.no_grad():
        next(one.parameters())[0] += 0.1
    assert digest_of(one) != before


def clips_in(folder: Path, count: int) -> dict:
    import numpy as np

    from cmd_video.data.video_file import write_video

    folder.mkdir(parents=True)
    for number in range(count):
        frames = np.random.default_rng(number).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
        write_video(frames, folder / f"{number}.mp4", fps=8)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return {"kind": "captioned_folder", "path": str(folder), "num_frames": 4, "height": 16, "width": 16}


def test_clips_may_move_but_not_be_others(tiny_config, run_train, caplog, tmp_path):
    data = clips_in(tmp_path / "clips", 3)
    config = tiny_config("autoencoder", tmp_path / "run", loop__max_minutes=1e-9, data=data)
    run_train(config)
    (tmp_path / "clips").rename(tmp_path / "moved")
    config["data"] = {**data, "path": str(tmp_path / "moved")}
    run_train(config)
    assert any("another data.path" in message for message in caplog.messages)
    (tmp_path / "moved" / "0.txt").write_text("mended")
    run_train(config)
    assert any("another data: 'the clips and captions" in message for message in caplog.messages)
    config["data"] = clips_in(tmp_path / "others", 2)
    with pytest.raises(ValueError, match=r"another data\.path \('.*moved', now '.*others'\)"):
        run_train(config)
