"""`cmd-video evaluate ...`: measure a model, with the whole protocol in the result file."""

from pathlib import Path
from typing import Annotated

import typer

from .clipsim import command as clipsim
from .distribution import calc, compare, reference
from .importance import command as importance
from .options import Device, Output, Shard, progress_bar, share_of
from .paired import command as paired
from .report import command as report
from .samples import command as generate
from .sources import DrawSeed

app = typer.Typer(help="Measure: distances between sets of clips, reconstruction, importance of blocks.")
Model = Annotated[
    str | None, typer.Option("--model", help="Folder or hub id; default: the model that ships with the package.")
]


@app.command()
def reconstruction(
    output: Output = Path("reconstruction.json"),
    model: Model = None,
    run: Annotated[Path | None, typer.Option(help="A finished autoencoder run, instead of --model.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training configuration whose validation clips to use; default: held-out sprites."),
    ] = None,
    num_clips: Annotated[int, typer.Option(min=1, help="Clips.")] = 256,
    draw_seed: DrawSeed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 8,
    shard: Shard = None,
    device: Device = "cpu",
) -> None:
    """PSNR and SSIM of the autoencoder, beside its content frame and the plain mean shown still.

    Started again after an interruption it goes on; `accelerate launch -m cmd_video.cli` shares the work, or `--shard`.

    Example: cmd-video evaluate reconstruction -o reconstruction.json
    """
    from cmd_video.evaluation.metrics.reconstruction import measure_reconstruction
    from cmd_video.evaluation.protocol.clips import Reading
    from cmd_video.evaluation.protocol.results import write_result
    from cmd_video.evaluation.protocol.shared_work import SharedRows, discard, processes, work_on
    from cmd_video.section import named
    from cmd_video.studies.clips import DEMONSTRATION, clip_data, dataset_clips, open_autoencoder

    if run is not None and model is not None:
        raise ValueError("--run and --model: give one of them, not both")
    if draw_seed and config is None:
        raise ValueError("--draw-seed: nothing is drawn without --config")
    share = share_of(shard)
    state, device = processes(device)
    if run is not None and not (run / "pipeline").is_dir():
        raise ValueError(f"--run: {run} holds no finished run")
    autoencoder, vae, which = open_autoencoder(str(run) if run else model, device)
    reading = Reading(num_clips=num_clips, draw_seed=draw_seed)
    data, source = (clip_data(config), str(config)) if config else named(DEMONSTRATION["clips"])(num_clips)
    clips = dataset_clips(data, source, reading)
    measured = {"content_frame": autoencoder.config.content_frame, **which}
    work = output.with_name(f"{output.name}.parts")
    recipe = {**measured, "clips": [clips.recipe, clips.identity], "batch": batch_size}
    with work_on(work, share), progress_bar("clips", len(clips)) as progress:
        values, protocol = measure_reconstruction(
            clips, autoencoder, vae, batch_size,
            progress, SharedRows(work, recipe, share),
        )  # fmt: skip
    if not state.is_main_process:
        return
    write_result(output, "reconstruction", values, protocol | measured, device)
    discard(work)
    for name, value in values.items():
        print(f"{name.replace('_', ' '):15s} PSNR {value['psnr']:6.2f} dB   SSIM {value['ssim']:.4f}")
    print(output)


app.command("importance")(importance)
app.command("reference")(reference)
app.command("calc")(calc)
app.command("compare")(compare)
app.command("paired")(paired)
app.command("clipsim")(clipsim)
app.command("report")(report)
app.command("generate")(generate)
