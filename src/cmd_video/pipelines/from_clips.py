"""Clips made from clips: restored, edited.

    edited = pipe.edit(frames, "a green ball moves up", strength=0.8)
    restored = pipe.restore(damaged, Operator("superres", factor=4), prompt="a red ball moves up")

B batch, C channels of the content frame, F frames, h, w its sides, D motion channels, H', W' sides of the motion
planes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.denoisers.latent_space import decode_video, encode_video
from cmd_video.diffusion.condition import Condition
from cmd_video.techniques import of_seam, technique

from .class_names import label_numbers
from .inputs import as_list, check_finite, check_texts, untupled
from .pictures import read_clips
from .pipeline_output import CMDPipelineOutput
from .sampling import PARTS, ModelSampling, Sampling


class FromClips(DiffusionPipeline):
    """What a `CMDPipeline` does to clips that exist."""

    @torch.no_grad()
    def edit(
        self,
        video: Any,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        class_labels: int | str | list[int | str] | None = None,
        content_frame: Any = None,
        strength: float | None = None,
        motion_strength: float = 0.0,
        resample_frames: tuple[int, int] | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> CMDPipelineOutput:
        """Clips with another content, or another motion, and all else as it was.

        A clip's content frame is drawn anew by SDEdit (arXiv 2108.01073), or replaced by a given one, and its motion
        latents kept, which carry no appearance: the edit of one picture moves as the clip did (as in FlowVid, arXiv
        2312.17681, without its flow).

        Args:
            video: a clip or a list of clips, each a list of pictures or an array (F, H, W, 3) of uint8 or of floats in
                [0, 1]; or a tensor (B, F, 3, H, W) of floats in [0, 1].
            prompt: what the clips are to show, one text or one each.
            negative_prompt: what guidance leads away from.
            class_labels: class numbers or names, for class-conditional models.
            content_frame: pictures to take as content frames; then `strength` does not count.
            strength: of the content frame, from which share of diffusion time on it is drawn anew: 0 = it stays, 1 =
                nothing of it stays. Default 0.8; 0 with `resample_frames`.
            motion_strength: the same for the motion latents.
            resample_frames: numbers of the first frame whose motion is drawn anew, by the prompt, and of the first one
                behind it that stays: (8, 16) is another second half of 16 frames. The motion model is told a time for
                each frame (FVDM, arXiv 2410.03160). Without `motion_strength`.
            sampling: every setting at once; default: the pipeline's own.
            generator: source of noise; with a list of one per clip, a batch equals its clips singly.
            output_type: as in a call.

        Raises:
            ValueError: an argument does not fit the model; the message names it.
        """
        pixels = read_clips(video).to(self._execution_device, self.autoencoder.dtype)  # (B, 3, F, H, W) in [-1, 1]
        count, _, num_frames, height, width = pixels.shape
        prompt, class_labels, generator = _each(prompt, count), _each(class_labels, count), untupled(generator)
        class_labels = label_numbers(class_labels, self.class_names, self.num_classes)
        pictures = {} if content_frame is None else {"content_frame": as_list(content_frame)}
        how = self.sampling if sampling is None else Sampling.model_validate(sampling)
        self.check_inputs(
            prompt, negative_prompt, class_labels, pictures, height, width, num_frames, how, 1, generator,
            output_type, count,
        )  # fmt: skip
        if resample_frames is not None:
            check_resampling(how.motion, motion_strength)
        if strength is None:
            strength = 0.8 if resample_frames is None else 0.0
        check_strength("strength", strength, how.content, self.content)
        check_strength("motion_strength", motion_strength, how.motion, self.motion)
        self.forget()
        told, nothing, truncated = self.encode(prompt, negative_prompt, class_labels, count, 1)

        # 1. The clip's own content frame (B, C, h, w) and normalised motion latents (B, D, F, H' + W')
        x_c, z = self.autoencoder.encode(encode_video(self.vae, pixels), return_dict=False)
        z = self.autoencoder.normalize_latents(z)

        # 2. Another content frame
        if pictures:
            x_c = self.encode_image(pictures["content_frame"], 1)
        elif strength:
            noise = self.prepare_latents(tuple(x_c.shape), generator)
            x_c = self.generate("content", noise, told, nothing, how.content, generator, (x_c, strength))
        check_finite("unet", x_c)

        # 3. Another motion
        told = told.having(content_frame=x_c)
        if resample_frames is not None:
            z = self.resampled(resample_frames, z, told, nothing, how, generator)
        elif motion_strength:
            noise = self.prepare_latents(tuple(z.shape), generator)
            z = self.generate("motion", noise, told, nothing, how.motion, generator, (z, motion_strength))
        check_finite("motion_transformer", z)

        # 4. Video
        frames, content_frames = self.decode(x_c, z, output_type, how.decode_content_frame)
        self.maybe_free_model_hooks()
        return CMDPipelineOutput(frames, content_frames, truncated)

    def resampled(
        self, frames: tuple[int, int], z: torch.Tensor, told: Condition, nothing: Mapping[str, torch.Tensor],
        how: Sampling, generator: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Motion latents (B, D, F, H' + W') of which those from one frame up to another are drawn anew; the rest as in
        `CMDPipeline.generate`.
        """
        known = how.for_resampling.around(frames, z, self.motion_transformer)
        only = how.motion.model_copy(update={"wraps": (known,)})  # no feature of another step is taken
        noise = self.prepare_latents(tuple(z.shape), generator)
        drawn = self.generate("motion", noise, told, nothing, only, generator)
        whole: torch.Tensor = how.for_resampling.refine(known, drawn, told["content_frame"], self.latents_of)
        return whole

    @torch.no_grad()
    def restore(
        self, observed: torch.Tensor, operator: Any, prompt: str | list[str] = "", num_frames: int | None = None,
        settings: Mapping[str, Any] | None = None, method: str | None = None, output_type: str = "pil",
    ) -> CMDPipelineOutput:  # fmt: skip
        """Clips of which only a part is seen, made whole.

        Args:
            observed: (B, 3, ...) in [-1, 1], as `operator` leaves clips of the model's size.
            operator: what was done to them, such as `techniques.variational_restoration.Operator`.
            prompt: what the clips show, one text or one each.
            num_frames: F; default what the model was trained for.
            settings: of the method's section.
            method: kind of a restoration in the table of techniques; default: the first.
            output_type: as in a call.

        Raises:
            ValueError: a few-step model, whose estimates are no means; a model of classes; or what is observed does
                not have the operator's shape.
        """
        method = of_seam("restoration")[0] if method is None else method
        how = technique(method, "restoration").settings.model_validate({**(settings or {}), "kind": method})
        if self.num_classes:
            raise ValueError("restore: this model knows classes, and the method tells prompts")
        for part in PARTS:
            if getattr(self.sampling, part).starts is not None:
                raise ValueError(f"restore: the {part} model was distilled for few steps, its estimates are no means")
        frames = self.autoencoder.config.num_frames if num_frames is None else num_frames
        observed = observed.to(self._execution_device, self.autoencoder.dtype)
        check_texts("prompt", prompt)
        begun = operator.simplest(observed, frames)  # (B, 3, F, H, W)
        if begun.ndim != 5 or begun.shape[2] != frames or operator(begun).shape != observed.shape:
            raise ValueError(f"observed: {tuple(observed.shape)} is not what the operator leaves of a clip")
        prompts = as_list(prompt) * (len(observed) if isinstance(prompt, str) else 1)
        if len(prompts) != len(observed):
            raise ValueError(f"prompt: {len(prompts)} texts for {len(observed)} clips")
        told, _, truncated = self.encode(prompts, None, None, len(prompts), 1, guided=False)
        content_frame, latents = self.autoencoder.encode(encode_video(self.vae, begun), return_dict=False)
        start = content_frame, self.autoencoder.normalize_latents(latents)

        def decode(frame: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
            return decode_video(self.vae, self.latents_of(frame, motion))

        parts = [
            (denoiser, getattr(self, denoiser.component), told.only(denoiser.told(getattr(self, denoiser.component))))
            for denoiser in (self.content, self.motion)
        ]
        with torch.enable_grad():
            content_frame, motion_latents = how.restore(observed, operator, *parts, start, decode)
        check_finite("restore", content_frame, motion_latents)
        frames_out, content_frames = self.decode(content_frame, motion_latents, output_type, True)
        self.maybe_free_model_hooks()
        return CMDPipelineOutput(frames_out, content_frames, truncated)


def check_strength(name: str, value: float, how: ModelSampling, denoiser: Denoiser) -> None:
    """Raise a ValueError unless this is a share of diffusion time below which the sampling has steps, or 0."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {value!r} is not in 0..1")
    steps = how.ready(denoiser)[1]
    if 0 < value < steps[-1].time:
        raise ValueError(
            f"{name}: {value!r}, but the last step starts at {steps[-1].time:.3f}; allowed: from there to 1, or 0"
        )


def check_resampling(how: ModelSampling, motion_strength: float) -> None:
    """Raise a ValueError unless a part of the motion can be drawn anew."""
    if motion_strength:
        raise ValueError(f"resample_frames: given beside motion_strength {motion_strength:g}; give one of them")
    if how.starts is not None or how.process is not None:
        reason = "distilled for few steps" if how.starts is not None else "trained for another process than noise"
        raise ValueError(f"resample_frames: this motion model was {reason}, and knows no times of single frames")


def _each(value: Any, count: int) -> Any:
    """One value for all clips, or one for each, as a list; None is none."""
    return untupled(value) if value is None or isinstance(value, (list, tuple)) else [value] * count
