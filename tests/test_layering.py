"""Imports only point down: cli -> training, evaluation, benchmark -> pipelines, pruning -> models, losses, data."""

import ast
from pathlib import Path

import pytest

PACKAGE = "cmd_video"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# A name is a folder or a top-level module of the package. Inside itself a folder imports freely.
BASE = {"models", "losses", "data"}
MIDDLE = {"pipelines", "pruning"}
UPPER = {"training", "evaluation", "benchmark"}
ALLOWED = {
    **{name: set() for name in BASE},
    **{name: BASE for name in MIDDLE},
    **{name: BASE | MIDDLE for name in UPPER},
    "cli": BASE | MIDDLE | UPPER | {"__init__"},
    "__init__": BASE | MIDDLE,  # the public names
}
ONLY_IN = {"typer": {"cli"}, "av": {"data", "cli"}, "tensorboard": {"training"}}


def imported_modules(source: str, module: str):
    """Yield (line, dotted name) of every import of a module, also of those inside functions; relative ones resolved.

    `from a import b` gives a.b: whether b is a module is decided by who reads the result.
    """
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*names, alias.name])) for alias in node.names)


def violations(source: str, module: str, known: set[str]) -> list[str]:
    """Return what a module imports against the table, one line each."""
    layer = module.split(".")[1]
    found = []
    for line, name in imported_modules(source, module):
        top, *rest = name.split(".")
        if top != PACKAGE:
            if layer not in ONLY_IN.get(top, {layer}):
                found.append(f"{module}:{line}: only {sorted(ONLY_IN[top])} may import {top}")
            continue
        target = rest[0] if rest and rest[0] in known else "__init__"
        if rest == ["__version__"] or target in {layer, *ALLOWED.get(layer, set())}:
            continue
        found.append(f"{module}:{line}: {layer} may not import {target} ({name})")
    return found


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package, `__init__` written out."""
    return {
        ".".join([PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]): path
        for path in sorted(SOURCE.rglob("*.py"))
    }


def test_every_folder_and_module_has_a_layer():
    unknown = {name.split(".")[1] for name in modules()} - set(ALLOWED)
    assert not unknown, f"give them a row in ALLOWED: {sorted(unknown)}"
    assert len(modules()) > 5


def test_imports_point_down():
    known = {name.split(".")[1] for name in modules()}
    found = [
        line for name, path in modules().items() for line in violations(path.read_text(encoding="utf-8"), name, known)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("cmd_video.models.layers", "from cmd_video.pipelines import pipeline_cmd", 1),
        ("cmd_video.models.layers", "def f():\n    from ..training.loop import train", 1),
        ("cmd_video.models.layers", "from cmd_video import CMDPipeline", 1),
        ("cmd_video.models.layers", "from .. import losses", 1),
        ("cmd_video.models.layers", "import typer", 1),
        ("cmd_video.models.__init__", "from .layers import a\nfrom cmd_video.data import b", 1),
        ("cmd_video.data.latents", "import cmd_video.models.layers", 1),
        ("cmd_video.training.loop", "from cmd_video.cli import main", 1),
        ("cmd_video.training.loop", "from cmd_video.evaluation import frechet", 1),
        ("cmd_video.models.layers", "from . import x\nfrom .y import z\nimport torch", 0),
        ("cmd_video.training.loop", "from ..models import a\nfrom cmd_video import losses, __version__", 0),
        ("cmd_video.cli.train", "from cmd_video import CMDPipeline\nfrom cmd_video.training import loop", 0),
    ],
)
def test_the_check_itself(module, source, count):
    known = {*ALLOWED}
    assert len(violations(source, module, known)) == count
