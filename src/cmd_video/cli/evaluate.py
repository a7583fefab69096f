"""`cmd-video evaluate ...`: measure a model, with the whole protocol in the result file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .clipsim import command as clipsim
from .distribution import calc, compare, reference
from .importance import command as importance
from .options import Device, Output, progress_bar
from .paired import command as paired
from .report import command as report
from .samples import command as generate
from .sources import DrawSeed, clip_data, dataset_clips, open_autoencoder

app = typer.Typer(help="Measure: distances between sets of clips, adherence, reconstruction, importance of blocks.")
SAMPLERS = ("content_sampler", "motion_sampler")
Model = Annotated[
    str | None, typer.Option("--model", help="Folder or hub id; default: the model that ships with the package.")
]


@app.command()
def adherence(
    output: Output = Path("adherence.json"),
    model: Model = None,
    num_scenes: Annotated[int, typer.Option(min=1, help="Clips to generate.")] = 200,
    preset: Annotated[str | None, typer.Option(help="quality, fast or turbo; what follows overrides it.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each of the two models.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance of the content model.")] = None,
    motion_guidance: Annotated[float | None, typer.Option(min=1, help="Guidance of the motion model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes, and the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 10,
    device: Device = "cpu",
) -> None:
    """Whether generated sprites have the color, shape and motion of their prompts, on combinations never trained on.

    Started again after an interruption it goes on; `accelerate launch -m cmd_video.cli` shares the work.

    Example: cmd-video evaluate adherence -o adherence.json
    """
    from dataclasses import asdict

    import torch

    from cmd_video.evaluation.results import digest_model, write_result
    from cmd_video.evaluation.shared_work import SharedRows, discard, processes
    from cmd_video.pipelines.loading import load_pipeline
    from cmd_video.pipelines.sampling import resolve
    from cmd_video.sprites.adherence import evaluate_adherence

    state, device = processes(device)
    pipe = load_pipeline(model, device, preset)
    pipe.set_progress_bar_config(disable=True)
    content, motion = resolve(pipe.config, steps, None, guidance, motion_guidance, None, None)
    num_frames, height, width = clip = _clip_size(pipe)

    def generate(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        options: dict[str, Any] = {"guidance_scale": guidance, "motion_guidance_scale": motion_guidance}
        out: Any = pipe(prompts, num_inference_steps=steps, generator=sources, output_type="pt", **options)
        return out.frames.transpose(1, 2).cpu() * 2 - 1  # (B, F, 3, H, W) in [0, 1] -> (B, 3, F, H, W) in [-1, 1]

    protocol = {
        "clips": num_scenes,
        "size": clip,
        "preset": preset,
        "sampling": {"content": asdict(content), "motion": asdict(motion)},
        "seed": seed,
        "scenes": "sprites, held_out combinations",
        **_samplers(pipe),
        "model": model or "default",
        "model_sha256": digest_model(model),
    }
    work = output.with_name(f"{output.name}.parts")
    with progress_bar("clips", num_scenes) as progress:
        values = evaluate_adherence(
            generate, num_scenes, seed, batch_size, height, width, num_frames,
            progress=progress,
            rows_of=SharedRows(work, protocol),
        )  # fmt: skip
    if not state.is_main_process:
        return
    protocol["real"] = {"pixels_sha256": values["settings"].pop("truth_sha256")}
    write_result(output, "adherence", values, protocol, device)
    discard(work)
    _print_scores(values, output)


def _samplers(pipe: Any) -> dict[str, str]:
    return {name: type(getattr(pipe, name.replace("sampler", "scheduler"))).__name__ for name in SAMPLERS}


def _clip_size(pipe: Any) -> list[int]:
    """F, H and W in pixels of what a pipeline generates unless told otherwise."""
    rows, columns = pipe.autoencoder.config.sample_size
    return [pipe.autoencoder.config.num_frames, rows * pipe.ratio, columns * pipe.ratio]


def _print_scores(values: dict[str, Any], output: Path) -> None:
    for name, score in values["accuracy"].items():
        floor = values["reader_on_ground_truth"][name]["rate"]
        print(
            f"{name:8s} {score['rate']:6.1%}   95% interval {score['low']:.1%} to {score['high']:.1%}   "
            f"reader {floor:.1%}"
        )
    print(output)


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
    device: Device = "cpu",
) -> None:
    """PSNR and SSIM of the autoencoder, beside its content frame and the plain mean shown still.

    Started again after an interruption it goes on; `accelerate launch -m cmd_video.cli` shares the work.

    Example: cmd-video evaluate reconstruction -o reconstruction.json
    """
    from cmd_video.evaluation.clips import Reading
    from cmd_video.evaluation.reconstruction import measure_reconstruction
    from cmd_video.evaluation.results import write_result
    from cmd_video.evaluation.shared_work import SharedRows, discard, processes, work_on
    from cmd_video.sprites.section import SpritesData

    if run is not None and model is not None:
        raise ValueError("--run and --model: give one of them, not both")
    if draw_seed and config is None:
        raise ValueError("--draw-seed: nothing is drawn without --config")
    state, device = processes(device)
    if run is not None and not (run / "pipeline").is_dir():
        raise ValueError(f"--run: {run} holds no finished run")
    autoencoder, vae, which = open_autoencoder(str(run) if run else model, device)
    held_out = SpritesData(kind="sprites", split="held_out", length=num_clips, seed=7)
    reading = Reading(num_clips=num_clips, draw_seed=draw_seed)
    clips = dataset_clips(clip_data(config) if config else held_out, str(config or "held-out sprites"), reading)
    measured = {"content_frame": autoencoder.config.content_frame, **which}
    work = output.with_name(f"{output.name}.parts")
    recipe = {**measured, "clips": [clips.recipe, clips.identity], "batch": batch_size}
    with work_on(work), progress_bar("clips", len(clips)) as progress:
        values, protocol = measure_reconstruction(
            clips, autoencoder, vae, batch_size,
            progress, SharedRows(work, recipe),
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
