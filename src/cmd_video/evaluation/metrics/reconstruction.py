"""Clips through the autoencoder: what is lost, and a clip to look at.

values, protocol = measure_reconstruction(clips, autoencoder, vae)        # of a `ClipSource`
values = reconstruction_metrics(autoencoder, vae, videos)        # videos: batches (B, 3, F, H, W) in [-1, 1]
video = open_clip(Path("clip.mp4"), 16, (64, 64));  panels = show_reconstruction(autoencoder, vae, video)
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmd_video.data.clip import ClipError
from cmd_video.data.transforms import resize_and_crop_frame, to_float, to_uint8
from cmd_video.denoisers.latent_space import ImageAutoencoder, decode_video, encode_video, spatial_ratio
from cmd_video.evaluation.metrics.paired import ssim
from cmd_video.evaluation.metrics.pairs import mean_and_error
from cmd_video.evaluation.protocol.clips import ClipSource, as_problem, readable_rows, storage_facts, stored_as
from cmd_video.evaluation.protocol.shared_work import Progress, Row, Rows, every_row
from cmd_video.evaluation.protocol.tables import digest_all, digest_of
from cmd_video.models import CMDAutoencoder

SHOWN = ("reconstruction", "content_frame", "mean_frame")


def open_clip(path: Path, num_frames: int, size: tuple[int, int], stride: int = 1, start: int = 0) -> torch.Tensor:
    """Read frames of a file or a folder of frames: (1, 3, F, H, W) in [-1, 1].

    Raises:
        ValueError: the clip cannot be read or is too short; the message names the file.
    """
    from cmd_video.data.decode import read_clip
    from cmd_video.data.frame_folders import read_frame_folder

    read = read_frame_folder if path.is_dir() else read_clip
    frames = read(path, num_frames, stride=stride, start=start, transform=partial(resize_and_crop_frame, size=size))
    return to_float(frames)[None]


@torch.no_grad()
def show_reconstruction(
    autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, video: torch.Tensor
) -> list[np.ndarray]:
    """Input, reconstruction, content frame, weights of the content frame: uint8 (F, H, W, 3) each.

    Args:
        autoencoder: the model.
        vae: its image autoencoder, or None for pixels.
        video: (1, 3, F, H, W) in [-1, 1].
    """
    latents = encode_video(vae, video)
    content_frame, motion_latents = autoencoder.encode(latents, return_dict=False)
    reconstruction = decode_video(vae, autoencoder.decode(content_frame, motion_latents).sample)
    still = decode_video(vae, content_frame[:, :, None]).expand_as(video)
    weights = autoencoder.content_weights(latents).mean(dim=1, keepdim=True)  # (1, 1, F, h, w), mean over channels
    weights = torch.nn.functional.interpolate(weights[:, 0], size=video.shape[-2:], mode="nearest")
    shown = (weights[:, None] * 2 - 1).expand_as(video)
    return [to_uint8(panel[0].cpu()).numpy() for panel in (video, reconstruction, still, shown)]


class ReconstructedClips(ClipSource):
    """Clips of another source, passed through an autoencoder as they are read.

    Args:
        clips: the source.
        autoencoder: the model.
        vae: its image autoencoder, or None for pixels.
        model: what says which model that is, for the recipe.
    """

    def __init__(
        self, clips: ClipSource, autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, model: dict[str, Any]
    ) -> None:
        self._clips, self._autoencoder, self._vae = clips, autoencoder, vae
        self._origins: dict[int, str] = {}
        self.recipe = {**clips.recipe, "reconstructed": model}
        self.identity = clips.identity

    def __len__(self) -> int:
        return len(self._clips)

    @torch.no_grad()
    def read(self, numbers: Sequence[int]) -> list[torch.Tensor | ClipError]:
        """See `ClipSource`; one at a time, for they may differ in size.

        Raises:
            ValueError: the autoencoder cannot take their size.
        """
        found: list[torch.Tensor | ClipError] = []
        for number, clip in zip(numbers, self._clips.read(numbers), strict=True):
            if not isinstance(clip, ClipError):
                self._origins[number] = digest_of(clip)
                clip = self._pass(clip)
            found.append(clip)
        return found

    def storage(self, number: int) -> tuple[str | None, float | None]:
        """See `ClipSource`: that of the clip that went in."""
        return self._clips.storage(number)

    def origin(self, number: int) -> str | None:
        """See `ClipSource`: the clip that went in."""
        return self._origins.get(number)

    @property
    def underneath(self) -> ClipSource:
        """See `ClipSource`."""
        return self._clips.underneath

    def _pass(self, clip: torch.Tensor) -> torch.Tensor:
        unit = spatial_ratio(self._vae) * self._autoencoder.config.patch_size
        if any(side % unit for side in clip.shape[1:3]):
            raise ValueError(f"size: {clip.shape[1]}x{clip.shape[2]}, the autoencoder takes multiples of {unit}")
        video = to_float(clip)[None].to(self._autoencoder.device)  # (1, 3, F, H, W)
        content_frame, motion_latents = self._autoencoder.encode(encode_video(self._vae, video), return_dict=False)
        made = decode_video(self._vae, self._autoencoder.decode(content_frame, motion_latents).sample)
        return to_uint8(made[0].cpu())


@torch.no_grad()
def reconstruction_rows(autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, video: torch.Tensor) -> list[Row]:
    """How far some clips are from their reconstruction, their content frame shown still, their mean shown still.

    Args:
        autoencoder: the model.
        vae: its image autoencoder, or None for pixels.
        video: (B, 3, F, H, W) in [-1, 1].

    Returns:
        for each clip, for each of SHOWN: `squared`, the mean squared error, `psnr` (dB, at most 60) and `ssim`.
    """
    content_frame, motion_latents = autoencoder.encode(encode_video(vae, video), return_dict=False)
    shown = {
        "reconstruction": decode_video(vae, autoencoder.decode(content_frame, motion_latents).sample),
        "content_frame": decode_video(vae, content_frame[:, :, None]).expand_as(video),
        "mean_frame": video.mean(dim=2, keepdim=True).expand_as(video),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, prediction in shown.items():
        if not prediction.isfinite().all():
            raise ValueError(f"autoencoder: its {name.replace('_', ' ')} holds values that are not numbers")
        prediction = prediction.clamp(-1, 1)
        squared = (prediction - video).square().flatten(1).double().mean(dim=1)
        psnr = 10 * torch.log10(4 / squared.clamp(min=4e-6))
        found[name] = {"squared": squared.tolist(), "psnr": psnr.tolist(), "ssim": ssim(prediction, video).tolist()}
    return [
        {name: {key: values[clip] for key, values in metrics.items()} for name, metrics in found.items()}
        for clip in range(len(video))
    ]


def summarize_reconstruction(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """PSNR and SSIM over clips.

    Args:
        rows: of `reconstruction_rows`.

    Returns:
        For each of SHOWN: `psnr` (dB, of one mean squared error over all clips), `psnr_per_clip` (mean of each clip's;
        both at most 60 dB), `ssim`, `clips`, and `standard_error` of the three (None for a single clip).

    Raises:
        ValueError: there are no clips.
    """
    if not rows:
        raise ValueError("clips: there are none to measure")
    result: dict[str, dict[str, Any]] = {}
    for name in SHOWN:
        squared, psnr, alike = (
            mean_and_error([row[name][key] for row in rows]) for key in ("squared", "psnr", "ssim")
        )
        mean, error = max(squared["value"] or 0.0, 4e-6), squared["standard_error"]
        result[name] = {
            "psnr": 10 * math.log10(4 / mean),
            "psnr_per_clip": psnr["value"],
            "ssim": alike["value"],
            "clips": len(rows),
            "standard_error": {
                "psnr": None if error is None else 10 / math.log(10) * error / mean,  # by the slope of the logarithm
                "psnr_per_clip": psnr["standard_error"],
                "ssim": alike["standard_error"],
            },
        }
    return result


def reconstruction_metrics(
    autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, videos: Iterable[torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """`summarize_reconstruction` of batches (B, 3, F, H, W) in [-1, 1]."""
    return summarize_reconstruction([row for video in videos for row in reconstruction_rows(autoencoder, vae, video)])


def measure_reconstruction(
    clips: ClipSource,
    autoencoder: CMDAutoencoder,
    vae: ImageAutoencoder | None,
    batch_size: int = 8,
    progress: Progress | None = None,
    rows_of: Rows = every_row,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What an autoencoder loses of clips, all of one size.

    Args:
        clips: uint8, as the autoencoder takes them.
        autoencoder: the model.
        vae: its image autoencoder, or None for pixels.
        batch_size: clips at a time.
        progress: called with (clips done, all clips).
        rows_of: how the clips are gone through; see `shared_work`.

    Returns:
        as `summarize_reconstruction`; and the protocol.

    Raises:
        ValueError: none can be read.
    """

    def look(numbers: list[int]) -> list[Row]:
        found = clips.read(numbers)
        readable = [to_float(clip).to(autoencoder.device) for clip in found if not isinstance(clip, ClipError)]
        measured = iter(reconstruction_rows(autoencoder, vae, torch.stack(readable)) if readable else [])
        return [
            as_problem(clip)
            if isinstance(clip, ClipError)
            else {"digest": digest_of(clip), "stored": stored_as(clips, number, clip), **next(measured)}
            for number, clip in zip(numbers, found, strict=True)
        ]

    rows, unreadable = readable_rows(rows_of(len(clips), batch_size, look, progress))
    true = {
        **clips.recipe,
        **storage_facts([row["stored"] for row in rows]),
        "pixels_sha256": digest_all([row["digest"] for row in rows]),
    }
    return summarize_reconstruction(rows), {"clips": len(rows), "unreadable": unreadable, "real": true}
