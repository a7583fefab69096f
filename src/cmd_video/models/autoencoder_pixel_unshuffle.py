"""Pixels folded into channels, in the place of a learned image autoencoder: lossless, without weights.

    vae = AutoencoderPixelUnshuffle(patch_size=4);  latents = vae.encode(images).latents      # (B, 48, H / 4, W / 4)

Diffusion in these "latents" is pixel diffusion with a patch layer at both ends of the network (as in "simple
diffusion", arXiv 2301.11093, section 2.3); the interface is that of diffusers' `AutoencoderTiny`.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn


class AutoencoderPixelUnshuffle(ModelMixin, ConfigMixin):
    """An exactly invertible image "autoencoder": (B, C, H, W) <-> (B, C p^2, H / p, W / p).

    Args:
        in_channels: C of the images.
        patch_size: p.
        scaling_factor: multiplies latents before a diffusion model sees them, so that they have about unit variance.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, patch_size: int = 4, scaling_factor: float = 2.0) -> None:
        super().__init__()
        # A module without any parameter has no dtype or device, which pipelines and offloading ask for.
        self.placement = nn.Parameter(torch.zeros(1), requires_grad=False)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """(B, C, H, W) in [-1, 1] -> `latents` (B, C p^2, H / p, W / p), not scaled."""
        latents = F.pixel_unshuffle(x, self.config.patch_size)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, x: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """The inverse of `encode`, as `sample`."""
        sample = F.pixel_shuffle(x, self.config.patch_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
