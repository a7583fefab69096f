"""The scripts of `cmd-video launch`: the guide quotes each, bash takes it, and what it starts is understood."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmd_video.cli import VERBS, load
from cmd_video.cli.launch import scripts
from cmd_video.training.config import load_config

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
SCRIPTS = scripts()
ARRAY = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}
JOB = {"SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node[0-3]", "SLURM_JOB_ID": "7"}
CASES = {  # script, environment -> words that must be in what it starts
    "one-node": ("one-node.sh", {"GPUS": "2"}, "--nproc-per-node 2 -m"),
    "one-node ddp": ("one-node.sh", {"GPUS": "2", "SHARD": "1"}, "motion.yaml --set loop.steps=1"),
    "several-nodes": ("several-nodes.sh", {"NODES": "2", "GPUS": "4"}, "shard=4 --set loop.parallel.replicate=2"),
    "train": ("train.sbatch", JOB, "shard=2 --set loop.parallel.replicate=4 --set loop.max_minutes=1420"),
    "encode": ("encode.sbatch", ARRAY, "--shard 3/8"),
    "encode finish": ("encode.sbatch", {}, "--finish"),
    "evaluate": ("evaluate.sbatch", ARRAY, "--shard 3/8"),
    "evaluate result": ("evaluate.sbatch", {}, "-o fvd.json"),
}
STUB = """#!{python}
import json, os, sys
with open(os.environ["STARTED"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
print("node0")
if sys.argv[0].endswith("srun"):
    os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def started(tmp_path):
    """`started(script, environment, *arguments)`: the command lines it starts, none of which is run."""
    for name in ("cmd-video", "torchrun", "srun", "scontrol"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)

    def start(script, environment, *arguments):
        place = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STARTED": str(tmp_path / "started.jsonl")}
        command = ["bash", "-s", "--", *arguments]
        subprocess.run(
            command, input=SCRIPTS[script], env=place | environment, cwd=tmp_path, check=True, text=True, timeout=60
        )
        return [json.loads(line) for line in (tmp_path / "started.jsonl").read_text().splitlines()]

    return start


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_takes_it_and_it_says_what_it_takes(name):
    text = SCRIPTS[name]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[0].startswith("#!/") and lines[1].startswith("# ") and "set -euo pipefail" in lines
    assert max(map(len, lines)) <= 119
    assert ("\n#SBATCH" in text) == name.endswith(".sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_quotes_it(name):
    pages = "\n".join(page.read_text() for page in GUIDE.glob("*.md"))
    assert f"```bash\n{SCRIPTS[name]}```" in pages and f"launch copy {name}" in pages


def test_the_guide_has_no_other_script():
    quoted = [block for page in GUIDE.glob("*.md") for block in page.read_text().split("```bash\n")[1:]]
    assert all(block.split("```")[0] in SCRIPTS.values() for block in quoted if block.startswith("#!"))


@pytest.mark.parametrize("case", CASES)
def test_what_it_starts_is_understood(case, started, tmp_path, monkeypatch):
    script, environment, words = CASES[case]
    more = ["--set", "loop.steps=1"] if "-m cmd_video.cli" in SCRIPTS[script] else ["--batch-size", "3"]
    lines = started(script, {"DEVICE": "cpu", **environment}, *more)
    assert words in " ".join(lines[-1])
    assert len([line for line in lines if line[0] in ("cmd-video", "torchrun")]) == 1
    words = lines[-1][1:] if lines[-1][0] == "cmd-video" else lines[-1][lines[-1].index("cmd_video.cli") + 1 :]
    monkeypatch.chdir(tmp_path)
    command = load(words[0], VERBS[words[0]])
    context = command.make_context(words[0], words[1:])
    if words[0] == "train":
        config = load_config(ROOT / context.params["config"], list(context.params["overrides"]))
        assert config.loop.steps == 1
        torchrun = dict(zip(lines[-1][1::2], lines[-1][2::2], strict=False))
        processes = int(torchrun.get("--nnodes", 1)) * int(torchrun["--nproc-per-node"])
        assert config.loop.parallel is None or config.loop.parallel.processes == processes
    else:  # a verb with verbs of its own
        name, inner, rest = command.resolve_command(context, words[1:])
        assert inner.make_context(name, rest).params["batch_size"] == 3


def test_list_show_and_copy(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("launch", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(SCRIPTS) and "Slurm" in out
    assert run("launch", "show", "train.sbatch")[1] == SCRIPTS["train.sbatch"]
    assert run("launch", "copy", "one-node.sh")[0] == 0
    assert run("launch", "copy", "encode.sbatch", "-o", "mine.sh")[0] == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "one-node.sh": SCRIPTS["one-node.sh"],
        "mine.sh": SCRIPTS["encode.sbatch"],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "train.sbach"], "NAME: 'train.sbach' is no script, did you mean train.sbatch?"),
        (["copy", "x"], "NAME: 'x' is no script, allowed: encode.sbatch, evaluate.sbatch"),
        (["copy", "one-node.sh", "-o", "there"], "--output: there exists; choose a new file"),
        (["copy", "one-node.sh", "-o", "folder"], "--output: folder is a folder"),
        (["copy", "one-node.sh", "-o", "there/x"], "nothing can be written below there"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "folder").mkdir()
    code, _, error = run("launch", *arguments)
    assert code == 2 and said in error.replace(f"{tmp_path}/", "") and error.count("\n") == 1
    assert (tmp_path / "there").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_it_needs_no_torch():
    code = "import sys; from cmd_video.cli import main; main(['launch', 'list']); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"
