"""`cmd-video evaluate importance CONFIG`: what each block of a model carries, and what it costs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Output, Plot, Shard, progress_bar, share_of


def command(
    config: Annotated[Path, typer.Argument(help="Training configuration of any stage but classifier.")],
    output: Output = Path("importance.json"),
    cost: Annotated[str, typer.Option(help="What a budget counts: parameters, flops or seconds.")] = "flops",
    measure: Annotated[
        str,
        typer.Option(help="What counts as importance: loss, frechet (clips are generated), magnitude or taylor."),
    ] = "loss",
    num_clips: Annotated[int, typer.Option(min=2, help="Held-out clips.")] = 64,
    plot: Plot = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the configuration: section.field=value.")
    ] = None,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """How much worse a model becomes without each of its blocks: in content, and in motion.

    The model is the one that the stage trains: a denoiser, an autoencoder or a decoder. It must have a `path` in the
    configuration: a fresh one knows nothing. With `--measure frechet`, as VDMini measures, clips are generated (by an
    autoencoder reconstructed) without each block, with the recipe's steps and guidance of `validation`, and their
    distance to the true ones is in averaged pixels, which suits small synthetic clips. `magnitude` and `taylor` look
    at the weights that would leave, the second also at the loss's gradient. Started again after an interruption it
    goes on; `accelerate launch -m cmd_video.cli` shares the blocks, or `--shard`.

    Example: cmd-video evaluate importance configs/sprites/turbo-motion.yaml -o importance.json
    """
    from cmd_video.pruning.importance import BlockImportance, plot_importance
    from cmd_video.studies.importance import importance
    from cmd_video.training.config import load_config

    if plot is not None and (plot.suffix != ".png" or not plot.absolute().parent.is_dir()):
        raise ValueError(f"--plot: {plot} does not end in .png, or lies in a folder that does not exist")
    share, settings = share_of(shard), load_config(config, overrides)
    with progress_bar("blocks") as progress:
        rows = importance(settings, output, cost, measure, num_clips, device, share, progress)
    if not rows:
        return
    _print(rows)
    print(output)
    if plot is not None:
        fields = BlockImportance.__dataclass_fields__
        plot_importance([BlockImportance(**{name: row[name] for name in fields}) for row in rows.values()], plot)
        print(plot)


def _print(rows: dict[str, dict[str, Any]]) -> None:
    print("block".ljust(52) + "importance  loss   content  motion   parameters  flops  seconds")
    for block, row in rows.items():
        shares = f"{row['parameters']:8.1%} {row['flops']:8.1%} {row['seconds']:7.1%}"
        kept = f"{row['importance']:+7.1%} {row['loss']:+9.1%} {row['content']:8.2%} {row['motion']:8.2%}"
        print(f"{block:54s} {kept} {shares}")
