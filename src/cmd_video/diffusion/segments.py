"""Diffusion time cut into segments, through each of which a few-step student jumps: what distillations share.

    class Settings(SegmentSettings): ...;  settings.segment_starts            # (999, 749, 499, 249)

B batch; levels (B,), -1 = clean.
"""

import copy
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .condition import Condition
from .objective import DiffusionSettings, Objective
from .process import ddim_step

NUM_TIMESTEPS = 1000  # of the noise schedules that few steps are distilled from
INTERFACE = (  # fields of a network's configuration that its inputs and outputs depend on
    "in_channels", "out_channels", "cross_attention_dim",
    "latent_channels", "content_channels", "autoencoder_patch_size", "num_classes", "text_dim",
)  # fmt: skip


class SegmentSettings(DiffusionSettings):
    """What a student of few steps learns from its teacher: the component `teacher`, or what the run starts from."""

    allows_any_steps: ClassVar[bool] = False  # with one segment, as Latent Consistency Models

    guidance_scale: float = Field(1.0, ge=1)
    """Guidance of the teacher; 1 for a teacher that has it built in."""
    num_timesteps: int = Field(20, gt=0)
    """Stretches that diffusion time is cut into; the teacher's sampler takes one at a step, `starts` lie on them."""
    num_segments: int = Field(4, gt=0)
    """Parts of diffusion time, of some stretches each, through each of which the student learns to jump; also the
    number of steps it is sampled with."""
    starts: tuple[int, ...] | None = Field(None, min_length=1)
    """Timesteps from which the jumps start, from noise to clean, 999 first; each the upper end of a stretch. Short
    segments where much is decided cost nothing; null = `num_segments` of equal length; else as many as those."""

    @property
    def segment_starts(self) -> tuple[int, ...]:
        """Timesteps from which the jumps start, from noise to clean."""
        return self.starts or tuple(range(NUM_TIMESTEPS - 1, -1, -(NUM_TIMESTEPS // self.num_segments)))

    def check_run(self, denoiser: str, num_inference_steps: int) -> None:
        """Whether stretches, segments and the steps of validation fit together; a ValueError says what does not."""
        super().check_run(denoiser, num_inference_steps)
        stretches, segments = self.num_timesteps, self.num_segments
        if NUM_TIMESTEPS % stretches or stretches < num_inference_steps:
            raise ValueError(
                f"num_timesteps: {stretches} is no divisor of {NUM_TIMESTEPS} that is at least "
                f"validation.num_inference_steps = {num_inference_steps}"
            )
        if self.starts is None and stretches % segments:
            raise ValueError(f"num_segments: {segments} does not divide num_timesteps = {stretches}")
        if self.starts is not None:
            ends = [(start + 1) * stretches / NUM_TIMESTEPS for start in self.starts]
            if ends[0] != stretches or ends != sorted({int(end) for end in ends if end >= 1}, reverse=True):
                raise ValueError(
                    f"starts: {list(self.starts)} does not fall from {NUM_TIMESTEPS - 1} by multiples of "
                    f"{NUM_TIMESTEPS} / num_timesteps = {NUM_TIMESTEPS // stretches}"
                )
            if len(self.starts) != segments:
                raise ValueError(f"starts: {len(self.starts)} of them, but num_segments is {segments}")
        if segments != num_inference_steps and not (segments == 1 and self.allows_any_steps):
            raise ValueError(f"num_segments: {segments} is not validation.num_inference_steps = {num_inference_steps}")


class Taught(Objective):
    """An objective with a frozen teacher that has the student's inputs and outputs.

    Args:
        settings: its section, with `guidance_scale`.
        denoiser: how networks are asked.
        student: the network that learns.
        teacher: another one; None = the student as it is now.
        needs_grid: whether the process must have NUM_TIMESTEPS levels.

    Raises:
        ValueError: student and teacher differ in what goes in and comes out, or the process does not fit.
    """

    def __init__(self, settings: Any, denoiser: Any, student: Any, teacher: Any, needs_grid: bool = True) -> None:
        super().__init__(settings, denoiser)
        teacher = copy.deepcopy(student) if teacher is None else teacher
        for name in INTERFACE:
            mine, its = student.config.get(name), teacher.config.get(name)
            if mine != its:
                raise ValueError(f"components.teacher.{name}: {its}, the student has {mine}")
        if needs_grid and len(self.process) != NUM_TIMESTEPS:
            raise ValueError(
                f"components.{denoiser.scheduler}.num_train_timesteps: {len(self.process)}, "
                f"distillation needs {NUM_TIMESTEPS}"
            )
        self.teacher = teacher.eval().requires_grad_(False)

    def clean(self, model: Any, x_t: Tensor, t: Tensor, told: Condition) -> Tensor:
        """The x_0 (B, ...) that a network predicts."""
        return self.process.clean(self.denoiser.predict(model, x_t, t, told), x_t, t)

    def segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the segment of each level begins and where it ends; both (B,)."""
        starts = torch.tensor(self.settings.segment_starts[::-1], device=t.device)  # rising
        number = torch.searchsorted(starts, t)
        return starts[number], torch.cat([starts.new_tensor([-1]), starts])[number]

    def jump(self, model: Any, z: Tensor, told: Condition) -> Tensor:
        """A student's sample x_0 (B, ...), by its own jumps from noise."""
        x = z
        for start, until in pairwise((*self.settings.segment_starts, -1)):
            t = torch.full((len(z),), start, device=z.device)
            x = ddim_step(self.process, x, self.clean(model, x, t, told), t, torch.full_like(t, until))
        return x

    def sampling(self) -> dict[str, Any]:
        """The jumps, without guidance."""
        return {"starts": self.settings.segment_starts, "guidance": {"kind": "classifier_free", "scale": 1.0}}
