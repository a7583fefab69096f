"""What a training run is made of: typed, documented, an unknown key is an error.

    config = load_config("configs/sprites/autoencoder.yaml", overrides=["loop.steps=100"])

A YAML file is a short difference from these defaults. `stage` chooses what is trained; the loop is the same for all.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from cmd_video.data.sprites import MOTIONS

from .config_teacher import DistillationConfig, RecoveryConfig, Section

VIDEO_MODELS = (
    "UNet3DConditionModel",
    "UNetMotionModel",
    "VideoCrafterUNet",
    "UNetSpatioTemporalConditionModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
)
VIDEO_AUTOENCODERS = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLHunyuanVideo")
KL_AUTOENCODERS = tuple(
    f"{prefix}{name}" for name in ("AutoencoderKL", "AutoencoderKLTemporalDecoder") for prefix in ("", "Pruned")
)
COMPONENT_CLASSES: dict[str, tuple[str, ...]] = {
    "vae": (*KL_AUTOENCODERS, "AutoencoderTiny", "AutoencoderPixelUnshuffle", *VIDEO_AUTOENCODERS),
    "autoencoder": ("CMDAutoencoder", "PrunedCMDAutoencoder"),
    "unet": ("UNet2DConditionModel", "DiTTransformer2DModel", "PrunedUNet2DConditionModel"),
    "motion_transformer": ("CMDMotionTransformer", "PrunedCMDMotionTransformer"),
    "classifier": ("SpriteClassifier",),
    "video_model": tuple(f"{prefix}{name}" for name in VIDEO_MODELS for prefix in ("", "Pruned")),
    "teacher": (
        *(f"{prefix}{name}" for name in ("UNet2DConditionModel", "CMDMotionTransformer") for prefix in ("", "Pruned")),
        *VIDEO_MODELS,
        *KL_AUTOENCODERS,
    ),
    "text_encoder": ("CLIPTextModel",),  # of a fresh one; a video model's may also be one of TEXT_ENCODERS
    "tokenizer": ("CLIPTokenizer",),
    "text_encoder_2": ("CLIPTextModel",),
    "tokenizer_2": ("CLIPTokenizer",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "motion_text_encoder": ("CLIPTextModel",),
    "motion_tokenizer": ("CLIPTokenizer",),
    "content_scheduler": ("DDIMScheduler", "LCMScheduler"),
    "motion_scheduler": ("DDIMScheduler", "LCMScheduler"),
    "video_scheduler": ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
}
TEXT_ENCODERS = ("CLIPTextModel", "T5EncoderModel", "UMT5EncoderModel", "LlamaModel")
TEXT_PAIRS = (
    ("tokenizer", "text_encoder"),
    ("tokenizer_2", "text_encoder_2"),
    ("motion_tokenizer", "motion_text_encoder"),
)
STAGE_COMPONENTS: dict[str, tuple[str, ...]] = {  # what each stage cannot do without
    "autoencoder": ("autoencoder",),
    "image": ("unet", "content_scheduler"),
    "content": ("unet", "content_scheduler", "autoencoder"),
    "motion": ("motion_transformer", "motion_scheduler", "autoencoder"),
    "video": ("video_model", "video_scheduler"),
    "distill": ("teacher",),
    "classifier": ("classifier",),
    "decoder": ("vae", "teacher"),
}
DIFFUSION_STAGES = ("image", "content", "motion", "video", "distill")
OBJECTIVE_STAGES: dict[str, tuple[str, ...]] = {  # where a field of the objective means something
    "reconstruction": ("autoencoder", "decoder"),
    "perceptual_weight": ("decoder",),
    "motion_latents_noise": ("autoencoder",),
    "anchor_weight": ("autoencoder",),
    "coarse_warp_weight": ("autoencoder",),
    "condition_dropout": DIFFUSION_STAGES,
    "lora_rank": ("image", "content"),
    "train_text_encoder": ("image", "content", "motion", "video"),
    "content_frame_noise": ("motion", "distill"),
    "distillation": ("content", "motion"),
    "recovery": ("distill",),
    "min_snr_gamma": DIFFUSION_STAGES,
    "snr_power": DIFFUSION_STAGES,
    "logit_normal": DIFFUSION_STAGES,
    "log_sigma_normal": DIFFUSION_STAGES,
}
DENOISERS: dict[str, str] = {"unet": "content", "motion_transformer": "motion", "video_model": "video"}  # whose stage


class ComponentConfig(Section):
    """Where one component comes from: weights at `path`, or a fresh one of `class` with `config`."""

    path: str | None = None
    """A component folder (written by `save_pretrained`), or a pipeline folder or hub id that has it as a subfolder, or
    a model that ships: "default", "turbo".
    """
    class_name: str | None = Field(default=None, alias="class")
    """Class of a fresh component, one of COMPONENT_CLASSES."""
    config: dict[str, Any] = {}
    """Constructor arguments of a fresh component; for a text encoder those of `CLIPTextConfig`."""

    @model_validator(mode="after")
    def _one_source(self) -> "ComponentConfig":
        if (self.path is None) == (self.class_name is None):
            raise ValueError("give either `path` or `class`")
        if self.path is not None and self.config:
            raise ValueError("`config` belongs to a fresh component; with `path` the saved configuration counts")
        return self


class SpritesData(Section):
    """The procedural set of `cmd_video.data.sprites`."""

    kind: Literal["sprites"]
    length: int = Field(1_000_000, gt=0)
    """Number of scenes; training draws them again in the same order after that."""
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    num_frames: int = Field(16, gt=0)
    """Frames of a clip; 1 gives single frames, for the image stage."""
    seed: int = 0
    split: Literal["train", "held_out"] = "train"
    start: int = Field(0, ge=0)
    """Number of the first scene."""
    pairs: float = Field(0.25, ge=0, le=1)
    """Share of scenes with two objects."""
    motion_weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """How often a motion comes, relative to 1 for those not named: {orbit: 7, rotate: 7}; null = all alike."""
    render: Literal["loader", "device"] = "loader"
    """Where training draws its scenes: one by one as they are loaded, or in batches on the device that trains, where a
    GPU draws thousands of clips a second. Validation clips are drawn once, as they are loaded."""

    @field_validator("motion_weights")
    @classmethod
    def _known_motions(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        unknown = sorted(set(value or {}) - set(MOTIONS))
        if unknown:
            raise ValueError(f"unknown motion {unknown[0]!r}; known: {', '.join(MOTIONS)}")
        return value


class VideoData(Section):
    """Clips on disk."""

    kind: Literal["manifest", "captioned_folder", "class_folder", "ucf101", "webvid", "frame_folders"]
    path: str
    """The manifest, csv or folder."""
    video_root: str | None = None
    """Folder of the clips, where they do not lie beside the manifest (UCF-101, WebVid)."""
    split: str | None = None
    """UCF-101: "train1" ... "test3", an official split."""
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    num_frames: int = Field(16, gt=0)
    stride: int = Field(1, gt=0)
    """Take every stride-th frame."""
    fps: float | None = Field(None, gt=0)
    """Take frames at this rate instead of a stride."""
    flip: bool = False
    """Mirror half of the clips."""
    seed: int = 0
    train: bool = True
    """Random place in the clip; otherwise its middle."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Stop when more than this part of the clips cannot be read."""


class LatentsData(Section):
    """Content frames and motion latents that `cmd-video data encode` wrote."""

    kind: Literal["latents"]
    path: str
    seed: int = 0
    """Order in which the clips are drawn."""


DataConfig = Annotated[SpritesData | VideoData | LatentsData, Field(discriminator="kind")]


class OptimizerConfig(Section):
    """AdamW and its learning rate."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: stay, or fall along a half cosine to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the gradient to this norm; null = never."""


class LoopConfig(Section):
    """The loop: how long, how much at a time, what is written when."""

    steps: int = Field(gt=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop after the first step that ends later than this many minutes after the call: save a checkpoint and, as at
    the end, the components as they are. The same call again goes on. null = run to the last step."""
    batch_size: int = Field(gt=0)
    """Clips (or frames) per optimizer step, over all processes and accumulated micro-batches."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    """Run what learns through `torch.compile`: the first steps take minutes, the others less than before."""
    gradient_checkpointing: bool = False
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are validated and exported."""
    num_workers: int = Field(0, ge=0)
    """Data loading processes."""
    log_every: int = Field(20, gt=0)
    validate_every: int = Field(500, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep_last: int = Field(2, gt=0)
    """Checkpoints to keep besides the one with the lowest validation loss."""


class ObjectiveConfig(Section):
    """What the loss is; each field belongs to the stages named."""

    reconstruction: Literal["l2", "l1"] = "l2"
    """autoencoder, decoder: distance between clip and reconstruction (the paper: l2)."""
    perceptual_weight: float = Field(1.0, ge=0)
    """decoder: of the distance in features of the teacher's encoder."""
    motion_latents_noise: float = Field(0.0, ge=0)
    """autoencoder: differs from paper: noise added to the motion latents (which lie in (-1, 1)) before decoding, so
    that the decoder forgives the motion model's small errors."""
    anchor_weight: float = Field(0.0, ge=0)
    """autoencoder: differs from paper: weight of the squared distance from the content frame to the middle frame.
    Without it the weights fall into a poor optimum early in a short training: the blurred mean, which hides what
    objects look like."""
    coarse_warp_weight: float = Field(0.0, ge=0)
    """autoencoder with `base: warp`: differs from paper: weight of the difference between the blurred clip and the
    blurred content frame moved by the flow, so that the flow learns to reach far (`training.coarse_warp`)."""
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """diffusion stages: how often the prompt or label is left out, for guidance."""
    lora_rank: int = Field(0, ge=0)
    """image, content: train low-rank adapters of the UNet's attention (LoRA, arXiv 2106.09685) instead of all its
    weights; 0 = all weights, as in the paper. The run holds the adapters as a LoRA file and merged into the UNet."""
    train_text_encoder: bool = False
    """image, content, video: train the text encoder along; motion: the motion model's own."""
    content_frame_noise: float = Field(0.0, ge=0)
    """motion, distill: differs from paper: noise added to the true content frame, so that a generated one does not
    surprise."""
    distillation: DistillationConfig | None = None
    """content, motion: learn from the component `teacher`, or from what the run starts from, instead of from data;
    null = off."""
    recovery: RecoveryConfig = RecoveryConfig()
    """distill: losses that win quality back after pruning."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """diffusion stages: differs from paper: Min-SNR loss weights (arXiv 2303.09556); null = the plain loss."""
    snr_power: float = Field(0.0, ge=0)
    """diffusion stages: differs from paper: weight the loss by the signal-to-noise ratio to this power, so that
    no noise level drowns the others; 0 = the plain loss. For a model that predicts the sample, 1 is the loss on the
    noise."""
    logit_normal: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """diffusion stages: differs from paper: draw t / T as the sigmoid of a normal variable of this mean and
    standard deviation (arXiv 2403.03206, section 3.1); null = uniform."""
    log_sigma_normal: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """diffusion stages: draw the logarithm of noise over signal from a normal distribution of this mean and standard
    deviation (EDM, arXiv 2206.00364, table 1; Stable Video Diffusion's are 0.7 and 1.6); null = see logit_normal."""


class ValidationConfig(Section):
    """Held-out clips and pictures."""

    data: DataConfig
    num_clips: int = Field(64, gt=0)
    batch_size: int = Field(16, gt=0)
    num_samples: int = Field(8, ge=0)
    """Clips in the sample grid; 0 = no grid."""
    num_inference_steps: int = Field(25, gt=0)
    guidance_scale: float = Field(3.0, ge=1)


class TrainConfig(Section):
    """A whole run."""

    stage: Literal["autoencoder", "image", "content", "motion", "video", "distill", "classifier", "decoder"]
    output_dir: str
    seed: int = Field(0, ge=0)
    components: dict[str, ComponentConfig]
    data: DataConfig
    validation: ValidationConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig

    @property
    def takes_turns(self) -> bool:
        """Whether a step updates only a part of what learns: two networks are trained in turn."""
        distillation = self.objective.distillation
        matching = distillation is not None and distillation.method == "distribution_matching"
        return self.stage == "distill" or matching

    @model_validator(mode="after")
    def _complete(self) -> "TrainConfig":
        for name, component in self.components.items():
            if name not in COMPONENT_CLASSES:
                raise ValueError(f"components: {name!r} is none of {', '.join(COMPONENT_CLASSES)}")
            if component.class_name is not None and component.class_name not in COMPONENT_CLASSES[name]:
                raise ValueError(
                    f"components.{name}.class: {component.class_name!r} "
                    f"is none of {', '.join(COMPONENT_CLASSES[name])}"
                )
        kind: str = self.stage
        if self.stage == "distill":
            found = [name for name in DENOISERS if name in self.components]
            if len(found) != 1:
                raise ValueError(f"components: the stage 'distill' needs one of {', '.join(DENOISERS)}, got {found}")
            kind = DENOISERS[found[0]]
        if kind in ("autoencoder", "video", "classifier", "decoder") and "latents" in (
            self.data.kind,
            self.validation.data.kind,
        ):
            raise ValueError(f"data.kind: the stage {self.stage!r} trains on clips here, not on latents")
        for field, stages in OBJECTIVE_STAGES.items():
            default = ObjectiveConfig.model_fields[field].default
            if self.stage not in stages and getattr(self.objective, field) != default:
                raise ValueError(
                    f"objective.{field}: it belongs to {', '.join(stages)}, not to the stage {self.stage!r}"
                )
        taught = self.stage in ("distill", "decoder") or self.objective.distillation is not None
        if "teacher" in self.components and not taught:
            raise ValueError(
                "components.teacher: it belongs to the stages 'distill' and 'decoder' or to objective.distillation"
            )
        if self.objective.distillation is not None:
            self.objective.distillation.check(self.validation.num_inference_steps)
            for field in ("train_text_encoder", "min_snr_gamma", "snr_power"):
                if getattr(self.objective, field):
                    raise ValueError(f"objective.{field}: has no meaning in a distillation")
        if self.objective.log_sigma_normal is not None and self.objective.logit_normal is not None:
            raise ValueError("objective.log_sigma_normal: not together with logit_normal")
        encoder = "motion_text_encoder" if self.stage == "motion" else "text_encoder"
        if self.objective.train_text_encoder and encoder not in self.components:
            raise ValueError(f"objective.train_text_encoder: components has no {encoder}")
        precomputed = isinstance(self.data, LatentsData) and isinstance(self.validation.data, LatentsData)
        for name in (*STAGE_COMPONENTS[kind], *(STAGE_COMPONENTS["distill"] if self.stage == "distill" else ())):
            if name not in self.components and not (precomputed and name == "autoencoder" and kind == "content"):
                raise ValueError(f"components: the stage {self.stage!r} needs {name!r}")
        for pair in TEXT_PAIRS:
            if (pair[0] in self.components) != (pair[1] in self.components):
                raise ValueError(f"components: {pair[0]} and {pair[1]} come together")
        if self.loop.batch_size % self.loop.gradient_accumulation_steps:
            raise ValueError(
                f"loop.batch_size: {self.loop.batch_size} is not divisible by "
                f"loop.gradient_accumulation_steps = {self.loop.gradient_accumulation_steps}"
            )
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: the file.
        overrides: strings "section.field=value"; the value is read as YAML.

    Raises:
        ValueError: the file is not YAML, an override has no "=", or a field is wrong (pydantic's error names it).
        FileNotFoundError: there is no such file.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a configuration is a mapping of fields, found {type(values).__name__}")
    for override in overrides or []:
        dotted, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"--set {override!r}: expected section.field=value")
        *parents, leaf = dotted.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {override!r}: {parent} is not a section")
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    return TrainConfig.model_validate(values)
