"""Checkpoints: damage is noticed, a save that fails or is killed harms nothing, and no file can hold code.

Over 400 lines: every way in which a checkpoint can be broken is listed here.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmd_video.training import checkpoint, loop
from cmd_video.training.checkpoint import load_latest, remove_old_checkpoints, save_checkpoint, verify_checkpoint

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
WRITES = {"open", "os.rename", "os.mkdir", "os.remove"}  # audit events


def tensors_of(step: int) -> checkpoint.Tensors:
    draw = torch.Generator().manual_seed(step)
    return {
        stem: {f"layer.{number}": torch.randn(5, 7, generator=draw) for number in range(4)}
        for stem in ("model", "ema", "optimizer")
    }


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, tensors_of(step), {"best": {"step": 1, "loss": 0.25}})


def holds(found: tuple, step: int) -> bool:
    """Whether what was loaded is what `save` wrote for this step."""
    expected = {f"{stem}/{name}": tensor for stem, named in tensors_of(step).items() for name, tensor in named.items()}
    loaded = {f"{stem}/{name}": tensor for stem, named in found[1].items() for name, tensor in named.items()}
    return (
        found[0] == found[2]["step"] == step
        and found[2]["best"] == {"step": 1, "loss": 0.25}
        and loaded.keys() == expected.keys()
        and all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    )


def load_with_warnings(folder: Path) -> tuple[tuple | None, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_latest(folder)
    return found, "\n".join(str(warning.message) for warning in caught)


def test_round_trip(tmp_path):
    assert load_latest(tmp_path / "nothing") is None
    for step in (1, 20, 3):
        path = save(tmp_path, step)
        assert verify_checkpoint(path) is None
        assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    found, messages = load_with_warnings(tmp_path)
    assert holds(found, 20) and not messages


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def zero_run(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) - 8)
    return data[:place] + bytes(8) + data[place + 8 :]


MUTATIONS: dict[str, tuple[int, Callable[[bytes, random.Random], bytes]]] = {  # how often, how
    "flip a bit": (20, flip_bit),
    "truncate": (5, lambda data, rng: data[: rng.randrange(1, len(data))]),
    "zero a run": (5, zero_run),
    "insert": (5, lambda data, rng: data[: (place := rng.randrange(len(data)))] + b"7" + data[place:]),
    "append": (1, lambda data, rng: data + b"\0"),
    "empty": (1, lambda data, rng: b""),
}


@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_noticed(name, tmp_path):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    whole = file.read_bytes()
    rng = random.Random(name)
    attempted = noticed = 0
    for kind, (times, mutate) in MUTATIONS.items():
        for _ in range(times):
            damaged = mutate(whole, rng)
            if damaged == whole:
                continue  # zeros were there before
            file.write_bytes(damaged)
            attempted += 1
            found, messages = load_with_warnings(tmp_path)
            if holds(found, 1):
                noticed += 1
                assert name in messages or name == "manifest.json" and ".json" in messages + name, (kind, messages)
                assert "step-00000002" in messages
            else:  # white space of the manifest, which says the same as before
                assert holds(found, 2) and json.loads(damaged) == json.loads(whole), kind
                attempted -= 1
    file.unlink()
    found, messages = load_with_warnings(tmp_path)
    assert holds(found, 1) and name in messages
    print(f"{name}: damage noticed / attempted: {noticed + 1} / {attempted + 1}")
    assert noticed == attempted >= 25


def seal(path: Path) -> None:
    """Write a manifest that fits the files as they are now."""
    files = [file for file in path.iterdir() if file.name != "manifest.json"]
    manifest = {file.name: {"sha256": checkpoint.sha256(file), "bytes": file.stat().st_size} for file in files}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [0, 2, "1", None])
@pytest.mark.parametrize("older", [True, False])
def test_another_version_is_never_taken_for_damage(version, older, tmp_path):
    """Nor is the checkpoint before it taken: an upgrade in the middle of a run must not cost the run."""
    if older:
        save(tmp_path, 1)
    path = save(tmp_path, 2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "version": version}))
    seal(path)
    with pytest.raises(ValueError, match=rf"step-00000002: .*version {version!r}, this program reads 1; go on with"):
        load_latest(tmp_path)


@pytest.mark.parametrize("manifest", ["absent", "of another form"])
def test_another_version_may_have_another_manifest(manifest, tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "version": 2}))
    (path / "manifest.json").unlink()
    if manifest != "absent":
        (path / "manifest.json").write_text(json.dumps({"files": ["state.json"]}))
    with pytest.raises(ValueError, match="format version 2"):
        load_latest(tmp_path)


def test_a_file_without_an_entry_is_refused(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "manifest.json").write_text("{}")
    found, messages = load_with_warnings(tmp_path)
    assert holds(found, 1) and "not in manifest.json" in messages
    seal(path)
    assert holds(load_latest(tmp_path), 2)
    (path / "extra.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    found, messages = load_with_warnings(tmp_path)
    assert holds(found, 1) and "extra.safetensors" in messages


def break_file(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(flip_bit((path / name).read_bytes(), random.Random(1)))


def make_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file in the folder's place")


def seal_a_pickle(path: Path) -> None:
    (path / "ema.safetensors").write_bytes(b"\x80\x04N.")
    seal(path)


def nest_too_deep(path: Path) -> None:
    (path / "state.json").write_text("[" * 20_000 + "]" * 20_000)
    seal(path)


UNREADABLE = {
    "a flipped bit": break_file("model.safetensors"),
    "no average": lambda path: (path / "ema.safetensors").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "empty": lambda path: [file.unlink() for file in path.iterdir()],
    "a file": make_a_file,
    "a pickle, sealed": seal_a_pickle,
    "nested, sealed": nest_too_deep,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_where_no_checkpoint_can_be_read_nothing_begins_anew(kind, tiny_config, run_train, tmp_path):
    """The run stops with what to do; log and checkpoints stay as they are."""
    config = tiny_config("autoencoder", tmp_path, loop__steps=4, loop__keep_last=5)
    run_train(config)
    for path in (tmp_path / "checkpoints").iterdir():
        UNREADABLE[kind](path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.warns(UserWarning), pytest.raises(ValueError) as caught:
        run_train(config)
    assert "checkpoints: none of its 2 checkpoints can be read" in str(caught.value)
    assert "remove the folder to train from the first step" in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_steps_of_nine_digits_count(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert holds(load_latest(tmp_path), 100_000_000)
    remove_old_checkpoints(tmp_path, 100_000_000, keep_last=1, best_step=None)
    assert steps_in(tmp_path) == [100_000_000]


def in_fork(action: Callable[[], None], hook: Callable[[str, int], None] | None = None) -> int:
    """Exit code of `action` in a fork; `hook` is called before its n-th file operation with the name and n."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            count = 0

            def audit(event: str, args: tuple) -> None:
                nonlocal count
                if event in WRITES and ("step-" in str(args[0]) or event == "os.remove"):
                    count += 1
                    hook(event, count)

            if hook is not None:
                sys.addaudithook(audit)
            action()
            code = 0
        except OSError as error:
            code = 28 if "older ones are untouched" in str(error) and "step-" in str(error) else 5
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_and_clean(folder: Path, step: int) -> None:
    save(folder, step)
    remove_old_checkpoints(folder, step, keep_last=1, best_step=None)


def test_killed_before_each_file_operation(tmp_path):
    """With room for one checkpoint only: at each moment the old or the new one is whole."""
    save(tmp_path, 1)
    step, boundary, kills = 1, 0, 0
    while boundary < 100:
        boundary += 1

        def kill(event: str, count: int, at: int = boundary) -> None:
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        code = in_fork(lambda step=step + 1: save_and_clean(tmp_path, step), kill)
        found, messages = load_with_warnings(tmp_path)
        assert found[0] in (step, step + 1) and holds(found, found[0]) and not messages, boundary
        step = found[0]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    print(f"killed before each of {kills} file operations")
    assert kills >= 15
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:08d}"]  # what the killed ones left is gone


def test_an_error_at_each_file_operation(tmp_path):
    save(tmp_path, 1)
    failures = 0
    for boundary in range(2, 100):  # the first makes the folder

        def fail(event: str, count: int, at: int = boundary) -> None:
            if count == at:
                raise OSError(errno.ENOSPC, "No space left on device")

        code = in_fork(lambda: save(tmp_path, 2), fail)
        if code == 0:
            break
        assert code == 28, boundary
        failures += 1
        found, messages = load_with_warnings(tmp_path)
        assert holds(found, 1) and not messages
        assert not list(tmp_path.glob("*tmp*")), boundary
    print(f"an error at each of {failures} file operations")
    assert failures >= 10
    assert holds(load_latest(tmp_path), 2)


@pytest.mark.parametrize("limit", [10, 300, 700])
def test_a_full_disk(limit, tmp_path):
    """Files can be `limit` bytes long; the smallest of a checkpoint has less than 700."""
    path = save(tmp_path, 1)
    before = {file.name: checkpoint.sha256(file) for file in path.iterdir()}

    def save_with_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save(tmp_path, 2)

    assert in_fork(save_with_limit) == 28
    before_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before_limit[1]))
        with pytest.raises(OSError, match=r"could not write the checkpoint, which takes 1,680 bytes \("):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before_limit)
    assert {file.name: checkpoint.sha256(file) for file in path.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.iterdir())]


def test_the_last_and_the_best_stay(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    remove_old_checkpoints(tmp_path, 6, keep_last=3, best_step=2)
    assert steps_in(tmp_path) == [2, 4, 5, 6]
    remove_old_checkpoints(tmp_path, 6, keep_last=1, best_step=None)
    assert steps_in(tmp_path) == [6]


def test_a_damaged_newer_one_does_not_count(tmp_path):
    for step in (4, 5, 6):
        save(tmp_path, step)
    (tmp_path / "step-00000006" / "ema.safetensors").unlink()
    remove_old_checkpoints(tmp_path, 5, keep_last=1, best_step=None)
    assert steps_in(tmp_path) == [5, 6]
    assert holds(load_with_warnings(tmp_path)[0], 5)


def test_what_dead_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    save(tmp_path, 1)
    dead = in_fork_that_ends()
    left = [f"step-00000002.tmp-{dead}", f".step-00000003.tmp-{dead}", "step-00000001.tmp-delete"]
    for name in (*left, f".step-00000004.tmp-{os.getppid()}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert holds(load_latest(tmp_path), 1)
    remove_old_checkpoints(tmp_path, 1, keep_last=2, best_step=None)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", f".step-00000004.tmp-{os.getppid()}"}


def in_fork_that_ends() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_the_best_one_of_a_run_is_there(tiny_config, run_train, monkeypatch, tmp_path):
    losses = {3: 0.1, 6: 0.5, 8: 0.4}
    monkeypatch.setattr(loop, "_validate", lambda stage, ema, held_out, log, step, config: {"loss": losses[step]})
    run_train(tiny_config("autoencoder", tmp_path, loop__validate_every=3, loop__keep_last=1))
    assert steps_in(tmp_path / "checkpoints") == [3, 8]
    assert load_latest(tmp_path / "checkpoints")[2]["best"] == {"step": 3, "loss": 0.1}


def test_a_run_falls_back_and_ends_the_same(tiny_config, run_train, differences, tmp_path):
    for name in ("reference", "damaged"):
        run_train(tiny_config("image", tmp_path / name))
    file = tmp_path / "damaged" / "checkpoints" / "step-00000008" / "ema.safetensors"
    file.write_bytes(flip_bit(file.read_bytes(), random.Random(0)))
    with pytest.warns(UserWarning, match=r"step-00000008.*ema\.safetensors is damaged"):
        run_train(tiny_config("image", tmp_path / "damaged"))
    assert differences(tmp_path / "reference", tmp_path / "damaged") == []


def test_no_file_can_hold_code(tiny_config, run_train, tmp_path):
    run_train(tiny_config("content", tmp_path))
    files = [path for name in ("checkpoints", "pipeline") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        text = path.parent.name == "tokenizer" and path.suffix == ".txt"
        assert path.suffix in (".safetensors", ".json") or text, path
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path  # a pickle, or torch.save's archive


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 4}, "seed"),
        ({"components__unet__config__layers_per_block": 2}, "components"),
        ({"stage": "image"}, "stage"),
        ({"data__seed": 1}, "data"),  # the fresh tokenizer would learn from other captions
    ],
)
def test_a_folder_belongs_to_one_run(changes, field, tiny_config, run_train, tmp_path):
    run_train(tiny_config("content", tmp_path, loop__steps=1, validation__num_samples=0))
    with pytest.raises(ValueError, match=f"output_dir.*{field}"):
        run_train(tiny_config("content", tmp_path, **changes))


def test_a_checkpoint_of_other_weights_is_refused(tiny_config, run_train, tmp_path):
    run_train(tiny_config("image", tmp_path, loop__steps=2))
    (tmp_path / "config.json").unlink()  # of another run, copied here
    with pytest.raises(ValueError, match="step 2 does not fit"):
        run_train(tiny_config("image", tmp_path, objective__train_text_encoder=False))


def test_optimizer_state_round_trip():
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.01)
    sum(weight.square().sum() for weight in weights).backward()
    optimizer.step()
    tensors, groups = checkpoint.pack_optimizer(optimizer)
    other = torch.optim.AdamW([torch.nn.Parameter(weight.detach()) for weight in weights], lr=0.1, weight_decay=0.5)
    checkpoint.unpack_optimizer(other, tensors, json.loads(json.dumps(groups)))
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(other.state_dict()["state"][number][name], value)
    assert other.param_groups[0]["weight_decay"] == 0.5  # a changed setting counts, as a changed learning rate does
    assert other.param_groups[0]["betas"] == (0.9, 0.999)
