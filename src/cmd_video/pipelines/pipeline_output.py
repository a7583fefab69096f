"""What the pipeline returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class CMDPipelineOutput(BaseOutput):
    """Output of `CMDPipeline`.

    Attributes:
        frames: by `output_type`: "pil" a list of clips, each a list of images; "np" (B, F, H, W, 3) in [0, 1]; "pt"
            (B, F, 3, H, W) in [0, 1]; "latent" the normalised motion latents (B, D, F, H' + W').
        content_frames: "pil" a list of images; "np" (B, H, W, 3); "pt" (B, 3, H, W); "latent" (B, C, h, w); None
            where the pipeline does not decode them.
        truncated_prompts: for each clip what was cut off its prompt because the text encoder is not longer, or None.
        flow: (B, F, H, W, 2), where in the content frame each pixel of a frame comes from, relative to itself, as (x,
            y) in pixels; an array, for "pt" and "latent" a tensor; None where it was not asked for.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
    content_frames: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None
    truncated_prompts: list[str | None]
    flow: np.ndarray | torch.Tensor | None = None
