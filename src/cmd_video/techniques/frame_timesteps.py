"""A time of its own for each frame: FVDM (arXiv 2410.03160), Pusa (arXiv 2507.16116); frame replacement (STIV, arXiv
2412.07730).

    objective: {kind: frame_timesteps, independent: 0.2}             # FVDM; Pusa: 1.0, from a model that is trained
    objective: {kind: frame_timesteps, first_frame: 0.5}             # STIV, of Wan and LTX-Video
    pipe.edit(video, "a red ball moves down", resample_frames=(8, 16))

*Training*: with probability p each frame of a clip is noised to a level of its own, else all to one; the network is
told all levels, the loss is over all frames. With `first_frame`, some clips keep their first frame clean, at time 0,
and the loss does not see it. *Sampling*: known frames stay as they are, at time 0, and the others are drawn around
them: another ending for a clip, on ordinary video models also a clip from its first frame.

A network that knew one time for all frames starts from where it is: with equal times it is the same function. The
motion model's content tokens are told the largest time. No pass and no weight is added. CMD's motion latents are not
local in time, so that known frames of *another* clip, or a first frame alone, cannot be given in this way: that is
`roll_forward` and `reference_frames`.

Differs from paper: DDIM at time 0 would let known frames drift to the network's prediction, here they are kept, and in
CMD, whose decoder looks along time, their latents moved so that they are shown as before (`Resample.refine_steps`);
Pusa's noise on known frames is not here, and its LoRA is a full fine-tuning.

B batch, F frames; x_0 (B, C, F, ...).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.denoisers.given_frames import Decode, refined
from cmd_video.denoisers.labels import config_of
from cmd_video.denoisers.video_models import TAKE_TIMES, kind_of, patch_of
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.guidance import Ask, AskUnder
from cmd_video.diffusion.objective import Denoising, DenoisingSettings
from cmd_video.diffusion.plan import Step
from cmd_video.section import Section


class Settings(DenoisingSettings):
    """How often frames have times of their own."""

    kind: Literal["frame_timesteps"] = "frame_timesteps"  # type: ignore[assignment]
    independent: float = Field(0.2, ge=0, le=1)
    """p, the share of clips whose frames each have a level of their own; 0 = none, 1 = all (Pusa)."""
    first_frame: float = Field(0.0, ge=0, le=1)
    """Share of clips whose first latent frame is told clean and left out of the loss; for video models."""

    def check_run(self, denoiser: str, num_inference_steps: int) -> None:
        """Where frames cannot have times of their own."""
        super().check_run(denoiser, num_inference_steps)
        if self.process is not None:
            raise ValueError(f"process: {self.process.kind!r}, but times of each frame are of the scheduler's noise")
        if self.first_frame and denoiser != "video":
            raise ValueError("first_frame: motion latents of a frame hang on all others; for the stage 'video'")

    def build(self, denoiser: Any, model: Any, teacher: Any = None, seed: int = 0) -> "FrameTimesteps":
        """The objective of a run.

        Raises:
            ValueError: the network is told one time for all frames.
        """
        if denoiser.component == "video_model" and kind_of(model) not in TAKE_TIMES:
            names = ", ".join(each.__name__ for each in TAKE_TIMES)
            raise ValueError(f"objective.kind: 'frame_timesteps' is not for a {kind_of(model).__name__}; for {names}")
        denoiser.learns = None
        return FrameTimesteps(self, denoiser)


class FrameTimesteps(Denoising):
    """The plain loss at levels of each frame."""

    settings: Settings

    def loss(self, model: Any, x_0: Tensor, condition: Condition, rng: Draws, turn: int) -> Tensor:
        t = self.draw_times(rng)  # (B,)
        told = self.denoiser.encode(self.drop(condition, rng))
        z = self.process.draw_noise(x_0, rng)  # (B, C, F, ...)
        told = self.disturb(told, t.to(x_0.device), rng)
        times = self.times_of_frames(t, x_0.shape[2], rng, slot_of(model)).to(x_0.device)  # (B, F)
        return self.at(model, x_0, z, times, told)

    def times_of_frames(self, t: Tensor, frames: int, rng: Draws, slot: int) -> Tensor:
        """Levels (B, F), those of a slot of frames alike: for some clips independent, for the others t (B,); -1 where
        a first frame is told clean.
        """
        slots = -(-frames // slot)
        own = torch.stack([self.draw_times(rng) for _ in range(slots)], dim=1)  # (B, K)
        apart = torch.tensor([number < self.settings.independent for number in rng.uniform()])  # (B,)
        times = torch.where(apart[:, None], own, t[:, None].expand(-1, slots))
        clean = torch.tensor([number < self.settings.first_frame for number in rng.uniform()])  # (B,)
        times = torch.cat([torch.where(clean, -1, times[:, 0])[:, None], times[:, 1:]], dim=1)
        return times.repeat_interleave(slot, dim=1)[:, :frames]

    def at(self, model: Any, x_0: Tensor, z: Tensor, t: Tensor, told: Condition, x_1: Tensor | None = None) -> Tensor:
        """Loss of each sample (B,) at levels (B,) or (B, F); frames at level -1 are told and not asked for."""
        if t.ndim == 1:
            return super().at(model, x_0, z, t, told, x_1)
        process, asked = self.process, t >= 0
        x_t = process.marginal(x_0, z, t)  # (B, C, F, ...)
        prediction = self.denoiser.predict(model, x_t, t.clamp(min=0), told)  # (B, C, F, ...)
        target = process.target(x_0, z, t.clamp(min=0))
        error = (prediction.float() - target.float()).square()
        error = error.transpose(1, 2).flatten(2).mean(dim=2)  # (B, F)
        if power := self.settings.snr_power:
            error = error * process.signal_to_noise(t.clamp(min=0)) ** power
        return (error * asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)


def slot_of(model: Any) -> int:
    """Frames that a network tells one time: its patch of them."""
    config = config_of(model)
    return patch_of(getattr(model, "module", model))[0] if "latent_channels" not in config else config.patch_size


@dataclass(frozen=True)
class KnownFrames:
    """A wrap around the network: frames of a sample that are known, at time 0, while the others are drawn.

    Attributes:
        sample: x_0 (B, C, F, ...), of which the known frames count.
        known: (F,) bool.
    """

    sample: Tensor
    known: Tensor
    kind: str = "known_frames"
    rows: tuple[str, ...] = ()

    def steps(self, steps: list[Step], guidance: Any) -> list[Step]:
        """All of them."""
        return steps

    def ask_under(self, ask_under: AskUnder, denoiser: Denoiser, model: Any) -> AskUnder:
        """Ask a network with the known frames in place, in whichever way it is asked without."""
        clean_time = float(denoiser.process.timestep[0])

        def asked_under(told: Condition) -> Ask:
            def ask(x: Tensor, step: Step) -> Tensor:
                times = torch.full((len(x), x.shape[2]), step.t, device=x.device)  # (N, F)
                times[:, self.known.to(x.device)] = clean_time
                return denoiser.call(model, self.put_into(x), times, told)

            return ask

        return asked_under

    def put_into(self, x: Tensor) -> Tensor:
        """A sample, or rows of several conditions (N, C, F, ...), with the known frames, to the bit."""
        mask = self.known.view(1, 1, -1, *[1] * (x.ndim - 3)).to(x.device)
        return torch.where(mask, self.sample.repeat(len(x) // len(self.sample), *[1] * (x.ndim - 1)).to(x), x)


class Resample(Section):
    """A part of a clip drawn anew."""

    kind: Literal["known_frames"] = "known_frames"
    refine_steps: int = Field(5, ge=0)
    """Steps of Adam on CMD's motion latents towards the known frames as they were, which else would change with the
    others: the decoder looks along time. 0 = known latents stay to the bit."""
    learning_rate: float = Field(0.05, gt=0)
    """Of Adam, for normalised motion latents."""

    def around(self, resampled: Sequence[int], sample: Tensor, model: Any) -> KnownFrames:
        """What is to be wrapped around a network, so that it draws the frames from the first number up to the second.

        Raises:
            ValueError: the two are no range of whole patches of frames in the clip, or it is the whole clip.
        """
        frames, slot = sample.shape[2], slot_of(model)
        first, last = resampled
        fits = all(isinstance(number, int) and number % slot == 0 for number in (first, last))
        if not fits or not 0 <= first < last <= frames or last - first == frames:
            raise ValueError(
                f"resample_frames: ({first}, {last}) is no part of the {frames} frames; allowed are multiples of "
                f"{slot}, 0 <= first < last <= {frames}, not all of them"
            )
        number = torch.arange(frames)
        return KnownFrames(sample, (number < first) | (number >= last))

    def refine(self, known: KnownFrames, drawn: Tensor, content_frame: Tensor, decode: Decode) -> Tensor:
        """Motion latents that were drawn around known ones, (B, D, F, H' + W'), so that the known frames are shown as
        they were.
        """
        z, numbers = known.put_into(drawn), known.known.nonzero().flatten().tolist()
        if not self.refine_steps:
            return z
        shown = decode(content_frame, known.sample, numbers)  # (B, C, N, h, w)
        given = dict(zip(numbers, shown.unbind(2), strict=True))
        return refined(given, content_frame, z, decode, self.refine_steps, self.learning_rate)[1]
