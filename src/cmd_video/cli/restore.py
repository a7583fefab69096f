"""`cmd-video restore CLIP --task superres -o out.mp4`: damaged clips made whole, without training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, VideoFile, open_picture


def command(
    clip: Annotated[Path, typer.Argument(help="Video file or folder of frames, at the size that is left of it.")],
    task: Annotated[str, typer.Option(help="superres, inpaint, interpolate, predict or deblur.")],
    output: VideoFile = Path("out.mp4"),
    factor: Annotated[
        int,
        typer.Option(
            min=1,
            help="superres: times larger; interpolate: every N-th frame is known; predict: the first N are; deblur: "
            "deviation of the blur in pixels.",
        ),
    ] = 4,
    mask: Annotated[Path | None, typer.Option(help="inpaint: a picture, black where pixels are not known.")] = None,
    prompt: Annotated[str, typer.Option(help="What the clip shows.")] = "",
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; default: the model that ships with the package.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of the descent; default: the method's.")] = None,
    prior_weight: Annotated[float | None, typer.Option(min=0, help="How hard the model pulls; 0 = not.")] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of the result; default: the model's.")] = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the file.")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel, to look at small clips.")] = 1,
    device: Device = "cpu",
) -> None:
    """Restore a clip: enlarge it, fill in pixels or frames, go on where it ends, sharpen it.

    CLIP holds what is known: for interpolate and predict the known frames only. The file shows, side by side, the
    plainest restoration and this one; a JSON file beside it records how.

    Example: cmd-video restore small.mp4 --task superres --factor 4 --prompt "a red circle moves up" -o out.mp4
    """
    if not clip.exists():
        raise FileNotFoundError(2, "no such file or folder", str(clip))
    from cmd_video.data.files import write_json
    from cmd_video.data.pictures import enlarge, side_by_side
    from cmd_video.data.transforms import to_uint8
    from cmd_video.data.video_file import write_video
    from cmd_video.evaluation.metrics.reconstruction import open_clip
    from cmd_video.pipelines.loading import load_pipeline
    from cmd_video.techniques.variational_restoration import Operator

    pipe = load_pipeline(model, device)
    frames = num_frames or pipe.autoencoder.config.num_frames
    size = tuple(side * pipe.ratio for side in pipe.autoencoder.config.sample_size)
    operator = Operator(task, factor, None if mask is None else _mask(mask, size))
    left = (size[0] // factor, size[1] // factor) if task == "superres" else size
    observed = open_clip(clip, len(operator.known(frames)), left, 1, 0).to(pipe.device)  # (1, 3, F', h, w)
    if operator.mask is not None:
        observed = operator(observed)
    given = {"iterations": iterations, "prior_weight": prior_weight}
    settings = {name: value for name, value in given.items() if value is not None}
    out: Any = pipe.restore(observed, operator, prompt, frames, settings, output_type="pt")
    restored = out.frames[0].transpose(0, 1).cpu() * 2 - 1  # (3, F, H, W)
    plainest = operator.simplest(observed, frames)[0].cpu()
    output.parent.mkdir(parents=True, exist_ok=True)
    shown = side_by_side([to_uint8(each).numpy() for each in (plainest, restored)])
    write_video(enlarge(shown, scale), output, fps)
    record = {"clip": str(clip), "task": task, "factor": factor, "mask": mask and str(mask), "prompt": prompt}
    record |= {"model": model or "default", "method": "variational", "settings": settings, "frames": frames}
    write_json(output.with_suffix(".json"), record)
    print(output)


def _mask(path: Path, size: tuple[int, ...]) -> Any:
    """1 where a pixel is known: (H, W).

    Raises:
        ValueError: it is no picture that can be read.
    """
    import numpy as np
    import torch
    from PIL import Image

    gray = open_picture(path, "mask").convert("L")
    gray = gray.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(gray) > 127).float()
