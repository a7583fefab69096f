"""CMD's pipeline: prompt, class, pictures -> content frame -> motion latents -> video (arXiv 2403.14148, algorithm 1).

    pipe = CMDPipeline.from_pretrained()          # no argument: the default model, of the package cmd-video-sprites
    out = pipe("a red ball moves to the right", generator=torch.Generator().manual_seed(0));  out.frames[0]

B batch, C channels of the content frame, F frames, h, w its sides, D motion channels, H', W' sides of the motion
planes. Over 400 lines: the arguments of one call, each documented.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from cmd_video.data.sealed import check_sealed, seal
from cmd_video.denoisers.content import ContentDenoiser, content_shape
from cmd_video.denoisers.latent_space import (
    ImageAutoencoder,
    decode_images,
    decode_video,
    encode_images,
    spatial_ratio,
)
from cmd_video.denoisers.motion import MotionDenoiser, motion_shape
from cmd_video.denoisers.prompts import encode_prompts
from cmd_video.denoisers.references import ROW, has_adapters, reference_row, unet_references
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.correction import Correct
from cmd_video.diffusion.plan import Step
from cmd_video.models import CMDAutoencoder, CMDMotionTransformer
from cmd_video.models.whole import check_whole, load_whole

from .adapters import LoraLoader
from .class_names import check_id2label, label_numbers, names_by_number
from .from_clips import FromClips
from .image_model import load_image_model
from .index import ENCODERS, MODELS, OFFLOADED, OPTIONAL, check_index
from .inputs import (
    as_list,
    check_condition,
    check_finite,
    check_generator,
    check_memory,
    check_multiple,
    default_size,
    size_unit,
    untupled,
)
from .motion_control import check_output_flow, read_control, read_flow
from .older import upgrade_index, upgrade_schedulers
from .pictures import check_num_clips, check_pictures, ends_of, how_many, read_batch, read_region, read_structure
from .pipeline_output import CMDPipelineOutput
from .presets import preset_of
from .sampling import PARTS, ModelSampling, Sampling, conditions_for
from .shipped import HUB_ARGUMENTS, model_folder, shared_components
from .wraps import taking, told_to

logger = logging.get_logger(__name__)
Generator = torch.Generator | list[torch.Generator] | None
Pictures = PIL.Image.Image | list[PIL.Image.Image] | torch.Tensor | np.ndarray | None
Reward = Callable[[torch.Tensor, list[str]], torch.Tensor]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
TOLD = {  # what guidance can leave out
    "text": ("tokens", "pooled", "labels"), "content_frame": ("content_frame",), "reference": (ROW,),
}  # fmt: skip


class Components(Mapping[str, Any]):
    """A pipeline's components by name, as they are now."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe

    def __getitem__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pipe.components)

    def __len__(self) -> int:
        return len(self.pipe.components)


class CMDPipeline(FromClips, LoraLoader):
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
        unet_2: another content model for cleaner noise levels, as `sampling` says.
        motion_transformer_2: the same for the motion model.
        sampling: how both models are sampled unless a call says otherwise; saved with the pipeline.
        id2label: names of the classes by their numbers, for class-conditional models; saved with the pipeline.
    """

    model_cpu_offload_seq = "->".join(OFFLOADED)
    _optional_components = list(OPTIONAL)

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
        unet_2: UNet2DConditionModel | DiTTransformer2DModel | None = None,
        motion_transformer_2: CMDMotionTransformer | None = None,
        sampling: Sampling | dict[str, Any] | None = None,
        id2label: dict[str, str] | dict[int, str] | None = None,
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
            unet_2=unet_2,
            motion_transformer_2=motion_transformer_2,
        )
        self.sampling = Sampling() if sampling is None else sampling
        self.content, self.motion = ContentDenoiser(Components(self)), MotionDenoiser(Components(self))
        self.forget()
        self.num_classes = int(getattr(unet.config, "num_embeds_ada_norm", 0) or 0)
        if motion_transformer.config.num_classes not in (0, self.num_classes):
            raise ValueError(
                f"motion_transformer: knows {motion_transformer.config.num_classes} classes, the content model "
                f"{self.num_classes}; they must know the same"
            )
        if id2label:
            self.register_to_config(id2label=check_id2label(id2label, self.num_classes))
        self.ratio = spatial_ratio(vae)
        self.video_processor = VideoProcessor(vae_scale_factor=self.ratio, do_resize=False, do_convert_rgb=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> "CMDPipeline":
        """Load a pipeline from a folder, a hub id, or one that ships: "default" (no argument) or "turbo".

        All parts come in float32 if no dtype is given, whatever the files hold.

        Raises:
            ValueError: the model ships, and the package with the weights is not installed; weights are missing or
                damaged, or the folder's model_index.json names something else than models that are known.
        """
        if not kwargs.get("low_cpu_mem_usage", True):
            raise ValueError("low_cpu_mem_usage: False makes weights up that the files lack; leave it out")
        folder = model_folder(pretrained_model_name_or_path)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        shared = shared_components(folder)
        classes = check_index(cls.load_config(str(folder), **hub), folder, {*kwargs, *shared})
        if shared:
            default = cls.from_pretrained(None, **kwargs)
            kwargs = {name: getattr(default, name) for name in shared} | kwargs
        if not folder.is_dir():
            folder = Path(cls.download(str(folder), trust_remote_code=False, **kwargs))
        dtype = kwargs.get("torch_dtype", kwargs.get("dtype", torch.float32))
        placed = bool({"device_map", "quantization_config"} & kwargs.keys())  # by diffusers, from the files
        for name in ENCODERS if placed else MODELS:  # transformers makes up what a file lacks, and diffusers is silent
            if name in classes and name not in kwargs:
                check_sealed(folder, name, "model")
                own = dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
                where = {"subfolder": name, "variant": kwargs.get("variant"), "torch_dtype": own}
                kwargs[name] = load_whole(classes[name], folder, "model", **where).eval()
        pipe = super().from_pretrained(str(folder), **{**kwargs, "trust_remote_code": False})
        for name, part in pipe.components.items():
            check_whole(part, f"model: {folder / name}")
        upgrade_schedulers(pipe)
        return pipe

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **kwargs: Any) -> None:
        """As diffusers' own.

        Raises:
            ValueError: a part holds adapters, whose names the folder's configuration does not know.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, part in self.components.items():
            if isinstance(part, torch.nn.Module) and any(isinstance(each, BaseTunerLayer) for each in part.modules()):
                raise ValueError(
                    f"save_pretrained: {name} holds adapters; unload_lora_weights() leaves them out, "
                    "fuse_lora() before it keeps what they do"
                )
        if has_adapters(self.unet):
            raise ValueError("save_pretrained: unet holds adapters that look at a given frame; detach them before")
        super().save_pretrained(save_directory, *arguments, **kwargs)
        seal(Path(save_directory))

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

    @classmethod
    def load_config(cls, *arguments: Any, **kwargs: Any) -> Any:
        """As diffusers' own; what older versions wrote is read as today's."""
        return upgrade_index(super().load_config(*arguments, **kwargs))

    @property
    def sampling(self) -> Sampling:
        """How both models are sampled unless a call says otherwise; can be set."""
        return Sampling.model_validate(self.config.sampling)

    @sampling.setter
    def sampling(self, value: Sampling | Mapping[str, Any]) -> None:
        given = value if isinstance(value, Sampling) else Sampling.model_validate(value)
        self.register_to_config(sampling=given.model_dump(mode="json"))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their numbers; empty where they are not known."""
        return names_by_number(self.config.get("id2label"))

    def use_preset(self, name: str) -> None:
        """Change solvers, steps and shortcuts to those of a preset: a trade of quality for speed (see `PRESETS`).

        Raises:
            ValueError: there is no preset of that name, or it does not suit the model.
        """
        schedulers = {part: getattr(self, f"{part}_scheduler") for part in PARTS}
        reusable = dict.fromkeys(PARTS, not self.num_classes)  # a class-conditional DiT's features are not known
        self.sampling, samplers = preset_of(name, self.sampling, schedulers, reusable)
        for part, scheduler in samplers.items():
            setattr(self, f"{part}_scheduler", scheduler)

    def compile_denoisers(self, **options: Any) -> None:
        """Compile what runs at every denoising step, also under presets that reuse features; as `torch.compile`."""
        for model in filter(None, (self.unet, self.unet_2)):
            model.compile(**options)
        self.content.compile(options)
        self.motion.compile(options)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        class_labels: int | str | list[int | str] | None = None,
        image: Pictures = None,
        last_image: Pictures = None,
        content_frame: Pictures = None,
        motion_region: Pictures = None,
        structure_image: Pictures = None,
        tracks: Sequence[Any] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        motion_num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        reuse_interval: int | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        num_videos_per_prompt: int = 1,
        num_clips: int = 1,
        generator: Generator = None,
        output_type: str = "pil",
        output_flow: bool = False,
        return_dict: bool = True,
        callback_on_step_end: Callable[["CMDPipeline", int, int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> CMDPipelineOutput | tuple[Any, ...]:
        """Generate clips.

        Args:
            prompt: text, for text-conditional models. Beyond the text encoder's length it is cut, with a warning.
            negative_prompt: what guidance leads away from; default the empty prompt.
            class_labels: class numbers, or names (see `class_names`), for class-conditional models.
            image: first frames of the clips (image to video): pictures of the output's size; tensors (B, 3, H, W)
                or arrays (B, H, W, 3) of floats in [0, 1], arrays of uint8. With a model whose content frame is
                nearly one frame of its clips.
            last_image: last frames, likewise; beside first frames or without.
            content_frame: the content frames themselves, likewise, of any model; then neither of the two.
            motion_region: pictures of the output's size, one or one for each clip: white moves; where it is black, all
                frames show the given first frame, or without one the content frame (as Motion-I2V's brush, arXiv
                2401.15977, but by laying one over the other).
            structure_image: pictures, one or one for each prompt, whose edges or silhouettes content frames follow.
            tracks: paths of points of the clips, a list for all or one for each prompt, class or picture: see
                `techniques.tracks.Track`. With a model that predicts a flow.
            height: H in pixels; default what the model was trained for.
            width: W in pixels.
            num_frames: F; default what the model was trained for.
            num_inference_steps: steps of the content model. The defaults of this and the next five are the pipeline's.
            motion_num_inference_steps: steps of the motion model; default as many as `num_inference_steps`, if given.
            guidance_scale: classifier-free guidance of the content model, 1 = none.
            motion_guidance_scale: the same for the motion model.
            guidance_interval: guide only where diffusion time, 0 (clean) to 1 (noise), is in here.
            reuse_interval: compute deep features at every n-th step only; 1 = at every step.
            sampling: every setting at once; what is given beside it overrides it. Default: the pipeline's own.
            reward: pictures (K, 3, H, W) in [-1, 1] and the prompt they are for to how good they are (K,): what a
                search of the content model looks for (`sampling.content.search`).
            num_videos_per_prompt: clips for each prompt, class or image.
            num_clips: how many clips of F frames in a row, each of which begins with the last frame of the one before,
                that is there once: F + (num_clips - 1) (F - 1) frames. As for `image`, not of every model.
            generator: source of noise; with a list of one per clip, a batch equals its clips generated singly.
            output_type: "pil", "np", "pt" or "latent".
            output_flow: whether to give the flow too, for one more pass of the autoencoder's decoder.
            return_dict: return a `CMDPipelineOutput` instead of a tuple.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after each step, first of the
                content model, then, counting on, of the motion model; may return other latents.

        Returns:
            `CMDPipelineOutput(frames, content_frames, truncated_prompts, flow)`.

        Raises:
            ValueError: an argument does not fit the model; the message names it and what is allowed.
        """
        # 1. Arguments
        prompt, negative_prompt, class_labels = map(untupled, (prompt, negative_prompt, class_labels))
        generator = untupled(generator)
        given = {"image": image, "last_image": last_image, "content_frame": content_frame}
        pictures = {name: untupled(value) for name, value in given.items() if value is not None}
        class_labels = label_numbers(class_labels, self.class_names, self.num_classes)
        height, width = default_size(self, height, width)
        num_frames = self.autoencoder.config.num_frames if num_frames is None else num_frames
        how = self.sampling if sampling is None else Sampling.model_validate(sampling)
        how = how.changed({
            "num_inference_steps": num_inference_steps, "motion_num_inference_steps": motion_num_inference_steps,
            "guidance_scale": guidance_scale, "motion_guidance_scale": motion_guidance_scale,
            "guidance_interval": guidance_interval, "reuse_interval": reuse_interval,
        })  # fmt: skip
        how = how if structure_image is None else taking("structure", how)
        count = self.check_inputs(
            prompt, negative_prompt, class_labels, pictures, height, width, num_frames, how, num_videos_per_prompt,
            generator, output_type,
        )  # fmt: skip
        weights, references = self.autoencoder.config.get("frame_weights"), self._references(how)
        check_num_clips(num_clips, pictures, num_frames, weights, output_type, references)
        check_memory(count * num_videos_per_prompt, num_frames * num_clips, height, width)
        check_output_flow(output_flow, num_clips, self.autoencoder)
        own = sorted([*range(count)] * num_videos_per_prompt)  # of each clip the prompt, class or picture
        control = read_control(self, tracks, how, own, (num_frames, height, width), num_clips)
        region = read_region(untupled(motion_region), height, width, output_type, count, num_videos_per_prompt)
        structure = read_structure(untupled(structure_image), pictures, height, width, count)
        ends = ends_of(pictures, num_frames)
        self.forget(callback_on_step_end)
        begun = [list(ends)] + [[0]] * (num_clips - 1)  # numbers of the frames that each clip is given
        passes = [most for numbers in begun for most in self._passes(how, numbers, num_frames)]
        self._num_timesteps = sum(how.motion.at_most(most).num_inference_steps for most in passes)
        drawn = len([numbers for numbers in begun if numbers]) if how.for_given_frames.tells else 0
        self._num_timesteps += (drawn + (not pictures)) * how.content.num_inference_steps

        # 2. Conditions
        guided = how.content.asks_without("text", self.content) or how.motion.asks_without("text", self.motion)
        told, nothing, truncated = self.encode(
            prompt, negative_prompt, class_labels, how_many(pictures), num_videos_per_prompt, guided
        )

        # 3. Content frame x_c (B, C, h, w)
        prompts = [text for text in as_list(prompt) for _ in range(num_videos_per_prompt)]
        shape = content_shape(self.autoencoder, self.ratio, len(truncated), height, width)
        picture = partial(self.content_frames, shape, nothing, how.content, generator, prompts, reward)
        draw = partial(self.motion_latents, nothing, how.motion, generator, control)
        if ends:
            met = {number: self.encode_image(one, num_videos_per_prompt) for number, one in ends.items()}
            x_c, z = self.meet(met, num_frames, told, how, picture, draw)
        elif pictures:
            x_c = self.encode_image(pictures["content_frame"], num_videos_per_prompt)
        else:
            told = told.having(structure=self.encode_image(structure, num_videos_per_prompt)) if structure else told
            x_c = picture(told)
        check_finite("vae" if pictures else "unet", x_c)

        # 4. Motion latents z (B, D, F, H' + W')
        if not ends:
            z = draw(told, x_c, num_frames)
        check_finite("motion_transformer", z)

        # 5. Clips that go on where the one before ends
        clips = [(x_c, z)]
        for _ in range(1, num_clips):
            last = self.latents_of(*clips[-1], frames=[num_frames - 1])[:, :, 0]  # (B, C, h, w)
            clips.append(self.meet({0: last}, num_frames, told, how, picture, draw))
            check_finite("motion_transformer", clips[-1][1])

        # 6. Video
        still = read_batch(pictures["image"], num_videos_per_prompt) if "image" in pictures else None
        frames, content_frames = self.decode_row(clips, output_type, how.decode_content_frame, region, still)
        flow = read_flow(self, x_c, z, output_type) if output_flow else None
        self.maybe_free_model_hooks()
        output = CMDPipelineOutput(frames, content_frames, truncated, flow)
        return output if return_dict else output.to_tuple()

    def check_inputs(
        self, prompt: Any, negative_prompt: Any, class_labels: Any, pictures: Mapping[str, Any], height: int,
        width: int, num_frames: int, how: Sampling, num_videos: int, generator: Generator, output_type: str,
        count: int = 0,
    ) -> int:  # fmt: skip
        """How many prompts, classes or pictures there are; a ValueError names what does not fit, what is allowed."""
        size = check_condition(self.num_classes, prompt, negative_prompt, class_labels, pictures, count)
        unit, patch = size_unit(self), self.motion_transformer.config.patch_size
        check_multiple("height", height, unit)
        check_multiple("width", width, unit)
        check_multiple("num_frames", num_frames, patch)
        check_multiple("num_videos_per_prompt", num_videos, 1)
        weights, references = self.autoencoder.config.get("frame_weights"), self._references(how)
        check_pictures(pictures, height, width, num_frames, weights, references)
        how.content.check(self.content, self.unet)
        how.motion.check(self.motion, self.motion_transformer, "motion_")
        check_generator(generator, size * num_videos)
        check_memory(size * num_videos, num_frames, height, width)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
        return size

    def encode(
        self, prompt: Any, negative_prompt: Any, class_labels: Any, count: int, num_videos: int, guided: bool = True
    ) -> tuple[Condition, dict[str, torch.Tensor], list[str | None]]:
        """What both networks are told, and what stands for nothing.

        Args:
            prompt: as in a call.
            negative_prompt: likewise.
            class_labels: likewise.
            count: how many clips, before `num_videos`, where there is neither prompt nor class.
            num_videos: clips for each prompt, class or picture.
            guided: whether the second is needed; otherwise it is the first once more.

        Returns:
            `tokens` (B, S, D) and `pooled` (B, D'), or `labels` (B,), twice; per clip the text that was cut off or
        None.
        """
        if self.num_classes:
            labels = as_list(class_labels) or [self.num_classes] * count
            row = torch.tensor(labels, device=self._execution_device).repeat_interleave(num_videos)
            return Condition({"labels": row}), {"labels": torch.full_like(row, self.num_classes)}, [None] * len(row)
        prompts = as_list(prompt) or [""] * count
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        encoded = []
        for texts in (prompts, negatives) if guided else (prompts,):
            features = encode_prompts(self.tokenizer, self.text_encoder, texts)
            for cut in features.truncated:
                if cut:
                    limit = self.tokenizer.model_max_length
                    logger.warning(f"the prompt is longer than {limit} tokens; cut off: {cut[:200]!r}")
            pooled = features.pooled
            if self.motion_text_encoder is not None:
                pooled = encode_prompts(self.motion_tokenizer, self.motion_text_encoder, texts).pooled
            rows = {"tokens": features.hidden_states, "pooled": pooled}
            encoded.append({name: row.repeat_interleave(num_videos, dim=0) for name, row in rows.items()})
            if texts is prompts:
                truncated = [cut for cut in features.truncated for _ in range(num_videos)]
        return Condition(encoded[0]), encoded[-1], truncated

    def encode_image(self, image: Any, num_videos: int) -> torch.Tensor:
        """Given pictures in the space of content frames: (B, C, h, w)."""
        pixels = read_batch(image).to(self._execution_device, self.autoencoder.dtype)  # (B, 3, H, W)
        return encode_images(self.vae, pixels).repeat_interleave(num_videos, dim=0)

    def content_frames(
        self, shape: tuple[int, ...], nothing: Mapping[str, torch.Tensor], how: ModelSampling, generator: Generator,
        prompts: list[str], reward: Reward | None, told: Condition,
    ) -> torch.Tensor:  # fmt: skip
        """New content frames of a shape (B, C, h, w); the rest as in `generate` and `search`."""
        noise = self.prepare_latents(shape, generator)
        if how.search is None:
            return self.generate("content", noise, told, nothing, how, generator)
        return self.search(noise, told, nothing, how, generator, prompts, reward)

    def motion_latents(
        self, nothing: Mapping[str, torch.Tensor], how: ModelSampling, generator: Generator, control: Any,
        told: Condition, content_frame: torch.Tensor, num_frames: int, most_steps: int | None = None,
        shown: int | None = None, given: Mapping[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """New motion latents (B, D, F, H' + W') for content frames (B, C, h, w), which are frame `shown` of the clips
        that are asked for, of clips with these given frames, in at most so many steps and under what `control` made;
        the rest as in `generate`.
        """
        how = how.at_most(most_steps)
        noise = self.prepare_latents(motion_shape(self.autoencoder, content_frame, num_frames), generator)
        told = told.having(content_frame=content_frame, given=given or {})
        correct = None if control is None else control.correct(content_frame, num_frames, shown)
        return self.generate("motion", noise, told, nothing, how, generator, correct=correct)

    def meet(
        self, given: Mapping[int, torch.Tensor], num_frames: int, told: Condition, how: Sampling,
        picture: Callable[[Condition], torch.Tensor], draw: Callable[..., torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Content frame (B, C, h, w) and motion latents (B, D, F, H' + W') of clips with given frames.

        Args:
            given: frames (B, C, h, w) by their number.
            num_frames: F.
            told: what the networks are told besides.
            how: the sampling, of which the technique for given frames counts.
            picture: what the networks are told to content frames.
            draw: the same, content frames, F, most steps and given frames to motion latents.
        """
        technique = how.for_given_frames
        if technique.tells:
            places = {0: 0, num_frames - 1: 1}
            row = reference_row({places[number]: frame for number, frame in given.items()}, len(places))
            told = told.having(**{ROW: row})  # (B, 2, C + 1, h, w)
            x_c = picture(told)
            return technique.refine(given, x_c, draw(told, x_c, num_frames), self.latents_of)
        clip = (num_frames, self.autoencoder.config.frame_weights, self.motion_transformer.config.patch_size)
        return technique.frames(given, *clip, partial(draw, told), self.latents_of)

    def _references(self, how: Sampling) -> int | None:
        """How many frames the content model can be told, if given frames are told it; None = they are not."""
        return unet_references(self.unet) if how.for_given_frames.tells else None

    def _passes(self, how: Sampling, numbers: list[int], num_frames: int) -> tuple[int | None, ...]:
        """Most steps of each pass of the motion model for a clip that is given the frames of these numbers."""
        weights = self.autoencoder.config.get("frame_weights")
        return how.for_given_frames.passes(numbers, num_frames, weights) if numbers else (None,)

    def latents_of(self, x_c: torch.Tensor, z: torch.Tensor, frames: list[int] | None = None) -> torch.Tensor:
        """Content frame and normalised motion latents -> frames (B, C, F, h, w), all or those of these numbers."""
        return self.autoencoder.decode(x_c, self.autoencoder.denormalize_latents(z), frames=frames).sample

    def prepare_latents(self, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
        """Noise of a shape, with unit variance."""
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)

    def generate(
        self, part: str, z: torch.Tensor, told: Condition, nothing: Mapping[str, torch.Tensor], how: ModelSampling,
        generator: Generator = None, begin: tuple[torch.Tensor, float] | None = None, correct: Correct | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Noise -> content frame (B, C, h, w) or motion latents (B, D, F, H' + W'): one loop of algorithm 1.

        Args:
            part: "content" or "motion".
            z: standard normal, of the result's shape.
            told: what the network is told, of B rows; more does no harm.
            nothing: rows that stand for nothing.
            how: how it is sampled.
            generator: source of what noise the solver adds.
            begin: a clean sample to change, and from which share of diffusion time on; None = from noise alone.
            correct: clean estimates to those to go on with.
        """
        denoiser = self.content if part == "content" else self.motion
        model = getattr(self, denoiser.component)
        known = told_to(told, denoiser, model, how)
        if "content_frame" in known:
            nothing = {**nothing, "content_frame": torch.zeros_like(known["content_frame"])}
        if ROW in known:
            nothing = {**nothing, ROW: torch.zeros_like(known[ROW])}
        conditions = conditions_for(how, known, nothing, TOLD)
        x_1 = None if how.process is None else how.process.source(denoiser, told, z)
        return how.run(
            denoiser, model, conditions, z, generator, self._watch, self._steps, x_1, begin=begin, correct=correct
        )

    def search(
        self, z: torch.Tensor, told: Condition, nothing: Mapping[str, torch.Tensor], how: ModelSampling,
        generator: Generator, prompts: list[str], reward: Reward | None,
    ) -> torch.Tensor:  # fmt: skip
        """Content frames (B, C, h, w) by a search, a clip after the other, each for what `reward` says of its picture.

        Args:
            z: standard normal, of the result's shape; of each clip the first start noise.
            told: what the network is told, of B rows.
            nothing: rows that stand for nothing.
            how: how it is sampled, with a search.
            generator: source of noise.
            prompts: of the clips; empty for a model of classes.
            reward: see `__call__`.
        """
        found = []
        for number in range(len(z)):
            one = torch.arange(len(z), device=z.device) == number
            own = {name: row[one] for name, row in nothing.items()}
            conditions = conditions_for(how, told_to(told.chosen(one), self.content, self.unet, how), own, TOLD)
            source = generator[number] if isinstance(generator, list) else generator
            asked = prompts[number] if prompts else ""

            def judge(x_0: torch.Tensor, asked: str = asked) -> torch.Tensor:
                assert reward is not None
                return reward(decode_images(self.vae, x_0).clamp(-1, 1), [asked] * len(x_0))

            judged = None if reward is None else judge
            found.append(
                how.run(self.content, self.unet, conditions, z[one], source, self._watch, self._steps, None, judged)
            )
        return torch.cat(found)

    def forget(self, callback: Callable[..., Any] | None = None) -> None:
        """Count steps from 0 again, and tell them to another callback or none."""
        self._callback, self._number, self._interrupt = callback, 0, False

    def _steps(self, steps: list[Step]) -> Iterator[Step]:
        """The steps of a loop, shown, until someone interrupts."""
        for step in self.progress_bar(steps):
            if not self._interrupt:
                yield step

    def _watch(self, x: torch.Tensor, number: int, step: Step) -> torch.Tensor:
        """Tell the user's callback of x after a step, and take from it what to go on with."""
        if self._callback is not None:
            changed = self._callback(self, self._number, int(step.t), {"latents": x})
            x = (changed or {}).get("latents", x)
        self._number += 1
        return x

    def decode(
        self, content_frame: torch.Tensor, motion_latents: torch.Tensor, output_type: str, with_content_frame: bool
    ) -> tuple[Any, Any]:
        """Content frame and normalised motion latents -> frames and content frames as `output_type` says."""
        return self.decode_row([(content_frame, motion_latents)], output_type, with_content_frame)

    def decode_row(
        self,
        clips: list[tuple[torch.Tensor, torch.Tensor]],
        output_type: str,
        with_content_frame: bool,
        region: torch.Tensor | None = None,
        still: torch.Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Frames and content frames as `output_type` says.

        Args:
            clips: content frames and normalised motion latents of clips in a row, of which each begins with the last
                frame of the one before; the content frames of the first are those that come out.
            output_type: as in a call.
            with_content_frame: whether content frames are wanted.
            region: (B, H, W) or (1, H, W), 1 where clips move; None = everywhere.
            still: (B, 3, H, W) in [-1, 1], what is shown where they do not; None = the content frame.
        """
        content_frame, motion_latents = clips[0]
        if output_type == "latent":
            return motion_latents, content_frame
        latents = [self.latents_of(*clip)[:, :, min(number, 1) :] for number, clip in enumerate(clips)]
        check_finite("autoencoder", *latents)
        video = decode_video(self.vae, torch.cat(latents, dim=2)).clamp(-1, 1).float()  # (B, 3, F, H, W)
        check_finite("vae", video)
        if region is not None:
            still = decode_images(self.vae, content_frame).clamp(-1, 1) if still is None else still
            video = torch.lerp(still[:, :, None].to(video), video, region[:, None, None].to(video))
        frames = self.video_processor.postprocess_video(video, output_type)
        if not with_content_frame:
            return frames, None
        pictures = decode_images(self.vae, content_frame).clamp(-1, 1).float()  # (B, 3, H, W)
        check_finite("vae", pictures)
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
