"""`cmd-video evaluate generate`: clips of a model for many prompts, as files to be measured here or by VBench."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cmd_video.data.files import writable_folder

from .options import Device, Revision, read_lines

FORMATS = ("mp4", "png")
CLASSES = "classes"  # in place of a file of prompts
VBENCH_SCRIPT = """#!/bin/sh
# Measures the clips of this folder with VBench, which pins old packages: in an environment of its own, on a GPU.
# usage: sh run_vbench.sh [DIMENSION ...]
set -u
here=$(cd "$(dirname "$0")" && pwd)
[ -d "$here/.vbench" ] || python3 -m venv "$here/.vbench"
"$here/.vbench/bin/pip" install -q vbench || exit 1
failed=""
[ $# -gt 0 ] || set -- subject_consistency background_consistency temporal_flickering motion_smoothness \\
    dynamic_degree aesthetic_quality imaging_quality object_class multiple_objects human_action color \\
    spatial_relationship scene temporal_style appearance_style overall_consistency
for dimension in "$@"; do
    "$here/.vbench/bin/vbench" evaluate --dimension "$dimension" --videos_path "$here/videos" \\
        --output_path "$here/results" || failed="$failed $dimension"  # some need detectron2: see VBench's README
done
[ -z "$failed" ] || { echo "not measured:$failed" >&2; exit 1; }
"""


def command(
    prompts_file: Annotated[
        Path,
        typer.Argument(help="Text file with a prompt per line, or `classes`: each class of a model that knows them."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Clips there stay.", callback=writable_folder)],
    model: Annotated[str | None, typer.Option("--model", help="Folder or hub id; default: the shipped model.")] = None,
    revision: Revision = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Clips per prompt, each with its own seed.")] = 1,
    layout: Annotated[str, typer.Option(help="clips, or vbench: its names, and a script that runs it.")] = "clips",
    file_format: Annotated[str, typer.Option("--format", help="mp4, or png: folders of frames without loss.")] = "mp4",
    preset: Annotated[str | None, typer.Option(help="quality, fast or turbo; what follows overrides it.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each of the two models.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance of the content model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip; the next ones count on.")] = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the files.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time; does not change them.")] = 8,
    shard: Annotated[str | None, typer.Option(help="i/n: only clips i, i + n, ...; others make the rest.")] = None,
    device: Device = "cpu",
) -> None:
    """Generate clips for a list of prompts; stopped, the same command goes on, and processes share the work.

    Example: cmd-video evaluate generate prompts.txt -o samples --num-samples 4
    """
    import torch
    from rich.progress import Progress

    from cmd_video.data.shares import WHOLE, read_share
    from cmd_video.evaluation.protocol.results import digest_model
    from cmd_video.evaluation.protocol.shared_work import deal_out, processes
    from cmd_video.pipelines.loading import load_pipeline

    _check(layout, file_format)
    share = WHOLE if shard is None else read_share(shard)
    prompts = [] if str(prompts_file) == CLASSES else _read_prompts(prompts_file, layout)
    state, device = processes(device)
    pipe = load_pipeline(model, device, preset, revision=revision)
    pipe.set_progress_bar_config(disable=True)
    conditions = _conditions(pipe, prompts, prompts_file)
    rows = _rows(conditions, num_samples, seed, layout, file_format)
    recipe = {"model": digest_model(model), "preset": preset, "steps": steps, "guidance": guidance, "fps": fps}
    if state.is_main_process:
        _claim(output, recipe, rows, layout)
    state.wait_for_everyone()
    asked_for = [number for number in range(len(rows)) if share.has(number)]
    missing = [number for number in asked_for if not (output / rows[number]["path"]).exists()]
    mine = deal_out(missing, state)
    with Progress() as progress:
        task = progress.add_task("clips", total=len(asked_for), completed=len(asked_for) - len(missing))
        for start in range(0, len(mine), batch_size):
            batch = [rows[number] for number in mine[start : start + batch_size]]
            draws = [torch.Generator().manual_seed(row["seed"]) for row in batch]
            key, argument = ("prompt", "prompt") if prompts else ("class_label", "class_labels")
            asked: dict[str, Any] = {argument: [row[key] for row in batch]}
            out: Any = pipe(
                **asked, num_inference_steps=steps, guidance_scale=guidance, generator=draws, output_type="np"
            )
            for row, frames in zip(batch, out.frames, strict=True):
                _write((frames * 255).round().astype("uint8"), output / row["path"], fps)
            progress.advance(task, len(batch) * state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process:
        print(output / "prompts.jsonl")


def _check(layout: str, file_format: str) -> None:
    for name, value, allowed in (("--layout", layout, ("clips", "vbench")), ("--format", file_format, FORMATS)):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    if layout == "vbench" and file_format != "mp4":
        raise ValueError("--format: VBench reads mp4")


def _conditions(pipe: Any, prompts: list[str], asked: Path) -> list[dict[str, Any]]:
    """What clips are made of, as columns of a manifest: prompts, or the classes of a model that knows no texts, by
    their names if it knows them.
    """
    num_classes = pipe.num_classes
    if num_classes and prompts:
        raise ValueError(f"PROMPTS_FILE: {asked}, but the model knows {num_classes} classes: give `{CLASSES}`")
    if not num_classes and not prompts:
        raise ValueError(f"PROMPTS_FILE: `{CLASSES}`, but the model knows texts: give a file of prompts")
    return [{"prompt": prompt} for prompt in prompts] or [
        {"class_label": label} for label in pipe.class_names or range(num_classes)
    ]


def _rows(
    conditions: list[dict[str, Any]], num_samples: int, seed: int, layout: str, file_format: str
) -> list[dict[str, Any]]:
    """A row for each clip: where it lies, what it is of, its seed."""
    return [
        {"path": _name(layout, number, sample, condition, file_format), **condition, "seed": first_seed + sample}
        for number, condition in enumerate(conditions)
        for first_seed in [seed + number * num_samples]
        for sample in range(num_samples)
    ]


def _read_prompts(path: Path, layout: str) -> list[str]:
    prompts = read_lines(path)
    if layout == "vbench" and len(set(prompts)) < len(prompts):
        twice = next(prompt for number, prompt in enumerate(prompts) if prompt in prompts[:number])
        raise ValueError(f"PROMPTS_FILE: {twice!r} stands there twice; VBench names files by prompts")
    return prompts


def _name(layout: str, number: int, sample: int, condition: dict[str, Any], file_format: str) -> str:
    """Where a clip lies below the output folder.

    Raises:
        ValueError: VBench names files by prompts, and this prompt can be no file name.
    """
    if layout == "clips":
        return f"{number:05d}-{sample}" + (".mp4" if file_format == "mp4" else "")
    prompt = str(condition.get("prompt", f"class {condition.get('class_label')}"))
    name = f"{prompt}-{sample}.mp4"
    if "/" in name or "\0" in name or prompt.startswith(".") or len(name.encode()) > 255:
        raise ValueError(f"PROMPTS_FILE: {prompt[:60]!r} can be no file name, as VBench needs it")
    return f"videos/{name}"


def _claim(output: Path, recipe: dict[str, Any], rows: list[dict[str, Any]], layout: str) -> None:
    """Write the recipe and a manifest that training and `evaluate` read; refuse a folder with another recipe."""
    from cmd_video.data.files import holds_something, write_whole

    path, begun = output / "recipe.json", holds_something(output)  # who begins beside us writes the recipe first
    text = json.dumps({**recipe, "clips": rows}, indent=1, ensure_ascii=False)
    if path.is_file() and path.read_text() != text:
        raise ValueError(f"--output: {output} holds clips of another command; choose a new folder")
    if begun and not path.is_file():
        raise ValueError(f"--output: {output} is not empty")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    lines = [{name: value for name, value in row.items() if name != "seed"} for row in rows]
    write_whole(output / "prompts.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if layout == "vbench":
        (output / "videos").mkdir(exist_ok=True)
        write_whole(output / "run_vbench.sh", VBENCH_SCRIPT)


def _write(frames: Any, path: Path, fps: int) -> None:
    """A video file, or a folder of pictures that appears complete."""
    from PIL import Image

    from cmd_video.data.files import whole_folder
    from cmd_video.data.video_file import write_video

    if path.suffix == ".mp4":
        write_video(frames, path, fps)
        return
    with whole_folder(path) as temporary:
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / f"{number:04d}.png")
