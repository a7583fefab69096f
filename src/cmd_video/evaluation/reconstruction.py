"""One clip through the autoencoder, to look at.

video = open_clip(Path("clip.mp4"), 16, (64, 64));  panels = show_reconstruction(autoencoder, vae, video)
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from cmd_video.data.transforms import resize_and_crop_frame, to_float, to_uint8
from cmd_video.models import CMDAutoencoder
from cmd_video.pipelines.image_space import ImageAutoencoder, decode_video, encode_video


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
