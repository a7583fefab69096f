"""CMD's own models; the content model is diffusers' `UNet2DConditionModel` or `DiTTransformer2DModel` as it is.

`VideoCrafterUNet` is not CMD's: a video model that can be pruned and that diffusers has no class for.

Shape letters, everywhere: B batch, C channels, F frames, H, W, D latent channels, S tokens; `t` is diffusion time
only.
"""

from .autoencoder_cmd import CMDAutoencoder, CMDAutoencoderOutput
from .autoencoder_pixel_unshuffle import AutoencoderPixelUnshuffle
from .autoencoder_warp import CMDWarpAutoencoder
from .motion_transformer import MOTION_TRANSFORMER_SIZES, CMDMotionTransformer
from .unet_videocrafter import VideoCrafterUNet

__all__ = [
    "MOTION_TRANSFORMER_SIZES",
    "AutoencoderPixelUnshuffle",
    "CMDAutoencoder",
    "CMDAutoencoderOutput",
    "CMDMotionTransformer",
    "CMDWarpAutoencoder",
    "VideoCrafterUNet",
]
