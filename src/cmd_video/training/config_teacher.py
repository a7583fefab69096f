"""The part of a training configuration that says what is learned from a teacher: few steps, or what pruning cost."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NUM_TIMESTEPS = 1000  # of the noise schedules that few steps are distilled from


class Section(BaseModel):
    """A part of the configuration that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DistillationConfig(Section):
    """Few-step sampling without guidance: what the student learns from its teacher."""

    method: Literal["guidance", "consistency", "backward", "distribution_matching"]
    """One pass instead of two; few steps instead of many, for which the other three each do without the first:
    "consistency" learns at all noise levels, "backward" only the jumps of sampling, from where they really start,
    "distribution_matching" from the scores of the samples that they lead to."""
    guidance_scale: float = Field(1.0, ge=1)
    """Guidance of the teacher; 1 for a teacher that has it built in."""
    num_timesteps: int = Field(20, gt=0)
    """Stretches that diffusion time is cut into; the teacher's sampler takes one at a step. With distribution_matching
    only the grid on which `starts` lie: its teacher takes no steps."""
    num_segments: int = Field(4, gt=0)
    """Parts of diffusion time, of some stretches each, through each of which the student learns to jump; also the
    number of steps it is sampled with, but that 1 of consistency allows any (Latent Consistency Models)."""
    starts: tuple[int, ...] | None = Field(None, min_length=1)
    """Timesteps from which the jumps start, from noise to clean, 999 first; each the upper end of a stretch. Short
    segments where much is decided cost nothing; null = `num_segments` of equal length; else as many as those."""
    fake_score_steps: int = Field(5, gt=0)
    """distribution_matching: updates of the fake score for each one of the student (DMD2, section 4.2)."""

    @property
    def segment_starts(self) -> tuple[int, ...]:
        """Timesteps from which the jumps start, from noise to clean."""
        return self.starts or tuple(range(NUM_TIMESTEPS - 1, -1, -(NUM_TIMESTEPS // self.num_segments)))

    def check(self, steps: int) -> None:
        """Whether stretches, segments and the steps of validation fit together; a ValueError says what does not."""
        stretches, segments = self.num_timesteps, self.num_segments
        default = DistillationConfig.model_fields["fake_score_steps"].default
        if self.fake_score_steps != default and self.method != "distribution_matching":
            raise ValueError(
                "objective.distillation.fake_score_steps: it belongs to distribution_matching, not to " + self.method
            )
        if self.method == "guidance":
            if self.starts is not None:
                raise ValueError("objective.distillation.starts: guidance has no jumps, the other methods have")
            return
        if NUM_TIMESTEPS % stretches or stretches < steps:
            raise ValueError(
                f"objective.distillation.num_timesteps: {stretches} is no divisor of {NUM_TIMESTEPS} that is at least "
                f"validation.num_inference_steps = {steps}"
            )
        if self.starts is None and stretches % segments:
            raise ValueError(
                f"objective.distillation.num_segments: {segments} does not divide num_timesteps = {stretches}"
            )
        if self.starts is not None:
            ends = [(start + 1) * stretches / NUM_TIMESTEPS for start in self.starts]
            if ends[0] != stretches or ends != sorted({int(end) for end in ends if end >= 1}, reverse=True):
                raise ValueError(
                    f"objective.distillation.starts: {list(self.starts)} does not fall from {NUM_TIMESTEPS - 1} by "
                    f"multiples of {NUM_TIMESTEPS} / num_timesteps = {NUM_TIMESTEPS // stretches}"
                )
            if len(self.starts) != segments:
                raise ValueError(
                    f"objective.distillation.starts: {len(self.starts)} of them, but num_segments is {segments}"
                )
        if segments != steps and (segments, self.method) != (1, "consistency"):
            raise ValueError(
                f"objective.distillation.num_segments: {segments} is not validation.num_inference_steps = {steps}"
            )


class RecoveryConfig(Section):
    """Losses beside the task's for a pruned denoiser and its teacher (VDMini, arXiv 2411.18375)."""

    content_weight: float = Field(0.1, ge=0)
    """Of ICD, the distance of features (eq. 4); the paper's best."""
    adversarial_weight: float = Field(1.0, ge=0)
    """Of MCA, the adversarial loss (eq. 5 and 6); the paper's best; 0 = no discriminator."""
    noise_mean: float = Field(-1.0, allow_inf_nan=False)
    """Outputs are noised again to a ratio of noise to signal whose logarithm is normal; its mean (as SF-V,
    arXiv 2406.04324, where this is the most sensitive setting)."""
    noise_std: float = Field(1.0, gt=0)
    """And its standard deviation."""
    r1_weight: float = Field(1.0, ge=0)
    """Of the discriminator's R1 penalty."""
    discriminator_lr_scale: float = Field(10.0, gt=0)
    """The discriminator's learning rate over the student's (SF-V: 1e-4 to 1e-5)."""

    @model_validator(mode="after")
    def _of_the_discriminator(self) -> "RecoveryConfig":
        for name in ("noise_mean", "noise_std", "r1_weight", "discriminator_lr_scale"):
            if not self.adversarial_weight and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: it belongs to the discriminator, which adversarial_weight 0 leaves out")
        return self
