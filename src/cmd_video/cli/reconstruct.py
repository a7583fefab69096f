"""`cmd-video reconstruct CLIP -o out.mp4`: take a clip apart and put it together again."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, VideoFile


def command(
    clip: Annotated[Path, typer.Argument(help="Video file or folder of frames.")],
    output: VideoFile = Path("out.mp4"),
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; default: the model that ships with the package.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every stride-th frame.")] = 1,
    start: Annotated[int, typer.Option(min=0, help="Number of the first frame.")] = 0,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames; default: what the model was trained for.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Height to resize and crop to.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Width to resize and crop to.")] = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of the file.")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge each pixel, to look at small clips.")] = 1,
    device: Device = "cpu",
) -> None:
    """Pass a clip through the autoencoder and measure it.

    The file shows, side by side: input, reconstruction, content frame, and the weight of each frame in the content
    frame (white = this frame alone). A JSON file beside it has PSNR and SSIM.

    Example: cmd-video reconstruct clip.mp4 -o out.mp4
    """
    if not clip.exists():
        raise FileNotFoundError(2, "no such file or folder", str(clip))
    from cmd_video.data.files import write_json
    from cmd_video.data.pictures import enlarge, side_by_side
    from cmd_video.data.video_file import write_video
    from cmd_video.evaluation.metrics.reconstruction import open_clip, reconstruction_metrics, show_reconstruction
    from cmd_video.pipelines.loading import load_pipeline

    pipe = load_pipeline(model, device)
    rows, columns = pipe.autoencoder.config.sample_size
    size = (height or rows * pipe.ratio, width or columns * pipe.ratio)
    unit = pipe.ratio * pipe.autoencoder.config.patch_size
    for name, side in zip(("--height", "--width"), size, strict=True):
        if side % unit:
            nearest = max(unit, round(side / unit) * unit)
            raise ValueError(f"{name}: {side} is not a multiple of {unit}; the nearest is {nearest}")
    video = open_clip(clip, num_frames or pipe.autoencoder.config.num_frames, size, stride, start).to(pipe.device)
    metrics = reconstruction_metrics(pipe.autoencoder, pipe.vae, [video])
    shown = show_reconstruction(pipe.autoencoder, pipe.vae, video)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_video(enlarge(side_by_side(shown), scale), output, fps)
    facts = {"clip": str(clip), "model": model or "default", **metrics}
    write_json(output.with_suffix(".json"), facts)
    for name in ("reconstruction", "content_frame", "mean_frame"):
        print(f"{name.replace('_', ' '):15s} PSNR {metrics[name]['psnr']:6.2f} dB   SSIM {metrics[name]['ssim']:.4f}")
    print(output)
