"""The command line: `cmd-video VERB ...`. One module per verb, imported only when that verb is run.

`cmd-video --help` is answered from the table below, so it costs no torch import. To add a verb, write `cli/<verb>.py`
with a function `command`, or a `typer.Typer` named `app` for a verb with verbs of its own, and add its row. Modules of
verbs import torch, diffusers and the rest of the package inside their functions.

For many GPUs: `accelerate launch -m cmd_video.cli train CONFIG.yaml`.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NamedTuple

import typer
import typer.core
import typer.main

from cmd_video.data.shares import ShareDone

TRACEBACK_VARIABLE = "CMD_VIDEO_TRACEBACK"
ARGUMENTS = {  # of the library -> of a command, where it has another name
    "num_inference_steps": "steps",
    "motion_num_inference_steps": "motion_steps",
    "guidance_scale": "guidance",
    "motion_guidance_scale": "motion_guidance",
    "class_labels": "class_label",
}
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# What typer raises for a command line it cannot read. It is click's ClickException, by way of the one subclass that
# typer exports: some versions of typer use click, others carry a copy of it.
UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]


class Verb(NamedTuple):
    """One row of the command table.

    Attributes:
        module: dotted path of the module, imported when the verb is run.
        attribute: "command", a function with a typer signature, or "app", a `typer.Typer`.
        help: one line for `cmd-video --help`.
    """

    module: str
    attribute: str
    help: str


VERBS: dict[str, Verb] = {
    "generate": Verb("cmd_video.cli.generate", "command", "Make videos from prompts, a class or pictures."),
    "reconstruct": Verb("cmd_video.cli.reconstruct", "command", "Pass a clip through the autoencoder and measure it."),
    "edit": Verb("cmd_video.cli.edit", "command", "A clip with another content and the same motion."),
    "restore": Verb("cmd_video.cli.restore", "command", "Damaged clips made whole: enlarged, filled in, sharpened."),
    "data": Verb("cmd_video.cli.data", "app", "Look over and encode training data: check, encode."),
    "train": Verb("cmd_video.cli.train", "command", "Train one stage from a YAML config; again to resume."),
    "launch": Verb("cmd_video.cli.launch", "app", "Scripts for many GPUs and machines: list, show, copy."),
    "export": Verb("cmd_video.cli.export", "command", "Turn a training run into a folder for from_pretrained."),
    "prune": Verb("cmd_video.cli.prune", "command", "Leave blocks out of a model."),
    "merge": Verb("cmd_video.cli.merge", "command", "Weights between a model and its fine-tuning, or beyond."),
    "techniques": Verb("cmd_video.cli.techniques", "command", "List the methods of papers, or show the page of one."),
    "benchmark": Verb("cmd_video.cli.benchmark", "command", "Count and time a model, a recipe or its peers."),
    "evaluate": Verb("cmd_video.cli.evaluate", "app", "Measure: FVD and its relatives, pairs, reconstruction."),
    "weights": Verb("cmd_video.cli.weights", "app", "Files that metrics need: list, get, verify."),
    "sprites": Verb("cmd_video.sprites.command", "app", "The demonstration: make its clips, measure adherence."),
}


def load(name: str, verb: Verb) -> Any:
    """Import the module of a verb and return its command."""
    target = getattr(import_module(verb.module), verb.attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
        command.no_args_is_help = False  # `Missing command.` is one line, the help is not
    else:
        app = typer.Typer(add_completion=False)
        app.command(name)(target)
        command = typer.main.get_command(app)
    command.name = name
    return command


def build_app(verbs: dict[str, Verb]) -> Any:
    """Build the command line for a table of verbs: every verb is a placeholder until it is the one called."""

    class LazyGroup(typer.core.TyperGroup):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name = args[0]
            if name in verbs:
                self.commands[name] = load(name, verbs[name])
            elif not name.startswith("-"):
                near = get_close_matches(name, verbs, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(verbs)}"
                raise ValueError(f"unknown command {name!r}, {hint}")
            return super().resolve_command(ctx, args)

    app = typer.Typer(cls=LazyGroup, help="Text, class or image to video with a content frame and motion latents.")

    @app.callback()
    def top(
        show_version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", callback=print_version, is_eager=True
        ),
    ) -> None:
        pass

    for name, verb in verbs.items():
        app.command(name, help=verb.help)(lambda: None)
    return typer.main.get_command(app)


def options_of(app: Any, arguments: Sequence[str]) -> dict[str, str]:
    """The options of the command that was called, by the name of their argument: {"num_clips": "--num-clips"}."""
    command = app
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    long = ((param.name, [name for name in param.opts if name.startswith("--")]) for param in command.params)
    found = {name: names[0] for name, names in long if names}
    return found | {argument: found[name] for argument, name in ARGUMENTS.items() if name in found}


def print_version(wanted: bool) -> None:
    """Answer `--version`."""
    if wanted:
        from cmd_video import __version__

        print(__version__)
        raise typer.Exit


def main(argv: Sequence[str] | None = None, verbs: dict[str, Verb] = VERBS) -> int:
    """Run the command line and return its exit code.

    A mistake of the user (a wrong flag, or what `errors.is_mistake` says) becomes one line on stderr and exit code 2.
    Any other exception is a bug of ours and keeps its traceback; with the environment variable CMD_VIDEO_TRACEBACK=1
    they all do.

    Args:
        argv: the arguments without the program's name; None = those of this process.
        verbs: the command table.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    app = build_app(verbs)
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = app(arguments or ["--help"], prog_name="cmd-video", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except ShareDone as done:
        print(done)
        return 0
    except Exception as error:
        from cmd_video.cli.errors import describe, is_mistake

        if os.environ.get(TRACEBACK_VARIABLE) == "1" or not (isinstance(error, UsageProblem) or is_mistake(error)):
            raise
        print(f"error: {describe(error, options_of(app, arguments))}", file=sys.stderr)
        return EXIT_USER_ERROR
    if result == EXIT_INTERRUPTED:
        print("error: interrupted", file=sys.stderr)
    return result if isinstance(result, int) else 0
