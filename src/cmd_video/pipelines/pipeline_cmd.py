"""CMD's pipeline: prompt, class or image -> content frame -> motion latents -> video (arXiv 2403.14148, algorithm 1).

    pipe = CMDPipeline.from_pretrained()               # no argument: the default model that ships with the package
    out = pipe("a red ball moves to the right", generator=torch.Generator().manual_seed(0));  out.frames[0]

B batch, C channels of the content frame, F frames, h, w its sides, D motion channels, H', W' sides of the motion
planes. Over 400 lines: the arguments of one call, each documented.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer

from .conditions import Rows, encode_conditions
from .feature_reuse import check_reusable, unet_step
from .image_model import load_image_model
from .image_space import ImageAutoencoder, decode_images, decode_video, encode_images, spatial_ratio
from .inputs import as_list, check_condition, check_generator, check_images, check_multiple
from .pipeline_output import CMDPipelineOutput
from .sampling import PRESETS, Sampling, distilled_steps, make_solver, resolve, set_timesteps
from .shapes import content_shape, default_size, motion_shape, size_unit
from .shipped import HUB_ARGUMENTS, import_own_classes, model_folder, shared_components

logger = logging.get_logger(__name__)
Generator = torch.Generator | list[torch.Generator] | None
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class CMDPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
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
        motion_text_encoder: another one for the motion model (as in the paper's SD 1.5 setting); None = the same.
        motion_tokenizer: its tokenizer.
        guidance_scale: default guidance of the content model (the paper: 7.5 for text, 4.0 for classes).
        motion_guidance_scale: default guidance of the motion model; 1 = none.
        num_inference_steps: default steps of the content model; this and what follows: see `Preset`.
        motion_num_inference_steps: default steps of the motion model.
        guidance_from: default lower end of the interval of diffusion time in which guidance applies.
        guidance_until: default upper end.
        reuse_interval: default.
        decode_content_frame: whether the output holds the content frame as a picture.
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
        num_inference_steps: int = 50,
        motion_num_inference_steps: int = 50,
        guidance_from: float = 0.0,
        guidance_until: float = 1.0,
        reuse_interval: int = 1,
        decode_content_frame: bool = True,
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
        self.register_to_config(
            guidance_scale=guidance_scale, motion_guidance_scale=motion_guidance_scale,
            num_inference_steps=num_inference_steps, motion_num_inference_steps=motion_num_inference_steps,
            guidance_from=guidance_from, guidance_until=guidance_until, reuse_interval=reuse_interval,
            decode_content_frame=decode_content_frame,
        )  # fmt: skip
        self.unet_step = unet_step
        self._callback: Callable[..., Any] | None = None
        self._step, self._interrupt = 0, False
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
        """Load a pipeline from a folder, a hub id, or one that ships: "default" (no argument) or "turbo".

        All parts come in float32 if no dtype is given, whatever the files hold.

        Raises:
            ValueError: the model ships, and the package with the weights is not installed.
        """
        folder = model_folder(pretrained_model_name_or_path)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        import_own_classes(cls.load_config(str(folder), **hub))
        shared = shared_components(folder)
        if shared:
            default = cls.from_pretrained(None, **kwargs)
            kwargs = {name: getattr(default, name) for name in shared} | kwargs
        pipe = super().from_pretrained(str(folder), **kwargs)
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            for encoder in (pipe.text_encoder, pipe.motion_text_encoder):
                if encoder is not None:  # transformers keeps the dtype of the files, diffusers does not
                    encoder.float()
        return pipe

    @classmethod
    def from_image_model(
        cls, model: str | Path, autoencoder: CMDAutoencoder | None = None,
        motion_transformer: CMDMotionTransformer | None = None, height: int = 512, width: int = 512,
        motion_size: str = "XL", **loading: Any,
    ) -> "CMDPipeline":  # fmt: skip
        """A pipeline around a Stable Diffusion 1 or 2 model; arguments and errors as `load_image_model`.

        What is not given is fresh and must be trained: see the recipes webvid-sd15 and webvid-sd21.
        """
        return cls(**load_image_model(model, autoencoder, motion_transformer, height, width, motion_size, **loading))

    def use_preset(self, name: str) -> None:
        """Change solvers, steps and shortcuts to those of a preset: a trade of quality for speed (see `PRESETS`).

        Raises:
            ValueError: there is no preset of that name, or it does not suit the model.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: {name!r} is none of {', '.join(PRESETS)}")
        settings = asdict(PRESETS[name])
        solver = settings.pop("solver")
        parts = ("content_scheduler", "motion_scheduler")
        for part, scheduler in [(part, make_solver(solver, getattr(self, part))) for part in parts]:
            setattr(self, part, scheduler)
        if not settings.pop("guided"):
            settings |= {"guidance_scale": 1.0, "motion_guidance_scale": 1.0}
        for part, steps in zip(parts, ("num_inference_steps", "motion_num_inference_steps"), strict=True):
            settings[steps] = distilled_steps(getattr(self, part)) or settings[steps]
        settings["reuse_interval"] = 1 if self.num_classes else settings["reuse_interval"]  # it is a UNet's
        self.register_to_config(**settings)

    def compile_denoisers(self, **options: Any) -> None:
        """Compile what runs at every denoising step, also under presets that reuse features; as `torch.compile`."""
        self.unet.compile(**options)
        self.motion_transformer.compile(**options)
        self.unet_step = torch.compile(unet_step, **options)

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
        num_inference_steps: int | None = None,
        motion_num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        reuse_interval: int | None = None,
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
            num_inference_steps: steps of the content model. The defaults of this and the next five are the pipeline's.
            motion_num_inference_steps: steps of the motion model; default as many as `num_inference_steps`, if given.
            guidance_scale: classifier-free guidance of the content model, 1 = none.
            motion_guidance_scale: the same for the motion model.
            guidance_interval: guide only where diffusion time, 0 (clean) to 1 (noise), is in here.
            reuse_interval: compute deep features at every n-th step only; 1 = at every step.
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
        height, width = default_size(self, height, width)
        num_frames = self.autoencoder.config.num_frames if num_frames is None else num_frames
        content, motion = resolve(
            self.config, num_inference_steps, motion_num_inference_steps, guidance_scale, motion_guidance_scale,
            guidance_interval, reuse_interval,
        )  # fmt: skip
        self.check_inputs(
            prompt, negative_prompt, class_labels, image, height, width, num_frames, content, motion,
            num_videos_per_prompt, generator, output_type,
        )  # fmt: skip
        self._callback, self._step, self._interrupt = callback_on_step_end, 0, False
        self._num_timesteps = (0 if image is not None else content.num_inference_steps) + motion.num_inference_steps

        # 2. Conditions
        condition, negative, truncated = encode_conditions(
            self, prompt, negative_prompt, class_labels, image, num_videos_per_prompt,
            guided=content.guidance_scale > 1 or motion.guidance_scale > 1,
        )  # fmt: skip

        # 3. Content frame (B, C, h, w)
        if image is None:
            content_frame = self.prepare_latents(content_shape(self, len(truncated), height, width), generator)
            content_frame = self.denoise_content(content_frame, condition, negative, content, generator)
        else:
            content_frame = self.encode_image(image, num_videos_per_prompt)

        # 4. Motion latents (B, D, F, H' + W')
        shape = motion_shape(self, content_frame, num_frames)
        motion_latents = self.prepare_latents(shape, generator)
        motion_latents = self.denoise_motion(motion_latents, content_frame, condition, negative, motion, generator)

        # 5. Video
        frames, content_frames = self.decode(content_frame, motion_latents, output_type)
        self.maybe_free_model_hooks()
        output = CMDPipelineOutput(frames, content_frames, truncated)
        return output if return_dict else output.to_tuple()

    def check_inputs(
        self, prompt: Any, negative_prompt: Any, class_labels: Any, image: Any, height: int, width: int,
        num_frames: int, content: Sampling, motion: Sampling, num_videos: int, generator: Generator, output_type: str,
    ) -> None:  # fmt: skip
        """Raise a ValueError that names the argument, its value and what is allowed."""
        size = check_condition(self.num_classes, prompt, negative_prompt, class_labels, image)
        unit, patch = size_unit(self), self.motion_transformer.config.patch_size
        check_multiple("height", height, unit)
        check_multiple("width", width, unit)
        check_multiple("num_frames", num_frames, patch)
        check_multiple("num_videos_per_prompt", num_videos, 1)
        check_images(as_list(image), height, width)
        content.check("", self.content_scheduler)
        motion.check("motion_", self.motion_scheduler)
        if self.num_classes and content.reuse_interval > 1:
            raise ValueError(f"reuse_interval: {content.reuse_interval}, but a class-conditional DiT allows only 1")
        if content.reuse_interval > 1:
            check_reusable(self.unet)
        check_generator(generator, size * num_videos)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")

    def encode_image(self, image: Any, num_videos: int) -> torch.Tensor:
        """Given images as content frames: (B, C, h, w)."""
        pixels = self.video_processor.preprocess(image).to(self._execution_device, self.autoencoder.dtype)
        return encode_images(self.vae, pixels).repeat_interleave(num_videos, dim=0)

    def prepare_latents(self, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
        """Noise of a shape, with unit variance."""
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)

    def denoise_content(
        self, latents: torch.Tensor, condition: Rows, negative: Rows, sampling: Sampling, generator: Generator = None
    ) -> torch.Tensor:
        """Noise -> content frame, (B, C, h, w) both (algorithm 1, first loop)."""

        def predict(
            sample: torch.Tensor, timestep: torch.Tensor, rows: Rows, deep: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            if self.num_classes:
                return self.unet(sample, timestep, class_labels=rows["labels"]).sample, None
            if sampling.reuse_interval == 1:
                return self.unet(sample, timestep, encoder_hidden_states=rows["tokens"]).sample, None
            return self.unet_step(self.unet, sample, timestep, rows["tokens"], deep)

        return self._denoise(predict, self.content_scheduler, latents, condition, negative, sampling, generator)

    def denoise_motion(
        self, latents: torch.Tensor, content_frame: torch.Tensor, condition: Rows, negative: Rows, sampling: Sampling,
        generator: Generator = None,
    ) -> torch.Tensor:  # fmt: skip
        """Noise -> motion latents, (B, D, F, H' + W') both; guidance drops text or class, never the content frame."""
        config = self.motion_transformer.config
        content_frames = {count * len(latents): content_frame.repeat(count, 1, 1, 1) for count in (1, 2)}
        fixed: dict[int, torch.Tensor] = {}  # by number of rows: what every step would compute alike

        def predict(
            sample: torch.Tensor, timestep: torch.Tensor, rows: Rows, deep: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            count = len(sample)
            pooled = rows["pooled"] if config.text_dim else None
            labels = rows["labels"] if config.num_classes else None
            output = self.motion_transformer(
                sample, timestep, content_frames[count], pooled, labels, deep, fixed.get(count)
            )
            if count not in fixed:
                fixed[count] = output.fixed_tokens.clone()
            return output.sample, output.deep_residual

        return self._denoise(predict, self.motion_scheduler, latents, condition, negative, sampling, generator)

    def _denoise(
        self, predict: Callable[..., tuple[torch.Tensor, torch.Tensor | None]], scheduler: SchedulerMixin,
        latents: torch.Tensor, condition: Rows, negative: Rows, sampling: Sampling, generator: Generator,
    ) -> torch.Tensor:  # fmt: skip
        """The loop of algorithm 1, with the usual s = w + 1: eps = eps(0) + s (eps(c) - eps(0)), in one batch."""
        set_timesteps(scheduler, sampling.num_inference_steps, latents.device)
        latents = latents * scheduler.init_noise_sigma  # known only now
        both = {key: torch.cat([negative[key], condition[key]]) for key in condition}
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_arguments = {"generator": generator} if takes_generator else {}
        deep = None
        for step, timestep in zip(sampling.plan(scheduler), self.progress_bar(scheduler.timesteps), strict=True):
            if self._interrupt:
                continue
            sample = scheduler.scale_model_input(torch.cat([latents] * 2) if step.guided else latents, timestep)
            rows = both if step.guided else condition
            prediction, new = predict(sample, timestep.expand(len(sample)), rows, deep if step.reuse else None)
            if new is not None and not step.reuse and sampling.reuse_interval > 1:
                deep = new.clone()  # CUDA graphs write their next outputs into the same memory
            if step.guided:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + sampling.guidance_scale * (conditional - unconditional)
            else:
                prediction = prediction.clone()  # likewise: a multistep solver keeps it
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
        if not video.isfinite().all():
            raise RuntimeError("the decoded clip holds values that are not numbers; try float32")
        frames = self.video_processor.postprocess_video(video, output_type)
        if not self.config.decode_content_frame:
            return frames, None
        pictures = decode_images(self.vae, content_frame).clamp(-1, 1).float()  # (B, 3, H, W)
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
