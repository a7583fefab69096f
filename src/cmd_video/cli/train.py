"""`cmd-video train CONFIG.yaml`: train one stage; the same command again goes on where it stopped."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="YAML file, see configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field; may be given several times.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the memory it takes, and stop.")
    ] = False,
) -> None:
    """Train one stage from a YAML config; the same command again resumes.

    Example: cmd-video train configs/sprites/autoencoder.yaml --set loop.steps=100
    """
    from cmd_video.training.config import load_config

    resolved = load_config(config, overrides)
    if dry_run:
        import yaml

        from cmd_video.studies.training_memory import memory_lines

        print(yaml.safe_dump(resolved.model_dump(mode="json", by_alias=True), sort_keys=False), end="", flush=True)
        print("\n".join(f"# {line}" for line in memory_lines(resolved, config)))
        return
    from cmd_video.training.loop import train

    print(train(resolved))
