"""The stage "autoencoder": a clip to content frame and motion latents and back (CMD, section 3.1).

stage = AutoencoderStage(config, components);  loss = stage(batch)                    # batch: video

B batch, C channels, F frames, H, W, D motion channels.
"""

from collections.abc import Iterator
from typing import Any

import torch

from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.diffusion.draws import Draws
from cmd_video.models import CMDAutoencoder, CMDWarpAutoencoder
from cmd_video.pruning.importance import NoisyBatch

from .coarse_warp import coarse_warp_loss
from .config import TrainConfig
from .grids import evenly, tile
from .reconstruction import psnr, reconstruction_loss
from .stage import Batch, Stage, to_device


class AutoencoderStage(Stage):
    """Trains the autoencoder to reconstruct clips (CMD, section 3.1)."""

    autoencoder: CMDAutoencoder

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        super().__init__(config, components, trained=("autoencoder",))
        base = self.autoencoder.config.get("base")
        if config.objective.coarse_warp_weight and base not in ("warp", "layers"):
            kind = type(self.autoencoder).__name__
            raise ValueError(f"objective.coarse_warp_weight: a {kind} with base {base!r} moves nothing")

    def forward(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        level = self.config.objective.motion_latents_noise
        if level:
            rng = Draws.of(self.config.seed, batch["number"])
            motion_latents = motion_latents + level * rng.normal(motion_latents)
        if self.config.objective.coarse_warp_weight and isinstance(self.autoencoder, CMDWarpAutoencoder):
            reconstruction, flow = self.autoencoder.decode_with_flow(content_frame, motion_latents)
            coarse = coarse_warp_loss(content_frame, clip, flow, self.autoencoder.config.fold)
            loss = self.config.objective.coarse_warp_weight * coarse
        else:
            reconstruction, loss = self.autoencoder.decode(content_frame, motion_latents).sample, 0
        loss = loss + reconstruction_loss(reconstruction, clip, self.config.objective.reconstruction)
        if self.config.objective.anchor_weight:
            middle = clip[:, :, clip.shape[2] // 2]
            loss = loss + self.config.objective.anchor_weight * reconstruction_loss(content_frame, middle, "l2")
        return loss

    def compile_trained(self) -> None:
        for part in self.autoencoder.children():  # its methods call them one by one
            part.compile()

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        reconstruction = self._decode(content_frame, motion_latents)
        still = decode_video(self.components.get("vae"), content_frame[:, :, None]).expand_as(batch["video"])
        return {
            "loss": (reconstruction - batch["video"]).square().mean(),
            "psnr": psnr(reconstruction, batch["video"]),
            "psnr_content_frame": psnr(still, batch["video"]),
        }

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        reconstruction = self._decode(content_frame, motion_latents)
        still = decode_video(self.components.get("vae"), content_frame[:, :, None])
        return tile([still, evenly(batch["video"]), evenly(reconstruction)])

    @torch.no_grad()
    def noisy_batch(self, batch: Batch) -> NoisyBatch:
        """A validation batch as something to put to several autoencoders, with nothing noisy about it."""
        clip = self._clip_latents(batch)

        def call(model: Any) -> torch.Tensor:
            decoded = model.decode(*model.encode(clip, return_dict=False)).sample
            return decode_video(self.components.get("vae"), decoded)

        return NoisyBatch(call, batch["video"], frames=2)

    def finish(self, batches: Iterator[Batch]) -> None:
        """Measure the motion latents' mean and standard deviation, so that the motion model sees unit variance, and
        how much each frame counts in the content frame.
        """
        device, latents, weights = self._device(), [], []
        for batch in batches:
            clip = self._clip_latents(to_device(batch, device))
            latents.append(self.autoencoder.encode(clip).motion_latents)
            weights.append(self.autoencoder.content_weights(clip).double().mean(dim=(1, 3, 4)))  # (B, F)
        channels = torch.cat(latents).transpose(0, 1).flatten(1).double()  # (D, everything)
        self.autoencoder.register_to_config(
            latents_mean=channels.mean(dim=1).tolist(),
            latents_std=channels.std(dim=1).clamp(min=1e-6).tolist(),
            frame_weights=torch.cat(weights).mean(dim=0).tolist(),
        )

    def _clip_latents(self, batch: Batch) -> torch.Tensor:
        """Clips in the space of the autoencoder: (B, C, F, H, W)."""
        return encode_video(self.components.get("vae"), batch["video"])

    def _decode(self, content_frame: torch.Tensor, motion_latents: torch.Tensor) -> torch.Tensor:
        """Clips in pixels: (B, 3, F, H, W)."""
        clip = self.components["autoencoder"].decode(content_frame, motion_latents).sample
        return decode_video(self.components.get("vae"), clip)
