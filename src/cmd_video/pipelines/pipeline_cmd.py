"""CMD's pipeline: prompt, class or image -> content frame -> motion latents -> video (arXiv 2403.14148, algorithm 1).

    pipe = CMDPipeline.from_pretrained()               # no argument: the default model that ships with the package
    out = pipe("a red ball moves to the right", generator=torch.Generator().manual_seed(0));  out.frames[0]

B batch, C channels of the content frame, F frames, h, w its sides, D motion channels, H', W' sides of the motion
planes.
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer

from .image_space import ImageAutoencoder, decode_images, decode_video, encode_images, spatial_ratio
from .inputs import as_list, check_condition, check_images
from .pipeline_output import CMDPipelineOutput
from .prompt import encode_prompts

logger = logging.get_logger(__name__)
DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
Generator = torch.Generator | list[torch.Generator] | None
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class CMDPipeline(DiffusionPipeline):
    """Text, class or image to video.

    Args:
        autoencoder: splits clips into content frame and motion latents, and decodes.
        unet: the content model, an image diffusion model: text-conditional UNet or class-conditional DiT.
        motion_transformer: generates motion latents given the content frame.
        content_scheduler: noise schedule and sampler of the content model.
        motion_scheduler: the same for the motion model.
        vae: image autoencoder whose latents are the content model's space; None = pixels.
        text_encoder: for text-conditional models.
        tokenizer: for text-conditional models.
        motion_text_encoder: another text encoder for the motion model (as in the paper's Stable Diffusion 1.5
            setting); None = the same for both.
        motion_tokenizer: its tokenizer.
        guidance_scale: default guidance of the content model (the paper: 7.5 for text, 4.0 for classes).
        motion_guidance_scale: default guidance of the motion model; 1 = none.
    """

    model_cpu_offload_seq = "text_encoder->motion_text_encoder->unet->motion_transformer->autoencoder->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer", "motion_text_encoder", "motion_tokenizer"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        autoencoder: CMDAutoencoder,
        unet: UNet2DConditionModel | DiTTransformer2DModel,
        motion_transformer: CMDMotionTransformer,
        content_scheduler: SchedulerMixin,
        motion_scheduler: SchedulerMixin,
        vae: ImageAutoencoder | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        motion_text_encoder: CLIPTextModel | None = None,
        motion_tokenizer: CLIPTokenizer | None = None,
        guidance_scale: float = 7.5,
        motion_guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder,
            unet=unet,
            motion_transformer=motion_transformer,
            content_scheduler=content_scheduler,
            motion_scheduler=motion_scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            motion_text_encoder=motion_text_encoder,
            motion_tokenizer=motion_tokenizer,
        )
        self.register_to_config(guidance_scale=guidance_scale, motion_guidance_scale=motion_guidance_scale)
        self.num_classes = int(getattr(unet.config, "num_embeds_ada_norm", 0) or 0)
        if motion_transformer.config.num_classes not in (0, self.num_classes):
            raise ValueError(
                f"motion_transformer: knows {motion_transformer.config.num_classes} classes, the content model "
                f"{self.num_classes}; they must know the same"
            )
        self.ratio = spatial_ratio(vae)
        self.video_processor = VideoProcessor(vae_scale_factor=self.ratio, do_resize=False, do_convert_rgb=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> "CMDPipeline":
        """Load a pipeline from a folder or hub id; without an argument the model that ships with the package."""
        return super().from_pretrained(str(pretrained_model_name_or_path or DEFAULT_MODEL), **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        class_labels: int | list[int] | None = None,
        image: PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        motion_num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generator = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["CMDPipeline", int, int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> CMDPipelineOutput | tuple[Any, ...]:
        """Generate clips.

        Args:
            prompt: text, for text-conditional models. Beyond the text encoder's length it is cut, with a warning.
            negative_prompt: what guidance leads away from; default the empty prompt.
            class_labels: class numbers, for class-conditional models.
            image: use this as content frame (image to video): images of the output's size, or (B, 3, H, W) in [0, 1].
            height: H in pixels; default what the model was trained for.
            width: W in pixels.
            num_frames: F; default what the model was trained for.
            num_inference_steps: steps of the content model.
            motion_num_inference_steps: steps of the motion model; default the same number.
            guidance_scale: classifier-free guidance of the content model, 1 = none; default the model's own.
            motion_guidance_scale: the same for the motion model.
            num_videos_per_prompt: clips for each prompt, class or image.
            generator: source of noise; with a list of one per clip, a batch equals its clips generated singly.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: return a `CMDPipelineOutput` instead of a tuple.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after each step, first of the
                content model, then, counting on, of the motion model; may return other latents.

        Returns:
            `CMDPipelineOutput(frames, content_frames, truncated_prompts)`.

        Raises:
            ValueError: an argument does not fit the model; the message names it and what is allowed.
        """
        # 1. Arguments
        height, width = self._default_size(height, width)
        num_frames = self.autoencoder.config.num_frames if num_frames is None else num_frames
        motion_steps = num_inference_steps if motion_num_inference_steps is None else motion_num_inference_steps
        guidance = self.config.guidance_scale if guidance_scale is None else guidance_scale
        motion_guidance = self.config.motion_guidance_scale if motion_guidance_scale is None else motion_guidance_scale
        self.check_inputs(
            prompt, negative_prompt, class_labels, image, height, width, num_frames, num_inference_steps,
            motion_steps, guidance, motion_guidance, num_videos_per_prompt, generator, output_type,
        )  # fmt: skip
        self._callback, self._step, self._interrupt = callback_on_step_end, 0, False
        self._num_timesteps = (0 if image is not None else num_inference_steps) + motion_steps

        # 2. Conditions
        condition, negative, truncated = self.encode_condition(
            prompt, negative_prompt, class_labels, image, num_videos_per_prompt
        )
        batch = len(truncated)

        # 3. Content frame (B, C, h, w)
        if image is None:
            content_frame = self.prepare_latents(self._content_shape(batch, height, width), generator)
            content_frame = self.denoise_content(
                content_frame, condition, negative, num_inference_steps, guidance, generator
            )
        else:
            content_frame = self.encode_image(image, num_videos_per_prompt)

        # 4. Motion latents (B, D, F, H' + W')
        shape = self._motion_shape(content_frame, num_frames)
        motion_latents = self.prepare_latents(shape, generator)
        motion_latents = self.denoise_motion(
            motion_latents, content_frame, condition, negative, motion_steps, motion_guidance, generator
        )

        # 5. Video
        frames, content_frames = self.decode(content_frame, motion_latents, output_type)
        self.maybe_free_model_hooks()
        output = CMDPipelineOutput(frames=frames, content_frames=content_frames, truncated_prompts=truncated)
        return output if return_dict else output.to_tuple()

    def check_inputs(
        self, prompt: Any, negative_prompt: Any, class_labels: Any, image: Any, height: int, width: int,
        num_frames: int, num_inference_steps: int, motion_steps: int, guidance: float, motion_guidance: float,
        num_videos: int, generator: Generator, output_type: str,
    ) -> None:  # fmt: skip
        """Raise a ValueError that names the argument, its value and what is allowed."""
        size = check_condition(self.num_classes, prompt, negative_prompt, class_labels, image)
        for name, value in (
            ("height", height), ("width", width), ("num_frames", num_frames), ("num_inference_steps",
            num_inference_steps), ("motion_num_inference_steps", motion_steps), ("num_videos_per_prompt", num_videos),
        ):  # fmt: skip
            if not isinstance(value, int):
                raise ValueError(f"{name}: {value!r} is not a whole number")
        unit = self.ratio * self._patch_unit()
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % unit:
                nearest = max(unit, round(value / unit) * unit)
                raise ValueError(f"{name}: {value} is not a positive multiple of {unit}; the nearest is {nearest}")
        check_images(as_list(image), height, width)
        patch = self.motion_transformer.config.patch_size
        if num_frames <= 0 or num_frames % patch:
            raise ValueError(f"num_frames: {num_frames} is not a positive multiple of {patch}")
        for name, count, scheduler in (
            ("num_inference_steps", num_inference_steps, self.content_scheduler),
            ("motion_num_inference_steps", motion_steps, self.motion_scheduler),
        ):
            if not 1 <= count <= scheduler.config.num_train_timesteps:
                raise ValueError(f"{name}: {count} is not in 1..{scheduler.config.num_train_timesteps}")
        for name, scale in (("guidance_scale", guidance), ("motion_guidance_scale", motion_guidance)):
            if not 1 <= scale < math.inf:
                raise ValueError(f"{name}: {scale} is not a number of at least 1 (1 = no guidance)")
        if num_videos < 1:
            raise ValueError(f"num_videos_per_prompt: {num_videos} is less than 1")
        if not all(isinstance(source, torch.Generator) for source in as_list(generator)):
            raise ValueError(f"generator: expected a torch.Generator or a list of them, got {generator!r}")
        if isinstance(generator, list) and len(generator) != size * num_videos:
            raise ValueError(f"generator: {len(generator)} generators for {size * num_videos} clips")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")

    def encode_condition(
        self, prompt: Any, negative_prompt: Any, class_labels: Any, image: Any, num_videos: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str | None]]:
        """Conditions of both models and their negatives, one row per clip, and what was cut off each prompt."""
        device = self._execution_device
        if self.num_classes:
            labels = as_list(class_labels) or [self.num_classes] * len(as_list(image))
            row = torch.tensor(labels, device=device).repeat_interleave(num_videos)
            return {"labels": row}, {"labels": torch.full_like(row, self.num_classes)}, [None] * len(row)
        prompts = as_list(prompt) or [""] * len(as_list(image))
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        encoded = []
        for texts in (prompts, negatives):
            features = encode_prompts(self.tokenizer, self.text_encoder, texts)
            for cut in features.truncated:
                if cut:
                    limit = self.tokenizer.model_max_length
                    logger.warning(f"the prompt is longer than {limit} tokens; cut off: {cut[:200]!r}")
            pooled = features.pooled
            if self.motion_text_encoder is not None:
                pooled = encode_prompts(self.motion_tokenizer, self.motion_text_encoder, texts).pooled
            encoded.append(
                {
                    "tokens": features.hidden_states.repeat_interleave(num_videos, dim=0),
                    "pooled": pooled.repeat_interleave(num_videos, dim=0),
                }
            )
            if texts is prompts:
                truncated = [cut for cut in features.truncated for _ in range(num_videos)]
        return encoded[0], encoded[1], truncated

    def encode_image(self, image: Any, num_videos: int) -> torch.Tensor:
        """Given images as content frames: (B, C, h, w)."""
        pixels = self.video_processor.preprocess(image).to(self._execution_device, self.autoencoder.dtype)
        return encode_images(self.vae, pixels).repeat_interleave(num_videos, dim=0)

    def prepare_latents(self, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
        """Noise of a shape, with unit variance."""
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)

    def denoise_content(
        self, latents: torch.Tensor, condition: dict[str, torch.Tensor], negative: dict[str, torch.Tensor],
        num_inference_steps: int, guidance_scale: float, generator: Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Noise -> content frame, (B, C, h, w) both (algorithm 1, first loop)."""

        def predict(sample: torch.Tensor, timestep: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
            if self.num_classes:
                return self.unet(sample, timestep, class_labels=rows["labels"]).sample
            return self.unet(sample, timestep, encoder_hidden_states=rows["tokens"]).sample

        return self._denoise(predict, self.content_scheduler, latents, condition, negative, num_inference_steps,
                             guidance_scale, generator)  # fmt: skip

    def denoise_motion(
        self, latents: torch.Tensor, content_frame: torch.Tensor, condition: dict[str, torch.Tensor],
        negative: dict[str, torch.Tensor], num_inference_steps: int, guidance_scale: float, generator: Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Noise -> motion latents, (B, D, F, H' + W') both; guidance drops text or class, never the content frame."""
        config = self.motion_transformer.config

        def predict(sample: torch.Tensor, timestep: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
            frames = content_frame.repeat(len(sample) // len(content_frame), 1, 1, 1)
            pooled = rows["pooled"] if config.text_dim else None
            labels = rows["labels"] if config.num_classes else None
            return self.motion_transformer(sample, timestep, frames, pooled_text=pooled, class_labels=labels).sample

        return self._denoise(predict, self.motion_scheduler, latents, condition, negative, num_inference_steps,
                             guidance_scale, generator)  # fmt: skip

    def _denoise(
        self, predict: Callable[[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor],
        scheduler: SchedulerMixin, latents: torch.Tensor, condition: dict[str, torch.Tensor],
        negative: dict[str, torch.Tensor], num_inference_steps: int, guidance_scale: float, generator: Generator,
    ) -> torch.Tensor:  # fmt: skip
        """The loop of algorithm 1, with the usual s = w + 1: eps = eps(0) + s (eps(c) - eps(0)), in one batch."""
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * scheduler.init_noise_sigma  # known only now
        guided = guidance_scale > 1
        rows = {key: torch.cat([negative[key], condition[key]]) for key in condition} if guided else condition
        step_arguments = (
            {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        )
        for timestep in self.progress_bar(scheduler.timesteps):
            if self._interrupt:
                continue
            sample = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            prediction = predict(sample, timestep.expand(len(sample)), rows)
            if guided:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            latents = scheduler.step(prediction, timestep, latents, **step_arguments).prev_sample
            if self._callback is not None:
                changed = self._callback(self, self._step, int(timestep), {"latents": latents})
                latents = (changed or {}).get("latents", latents)
            self._step += 1
        return latents

    def decode(self, content_frame: torch.Tensor, motion_latents: torch.Tensor, output_type: str) -> tuple[Any, Any]:
        """Content frame and normalised motion latents -> frames and content frames as `output_type` says."""
        if output_type == "latent":
            return motion_latents, content_frame
        motion_latents = self.autoencoder.denormalize_latents(motion_latents)
        latents = self.autoencoder.decode(content_frame, motion_latents).sample  # (B, C, F, h, w)
        video = decode_video(self.vae, latents).clamp(-1, 1).float()  # (B, 3, F, H, W)
        pictures = decode_images(self.vae, content_frame).clamp(-1, 1).float()  # (B, 3, H, W)
        if not video.isfinite().all():
            raise RuntimeError("the decoded clip holds values that are not numbers; try float32")
        frames = self.video_processor.postprocess_video(video, output_type)
        return frames, self.video_processor.postprocess(pictures, output_type)

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call, content and motion together."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set to True in a callback to skip the remaining steps."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    def _default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        rows, columns = self.autoencoder.config.sample_size
        return (rows * self.ratio if height is None else height, columns * self.ratio if width is None else width)

    def _patch_unit(self) -> int:
        """Content-frame sides must be a multiple of this: every patch layer and the UNet's halvings must fit."""
        motion = self.motion_transformer.config
        units = [motion.autoencoder_patch_size * motion.patch_size, motion.content_patch_size]
        units.append(
            self.unet.config.patch_size if self.num_classes else 2 ** (len(self.unet.config.block_out_channels) - 1)
        )
        return math.lcm(*units)

    def _content_shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        return batch, self.autoencoder.config.in_channels, height // self.ratio, width // self.ratio

    def _motion_shape(self, content_frame: torch.Tensor, num_frames: int) -> tuple[int, int, int, int]:
        places = sum(side // self.autoencoder.config.patch_size for side in content_frame.shape[-2:])
        return len(content_frame), self.autoencoder.config.latent_channels, num_frames, places
