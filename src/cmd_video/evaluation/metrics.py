"""Paired metrics of reconstructed clips.

values = reconstruction_metrics(autoencoder, vae, videos)        # videos: batches (B, 3, F, H, W) in [-1, 1]
"""

from collections.abc import Iterable

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from cmd_video.models import CMDAutoencoder
from cmd_video.pipelines.image_space import ImageAutoencoder, decode_video, encode_video


def ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Gaussian window 11, sigma 1.5), mean over frames: (B, 3, F, H, W) -> (B,)."""
    batch = len(prediction)
    frames = [video.transpose(1, 2).flatten(0, 1).float() for video in (prediction, target)]
    values = structural_similarity_index_measure(*frames, data_range=(-1.0, 1.0), reduction="none")
    return values.view(batch, -1).mean(dim=1)


@torch.no_grad()
def reconstruction_metrics(
    autoencoder: CMDAutoencoder, vae: ImageAutoencoder | None, videos: Iterable[torch.Tensor]
) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of reconstruction, of the content frame shown still, and of the plain mean shown still.

    Args:
        autoencoder: the model.
        vae: its image autoencoder, or None for pixels.
        videos: batches (B, 3, F, H, W) in [-1, 1].

    Returns:
        For each of "reconstruction", "content_frame", "mean_frame": `psnr` (dB, one mean squared error over all
        clips), `psnr_per_clip` (mean of each clip's PSNR, at most 60 dB each) and `ssim`; and `clips`.
    """
    errors: dict[str, list[torch.Tensor]] = {}
    similarities: dict[str, list[torch.Tensor]] = {}
    for video in videos:
        content_frame, motion_latents = autoencoder.encode(encode_video(vae, video), return_dict=False)
        shown = {
            "reconstruction": decode_video(vae, autoencoder.decode(content_frame, motion_latents).sample),
            "content_frame": decode_video(vae, content_frame[:, :, None]).expand_as(video),
            "mean_frame": video.mean(dim=2, keepdim=True).expand_as(video),
        }
        for name, prediction in shown.items():
            prediction = prediction.clamp(-1, 1)
            errors.setdefault(name, []).append((prediction - video).square().flatten(1).double().mean(dim=1))
            similarities.setdefault(name, []).append(ssim(prediction, video).double())
    if not errors:
        raise ValueError("no clips to measure")
    result: dict[str, dict[str, float]] = {}
    for name, values in errors.items():
        squared = torch.cat(values)
        result[name] = {
            "psnr": float(10 * torch.log10(4 / squared.mean())),
            "psnr_per_clip": float((10 * torch.log10(4 / squared.clamp(min=4e-6))).mean()),
            "ssim": float(torch.cat(similarities[name]).mean()),
            "clips": len(squared),
        }
    return result
