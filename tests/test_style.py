"""The mechanical part of the style rules in CONTRIBUTING.md."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cmd_video"
CORE = (  # what a sample passes through, and what is learned of it
    *("models/layers.py", "models/autoencoder_cmd.py", "models/motion_transformer.py"),
    *(f"diffusion/{path.name}" for path in sorted((SOURCE / "diffusion").glob("[a-z]*.py"))),
    *(f"denoisers/{name}.py" for name in ("denoiser", "content", "motion", "prompts", "latent_space")),
    *(f"pipelines/{name}.py" for name in ("pipeline_cmd", "inputs", "sampling")),
)
MAX_FILE, MAX_FUNCTION, MAX_LONG_FUNCTION, MAX_CORE = 400, 60, 120, 3700
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".in", ".sh", ".ipynb", ""}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file of the project: those git knows or would add; all but the ignored folders where git is absent."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".git", ".venv", "venv", "runs", "demo", "site", "build", "dist", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    """The project's Python files in these folders."""
    roots = [ROOT / folder for folder in folders]
    return [path for path in tracked_files() if path.suffix == ".py" and any(r in path.parents for r in roots)]


def where(path: Path, line: int | None = None) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"{name}:{line}" if line else name


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (child for child in ast.walk(node) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_are_files_to_look_at():
    assert len(python_files("src")) > 5 and ROOT / "pyproject.toml" in tracked_files()


def test_no_drawer_modules():
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    found = [where(path) for path in python_files("src", "tests") if path.stem in drawers | {f"_{d}" for d in drawers}]
    assert not found


def test_long_files_say_why():
    """A file is one subject, however long; over 400 lines its docstring gives the reason."""
    long = [path for path in python_files("src", "tests") if num_lines(path) > MAX_FILE]
    found = [where(path) for path in long if f"Over {MAX_FILE} lines" not in (ast.get_docstring(tree(path)) or "")]
    assert not found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    first = function.body[0]
    lines = function.end_lineno - function.lineno + 1
    return lines - (first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0)


def test_functions_are_short():
    """60 lines; 120 for the training loop and the `__call__` of a pipeline, which read from top to bottom."""
    found = []
    for path in python_files("src"):
        for function in functions(tree(path)):
            is_long = path == SOURCE / "training" / "loop.py" or function.name == "__call__"
            if code_lines(function) > (MAX_LONG_FUNCTION if is_long else MAX_FUNCTION):
                found.append(f"{where(path, function.lineno)}: {function.name} has {code_lines(function)}")
    assert not found, "\n".join(found)


def test_the_core_reads_in_one_sitting():
    assert len(CORE) == len(set(CORE)) > 18
    assert sum(num_lines(SOURCE / name) for name in CORE) <= MAX_CORE


def unsafe(node: ast.AST) -> str | None:
    """Name what a node does that could run code from a file or hide where a name comes from."""
    match node:
        case ast.Import(names=names) if {n.name.split(".")[0] for n in names} & {"pickle", "cloudpickle", "dill"}:
            return "pickle"
        case ast.ImportFrom(module="pickle", names=[ast.alias(name="UnpicklingError")]):
            return None  # what torch.load raises when it refuses to run code
        case ast.ImportFrom(module="pickle" | "cloudpickle" | "dill"):
            return "pickle"
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            return "import *"
        case ast.Attribute(value=ast.Name(id="sys"), attr="path"):
            return "sys.path"
        case ast.Attribute(value=ast.Name(id="torch"), attr="save"):
            return "torch.save"
        case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "load_all" | "unsafe_load" | "full_load"):
            return "yaml.load"
        case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen"):
            return "os.system"
        case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__")):
            return "eval or exec"
        case ast.keyword(arg="weights_only", value=value) if not is_constant(value, True):
            return "weights_only other than True"
        case ast.keyword(arg="allow_pickle", value=value) if not is_constant(value, False):
            return "allow_pickle other than False"
        case ast.keyword(arg="shell", value=value) if not is_constant(value, False):
            return "shell=True"
        case ast.keyword(arg="trust_remote_code", value=value) if not is_constant(value, False):
            return "trust_remote_code"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
            return None if any(k.arg == "weights_only" for k in keywords) else "torch.load without weights_only=True"
    return None


def is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_nothing_unsafe_in_the_source():
    found = [
        f"{where(path, getattr(node, 'lineno', None))}: {problem}"
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if (problem := unsafe(node))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("import pickle", True),
        ("from pickle import UnpicklingError, loads", True),
        ("from pickle import UnpicklingError", False),
        ("from x import *", True),
        ("torch.save(a, b)", True),
        ("torch.load(a)", True),
        ("torch.load(a, weights_only=False)", True),
        ("np.load(a, allow_pickle=True)", True),
        ("yaml.load(a)", True),
        ("eval('1')", True),
        ("run(a, shell=True)", True),
        ("sys.path.append('x')", True),
        ("model.eval(); yaml.safe_load(a); np.load(a, allow_pickle=False); torch.load(a, weights_only=True)", False),
    ],
)
def test_the_unsafe_check_itself(line, bad):
    assert any(unsafe(node) for node in ast.walk(ast.parse(line))) is bad


def test_every_module_has_a_docstring():
    files = [path for path in python_files("src") if path.read_text(encoding="utf-8").strip()]
    assert not [where(path) for path in files if not ast.get_docstring(tree(path))]


ARGUMENT = re.compile(r"\*{0,2}(\w+)(?: \((.*)\))?:(?: |$)")
DEFAULT = re.compile(r"defaults to `?([^`)]+)`?")


def documented(docstring: str | None) -> dict[str, str | None] | None:
    """Name -> what stands in brackets after it, from the section `Args:`; None where there is no such section."""
    lines = (docstring or "").splitlines()
    if "Args:" not in lines:
        return None
    section = lines[lines.index("Args:") + 1 :]
    names: dict[str, str | None] = {}
    for line in section:
        if line and not line.startswith(" "):
            break
        if re.match(r" {4}\S", line):
            entry = ARGUMENT.match(line.strip())
            assert entry, f"not `name: text`: {line.strip()!r}"
            names[entry[1]] = entry[2]
    return names


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, str | None]:
    """Name -> default as source text."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + [ast.unparse(value) for value in args.defaults]
    pairs = dict(zip([a.arg for a in positional], defaults, strict=True))
    if args.vararg:
        pairs[args.vararg.arg] = None
    pairs |= {a.arg: ast.unparse(v) if v else None for a, v in zip(args.kwonlyargs, args.kw_defaults, strict=True)}
    if args.kwarg:
        pairs[args.kwarg.arg] = None
    return {name: default for name, default in pairs.items() if name not in ("self", "cls")}


def documented_signatures(module: ast.Module):
    """Yield (node, documented arguments, real ones) of each function and class with a section `Args:`."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = documented(ast.get_docstring(node))
            real = signature(node)
        elif isinstance(node, ast.ClassDef):
            arguments = documented(ast.get_docstring(node))
            init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            real = signature(init) if init else {f.target.id: f.value and ast.unparse(f.value) for f in fields}
        else:
            continue
        if arguments is not None:
            yield node, arguments, real


def test_docstrings_tell_the_real_arguments():
    found = []
    for path in python_files("src"):
        for node, arguments, real in documented_signatures(tree(path)):
            if list(arguments) != list(real):
                found.append(
                    f"{where(path, node.lineno)}: {node.name}: Args {list(arguments)}, signature {list(real)}"
                )
            for name, note in arguments.items():
                default = DEFAULT.search(note or "")
                if default and default[1].strip("\"'") != (real.get(name) or "").strip("\"'"):
                    found.append(f"{where(path, node.lineno)}: {name} defaults to {real.get(name)}, not {default[1]}")
    assert not found, "\n".join(found)


def test_no_file_names_a_place_on_one_machine():
    places = re.compile(r"(?<![\w.~\-/$}])/(?:wor" + r"k|roo" + r"t|hom" + r"e/\w+|User" + r"s/\w+)/")
    found = []
    for path in tracked_files():
        if path.suffix in TEXT and path.name != "LICENSE":
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [where(path, number) for number, line in enumerate(lines, 1) if places.search(line)]
    assert not found, "\n".join(found)


def test_one_version():
    source = (SOURCE / "__init__.py").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [project["version"]]


def in_fresh_interpreter(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_tracker_decoder_or_plotting():
    unwanted = ("av", "tensorboard", "matplotlib", "gradio", "torchmetrics", "typer", "webdataset", "pyarrow")
    script = (
        "import sys, cmd_video; [getattr(cmd_video, name) for name in cmd_video.__all__];"
        f"print(*[name for name in {unwanted} if name in sys.modules])"
    )
    assert in_fresh_interpreter(script).split() == []


def test_importing_the_package_alone_loads_no_torch():
    """Its public names are looked up when they are first used, which is what makes `cmd-video --help` quick."""
    assert in_fresh_interpreter("import sys, cmd_video; print('torch' in sys.modules)").strip() == "False"


def test_no_version_is_allowed_that_is_newer_than_what_was_tried_and_loaders_begin_there():
    """Older versions of what loads models run code of a folder, or do not read ours."""
    import re
    import tomllib

    root = SOURCE.parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    floors = dict(line.split(">=") for line in project["dependencies"])
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (root / "constraints.txt").read_text(), re.MULTILINE))

    def version(text):
        return [int(part) for part in text.split(".")]

    assert all(version(floor) <= version(pins[name]) for name, floor in floors.items())
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (root / "floors.txt").read_text(), re.MULTILINE))
    tried["torch"] = pins["torch"]
    for name, floor in floors.items():
        assert version(tried[name])[: len(version(floor))] == version(floor), name
    for name in ("diffusers", "transformers", "peft", "safetensors", "huggingface-hub"):
        assert version(floors[name])[:2] == version(pins[name])[:2], name


def test_tests_that_are_listed_as_slow_are_there():
    lines = [line for line in (ROOT / "tests" / "slow.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) > 0
    for line in lines:
        file, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), line
