"""The stage "decoder": trains the decoder of an image autoencoder that was made smaller (VDMini, arXiv 2411.18375).

stage = DecoderStage(config, components);  loss = stage(batch)  # components: vae, teacher; batch: video

The encoder stays the teacher's, so latents and the diffusion models that make them stay as they are. The loss is that
of VDMini's appendix, reconstruction and perceptual distance. Differs from paper: the perceptual distance has LPIPS'
form (arXiv 1801.03924, eq. 1) in features of the teacher's own encoder, which needs no further weights; no adversarial
loss.

B batch, F frames, N = B * F; H, W pixels, h, w latents.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from cmd_video.pruning.importance import NoisyBatch
from cmd_video.pruning.recovery import tap

from .config import TrainConfig
from .grids import evenly, tile
from .reconstruction import psnr, reconstruction_loss
from .stage import Batch, Stage

LatentAutoencoder: TypeAlias = AutoencoderKL | AutoencoderKLTemporalDecoder


class DecoderStage(Stage):
    """Trains `vae.decoder` on what the teacher's encoder makes of frames."""

    vae: LatentAutoencoder

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        components = dict(components)
        teacher = components.pop("teacher")  # neither trained nor saved
        _check_teacher(components["vae"], teacher)
        super().__init__(config, components, trained=("vae",))
        self.frozen["teacher"] = teacher.eval().requires_grad_(False)
        self.vae.requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        ratio = 2 ** (len(teacher.config.block_out_channels) - 1)
        for place, data in (("data", config.data), ("validation.data", config.validation.data)):
            for side, pixels in (("height", data.height), ("width", data.width)):  # type: ignore[union-attr]  # no latents
                if pixels % ratio:
                    raise ValueError(f"{place}.{side}: {pixels} is no multiple of the autoencoder's {ratio} pixels")
        self.layers = [f"down_blocks.{number}" for number in range(len(teacher.encoder.down_blocks))]

    def forward(self, batch: Batch) -> torch.Tensor:
        video, objective = batch["video"], self.config.objective
        decoded = decode(self.vae, self._encode(video))
        loss = reconstruction_loss(decoded, video, objective.reconstruction)
        if objective.perceptual_weight:
            with torch.no_grad():
                known = self._features(video)
            loss = loss + objective.perceptual_weight * perceptual_distance(self._features(decoded), known)
        return loss

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Squared error and PSNR of the student, PSNR of its teacher."""
        video = batch["video"]
        latents = self._encode(video)
        learned, taught = decode(self.vae, latents), decode(self.frozen["teacher"], latents)
        return {
            "loss": (learned - video).square().mean(),
            "psnr": psnr(learned, video),
            "psnr_teacher": psnr(taught, video),
        }

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        """Frames, the teacher's reconstruction of them, the student's."""
        video = batch["video"]
        latents = self._encode(video)
        clips = [video, decode(self.frozen["teacher"], latents), decode(self.vae, latents)]
        return tile([evenly(clip, min(2, video.shape[2])) for clip in clips])

    def noisy_batch(self, batch: Batch) -> NoisyBatch:
        """A validation batch as something to put to several decoders, with nothing noisy about it."""
        latents = self._encode(batch["video"])
        return NoisyBatch(lambda model: decode(model, latents), batch["video"], frames=2)

    @torch.no_grad()
    def _encode(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, H, W) -> latents of the teacher (B, C, F, h, w), not scaled."""
        teacher: Any = self.frozen["teacher"]
        latents = teacher.encode(video.transpose(1, 2).flatten(0, 1)).latent_dist.mode()  # (N, C, h, w)
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2)

    def _features(self, video: torch.Tensor) -> list[torch.Tensor]:
        """What the stages of the teacher's encoder say of each frame: (N, channels, height, width) each."""
        encoder: Any = self.frozen["teacher"].encoder
        with tap(encoder, self.layers, stop=True) as features:
            encoder(video.transpose(1, 2).flatten(0, 1))
        return features


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, F, h, w), not scaled, to clips (B, 3, F, H, W): frame by frame, or across time where it can."""
    frames = latents.shape[2]
    flat = latents.transpose(1, 2).flatten(0, 1)  # (N, C, h, w)
    temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
    decoded = vae.decode(flat, num_frames=frames).sample if temporal else vae.decode(flat).sample
    return decoded.unflatten(0, (-1, frames)).transpose(1, 2)


def perceptual_distance(features: list[torch.Tensor], known: list[torch.Tensor]) -> torch.Tensor:
    """Squared distance of features scaled to unit length over channels, mean over places, sum over layers."""
    return torch.stack(
        [
            (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(dim=1).mean()
            for one, other in zip(features, known, strict=True)
        ]
    ).sum()


def _check_teacher(student: Any, teacher: Any) -> None:
    for name, model in (("vae", student), ("teacher", teacher)):
        if not isinstance(model, LatentAutoencoder):
            raise ValueError(f"components.{name}: a {type(model).__name__} has no decoder of this kind")
    if not isinstance(student, type(teacher)):
        raise ValueError(f"components.teacher: a {type(teacher).__name__}, the student is a {type(student).__name__}")
    for name in ("latent_channels", "scaling_factor", "shift_factor"):
        mine, its = student.config.get(name), teacher.config.get(name)
        if mine != its:
            raise ValueError(f"components.teacher.{name}: {its}, the student has {mine}")
    weights, others = (model.encoder.state_dict() for model in (student, teacher))
    same = weights.keys() == others.keys() and all(
        weight.shape == others[key].shape and torch.equal(weight, others[key]) for key, weight in weights.items()
    )
    if not same:
        raise ValueError("components.vae: its encoder is not the teacher's; prune the teacher's own autoencoder")
