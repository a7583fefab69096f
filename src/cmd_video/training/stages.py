"""The diffusion stages: one class; what is diffused is a denoiser's, what is learned an objective's.

stage = DiffusionStage(config, components);  loss = stage(batch)                      # or by `build_stage`

B batch; x_0 and x_t have one shape (B, ...): content frames (B, C, h, w), motion latents (B, D, F, H' + W').
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, ModelMixin
from torch import Tensor
from transformers import CLIPTextModel

from cmd_video.denoisers.content import ContentDenoiser
from cmd_video.denoisers.denoiser import Denoiser
from cmd_video.denoisers.labels import leave_dropping_to_conditions, null_label
from cmd_video.denoisers.latent_space import decode_video
from cmd_video.denoisers.motion import MotionDenoiser
from cmd_video.denoisers.video import VideoDenoiser
from cmd_video.denoisers.video_models import check_clips, check_video_model
from cmd_video.diffusion.draws import Draws
from cmd_video.diffusion.guidance import ALL, NOTHING, ClassifierFree
from cmd_video.pipelines.presets import lcm
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.pruning.importance import NoisyBatch

from .config import STAGES, TrainConfig
from .grids import evenly, tile
from .stage import Batch, Stage

SAMPLING = "sampling.json"  # in a run's folder of components: part -> how its network is sampled


class DiffusionStage(Stage):
    """Trains the network of a denoiser: an image model on single frames ("image") or content frames ("content"; CMD,
    equation 7), the motion transformer ("motion"; equation 8), or a video model on whole clips ("video").

    Attributes:
        denoiser: which x_0, how the network is asked.
        objective: what it learns.
    """

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        components = dict(components)
        teacher = components.pop("teacher", None)  # neither trained nor saved
        learns_text = bool(getattr(config.objective, "train_text_encoder", False))
        denoiser = make_denoiser(config, components, learns_text)
        name, text = denoiser.component, (denoiser.text_encoder,) if learns_text else ()
        leave_dropping_to_conditions(components[name])
        if config.edit is not None:
            config.edit.edit(components[name], config.seed)
        super().__init__(config, components, trained=(name, *text))
        self.denoiser, self.name = denoiser, name
        self.objective = config.objective.build(self.denoiser, components[name], teacher, config.seed)
        for module, network in self.objective.modules.items():
            self.add_module(module, network)
        networks = [name for name, module in self.objective.modules.items() if isinstance(module, ModelMixin)]
        self.trained = (*self.trained, *networks)  # small heads are neither compiled nor computed twice
        if hasattr(self.objective, "teacher"):
            self.frozen["teacher"] = self.objective.teacher  # not registered: neither trained nor saved
        self.adapters: dict[str, Tensor] = {}

    @property
    def model(self) -> Any:
        """The network that learns."""
        return self.components[self.name]

    @property
    def num_classes(self) -> int:
        return null_label(self.model)

    def forward(self, batch: Batch) -> Tensor:
        rng = Draws.of(self.config.seed, batch["number"])
        with torch.no_grad():
            x_0, condition = self.denoiser.example(batch)  # (B, ...), and what may be told of it
        loss = self.objective.loss(self.model, x_0, condition, rng, turn=batch.get("step", 0)).mean()
        self.terms = self.objective.terms
        return loss

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Metrics at fixed timesteps, with noise that is a function of the samples' numbers."""
        x_0, condition = self.denoiser.example(batch)
        rng, t = Draws.of(self.config.seed + 1, batch["number"]), self.objective.validation_times(batch["number"])
        return self.objective.validate(self.model, x_0, condition, rng, t)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns; modules of the objective with learning rates of their own."""
        groups = [{"params": [], "lr_scale": 1.0}]
        scaled = {name: {"params": [], "lr_scale": scale} for name, scale in self.objective.lr_scales.items()}
        for name, value in self.learning().items():
            scaled.get(name.partition(".")[0], groups[0])["params"].append(value)
        return groups + list(scaled.values())

    def finish(self, batches: Iterator[Batch]) -> None:
        """Undo what an edit did for training; leave the sampler that the weights need."""
        if self.config.edit is not None:
            self.adapters = self.config.edit.finish(self.model)
        if self.objective.sampling().get("sampler") == "lcm":
            self.components[self.denoiser.scheduler] = self.sampler()

    def save_extras(self, folder: Path) -> None:
        """An edit's own files; and how the weights are sampled, if not in the plain way."""
        if self.config.edit is not None:
            self.config.edit.save(self.adapters, folder)
        if self.objective.sampling():
            how = {STAGES[self.config.stage].denoiser: ModelSampling(**self._own_sampling()).model_dump(mode="json")}
            (folder / SAMPLING).write_text(json.dumps(how, indent=1))

    def sampling(self) -> ModelSampling:
        """How validation samples."""
        validation = self.config.validation
        guided = 1.0 if self.denoiser.guidance_built_in else validation.guidance_scale
        plain = {"guidance": ClassifierFree(scale=guided), "num_inference_steps": validation.num_inference_steps}
        return ModelSampling(**plain | self._own_sampling())

    def draw_samples(self, batch: Batch, model: Any = None) -> Tensor:
        """x_0 (B, ...) from noise that is a function of the samples' numbers; by another network in its place."""
        x_0, condition = self.denoiser.example(batch)
        rng = Draws.of(self.config.seed + 2, batch["number"])
        z = rng.normal(x_0).to(self._device())
        told = self.denoiser.encode(condition)
        empty = self.denoiser.encode(condition.without(*self.denoiser.droppable))
        conditions = {ALL: told, NOTHING: empty}
        denoiser = make_denoiser(self.config, {**self.components, self.denoiser.scheduler: self.sampler()}, False)
        model, x_1 = self.model if model is None else model, self.objective.source(condition, x_0)
        return self.sampling().run(denoiser, model, conditions, z, rng.sources, x_1=x_1)

    def sampler(self) -> Any:
        """A scheduler that samples what was learned, on the noise schedule of training."""
        scheduler = self.components[self.denoiser.scheduler]
        own = self.objective.sampling()
        if own.get("sampler") == "lcm":
            return lcm(scheduler, own["original_inference_steps"])
        kind = type(scheduler) if self.denoiser.component == "video_model" else DDIMScheduler
        return kind.from_config(scheduler.config)

    def sample_grid(self, batch: Batch) -> Tensor:
        """Samples; of clips beside the true ones, of motion beside the content frame held still."""
        x_0, condition = self.denoiser.example(batch)
        samples = self.denoiser.pixels(self.draw_samples(batch), condition)  # (B, 3, F, H, W)
        if self.name == "unet":
            return tile([samples])
        if self.name == "video_model":
            return tile([evenly(batch["video"]), evenly(samples)])
        still = decode_video(self.components.get("vae"), condition["content_frame"][:, :, None])
        return tile([still, evenly(self.denoiser.pixels(x_0, condition)), evenly(samples)])

    @torch.no_grad()
    def noisy_batch(self, batch: Batch) -> NoisyBatch:
        """A validation batch as something to put to several networks: fixed timesteps, noise and conditions."""
        x_0, condition = self.denoiser.example(batch)
        process, told = self.denoiser.process, self.denoiser.encode(condition)
        z = process.draw_noise(x_0, Draws.of(self.config.seed + 1, batch["number"]))
        x_1 = self.objective.source(condition, x_0)
        t = self.objective.validation_times(batch["number"]).to(x_0.device)
        x_t = process.marginal(x_0, z, t, x_1)
        return NoisyBatch(
            lambda model: self.denoiser.predict(model, x_t, t, told, x_1),
            process.target(x_0, z, t, x_1),
            frames=self.denoiser.frames_dim(x_0),
        )

    def _own_sampling(self) -> dict[str, Any]:
        own = self.objective.sampling()
        return {name: value for name, value in own.items() if name not in ("sampler", "original_inference_steps")}


def make_denoiser(config: TrainConfig, components: dict[str, Any], learns_text: bool) -> Denoiser:
    """The denoiser of a stage.

    Raises:
        ValueError: a video model and its components, or the clips, do not fit.
    """
    kind = STAGES[config.stage].denoiser
    if kind == "content":
        return ContentDenoiser(components, learns_text, single_frames=config.stage == "image")
    if kind == "motion":
        return MotionDenoiser(components, learns_text)
    model = components["video_model"]
    check_video_model(model, components)
    for place, data in (("data", config.data), ("validation.data", config.validation.data)):
        check_clips(model, components.get("vae"), place, data)
    if learns_text and not isinstance(components.get("text_encoder"), CLIPTextModel):
        raise ValueError("objective.train_text_encoder: only a CLIPTextModel is trained here")
    denoiser = VideoDenoiser(components, learns_text, config.seed + 3, getattr(config.data, "fps", None))
    assert denoiser.process is not None  # an unknown schedule is refused now
    return denoiser
