"""Training a pruned denoiser beside its teacher: the stage "distill" (VDMini, arXiv 2411.18375).

Total loss: task + 0.1 ICD + 1 MCA. The task is the denoising loss of the stage that the denoiser belongs to. Steps
alternate: an even one updates the student, an odd one the discriminator. Both see the teacher's and the student's
estimates of the clean sample, noised again to a drawn level, through the teacher's frozen encoder.

B batch; x_0 clean sample, z_t noisy one.
"""

import inspect
from typing import Any

import torch
from torch import nn

from cmd_video.losses import noise_levels, predicted_sample
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

from .config import TrainConfig
from .config_teacher import RecoveryConfig
from .draws import draw_level, draw_noise
from .labels import config_of
from .stages import Batch, ContentStage, DiffusionStage, MotionStage
from .video import VideoStage
from .video_models import patch_of

R1_NOISE = 0.1


class Recovery(DiffusionStage):
    """Mixed into a diffusion stage: a frozen teacher, features of both, a discriminator."""

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        components = dict(components)
        teacher = components.pop("teacher")
        super().__init__(config, components)  # type: ignore[call-arg]  # of the stage that this is mixed into
        self.frozen["teacher"] = teacher.eval().requires_grad_(False)  # neither trained nor saved
        self.settings: RecoveryConfig = config.objective.recovery
        student = components[self.denoiser]
        _check_teacher(student, teacher)
        self.pairs = shared_stages(student, teacher)
        self.taps = encoder_taps(teacher)
        self.discriminator: nn.Module | None = None
        if self.settings.adversarial_weight:
            torch.manual_seed(config.seed)  # of the heads' first weights
            channels = [_width(teacher, name) for name in self.taps]
            self.discriminator = FeatureDiscriminator(channels, temporal=not isinstance(self, ContentStage))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student, and the discriminator with a learning rate of its own."""
        heads = [value for name, value in self.learning().items() if name.startswith("discriminator.")]
        student = [value for name, value in self.learning().items() if not name.startswith("discriminator.")]
        groups = [{"params": student, "lr_scale": 1.0}]
        if heads:
            groups.append({"params": heads, "lr_scale": self.settings.discriminator_lr_scale})
        return groups

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The task's loss, and how far the student's output is from the teacher's."""
        draws, timestep = self._validation_draws(batch)
        sample, noise, noisy = self._noised(batch, draws, timestep)
        timestep = timestep.to(noisy.device)
        prediction, taught = self.predict(noisy, timestep, batch), self._as_teacher(noisy, timestep, batch)
        return {
            "loss": self._task_loss(prediction, sample, noise, timestep).mean(),
            "distance_to_teacher": (prediction - taught).float().square().mean(),
        }

    def _loss(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        sample, noise, noisy = self._noised(batch, draws, timestep)
        timestep = timestep.to(noisy.device)
        condition = self._disturb({**batch, **condition}, draws)
        if self.discriminator is not None and self._turn_of_the_discriminator(batch):
            with torch.no_grad():
                fake = self._clean(self.predict(noisy, timestep, condition), noisy, timestep)
                real = self._clean(self._as_teacher(noisy, timestep, condition), noisy, timestep)
            return self._discriminator_loss(real, fake, draws, condition)
        with tap(self.frozen["teacher"], [pair.teacher for pair in self.pairs]) as taught:
            if self.settings.content_weight:
                self._as_teacher(noisy, timestep, condition)
        with tap(self.components[self.denoiser], [pair.student for pair in self.pairs]) as learned:
            prediction = self.predict(noisy, timestep, condition)
        task = loss = self._task_loss(prediction, sample, noise, timestep).mean()
        self.terms = {"task": task.item()}
        if self.settings.content_weight:
            content = content_loss(learned, taught)
            self.terms["content"] = content.item()
            loss = loss + self.settings.content_weight * content
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            scores = self._scores(self._clean(prediction, noisy, timestep), draws, condition)
            self.discriminator.requires_grad_(True)
            adversarial = generator_loss(scores)
            self.terms["adversarial"] = adversarial.item()
            loss = loss + self.settings.adversarial_weight * adversarial
        return loss

    def _turn_of_the_discriminator(self, batch: Batch) -> bool:
        return int(batch["number"][0]) // self.config.loop.batch_size % 2 == 1

    def _discriminator_loss(
        self, real: torch.Tensor, fake: torch.Tensor, draws: list[torch.Generator], condition: Batch
    ) -> torch.Tensor:
        """Hinge, and R1 by a finite difference (arXiv 2501.08316, section 3.3): D must be flat around the teacher."""
        nearby = real + R1_NOISE * draw_noise(real, draws)
        states = [draw.get_state() for draw in draws]

        def scores(sample: torch.Tensor) -> torch.Tensor:  # at the same level, with the same noise
            for draw, state in zip(draws, states, strict=True):
                draw.set_state(state)
            return self._scores(sample, draws, condition)

        of_real = scores(real)
        loss = discriminator_loss(of_real, scores(fake))
        self.terms = {"discriminator": loss.item()}
        if self.settings.r1_weight:
            slope = ((scores(nearby) - of_real) / R1_NOISE).square().mean()
            self.terms["r1"] = slope.item()
            loss = loss + 0.5 * self.settings.r1_weight * slope
        return loss

    def _scores(self, sample: torch.Tensor, draws: list[torch.Generator], condition: Batch) -> torch.Tensor:
        """D of samples noised again: (B, heads)."""
        assert self.discriminator is not None
        scheduler, teacher = self.components[self.scheduler], self.frozen["teacher"]
        levels, mean, std = noise_levels(scheduler), self.settings.noise_mean, self.settings.noise_std
        level = torch.cat([draw_level(levels, mean, std, draw) for draw in draws]).to(sample.device)
        noisy = levels.add_noise(sample, draw_noise(sample, draws), level)
        with tap(teacher, self.taps, stop=True) as features:
            self._as_teacher(noisy, level, condition)
        frames, tokens, rows = self._layout(sample)
        with torch.autocast(sample.device.type, enabled=False):  # R1 divides small differences of scores
            layers = [by_frame(feature.float(), len(sample), frames, tokens, rows) for feature in features]
            return self.discriminator(layers, level)

    def _layout(self, sample: torch.Tensor) -> tuple[int, int | None, int]:
        """Frames in the features, tokens of the sample if there are others, and rows of a frame's tokens."""
        if isinstance(self, ContentStage):
            return 1, None, 1
        if isinstance(self, MotionStage):
            patch = config_of(self.frozen["teacher"]).patch_size
            frames = sample.shape[2] // patch
            return frames, frames * (sample.shape[3] // patch), 1
        frames, rows = patch_of(self.frozen["teacher"])
        return sample.shape[2] // frames, None, sample.shape[3] // rows

    def _as_teacher(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        """`predict` by the teacher; its weights are fixed, but gradients may pass to the input."""
        gradients = torch.set_grad_enabled(torch.is_grad_enabled() and noisy.requires_grad)
        with self.using(self.frozen["teacher"]), gradients:
            return self.predict(noisy, timestep, condition)

    def _clean(self, prediction: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return predicted_sample(self.components[self.scheduler], prediction, noisy, timestep)


class ContentRecovery(Recovery, ContentStage):
    """Of a pruned content model; single frames, so the discriminator has no temporal heads."""


class MotionRecovery(Recovery, MotionStage):
    """Of a pruned motion model."""


class VideoRecovery(Recovery, VideoStage):
    """Of a pruned video UNet or transformer."""


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
