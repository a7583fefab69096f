"""Winning back what pruning cost: a pruned denoiser beside its teacher (VDMini, arXiv 2411.18375).

    objective: {kind: vdmini_recovery, content_weight: 0.1, adversarial_weight: 1.0}

Total loss: task + 0.1 ICD + 1 MCA. The task is the denoising loss. Steps alternate: an even one updates the student,
an odd one the discriminator. Both see the teacher's and the student's estimates of the clean sample, noised again to a
drawn level, through the teacher's frozen encoder. Costs a pass of the teacher at each step, and with MCA three more.

Differs from paper: the generator's loss is the hinge's own, -D, not the printed -log D; R1 is approximated by a finite
difference, since fused attention has no second derivative; layers of ICD and learning rates are not published.

B batch; x_0 clean sample, x_t noisy one.
"""

import inspect
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmd_video.denoisers.denoiser import without_autocast
from cmd_video.denoisers.video_models import patch_of
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.objective import DiffusionSettings, Objective, denoising_loss
from cmd_video.pruning.blocks import is_unet
from cmd_video.pruning.pruned_models import PrunedMixin
from cmd_video.pruning.recovery import (
    FeatureDiscriminator,
    by_frame,
    content_loss,
    discriminator_loss,
    encoder_taps,
    generator_loss,
    shared_stages,
    tap,
)

R1_NOISE = 0.1


class Settings(DiffusionSettings):
    """Losses beside the task's for a pruned denoiser and its teacher."""

    needs_teacher: ClassVar[bool] = True
    takes_turns: ClassVar[bool] = True

    kind: Literal["vdmini_recovery"] = "vdmini_recovery"
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
    snr_power: float = Field(0.0, ge=0)
    """Of the task's loss, as in the plain objective."""

    @model_validator(mode="after")
    def _of_the_discriminator(self) -> "Settings":
        for name in ("noise_mean", "noise_std", "r1_weight", "discriminator_lr_scale"):
            if not self.adversarial_weight and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: it belongs to the discriminator, which adversarial_weight 0 leaves out")
        return self

    def build(self, denoiser: Any, model: nn.Module, teacher: Any = None, seed: int = 0) -> "Recovery":
        """The objective of a run."""
        return Recovery(self, denoiser, model, teacher, seed)


class Recovery(Objective):
    """A frozen teacher, features of both, a discriminator.

    Args:
        settings: its section.
        denoiser: how networks are asked.
        student: the pruned network.
        teacher: what it was made from.
        seed: of the discriminator's first weights.
    """

    def __init__(self, settings: Settings, denoiser: Any, student: Any, teacher: Any, seed: int) -> None:
        super().__init__(settings, denoiser)
        _check_teacher(student, teacher)
        self.teacher = teacher.eval().requires_grad_(False)
        self.pairs = shared_stages(student, teacher)
        self.taps = encoder_taps(teacher)
        self.discriminator: nn.Module | None = None
        if settings.adversarial_weight:
            torch.manual_seed(seed)
            channels = [_width(teacher, name) for name in self.taps]
            self.discriminator = FeatureDiscriminator(channels, temporal=denoiser.component != "unet")
            self.modules = {"discriminator": self.discriminator}
            self.lr_scales = {"discriminator": settings.discriminator_lr_scale}

    def validate(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, t: Tensor) -> dict[str, Tensor]:
        """The task's loss, and how far the student's output is from the teacher's."""
        t, told = t.to(x_0.device), self.denoiser.encode(condition)
        z = rng.normal(x_0)
        x_t = self.process.marginal(x_0, z, t)
        prediction, taught = self.denoiser.predict(model, x_t, t, told), self.as_teacher(x_t, t, told)
        return {
            "loss": self.task_loss(prediction, x_0, z, t).mean(),
            "distance_to_teacher": (prediction - taught).float().square().mean(),
        }

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        t = self.draw_times(rng).to(x_0.device)  # (B,)
        told = self.denoiser.encode(self.drop(condition, rng))
        z = rng.normal(x_0)  # (B, ...)
        x_t = self.process.marginal(x_0, z, t)  # (B, ...)
        told = self.disturb(told, t, rng)
        if self.discriminator is not None and turn % 2 == 1:
            with torch.no_grad():
                fake = self.process.clean(self.denoiser.predict(model, x_t, t, told), x_t, t)
                real = self.process.clean(self.as_teacher(x_t, t, told), x_t, t)
            return self.discriminator_loss(real, fake, rng, told)
        with tap(self.teacher, [pair.teacher for pair in self.pairs]) as taught:
            if self.settings.content_weight:
                self.as_teacher(x_t, t, told)
        with tap(model, [pair.student for pair in self.pairs]) as learned:
            prediction = self.denoiser.predict(model, x_t, t, told)  # (B, ...)
        task = loss = self.task_loss(prediction, x_0, z, t).mean()
        self.terms = {"task": task.item()}
        if self.settings.content_weight:
            content = content_loss(learned, taught)  # ICD, equation 4
            self.terms["content"] = content.item()
            loss = loss + self.settings.content_weight * content
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            scores = self.scores(self.process.clean(prediction, x_t, t), rng, told)
            self.discriminator.requires_grad_(True)
            adversarial = generator_loss(scores)  # MCA, equation 6
            self.terms["adversarial"] = adversarial.item()
            loss = loss + self.settings.adversarial_weight * adversarial
        return loss

    def task_loss(self, prediction: Tensor, x_0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Per sample (B,)."""
        return denoising_loss(self.process, prediction, self.process.target(x_0, z, t), t, self.settings.snr_power)

    def discriminator_loss(self, real: Tensor, fake: Tensor, rng: Draws, told: Condition) -> Tensor:
        """Hinge, and R1 by a finite difference (arXiv 2501.08316, section 3.3): D must be flat around the teacher."""
        nearby = real + R1_NOISE * rng.normal(real)
        with rng.again():  # all at the same level, with the same noise
            of_real = self.scores(real, rng, told)
        with rng.again():
            of_fake = self.scores(fake, rng, told)
        loss = discriminator_loss(of_real, of_fake)
        self.terms = {"discriminator": loss.item()}
        if self.settings.r1_weight:
            slope = ((self.scores(nearby, rng, told) - of_real) / R1_NOISE).square().mean()
            self.terms["r1"] = slope.item()
            loss = loss + 0.5 * self.settings.r1_weight * slope
        return loss

    def scores(self, x_0: Tensor, rng: Draws, told: Condition) -> Tensor:
        """D of samples noised again: (B, heads)."""
        assert self.discriminator is not None
        process, settings = self.process, self.settings
        ratios = process.noise / process.signal
        t = rng.nearest_log_normal(ratios, settings.noise_mean, settings.noise_std).to(x_0.device)  # (B,)
        x_t = process.marginal(x_0, rng.normal(x_0), t)
        with tap(self.teacher, self.taps, stop=True) as features:
            self.as_teacher(x_t, t, told)
        frames, tokens, rows = self.layout(x_0)
        with without_autocast(x_0.device):  # R1 divides small differences of scores
            layers = [by_frame(feature.float(), len(x_0), frames, tokens, rows) for feature in features]
            return self.discriminator(layers, t)

    def layout(self, x_0: Tensor) -> tuple[int, int | None, int]:
        """Frames in the features, tokens of the sample if there are others, and rows of a frame's tokens."""
        if self.denoiser.component == "unet":
            return 1, None, 1
        if self.denoiser.component == "motion_transformer":
            patch = self.teacher.config.patch_size
            frames = x_0.shape[2] // patch
            return frames, frames * (x_0.shape[3] // patch), 1
        frames, rows = patch_of(self.teacher)
        return x_0.shape[2] // frames, None, x_0.shape[3] // rows

    def as_teacher(self, x_t: Tensor, t: Tensor, told: Condition) -> Tensor:
        """The teacher's prediction; its weights are fixed, but gradients may pass to the input."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and x_t.requires_grad):
            return self.denoiser.predict(self.teacher, x_t, t, told)


def _check_teacher(student: Any, teacher: Any) -> None:
    expected = type(student).teacher_class() if isinstance(student, PrunedMixin) else type(student)
    if type(teacher) is not expected:
        raise ValueError(f"components.teacher: a {type(teacher).__name__}, the student needs a {expected.__name__}")
    for name in inspect.signature(expected.__init__).parameters:
        mine, its = (_plain(model.config.get(name)) for model in (student, teacher))
        if mine != its:
            raise ValueError(f"components.teacher.{name}: {its}, the student has {mine}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as it is after a file


def _width(teacher: Any, name: str) -> int:
    """Channels of what a tapped module puts out."""
    if is_unet(teacher):
        resnet = teacher.get_submodule(name.rsplit(".", 2)[0]).resnets[-1]
        return int(getattr(resnet, "spatial_res_block", resnet).out_channels)
    config = teacher.config
    return int(config.get("dim") or config["num_attention_heads"] * config["attention_head_dim"])
