"""`cmd-video edit CLIP PROMPT -o out.mp4`: a clip with another content and the same motion, or another motion."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ClassLabel, Device, VideoFile, class_of, file_if_given, open_picture

Picture = Annotated[
    Path | None, typer.Option(help="A picture to take as content frame: its own, edited (--keep writes it).")
]
Keep = Annotated[
    Path | None,
    typer.Option(help="Write the clip's own content frame here, a .png, and stop.", callback=file_if_given),
]
Strength = Annotated[
    float | None, typer.Option(min=0, max=1, help="Of the content frame: 0 = as it is, 1 = drawn anew; default 0.8.")
]
Resampled = Annotated[
    str | None, typer.Option(help="FIRST:LAST: draw the motion of these frames anew, LAST not among them; 8:16.")
]


def command(
    clip: Annotated[Path, typer.Argument(help="Video file or folder of frames.")],
    prompt: Annotated[str | None, typer.Argument(help="What the clip is to show.")] = None,
    output: VideoFile = Path("out.mp4"),
    content_frame: Picture = None,
    keep: Keep = None,
    strength: Strength = None,
    motion_strength: Annotated[float, typer.Option(min=0, max=1, help="The same of the motion.")] = 0.0,
    resample_frames: Resampled = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    class_label: ClassLabel = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: the shipped model.")] = None,
    preset: Annotated[str | None, typer.Option(help="quality, fast or turbo; what follows overrides it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of both models from pure noise; default: its own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the content model, 1 = none; default: its own.")] = None,
    motion_guidance: Annotated[float | None, typer.Option(help="Guidance of the motion model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames; default: the model's.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every stride-th frame.")] = 1,
    start: Annotated[int, typer.Option(min=0, help="Number of the first frame.")] = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the file.")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel, to look at small clips.")] = 1,
    device: Device = "cpu",
) -> None:
    """Edit a clip: its content is drawn anew by a prompt, or is a picture that you edited, and moves as it did.

    The clip is resized and cropped to the model's size. A JSON file beside the result records how it was made.

    Example: cmd-video edit clip.mp4 "a green ring moves up" --strength 0.7 -o out.mp4
    """
    picture = _picture(clip, content_frame, keep is not None or prompt is not None or class_label is not None)
    resampled = _range(resample_frames)
    import torch

    from cmd_video.data.files import write_json
    from cmd_video.data.pictures import enlarge
    from cmd_video.data.video_file import write_video
    from cmd_video.evaluation.metrics.reconstruction import open_clip
    from cmd_video.pipelines.loading import load_pipeline

    pipe = load_pipeline(model, device, preset)
    size = tuple(side * pipe.ratio for side in pipe.autoencoder.config.sample_size)
    video = open_clip(clip, num_frames or pipe.autoencoder.config.num_frames, size, stride, start)  # (1, 3, F, H, W)
    frames = video.transpose(1, 2) / 2 + 0.5
    if keep is not None:
        _write_content_frame(pipe, frames, keep)
        return
    given = {"num_inference_steps": steps, "guidance_scale": guidance, "motion_guidance_scale": motion_guidance}
    how = pipe.sampling.changed(given)
    label, class_name = class_of(class_label, pipe)
    strengths: dict[str, Any] = {"strength": strength, "motion_strength": motion_strength}
    strengths["resample_frames"] = resampled
    out: Any = pipe.edit(
        frames, prompt, negative_prompt, label, picture, **strengths, sampling=how,
        generator=torch.Generator().manual_seed(seed), output_type="np",
    )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    write_video(enlarge((out.frames[0] * 255).round().astype("uint8"), scale), output, fps)
    record: dict[str, Any] = {"clip": str(clip), "prompt": prompt, "negative_prompt": negative_prompt}
    record |= {"class_label": label, "class_name": class_name, **strengths, "seed": seed, "preset": preset}
    record |= {"content_frame": content_frame and str(content_frame), "model": model or "default"}
    record |= {"stride": stride, "start": start, "sampling": how.model_dump(mode="json")}
    write_json(output.with_suffix(".json"), record)
    print(output)


def _picture(clip: Path, content_frame: Path | None, asked: bool) -> Any:
    """The picture to take as content frame, if one is given.

    Raises:
        FileNotFoundError: there is no clip.
        ValueError: nothing says how to edit it.
    """
    if not clip.exists():
        raise FileNotFoundError(2, "no such file or folder", str(clip))
    if content_frame is not None:
        return open_picture(content_frame, "content_frame")
    if not asked:
        raise ValueError("nothing to edit by: give a prompt, a class or a content frame")
    return None


def _range(text: str | None) -> tuple[int, int] | None:
    """Two numbers of frames as they are given on the command line."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--resample-frames: {text!r} is not FIRST:LAST, two numbers of frames, as 8:16")
    return int(first), int(last)


def _write_content_frame(pipe: Any, frames: Any, path: Path) -> None:
    """A clip's own content frame as a PNG."""
    from cmd_video.data.files import whole_file

    own = pipe.edit(frames, strength=0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        own.content_frames[0].save(temporary, format="PNG")
    print(path)
