"""`cmd-video generate PROMPT -o out.mp4`: videos from prompts, a class or pictures."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cmd_video.data.files import writable_file, writable_folder

from .motion_files import FlowFile, PlanFile, TracksFile, following, read_plan, read_tracks, write_flow
from .options import (
    DTYPES,
    FORMATS,
    ClassLabel,
    Device,
    Revision,
    class_of,
    find_dtype,
    open_picture,
    read_lines,
    video_file,
)  # fmt: skip

Interval = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Guide only between these diffusion times, 0 (clean) to 1 (noise).", metavar="FROM UNTIL"),
]
Reuse = Annotated[int | None, typer.Option(min=1, help="Compute deep features at every n-th step only.", metavar="N")]
SamplingText = Annotated[
    str | None,
    typer.Option(help="YAML, or a file of it, laid over the model's own settings: 'content: {eta: 1.0}'."),
]
Reward = Annotated[
    str | None, typer.Option(help="Search content frames for it: sprites, or clip:PATH.", metavar="NAME")
]
Budget = Annotated[int | None, typer.Option(min=2, help="Of the search: evaluations of the content model for a clip.")]

Clips = Annotated[Path, typer.Option("-o", "--output", help="A .mp4, .gif or .webm file; for several clips a folder.")]
NumClips = Annotated[int, typer.Option(min=1, help="Clips in a row, each from the last frame of the one before.")]
Region = Annotated[Path | None, typer.Option(help="A picture: where it is white the clip moves, elsewhere not.")]
Structure = Annotated[
    Path | None, typer.Option("--structure", help="A picture, such as edges, whose structure the content gets.")
]
MotionStrength = Annotated[
    float | None,
    typer.Option(help="Of a plan: draw its motion anew from this share of diffusion time on; default 0: not."),
]


def command(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to show.", metavar="PROMPT...")] = None,
    output: Clips = Path("out.mp4"),
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with a prompt per line.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    class_label: ClassLabel = None,
    image: Annotated[Path | None, typer.Option(help="First frame (image to video).")] = None,
    last_image: Annotated[Path | None, typer.Option(help="Last frame, beside a first frame or without.")] = None,
    content_frame: Annotated[Path | None, typer.Option(help="Use this picture as content frame.")] = None,
    motion_region: Region = None,
    structure_image: Structure = None,
    tracks: TracksFile = None,
    plan: PlanFile = None,
    motion_strength: MotionStrength = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: the shipped model.")] = None,
    revision: Revision = None,
    num_videos: Annotated[int, typer.Option(min=1, help="Clips per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip; the next ones count on.")] = 0,
    preset: Annotated[str | None, typer.Option(help="quality, fast or turbo; what follows overrides it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the content model; default: the model's own.")] = None,
    motion_steps: Annotated[int | None, typer.Option(help="Steps of the motion model; default: as many.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the content model, 1 = none; default: its own.")] = None,
    motion_guidance: Annotated[float | None, typer.Option(help="Guidance of the motion model.")] = None,
    guidance_interval: Interval = None,
    reuse_interval: Reuse = None,
    sampling: SamplingText = None,
    reward: Reward = None,
    budget: Budget = None,
    num_clips: NumClips = 1,
    num_frames: Annotated[int | None, typer.Option(help="Frames; default: what the model was trained for.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the file.")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel, to look at small clips.")] = 1,
    output_flow: FlowFile = None,
    contact_sheet: Annotated[bool, typer.Option("--contact-sheet", help="Also one picture of all clips.")] = False,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = "float32",
) -> None:
    """Make videos from prompts, a class or pictures.

    Beside each video a JSON file records how it was made. With one clip, -o names the file; with several, a folder
    that gets a .mp4 and a .gif of each.

    Example: cmd-video generate "a red circle moves to the right" -o out.mp4
    """
    texts = _read_prompts(prompts, prompts_file, num_videos, "" if plan and class_label is None else None)
    labels = [text or ("image" if class_label is None else f"class {class_label}") for text in texts]
    files = _check_files(output, labels, contact_sheet)
    given = {"image": image, "last_image": last_image, "content_frame": content_frame}
    given |= {"motion_region": motion_region, "structure_image": structure_image}
    pictures = _opened(given)
    beside = {**given, "guidance": guidance, "reward": reward, "tracks": tracks, "output_flow": output_flow}
    planned = read_plan(plan, motion_strength, num_clips, beside)
    dragged = {"tracks": read_tracks(tracks), "num_clips": num_clips}
    pipe = _load(model, device, preset, dtype, revision, sampling)
    search = {"reward": _search_for(reward, budget, pipe, device), "output_flow": output_flow is not None, **dragged}
    label_number, class_name = class_of(class_label, pipe)
    settings = _sampling(pipe, steps, motion_steps, guidance, motion_guidance, guidance_interval, reuse_interval)
    settings |= {"negative_prompt": negative_prompt, "num_frames": num_frames, "height": height, "width": width}
    make = following(pipe, pictures["image"], **planned) if planned else partial(pipe, **pictures, **search)
    source = {**_names(given), **dragged, "sampler": type(pipe.content_scheduler).__name__, **planned}
    source |= {"model": model or "default", "revision": revision, "preset": preset, "dtype": dtype, "fps": fps}
    source |= {"reward": reward, "class_label": label_number, "class_name": class_name, **settings}
    records = [{"prompt": text, "seed": seed + number, **source} for number, text in enumerate(texts)]
    made = (_generate(make, record["prompt"], label_number, record["seed"], settings) for record in records)
    _write_all(made, records, labels, files, fps, scale, output if contact_sheet else None, output_flow)


def _opened(given: dict[str, Path | None]) -> dict[str, Any]:
    """Pictures by the argument that they are for.

    Raises:
        ValueError: one cannot be read, or two do not go together.
    """
    frames = [name for name in ("image", "last_image", "content_frame") if given[name] is not None]
    if given["structure_image"] is not None and frames:
        raise ValueError(
            f"structure_image: given beside {frames[0]}, with which no content frame is generated; give one"
        )
    return {name: open_picture(path, name) for name, path in given.items() if path is not None}


def _names(given: dict[str, Path | None]) -> dict[str, Any]:
    """Paths as a record shows them."""
    return {name: path and str(path) for name, path in given.items()}


def _load(
    model: str | None, device: str, preset: str | None, dtype: str, revision: str | None, sampling: str | None
) -> Any:
    """The pipeline, sampled as a preset and what is laid over it say."""
    from cmd_video.pipelines.loading import load_pipeline

    pipe = load_pipeline(model, device, preset, find_dtype(dtype), revision)
    pipe.sampling = pipe.sampling.laid_over(_read_yaml(sampling))
    return pipe


def _sampling(
    pipe: Any, steps: int | None, motion_steps: int | None, guidance: float | None, motion_guidance: float | None,
    guidance_interval: tuple[float, float] | None, reuse_interval: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of the pipeline, defaults written out, so that the record says what was done."""
    given = {
        "num_inference_steps": steps, "motion_num_inference_steps": motion_steps, "guidance_scale": guidance,
        "motion_guidance_scale": motion_guidance, "guidance_interval": guidance_interval,
        "reuse_interval": reuse_interval,
    }  # fmt: skip
    return {"sampling": pipe.sampling.changed(given).model_dump(mode="json")}


def _read_yaml(text: str | None) -> dict[str, Any]:
    """A mapping, written out or in a file; None is an empty one."""
    if text is None:
        return {}
    import yaml

    from cmd_video.data.yaml_text import parse_yaml

    path = Path(text)
    try:
        found = parse_yaml(path.read_text() if path.suffix in (".yaml", ".yml", ".json") else text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"sampling: {text!r} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ValueError(f"sampling: {text!r} is no mapping, such as 'content: {{eta: 1.0}}'")
    return found


def _search_for(name: str | None, budget: int | None, pipe: Any, device: str) -> Any:
    """The reward of that name, and a search for it in how the pipeline samples; half the budget for start noises."""
    if name is None:
        if budget is not None:
            raise ValueError(f"budget: {budget}, but there is no reward to search for")
        return None
    from cmd_video.techniques.reward_particles import reward_named

    steps = pipe.sampling.content.num_inference_steps
    budget = 4 * steps if budget is None else budget
    search = {"kind": "reward_particles", "budget": budget, "starts": max(1, min(budget // 2, budget - steps + 1))}
    pipe.sampling = pipe.sampling.laid_over({"content": {"eta": 1.0, "search": search}})
    return reward_named(name, device)


def _is_single(output: Path, count: int, contact_sheet: bool) -> bool:
    """Whether the output is one file; refuses what does not go together."""
    if count > 1 or output.suffix == "":
        if output.suffix in FORMATS:
            raise ValueError(f"--output: {output} is one file, but {count} clips are asked for; give a folder")
        return False
    if output.suffix not in FORMATS:
        raise ValueError(f"--output: {output} ends in {output.suffix!r}, allowed: {', '.join(FORMATS)}")
    if contact_sheet:
        raise ValueError("--contact-sheet: goes with a folder as --output")
    return True


def _check_files(output: Path, labels: list[str], contact_sheet: bool) -> list[list[Path]]:
    """Files of each clip; raises a ValueError, before the work, if something to write cannot be."""
    if _is_single(output, len(labels), contact_sheet):
        return [[video_file(output)]]
    files = [_files(output, number, label) for number, label in enumerate(labels)]
    writable_folder(output)
    sheet = [output / "contact_sheet.png"] if contact_sheet else []
    for path in [*(each for clip in files for each in clip), *sheet]:
        writable_file(path)
        writable_file(path.with_suffix(".json"))
    return files


def _generate(
    make: Callable[..., Any], prompt: str | None, class_label: int | str | None, seed: int, settings: dict[str, Any]
) -> tuple[Any, str | None, Any]:
    """One clip, uint8 (F, H, W, 3), what was cut off its prompt, and its flow (F, H, W, 2) or None."""
    import torch

    generator = [torch.Generator().manual_seed(seed)]
    out = make(prompt=prompt, class_labels=class_label, generator=generator, output_type="np", **settings)
    flow = None if out.flow is None else out.flow[0]
    return (out.frames[0] * 255).round().astype("uint8"), out.truncated_prompts[0], flow


def _read_prompts(
    prompts: list[str] | None, prompts_file: Path | None, num_videos: int, nothing: str | None
) -> list[str | None]:
    """Prompts of the command and of its file, each for so many clips; without any one that is `nothing`."""
    found: list[str | None] = [*(prompts or []), *(read_lines(prompts_file) if prompts_file is not None else [])]
    return [text for text in found or [nothing] for _ in range(num_videos)]


def _write_all(
    made: Iterable[tuple[Any, str | None, Any]], records: list[dict[str, Any]], labels: list[str],
    files: list[list[Path]], fps: int, scale: int, sheet: Path | None, flow: Path | None,
) -> None:  # fmt: skip
    """Clips, each as soon as it is made, with its record; then a picture of all in a folder, and their flow."""
    shown, flows = [], []
    for (frames, truncated, moved), record, label, own in zip(made, records, labels, files, strict=True):
        _write(frames, own, {**record, "truncated": truncated}, fps, scale)
        shown.append((label, frames))
        flows.append(moved)
    if sheet is not None:
        _write_sheet(shown, sheet / "contact_sheet.png", scale)
    if flow is not None:
        write_flow(flows, flow)


def _write_sheet(shown: list[tuple[str, Any]], path: Path, scale: int) -> None:
    from cmd_video.data.files import whole_file
    from cmd_video.data.pictures import contact_sheet

    with whole_file(path) as temporary:
        contact_sheet([frames for _, frames in shown], [label for label, _ in shown], scale=scale).save(temporary)
    print(path)


def _files(folder: Path, number: int, label: str) -> list[Path]:
    return [folder / f"{number:02d}-{_slug(label)}{suffix}" for suffix in (".mp4", ".gif")]


def _slug(text: str) -> str:
    """A file name from a prompt: letters, digits and dashes only, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "clip"


def _write(frames: Any, files: list[Path], record: dict[str, Any], fps: int, scale: int) -> None:
    """The clip in each format, and its record as JSON beside the first."""
    from cmd_video.data.files import write_json
    from cmd_video.data.pictures import enlarge
    from cmd_video.data.video_file import write_video

    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_video(enlarge(frames, scale), file, fps)
        print(file)
    write_json(files[0].with_suffix(".json"), record)
