"""Imports only point down, nothing in the library knows the demonstration, and what stands once stands in its place.

    cli -> sprites, studies -> training, evaluation, benchmark -> pipelines -> techniques, pruning -> denoisers
        -> diffusion, models, data -> section

`sprites` hands itself in by names in tables ("cmd_video.sprites.section:SpritesData"), which are imported when asked
for. Inside a folder imports go round in no circle.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = "cmd_video"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# A name is a folder or a top-level module of the package. Inside itself a folder imports what makes no circle.
GROUND = {"section"}
BASE = GROUND | {"diffusion", "models", "data"}
ASKED = BASE | {"denoisers"}
METHODS = ASKED | {"techniques", "pruning"}
UPPER = {"training", "evaluation", "benchmark"}
LIBRARY = METHODS | {"pipelines"} | UPPER
ALLOWED: dict[str, set[str]] = {
    "section": set(),
    **{name: GROUND for name in ("diffusion", "models", "data")},
    "denoisers": BASE,
    "pruning": ASKED,
    "techniques": ASKED - {"data"} | {"pruning"},
    "pipelines": METHODS,
    **{name: METHODS | {"pipelines"} for name in UPPER},
    "sprites": LIBRARY,
    "studies": LIBRARY,
    "cli": LIBRARY | {"studies", "__init__"},
    "__init__": {"models", "pipelines", "evaluation", "benchmark", "studies"},  # the public names
}
ONLY_IN = {  # a package -> folders and modules that may import it
    "typer": ("cli", "sprites.command"),
    "av": ("data", "cli"),
    "tensorboard": ("training",),
    "pyarrow": ("data",),
    "ray": ("training",),
}
NETWORKS = {"unet", "motion_transformer", "video_model"}  # asked by denoisers and techniques alone
ASKING = ("denoisers", "techniques", "models", "pruning")
LAZY = re.compile(r"cmd_video\.sprites(\.\w+)*(:\w+)?")


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package, `__init__` written out."""
    return {
        ".".join([PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]): path
        for path in sorted(SOURCE.rglob("*.py"))
    }


def layer_of(module: str) -> str:
    return module.split(".")[1]


def absolute(node: ast.Import | ast.ImportFrom, module: str) -> list[str]:
    """Dotted names that an import names, relative ones resolved.

    `from a import b` gives a.b: whether b is a module is decided by who reads the result.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = module.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    names = [*base, *(node.module.split(".") if node.module else [])]
    return [".".join([*names, alias.name]) for alias in node.names]


def imported_modules(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of a module, also of those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in absolute(node, module))


def violations(source: str, module: str) -> list[str]:
    """What a module imports against the tables, one line each."""
    layer, found = layer_of(module), []
    for line, name in imported_modules(source, module):
        top, *rest = name.split(".")
        if top != PACKAGE:
            places = ONLY_IN.get(top, (layer,))
            if not any(f"{module}.".startswith(f"{PACKAGE}.{place}.") for place in places):
                found.append(f"{module}:{line}: only {', '.join(places)} may import {top}")
            continue
        target = rest[0] if rest and rest[0] in ALLOWED else "__init__"
        if rest != ["__version__"] and target not in {layer, *ALLOWED.get(layer, set())}:
            found.append(f"{module}:{line}: {layer} may not import {target} ({name})")
    return found


def circles(sources: dict[str, str]) -> list[str]:
    """Rings of modules of one folder that import each other as they are loaded, or for their types alone."""
    graph = {module: set(_siblings(source, module, sources)) for module, source in sources.items()}
    state: dict[str, str] = {}
    found = []

    def visit(module: str, path: list[str]) -> None:
        state[module] = "open"
        for other in sorted(graph[module]):
            if state.get(other) == "open":
                found.append(" -> ".join([*path[path.index(other) :], other]))
            elif other not in state:
                visit(other, [*path, other])
        state[module] = "done"

    for module in graph:
        if module not in state:
            visit(module, [module])
    return found


def _siblings(source: str, module: str, known: dict[str, str]) -> Iterator[str]:
    """Modules of its own folder that a module imports outside functions."""
    for node in _outside_functions(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in absolute(node, module):
                longest = next((part for part in _prefixes(name) if part in known), None)
                if longest not in (None, module) and layer_of(longest) == layer_of(module):
                    yield longest


def _prefixes(name: str) -> Iterator[str]:
    """A dotted name, and what it may be a name in, the longest first; of a package its `__init__`."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        yield ".".join(parts[:length])
        yield ".".join([*parts[:length], "__init__"])


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def names_sprites(source: str, module: str) -> list[str]:
    """Where a module names the demonstration other than in a table: a dictionary in capitals of the module."""
    tree = ast.parse(source)
    in_tables = set()
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id.isupper() and isinstance(statement.value, ast.Dict):
            in_tables |= {id(node) for node in ast.walk(statement)}
    return [
        f"{module}:{node.lineno}: names {node.value} outside a table"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY.fullmatch(node.value)
        if id(node) not in in_tables
    ]


def asks_networks(source: str, module: str) -> list[str]:
    """Where a module calls the network of a denoiser itself: `self.unet(...)`, `pipe.unet.forward(...)`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "forward":
            called = called.value
        if isinstance(called, ast.Attribute) and called.attr in NETWORKS:
            found.append(f"{module}:{node.lineno}: calls {called.attr}, which a denoiser is asked for")
    return found


def knows_a_schedule(source: str, module: str) -> list[str]:
    """Where a module reads the noise schedule of a scheduler."""
    return [
        f"{module}:{node.lineno}: reads alphas_cumprod, ask diffusion.process"
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "alphas_cumprod")
        or (isinstance(node, ast.Constant) and node.value == "alphas_cumprod")
    ]


def found_in(look: Callable[[str, str], list[str]], without: tuple[str, ...] = ()) -> str:
    """What a rule finds in all modules but those of some folders, a line each."""
    return "\n".join(
        line
        for module, path in modules().items()
        if not any(f"{module}.".startswith(f"{PACKAGE}.{place}.") for place in without)
        for line in look(path.read_text(encoding="utf-8"), module)
    )


def test_every_folder_and_module_has_a_layer():
    unknown = {layer_of(name) for name in modules()} - set(ALLOWED)
    assert not unknown, f"give them a row in ALLOWED: {sorted(unknown)}"
    assert len(modules()) > 5


def test_imports_point_down():
    found = found_in(violations)
    assert not found, found


def test_imports_inside_a_folder_make_no_circle():
    found = circles({module: path.read_text(encoding="utf-8") for module, path in modules().items()})
    assert not found, "\n".join(found)


def test_the_library_names_the_demonstration_in_tables_only():
    found = found_in(names_sprites, without=("sprites",))
    assert not found, found


def test_networks_are_asked_by_denoisers():
    found = found_in(asks_networks, without=ASKING)
    assert not found, found


def test_one_place_knows_the_noise_schedule():
    found = found_in(knows_a_schedule, without=("diffusion.process",))
    assert not found, found


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("models.layers", "from cmd_video.pipelines import pipeline_cmd", 1),
        ("models.layers", "def f():\n    from ..training.loop import train", 1),
        ("models.layers", "from cmd_video import CMDPipeline", 1),
        ("models.layers", "from .. import diffusion", 1),
        ("models.layers", "import typer", 1),
        ("models.__init__", "from .layers import a\nfrom cmd_video.data import b", 1),
        ("data.latents", "import cmd_video.models.layers", 1),
        ("section", "from cmd_video.models import layers", 1),
        ("techniques.lora", "from cmd_video.pipelines.sampling import Sampling", 1),
        ("techniques.lora", "from cmd_video.data.files import sha256", 1),
        ("pruning.blocks", "from cmd_video.techniques import technique", 1),
        ("training.loop", "from cmd_video.cli import main", 1),
        ("training.loop", "from cmd_video.evaluation import frechet", 1),
        ("training.loop", "if TYPE_CHECKING:\n    from cmd_video.sprites.scenes import render", 1),
        ("evaluation.extractors", "from cmd_video import sprites", 1),
        ("cli.evaluate", "def f():\n    from cmd_video.sprites.demo import captions", 1),
        ("sprites.command", "from cmd_video.cli.options import Device", 1),
        ("sprites.make", "import typer", 1),
        ("sprites.command", "import typer\nfrom ..evaluation.results import digest", 0),
        ("models.layers", "from . import x\nfrom .y import z\nimport torch\nfrom cmd_video.section import Section", 0),
        ("training.loop", "from ..models import a\nfrom cmd_video import data, __version__", 0),
        ("cli.train", "from cmd_video import CMDPipeline\nfrom cmd_video.training import loop\nimport typer, av", 0),
    ],
)
def test_the_check_of_imports_itself(module, source, count):
    assert len(violations(source, f"{PACKAGE}.{module}")) == count


@pytest.mark.parametrize(
    ("sources", "count"),
    [
        ({"a": "from .b import x", "b": "from .a import y"}, 1),
        ({"a": "from . import b", "b": "import cmd_video.data.a"}, 1),
        ({"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import y"}, 1),
        ({"a": "from .b import x", "b": "from .c import x", "c": "try:\n    from .a import y\nexcept E: pass"}, 1),
        ({"__init__": "from .a import x", "a": "from cmd_video.data import y"}, 1),
        ({"__init__": "from .a import x", "a": "from . import b", "b": ""}, 0),
        ({"a": "from .b import x", "b": "def f():\n    from .a import y"}, 0),
        ({"a": "from .b import x\nfrom .c import y", "b": "from .c import z", "c": "import torch"}, 0),
    ],
)
def test_the_check_of_circles_itself(sources, count):
    assert len(circles({f"{PACKAGE}.data.{name}": source for name, source in sources.items()})) == count


@pytest.mark.parametrize(
    ("look", "source", "count"),
    [
        (names_sprites, "import_module('cmd_video.sprites.demo')", 1),
        (names_sprites, "def f():\n    return {'a': 'cmd_video.sprites.demo:captions'}", 1),
        (names_sprites, "TABLE = {'a': 'cmd_video.sprites.demo:captions'}\n'''As cmd_video.sprites has it.'''", 0),
        (names_sprites, "TABLE: dict[str, Row] = {'a': Row('cmd_video.sprites.demo:captions', 1)}", 0),
        (asks_networks, "x = self.unet(x, t)\ny = pipe.motion_transformer.forward(x)", 2),
        (asks_networks, "unet = pipe.unet; unet.config; motion_transformer(None); self.unet.to('cpu')", 0),
        (knows_a_schedule, "a = scheduler.alphas_cumprod[t]\nhasattr(s, 'alphas_cumprod')", 2),
        (knows_a_schedule, "'''All schedulers with alphas_cumprod.'''", 0),
    ],
)
def test_the_other_checks_themselves(look, source, count):
    assert len(look(source, f"{PACKAGE}.cli.x")) == count
