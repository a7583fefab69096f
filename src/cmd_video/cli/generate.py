"""`cmd-video generate PROMPT -o out.mp4`: videos from prompts, a class or pictures."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmd_video.data.files import writable_file, writable_folder

from .errors import describe
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

if TYPE_CHECKING:
    from PIL.Image import Image

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
PlanFile = Annotated[
    Path | None, typer.Option(help="JSON of boxes over time, which what they hold of --image follows.", metavar="FILE")
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
    pictures = {name: open_picture(path, name) for name, path in given.items() if path is not None}
    planned = _read_plan(plan, motion_strength, num_clips, {**given, "guidance": guidance, "reward": reward})
    pipe = _load(model, device, preset, dtype, revision, sampling)
    search = {"reward": _search_for(reward, budget, pipe, device), "num_clips": num_clips}
    label_number, class_name = class_of(class_label, pipe)
    settings = _sampling(pipe, steps, motion_steps, guidance, motion_guidance, guidance_interval, reuse_interval)
    settings |= {"negative_prompt": negative_prompt, "num_frames": num_frames, "height": height, "width": width}
    make = _following(pipe, pictures["image"], **planned) if planned else partial(pipe, **pictures, **search)
    source = {**_names(given), "num_clips": num_clips, "sampler": type(pipe.content_scheduler).__name__, **planned}
    source |= {"model": model or "default", "revision": revision, "preset": preset, "dtype": dtype, "fps": fps}
    source |= {"reward": reward, "class_label": label_number, "class_name": class_name}
    shown = []
    for number, prompt in enumerate(texts):
        frames, own = _generate(make, prompt, label_number, seed + number, settings)
        _write(frames, files[number], {**own, **source, **settings}, fps, scale)
        shown.append((labels[number], frames))
    if contact_sheet:
        _write_sheet(shown, output / "contact_sheet.png", scale)


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


def _read_plan(
    path: Path | None, motion_strength: float | None, num_clips: int, beside: dict[str, Any]
) -> dict[str, Any]:
    """`plan`, as a file has it, and `motion_strength`; nothing without a file.

    Raises:
        ValueError: it is no plan, the first frame is missing, or something is given beside it that would do nothing.
    """
    if path is None:
        if motion_strength is not None:
            raise ValueError(f"motion_strength: {motion_strength:g}, but there is no plan whose motion it changes")
        return {}
    if beside["image"] is None:
        raise ValueError(f"plan: {path}, but there is no image whose objects follow it")
    for name, value in {**beside, "num_clips": None if num_clips == 1 else num_clips}.items():
        if name != "image" and value is not None:
            raise ValueError(f"{name}: {value}, but beside a plan it does nothing; leave one of them out")
    from pydantic import ValidationError

    from cmd_video.pipelines.box_plan import Plan

    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"plan: {path}: {describe(error)}") from error
    return {"plan": plan.model_dump(mode="json"), "motion_strength": motion_strength or 0.0}


def _following(pipe: Any, image: "Image", plan: dict[str, Any], motion_strength: float) -> Callable[..., Any]:
    """What makes clips that follow a plan, from the arguments of a pipeline."""
    from cmd_video.pipelines.box_plan import sketch
    from cmd_video.pipelines.inputs import default_size

    def make(num_frames: int | None, height: int | None, width: int | None, **settings: Any) -> Any:
        wanted = "{}x{}".format(*default_size(pipe, height, width))
        if wanted != f"{image.height}x{image.width}":
            raise ValueError(f"image: {image.height}x{image.width} (height x width), the clip is {wanted}")
        clip = sketch(plan, image, pipe.autoencoder.config.num_frames if num_frames is None else num_frames)
        return pipe.edit(clip[None], strength=0.0, motion_strength=motion_strength, **settings)

    return make


def _generate(
    make: Callable[..., Any], prompt: str | None, class_label: int | str | None, seed: int, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """One clip, uint8 (F, H, W, 3), and what of its record is its own: seed, prompt, what was cut off that."""
    import torch

    generator = [torch.Generator().manual_seed(seed)]
    out = make(prompt=prompt, class_labels=class_label, generator=generator, output_type="np", **settings)
    own = {"prompt": prompt, "truncated": out.truncated_prompts[0], "seed": seed}
    return (out.frames[0] * 255).round().astype("uint8"), own


def _read_prompts(
    prompts: list[str] | None, prompts_file: Path | None, num_videos: int, nothing: str | None
) -> list[str | None]:
    """Prompts of the command and of its file, each for so many clips; without any one that is `nothing`."""
    found = [*(prompts or []), *(read_lines(prompts_file) if prompts_file is not None else [])]
    return [text for text in found or [nothing] for _ in range(num_videos)]


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
