"""`cmd-video techniques [KIND]`: the methods of papers that are here, and the settings of one."""

from typing import Annotated

import typer


def command(
    kind: Annotated[str | None, typer.Argument(help="Show the page and the settings of this one.")] = None,
) -> None:
    """List the techniques, each with where it plugs in, what it is for and its paper; or show one.

    Example: cmd-video techniques bridge
    """
    from cmd_video.techniques import TECHNIQUES, technique

    if kind is None:
        widths = [max(map(len, column)) for column in zip(*((name, row.seam) for name, row in TECHNIQUES.items()))]
        for name, row in TECHNIQUES.items():
            models = ", ".join(row.denoisers)
            print(f"{name:{widths[0]}}  {row.seam:{widths[1]}}  {row.title} ({models}), {row.paper}")
        return
    import inspect
    from importlib import import_module

    row = technique(kind)
    print(inspect.getdoc(import_module(row.module)))
    print("\nSettings")
    for name, field in row.settings.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        print(f"  {name}: {default}")
