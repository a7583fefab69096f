"""Given frames told to the networks: reference channels, a mix of tasks in training, and clips drawn with them (STIV,
arXiv 2412.07730; Many-for-Many, arXiv 2506.01758).

    edit: {kind: reference_frames, count: 2}                                          # in training, C and M each
    objective: {disturb: {kind: task_mix, text: 0.4, first: 0.3, first_last: 0.3}}
    sampling: {given_frames: {kind: told_frames}}                                     # pipe(prompt, image=first)

The content model C and the motion model M get R (C + 1) further input channels: each given frame with a mask, zeros
where it is not given. Their weights begin at zero, so that the fresh network is the one that it was widened from; what
`task_mix` leaves out of each sample teaches one network text to video, image to video and interpolation. In sampling
the content frame is drawn by C, told the frames, where `roll_forward` finds it by M alone, so that it asks nothing of
how the autoencoder weighs frames: the way for models whose content frames are mixtures. Joint guidance (STIV) is
`joint_guidance`, whose negative rows lack text and frames.

Costs the same as text to video, and `refine_steps` as in `roll_forward`. Differs from paper: STIV replaces the first
of its latent frames, which CMD's latents have none of; Many-for-Many adds an adapter of convolutions to the patches,
and trains fifteen tasks, here three, without depth and editing.

B batch, C channels of a frame, F frames, h, w its sides, D motion channels.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmd_video.denoisers.given_frames import Decode, refined
from cmd_video.denoisers.references import POSITIONS, ROW, unet_references
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.models import CMDMotionTransformer
from cmd_video.section import Section


class Settings(Section):
    """How many frames a network can be told."""

    kind: Literal["reference_frames"] = "reference_frames"
    count: int = Field(0, ge=0, le=len(POSITIONS))
    """R: 1 = the first frame, 2 = first and last; 0 = none."""

    def edit(self, model: Any, seed: int = 0) -> Any:
        """A network with channels for them, whose new weights are zero; one that has as many stays as it is.

        Raises:
            ValueError: it is neither a UNet nor a motion transformer, or takes another number of frames.
        """
        if not self.count:
            return model
        if isinstance(model, UNet2DConditionModel):
            own, has, layer = model.config.out_channels, unet_references(model), "conv_in"
            changed = {"in_channels": own + self.count * (own + 1)}
        elif isinstance(model, CMDMotionTransformer):
            own, has, layer = model.config.content_channels, model.config.num_references, "content_embed"
            changed = {"num_references": self.count}
        else:
            raise ValueError(f"edit.count: {self.count}, but a {type(model).__name__} is told no frames")
        if has not in (0, self.count):
            raise ValueError(f"edit.count: {self.count}, but the network was made for {has} given frames")
        if not has:
            setattr(model, layer, widened(getattr(model, layer), own + self.count * (own + 1)))
            model.register_to_config(**changed)
        return model

    def finish(self, model: Any) -> dict[str, Tensor]:
        """Nothing besides the network itself."""
        return {}

    def save(self, adapters: Mapping[str, Tensor], folder: Path) -> None:
        """The network's configuration says it."""


class TaskMix(Section):
    """Which frames a sample is told in training: shares that add up to 1."""

    kind: Literal["task_mix"] = "task_mix"
    text: float = Field(0.0, ge=0, le=1)
    """No frame: text to video."""
    first: float = Field(0.0, ge=0, le=1)
    """The first frame."""
    first_last: float = Field(1.0, ge=0, le=1)
    """All that the network can be told."""
    content_frame_noise: float = Field(0.0, ge=0)
    """Motion model: as the objective's own `content_frame_noise`, which a disturbance takes the place of."""

    @model_validator(mode="after")
    def _whole(self) -> "TaskMix":
        if abs(self.text + self.first + self.first_last - 1) > 1e-6:
            raise ValueError(f"text, first, first_last: {self.text}, {self.first}, {self.first_last} do not add to 1")
        return self

    def disturb(self, told: Condition, t: Tensor, rng: Draws) -> Condition:
        """What the network is told, some samples' frames left out, which is a function of seed and sample.

        Raises:
            ValueError: the network is told no frames.
        """
        if ROW not in told:
            raise ValueError("disturb: this network is told no frames; give it edit: {kind: reference_frames}")
        if self.content_frame_noise and "content_frame" in told:  # first, as it is drawn without this technique
            frame = told["content_frame"]  # (B, C, h, w)
            told = told.having(content_frame=frame + self.content_frame_noise * rng.normal(frame))
        row = told[ROW]  # (B, R, C + 1, h, w)
        most = {"text": 0, "first": 1, "first_last": row.shape[1]}
        kept = [most[self.task(number)] for number in rng.uniform()]
        mask = torch.tensor([[place < count for place in range(row.shape[1])] for count in kept])  # (B, R)
        return told.having(**{ROW: row * mask.to(row).view(*row.shape[:2], 1, 1, 1)})

    def task(self, number: float) -> str:
        """Of a number in [0, 1)."""
        if number < self.text:
            return "text"
        return "first" if number < self.text + self.first else "first_last"


class ToldFrames(Section):
    """Clips drawn by networks that are told the given frames."""

    kind: Literal["told_frames"] = "told_frames"
    refine_steps: int = Field(0, ge=0)
    """Steps of Adam on the motion latents towards the given frames, as in `roll_forward`; 0 = what is drawn stays."""
    learning_rate: float = Field(0.05, gt=0)
    """Of Adam, for normalised motion latents."""

    tells: ClassVar[bool] = True  # the networks, in place of `frames`

    def passes(self, numbers: Iterable[int], frames: int, weights: list[float]) -> tuple[int | None, ...]:
        """One of the motion model, of as many steps as asked."""
        return (None,)

    def refine(
        self, given: Mapping[int, Tensor], content_frame: Tensor, motion_latents: Tensor, decode: Decode
    ) -> tuple[Tensor, Tensor]:
        """The two, of which the motion latents are moved so that the clip has the given frames; see `refined`."""
        return refined(given, content_frame, motion_latents, decode, self.refine_steps, self.learning_rate)


def widened(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution that takes more channels, of which the further ones count nothing: the same function."""
    new = copy.deepcopy(layer)
    weight = layer.weight.new_zeros(len(layer.weight), channels, *layer.kernel_size)
    weight[:, : layer.in_channels] = layer.weight.detach()
    new.weight, new.in_channels = nn.Parameter(weight, layer.weight.requires_grad), channels
    return new
