"""What a training run is made of: typed, documented, an unknown key is an error.

    config = load_config("configs/sprites/autoencoder.yaml", overrides=["loop.steps=100"])

A YAML file is a short difference from these defaults. `stage` chooses what is trained; the loop is the same for all.
What is learned is `objective`, one section for each kind: of the stage itself, or of a technique. Over 400 lines:
every field of a run is looked up here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, model_validator

from cmd_video.data.yaml_text import parse_yaml
from cmd_video.diffusion.objective import DenoisingSettings, DiffusionSettings
from cmd_video.section import Section, by_kind, named
from cmd_video.techniques import technique

MAX_SEED, MAX_COUNT, MAX_SIDE, MAX_BATCH = 2**32, 10**9, 2**14, 2**16
OTHER_WAYS = ("tensor", "pipeline", "context", "sequence", "expert", "tp", "pp", "cp", "sp", "ep")  # of parallel
Decay = Annotated[float, Field(ge=0, lt=1)]

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
    "autoencoder": ("CMDAutoencoder", "CMDWarpAutoencoder", "PrunedCMDAutoencoder", "PrunedCMDWarpAutoencoder"),
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

MAY_BE_HALF = ("teacher", "text_encoder", "text_encoder_2")  # what a video model's recovery holds beside the student


class StageKind(NamedTuple):
    """A stage: where its class is, what it cannot do without, what it learns unless told otherwise.

    Attributes:
        place: "module:class", imported when a run of it starts.
        components: names of components that it needs.
        objective: kind of its plain objective.
        denoiser: "content", "motion" or "video"; None = it does not denoise.
        from_latents: whether latents that were encoded before will do for clips.
    """

    place: str
    components: tuple[str, ...]
    objective: str
    denoiser: str | None = None
    from_latents: bool = False


_DIFFUSION = "cmd_video.training.stages:DiffusionStage"
STAGES: dict[str, StageKind] = {
    "autoencoder": StageKind(
        "cmd_video.training.autoencoder_stage:AutoencoderStage", ("autoencoder",), "reconstruction"
    ),
    "image": StageKind(_DIFFUSION, ("unet", "content_scheduler"), "denoising", "content", True),
    "content": StageKind(_DIFFUSION, ("unet", "content_scheduler", "autoencoder"), "denoising", "content", True),
    "motion": StageKind(
        _DIFFUSION, ("motion_transformer", "motion_scheduler", "autoencoder"), "denoising", "motion", True
    ),
    "video": StageKind(_DIFFUSION, ("video_model", "video_scheduler"), "denoising", "video"),
    "decoder": StageKind("cmd_video.training.decoder:DecoderStage", ("vae", "teacher"), "decoding"),
    "classifier": StageKind("cmd_video.sprites.classifier_stage:ClassifierStage", ("classifier",), "classification"),
}


class ComponentConfig(Section):
    """Where one component comes from: weights at `path`, or a fresh one of `class` with `config`."""

    path: str | None = None
    """A component folder (written by `save_pretrained`), or a pipeline folder or hub id that has it as a subfolder, or
    a model that ships: "default", "turbo".
    """
    revision: str | None = None
    """Of a hub id: its branch, tag or commit; null = its main branch."""
    class_name: str | None = Field(default=None, alias="class")
    """Class of a fresh component, one of COMPONENT_CLASSES."""
    config: dict[str, Any] = {}
    """Constructor arguments of a fresh component; for a text encoder those of `CLIPTextConfig`."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights, bfloat16 for those of MAY_BE_HALF that are not trained; null = as they are loaded: float32,
    or for a large text encoder as in its files."""

    @model_validator(mode="after")
    def _one_source(self) -> "ComponentConfig":
        if (self.path is None) == (self.class_name is None):
            raise ValueError("give either `path` or `class`")
        if self.revision is not None and self.path is None:
            raise ValueError("`revision` is of a hub id; give it as `path`")
        if self.path is not None and self.config:
            raise ValueError("`config` belongs to a fresh component; with `path` the saved configuration counts")
        return self


class VideoData(Section):
    """Clips on disk."""

    kind: Literal["manifest", "captioned_folder", "class_folder", "ucf101", "webvid", "frame_folders"]
    path: str = Field(min_length=1)
    """The manifest, csv or folder."""
    video_root: str | None = None
    """Folder of the clips, where they do not lie beside the manifest (UCF-101, WebVid)."""
    split: str | None = None
    """UCF-101: "train1" ... "test3", an official split."""
    height: int = Field(64, gt=0, le=MAX_SIDE)
    """H of a clip in pixels."""
    width: int = Field(64, gt=0, le=MAX_SIDE)
    """W of a clip in pixels."""
    num_frames: int = Field(16, gt=0, le=MAX_COUNT)
    """F of a clip."""
    stride: int = Field(1, gt=0, le=MAX_COUNT)
    """Take every stride-th frame."""
    fps: float | None = Field(None, gt=0)
    """Take frames at this rate instead of a stride."""
    flip: bool = False
    """Mirror half of the clips; left and right change places in their captions and classes."""
    seed: int = Field(0, ge=0, lt=MAX_SEED)
    """Of which span of a clip is read, and of what augmentation does."""
    train: bool = True
    """Random place in the clip; otherwise its middle."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Stop when more than this part of the clips cannot be read."""

    def open(self, on_device: bool = False) -> Any:
        """The dataset; see `training.data.ClipDataset`.

        Raises:
            ValueError: nothing usable at the path.
            FileNotFoundError: there is no such path.
        """
        from cmd_video.data.datasets import open_video_dataset

        return open_video_dataset(**self.model_dump(), on_device=on_device)


class LatentsData(Section):
    """Content frames and motion latents that `cmd-video data encode` wrote."""

    kind: Literal["latents"]
    path: str = Field(min_length=1)
    """Folder that `cmd-video data encode` wrote."""
    seed: int = Field(0, ge=0, lt=MAX_SEED)
    """Order in which the clips are drawn."""

    def open(self, on_device: bool = False) -> Any:
        """The dataset; see `training.data.ClipDataset`."""
        from cmd_video.data.latents import LatentsDataset

        return LatentsDataset(self.path, seed=self.seed)


DATA: dict[str, str] = {  # kind -> where its section is
    **dict.fromkeys(
        ("manifest", "captioned_folder", "class_folder", "ucf101", "webvid", "frame_folders"),
        "cmd_video.training.config:VideoData",
    ),
    "latents": "cmd_video.training.config:LatentsData",
    "sprites": "cmd_video.sprites.section:SpritesData",
}


def find_data(kind: str) -> type[Section]:
    """The section of a kind of data; a technique or a demonstration adds its own by a row of DATA."""
    if kind not in DATA:
        raise ValueError(f"kind: {kind!r} is none of {', '.join(DATA)}")
    return named(DATA[kind])


OWN_OF_VALIDATION = ("kind", "train", "seed")  # an override of `data` leaves those of `validation.data`
DataConfig = Annotated[Any, by_kind(find_data)]


class OptimizerConfig(Section):
    """AdamW and its learning rate."""

    lr: float = Field(1e-4, gt=0, le=1000)
    """Learning rate of AdamW after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = Field(0.0, ge=0, le=1000)
    """AdamW's, on all weights."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: stay, or fall along a half cosine to zero at the last step."""
    warmup_steps: int = Field(0, ge=0, le=MAX_COUNT)
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the gradient to this norm; null = never."""


class ParallelConfig(Section):
    """Weights, gradients, moments and averages sharded over processes (FSDP2): a model larger than a card. `shard` x
    `replicate` is the number of processes.
    """

    shard: int = Field(gt=1, le=MAX_COUNT)
    """Processes that hold one copy of the model together, each its part: those of one machine, or more."""
    replicate: int = Field(1, gt=0, le=MAX_COUNT)
    """Copies of the model, each on other processes, which only exchange gradients; 1 = one copy over all."""

    @property
    def processes(self) -> int:
        """How many of them the run must have."""
        return self.shard * self.replicate

    @model_validator(mode="before")
    @classmethod
    def _not_needed(cls, values: Any) -> Any:
        """Other ways to divide a model are refused with the reason."""
        for name in values if isinstance(values, dict) else ():
            if name in OTHER_WAYS:
                raise ValueError(
                    f"{name}: not here; CMD's sequences are short (896 motion tokens of a 512x1024 clip, content is "
                    "one image), so sharded data parallel suffices; allowed: shard, replicate"
                )
        return values


class LoopConfig(Section):
    """The loop: how long, how much at a time, what is written when."""

    steps: int = Field(gt=0, le=MAX_COUNT)
    """Optimizer steps of the run."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after the first step that ends later than this many minutes after the call: save a checkpoint and, as at
    the end, the components as they are. The same call again goes on. null = run to the last step."""
    batch_size: int = Field(gt=0, le=MAX_BATCH)
    """Clips (or frames) per optimizer step, over all processes and accumulated micro-batches."""
    gradient_accumulation_steps: int = Field(1, gt=0, le=MAX_COUNT)
    """Parts that a batch is computed in, to save memory."""
    micro_batch_size: int | None = Field(None, gt=0, le=MAX_BATCH)
    """Clips that a process computes at once, at most, in place of `gradient_accumulation_steps`: in how many parts the
    batch is computed follows from the number of processes, so that one recipe serves any that divides the batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; weights and optimizer stay float32."""
    compile: bool = False
    """Run what learns through `torch.compile`: the first steps take minutes, the others less than before."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are validated and exported."""
    num_workers: int = Field(0, ge=0, le=1024)
    """Data loading processes."""
    timeout_s: float = Field(1800.0, gt=0, le=10_000_000)
    """Seconds without an answer, of a loading process or of another process of the run, after which the run ends."""
    parallel: ParallelConfig | None = None
    """Shard what learns, and its teacher, over the processes; null = each process holds all of it (DDP)."""
    log_every: int = Field(20, gt=0, le=MAX_COUNT)
    """Steps between lines of the log."""
    validate_every: int = Field(500, gt=0, le=MAX_COUNT)
    """Steps between validations."""
    checkpoint_every: int = Field(500, gt=0, le=MAX_COUNT)
    """Steps between checkpoints."""
    keep_last: int = Field(2, gt=0, le=MAX_COUNT)
    """Checkpoints to keep besides the one with the lowest validation loss."""

    def parts(self, processes: int) -> int:
        """Micro-batches that each process computes a step in.

        Raises:
            ValueError: the batch cannot be dealt out to so many processes.
        """
        parts = self.gradient_accumulation_steps
        share = processes * parts
        if self.batch_size % share:
            raise ValueError(
                f"loop.batch_size: {self.batch_size} is not divisible by accumulation x processes = {share}"
            )
        if self.micro_batch_size is None:
            return parts
        clips, most = self.batch_size // processes, self.micro_batch_size
        return next(parts for parts in range(1, clips + 1) if clips % parts == 0 and clips // parts <= most)

    @model_validator(mode="after")
    def _one_way(self) -> "LoopConfig":
        if self.micro_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError("micro_batch_size: not together with gradient_accumulation_steps; give one of them")
        return self


class ReconstructionSettings(Section):
    """What an autoencoder learns (CMD, section 3.1)."""

    kind: Literal["reconstruction"] = "reconstruction"
    reconstruction: Literal["l2", "l1"] = "l2"
    """Distance between clip and reconstruction (the paper: l2)."""
    motion_latents_noise: float = Field(0.0, ge=0)
    """Differs from paper: noise added to the motion latents (which lie in (-1, 1)) before decoding, so that the
    decoder forgives the motion model's small errors."""
    anchor_weight: float = Field(0.0, ge=0)
    """Differs from paper: weight of the squared distance from the content frame to the middle frame. Without it the
    weights fall into a poor optimum early in a short training: the blurred mean, which hides what objects look
    like."""
    coarse_warp_weight: float = Field(0.0, ge=0)
    """With `base: warp` or `layers`: differs from paper: weight of the difference between the blurred clip and the
    blurred content frame moved by the flow, so that the flow learns to reach far (`training.coarse_warp`)."""


class DecodingSettings(Section):
    """What a decoder that was made smaller learns (VDMini, appendix)."""

    kind: Literal["decoding"] = "decoding"
    reconstruction: Literal["l2", "l1"] = "l2"
    """Distance between clip and reconstruction."""
    perceptual_weight: float = Field(1.0, ge=0)
    """Of the distance in features of the teacher's encoder."""


class ClassificationSettings(Section):
    """What a classifier learns: cross-entropy, without settings."""

    kind: Literal["classification"] = "classification"


PLAIN_OBJECTIVES: dict[str, type[Section]] = {
    "reconstruction": ReconstructionSettings,
    "denoising": DenoisingSettings,
    "decoding": DecodingSettings,
    "classification": ClassificationSettings,
}


def find_objective(kind: str) -> type[Section]:
    """The section of a kind of objective, of a stage or of a technique."""
    return PLAIN_OBJECTIVES[kind] if kind in PLAIN_OBJECTIVES else technique(kind, "objective").settings


class ValidationConfig(Section):
    """Held-out clips and pictures."""

    data: DataConfig
    """Held-out clips, by `kind`."""
    num_clips: int = Field(64, gt=0, le=MAX_COUNT)
    """Clips that the loss is measured on."""
    batch_size: int = Field(16, gt=0, le=MAX_COUNT)
    """Clips at a time."""
    num_samples: int = Field(8, ge=0, le=MAX_COUNT)
    """Clips in the sample grid; 0 = no grid."""
    num_inference_steps: int = Field(25, gt=0, le=MAX_COUNT)
    """Steps of the samples that are drawn."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance of the samples; 1 = none."""


class TrainConfig(Section):
    """A whole run."""

    stage: Literal["autoencoder", "image", "content", "motion", "video", "classifier", "decoder"]
    """What is trained."""
    output_dir: str = Field(min_length=1)
    """The run's folder."""
    seed: int = Field(0, ge=0, lt=MAX_SEED)
    """Of everything that is drawn."""
    components: dict[str, ComponentConfig]
    """Networks, encoders, schedulers, by name."""
    data: DataConfig
    """Clips, by `kind`."""
    validation: ValidationConfig
    """Held-out clips and pictures."""
    objective: Annotated[Any, by_kind(find_objective)]
    """What is learned, by `kind`; default: the stage's plain objective."""
    edit: Annotated[Any, by_kind(lambda kind: technique(kind, "edit").settings)] | None = None
    """What is done to the network before it learns, by `kind`: adapters; null = all of its weights learn."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its learning rate."""
    loop: LoopConfig
    """How long, how much at a time, what is written when."""

    @model_validator(mode="before")
    @classmethod
    def _plain_objective(cls, values: Any) -> Any:
        """An objective without a kind is the stage's own; of an unknown stage nothing can be said but that."""
        if not isinstance(values, dict):
            return values
        if str(values.get("stage")) not in STAGES:
            return {**values, "objective": {"kind": "classification"}}
        objective = values.get("objective", {})
        if isinstance(objective, dict) and "kind" not in objective:
            objective = {"kind": STAGES[values["stage"]].objective, **objective}
        return {**values, "objective": objective}

    @model_validator(mode="after")
    def _complete(self) -> "TrainConfig":
        stage, objective = STAGES[self.stage], self.objective
        for name, component in self.components.items():
            if name not in COMPONENT_CLASSES:
                raise ValueError(f"components: {name!r} is none of {', '.join(COMPONENT_CLASSES)}")
            if component.class_name is not None and component.class_name not in COMPONENT_CLASSES[name]:
                raise ValueError(
                    f"components.{name}.class: {component.class_name!r} "
                    f"is none of {', '.join(COMPONENT_CLASSES[name])}"
                )
        if not stage.from_latents and "latents" in (self.data.kind, self.validation.data.kind):
            raise ValueError(f"data.kind: the stage {self.stage!r} trains on clips here, not on latents")
        self._check_objective(stage)
        encoder = "motion_text_encoder" if self.stage == "motion" else "text_encoder"
        if getattr(objective, "train_text_encoder", False) and encoder not in self.components:
            raise ValueError(f"objective.train_text_encoder: components has no {encoder}")
        precomputed = self.data.kind == self.validation.data.kind == "latents"
        needed = (*stage.components, *(("teacher",) if getattr(objective, "needs_teacher", False) else ()))
        for name in needed:
            if name not in self.components and not (precomputed and (self.stage, name) == ("content", "autoencoder")):
                raise ValueError(f"components: the stage {self.stage!r} needs {name!r}")
        for pair in TEXT_PAIRS:
            if (pair[0] in self.components) != (pair[1] in self.components):
                raise ValueError(f"components: {pair[0]} and {pair[1]} come together")
        if self.loop.batch_size % self.loop.gradient_accumulation_steps:
            raise ValueError(
                f"loop.batch_size: {self.loop.batch_size} is not divisible by "
                f"loop.gradient_accumulation_steps = {self.loop.gradient_accumulation_steps}"
            )
        self._check_types()
        if self.loop.parallel is not None:
            self._check_parallel()
        return self

    def _check_types(self) -> None:
        """Whether what is to be in half precision stays as it is, and is used where it may be."""
        learns = ("text_encoder",) if getattr(self.objective, "train_text_encoder", False) else ()
        for name, component in self.components.items():
            fits = name in MAY_BE_HALF and name not in learns and self.stage == "video"
            if component.dtype == "bfloat16" and not (fits and self.loop.precision == "bf16"):
                raise ValueError(
                    f"components.{name}.dtype: bfloat16 is for {', '.join(MAY_BE_HALF)} of the stage 'video' that "
                    "are not trained, with loop.precision bf16"
                )

    def _check_parallel(self) -> None:
        """Whether what is sharded can be: each process must pass through a network as often as the others."""
        if self.stage in ("classifier", "decoder"):
            raise ValueError(f"loop.parallel: not for the stage {self.stage!r}, whose networks are small")
        if self.loop.compile:
            raise ValueError("loop.parallel: not together with loop.compile")
        if self.edit is not None:
            raise ValueError(f"loop.parallel: not together with edit.kind {self.edit.kind!r}")
        if getattr(self.objective, "passes_differ", False):
            raise ValueError(
                f"loop.parallel: not together with objective.kind {self.objective.kind!r}, whose number of passes "
                "through the networks is not the same in each process"
            )

    def _check_objective(self, stage: StageKind) -> None:
        """Whether stage, objective, edit and teacher go together."""
        objective, plain = self.objective, self.objective.kind in PLAIN_OBJECTIVES
        fits = objective.kind == stage.objective
        if not plain:
            fits = stage.denoiser in technique(objective.kind).denoisers and self.stage != "image"
        if not fits:
            raise ValueError(f"objective.kind: {objective.kind!r} is not for the stage {self.stage!r}")
        if isinstance(objective, DiffusionSettings):
            try:
                objective.check_run(str(stage.denoiser), self.validation.num_inference_steps)
            except ValueError as error:
                raise ValueError(f"objective.{error}") from error
        for name in ("process", "disturb"):
            section = getattr(objective, name, None)
            if section is not None and stage.denoiser not in technique(section.kind).denoisers:
                raise ValueError(f"objective.{name}: {section.kind!r} is not for the stage {self.stage!r}")
        if "teacher" in self.components and plain and "teacher" not in stage.components:
            raise ValueError(
                "components.teacher: it belongs to the stage 'decoder' or to an objective that has a teacher"
            )
        if self.edit is not None and stage.denoiser not in technique(self.edit.kind).denoisers:
            raise ValueError(f"edit.kind: {self.edit.kind!r} is not for the stage {self.stage!r}")
        if self.edit is not None and not plain:
            raise ValueError(f"edit: not together with objective.kind {objective.kind!r}")


def _reason(error: Exception) -> str:
    return "sections are nested too deep" if isinstance(error, RecursionError) else str(error)


def read_yaml(path: str | Path) -> Any:
    """What a YAML or JSON file says.

    Raises:
        ValueError: it is not YAML, not UTF-8, nested too deep, or has a key twice.
        FileNotFoundError: there is no such file.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {_reason(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: the file.
        overrides: strings "section.field=value"; the value is read as YAML. One of `data` holds for `validation.data`
            too where the file says the same of both, as of sizes, unless that has an override of its own.

    Raises:
        ValueError: the file is not YAML, an override has no "=", or a field is wrong (pydantic's error names it).
        FileNotFoundError: there is no such file.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a configuration is a mapping of fields, found {type(values).__name__}")
    data, held_out = _clips_of(values)
    own = {override.partition("=")[0] for override in overrides or []}
    for override in overrides or []:
        dotted, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"overrides: {override!r}: expected section.field=value")
        *parents, leaf = dotted.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"overrides: {override!r}: {parent} is not a section")
        try:
            target[leaf] = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"overrides: {override!r}: the value is not valid YAML: {_reason(error)}") from error
        alike = leaf not in OWN_OF_VALIDATION and data.get(leaf) == held_out.get(leaf)
        if parents == ["data"] and held_out and alike and f"validation.data.{leaf}" not in own:
            values["validation"]["data"][leaf] = target[leaf]
    return TrainConfig.model_validate(values)


def _clips_of(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of clips for training and for validation; nothing where they are of two kinds."""
    validation = values.get("validation")
    data, held_out = values.get("data"), validation.get("data") if isinstance(validation, dict) else None
    if not isinstance(data, dict) or not isinstance(held_out, dict) or data.get("kind") != held_out.get("kind"):
        return {}, {}
    return dict(data), dict(held_out)
