"""What the command line promises: help without torch, one line for a user's mistake, a traceback for a bug."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cmd_video.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, TRACEBACK_VARIABLE, VERBS, Verb, main

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "av", "numpy", "scipy", "tensorboard")


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = 0.0


class Adam(Optimizer):
    beta: float = 0.9


class Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int
    optimizer: Adam | None = None
    layers: list[Optimizer] = []

    @field_validator("steps")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise ValueError("Must be even")
        return value


RAISES = {
    "value": lambda: ValueError("first line\n  second line\n\n"),
    "missing-file": lambda: FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "clips/a.mp4"),
    "disk-full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"),
    "os-text": lambda: OSError("cannot reach the hub"),
    "parameter": lambda: typer.BadParameter("must be 1 or more", param_hint="--steps"),
    "interrupt": lambda: KeyboardInterrupt(),
    "bug": lambda: KeyError("x"),
    "bug-runtime": lambda: RuntimeError("shapes differ"),
    "empty": lambda: ValueError(),
    "argument": lambda: ValueError("number: 3 is odd: one more"),
    "arguments": lambda: ValueError("what and number: 3, not both"),
    "no-argument": lambda: ValueError("a number: 3 is odd"),
}

app = typer.Typer()


@app.command()
def check(number: int = 1):
    """Look over."""
    print("checked", number)


@app.command()
def make(num_clips: int = 1):
    """Make."""
    if num_clips > 1:
        raise ValueError(f"num_clips: {num_clips} are too many")
    raise typer.Exit(3)


def command(what: str, number: int = 1):
    """Fail in a chosen way.

    A sentence that only the full help has.
    """
    if what in RAISES:
        raise RAISES[what]()
    print("fine", number)


@pytest.fixture
def verbs(monkeypatch):
    """A table whose verbs are this module's, so that nothing heavy is needed."""
    monkeypatch.setitem(sys.modules, "verbs_of_test_main", sys.modules[__name__])
    return {
        "fail": Verb("verbs_of_test_main", "command", "Fail."),
        "data": Verb("verbs_of_test_main", "app", "Data."),
        "absent": Verb("no_such_module_anywhere", "command", "Never imported."),
    }


def run(verbs, capsys, *argv):
    code = main(argv, verbs)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("value", "first line; second line"),
        ("missing-file", "clips/a.mp4: No such file or directory"),
        ("disk-full", "runs/a: No space left on device"),
        ("os-text", "cannot reach the hub"),
        ("parameter", "Invalid value for --steps: must be 1 or more"),
        ("empty", "ValueError"),
        ("argument", "--number: 3 is odd: one more"),  # as it was typed
        ("arguments", "what and --number: 3, not both"),
        ("no-argument", "a number: 3 is odd"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(verbs, capsys, what, message):
    assert run(verbs, capsys, "fail", what) == (EXIT_USER_ERROR, "", f"error: {message}\n")


def test_interrupt(verbs, capsys):
    assert run(verbs, capsys, "fail", "interrupt") == (EXIT_INTERRUPTED, "", "error: interrupted\n")


@pytest.mark.parametrize(("what", "kind"), [("bug", KeyError), ("bug-runtime", RuntimeError)])
def test_a_bug_keeps_its_traceback(verbs, what, kind):
    with pytest.raises(kind):
        main(["fail", what], verbs)


def test_the_traceback_of_a_mistake_on_request(verbs, monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(FileNotFoundError):
        main(["fail", "missing-file"], verbs)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["fale"], ["'fale'", "did you mean fail?"]),
        (["zzz"], ["'zzz'", "allowed: fail, data, absent"]),
        (["--nonsense"], ["--nonsense"]),
        (["fail"], ["Missing argument", "what"]),
        (["fail", "fine", "--number", "many"], ["--number", "many"]),
        (["fail", "fine", "--numbre", "1"], ["--numbre", "--number"]),
        (["data"], ["Missing command"]),
        (["data", "chekc"], ["'chekc'", "check"]),
    ],
)
def test_a_wrong_command_line_is_one_line(verbs, capsys, argv, parts):
    code, out, err = run(verbs, capsys, *argv)
    assert (code, out) == (EXIT_USER_ERROR, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part.lower() in err.lower() for part in parts), err


def test_success_and_exit_codes(verbs, capsys):
    assert run(verbs, capsys, "fail", "fine", "--number", "3") == (0, "fine 3\n", "")
    assert run(verbs, capsys, "data", "check") == (0, "checked 1\n", "")
    assert run(verbs, capsys, "data", "make")[0] == 3
    assert run(verbs, capsys, "data", "make", "--num-clips", "2")[2] == "error: --num-clips: 2 are too many\n"


def test_help_lists_every_verb_and_imports_none(verbs, capsys):
    for argv in (["--help"], []):  # "absent" cannot be imported, and is listed all the same
        code, out, err = run(verbs, capsys, *argv)
        assert (code, err) == (0, "") and all(verb.help in out for verb in verbs.values())
    assert "A sentence that only the full help has." in run(verbs, capsys, "fail", "--help")[1]
    assert "Look over." in run(verbs, capsys, "data", "--help")[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"steps": 4, "optimizer": {"lrr": 1}}, "optimizer.lrr: unknown name, did you mean lr?"),
        ({"steps": 4, "optimizer": {"bata": 1}}, "optimizer.bata: unknown name, did you mean beta?"),
        ({"steps": 4, "layers": [{}, {"bata": 1}]}, "layers.1.bata: unknown name, allowed: lr, weight_decay"),
        ({"steps": 4, "setps": 5}, "setps: unknown name, did you mean steps?"),
        ({"steps": 4, "optimizer": {"lr": -1}}, "optimizer.lr: input should be greater than 0, got -1"),
        ({"steps": 3}, "steps: must be even, got 3"),
        ({}, "steps: field required"),
    ],
)
def test_a_wrong_config_names_field_value_and_what_is_allowed(verbs, capsys, monkeypatch, config, message):
    monkeypatch.setitem(RAISES, "config", lambda: Stage(**config))
    assert run(verbs, capsys, "fail", "config") == (EXIT_USER_ERROR, "", f"error: {message}\n")


def test_every_problem_of_a_config_is_told(verbs, capsys, monkeypatch):
    monkeypatch.setitem(RAISES, "config", lambda: Stage(steps=3, setps=1))
    code, _, err = run(verbs, capsys, "fail", "config")
    assert (code, err) == (2, "error: steps: must be even, got 3; setps: unknown name, did you mean steps?\n")


def heavy_imports(*argv):
    """Run the real command line in a fresh interpreter: its output, its processor seconds, the heavy imports."""
    script = (
        "import sys; from cmd_video.cli import main; code = main(sys.argv[1:]);"
        f"print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    before = os.times()
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, env=environment)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr
    output, _, heavy = done.stdout.rpartition("HEAVY")
    return output, seconds, heavy.split()


def test_the_real_help_is_quick_and_imports_nothing_heavy():
    runs = [heavy_imports("--help") for _ in range(3)]
    output, _, heavy = runs[0]
    assert heavy == []
    assert all(name in output for name in VERBS)
    assert min(seconds for _, seconds, _ in runs) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_heavy(verb):
    output, _, heavy = heavy_imports(verb, "--help")
    assert "Usage" in output
    assert heavy == []


def test_the_module_can_be_run():
    """`python -m cmd_video.cli`, which is also what `accelerate launch -m` starts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "cmd_video.cli", "nonsense"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (EXIT_USER_ERROR, "", 1), done.stderr
