"""What differs between the stages: which weights are trained, the loss of a batch, validation, a picture.

    stage = MotionStage(config, components);  loss = stage(batch)         # or by `build_stage`

Every random draw is a function of (seed, number of the sample), so that neither resuming nor the number of processes
changes it. B batch, C channels, F frames, H, W, D motion channels.

Over 400 lines: the stages of the paper are read beside each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from cmd_video.losses import diffusion_loss, diffusion_target, noise_levels, psnr, reconstruction_loss
from cmd_video.models import CMDAutoencoder, CMDMotionTransformer
from cmd_video.pipelines.image_space import decode_video, encode_images, encode_video
from cmd_video.pipelines.prompt import encode_prompts
from cmd_video.pruning.importance import NoisyBatch

from .coarse_warp import coarse_warp_loss
from .config import TrainConfig
from .draws import draw_level, draw_noise, draw_timestep, generators
from .grids import evenly, tile
from .labels import class_labels, config_of, null_label
from .samples import draw_samples

Batch = dict[str, Any]  # video (B, 3, F, H, W) or content_frame and motion_latents; prompt, class_label, number
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
VALIDATION_TIMESTEPS = (20, 100, 250, 400, 550, 700, 850, 980)


class Stage(nn.Module):
    """Base of the stages. Registered submodules are trained; everything in `frozen` is used as it is.

    Args:
        config: the run.
        components: all components by name.
        trained: names of the components to train.

    Attributes:
        terms: what the last loss of this process consisted of, for the log; empty where it is one thing.
    """

    def __init__(self, config: TrainConfig, components: dict[str, Any], trained: tuple[str, ...]) -> None:
        super().__init__()
        self.terms: dict[str, float] = {}
        self.config, self.components = config, components
        self.trained = trained
        for name in trained:
            self.add_module(name, components[name])
        self.frozen = {
            name: component.eval().requires_grad_(False)
            for name, component in components.items()
            if isinstance(component, nn.Module) and name not in trained
        }

    def place(self, device: torch.device) -> None:
        """Move the frozen components (the trained ones are moved by accelerate)."""
        for component in self.frozen.values():
            component.to(device)

    def compile_trained(self) -> None:
        """Run the networks that learn through `torch.compile`; names of weights stay."""
        for name in self.trained:
            getattr(self, name).compile()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch; random draws follow `batch["number"]`."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Metrics of one validation batch; "loss" decides which checkpoint is best."""
        raise TypeError(f"{type(self).__name__} has no validation")

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        """A picture (3, height, width) in [-1, 1] of what the weights do."""
        raise TypeError(f"{type(self).__name__} has no picture")

    def finish(self, batches: list[Batch]) -> None:
        """Last measurements before the components are saved."""

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; with LoRA only the adapters do."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns, for the optimizer; each group's `lr_scale` multiplies the learning rate."""
        return [{"params": list(self.learning().values()), "lr_scale": 1.0}]

    def save_extras(self, folder: Path) -> None:
        """Files beside the components, after `finish`."""

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _clip_latents(self, batch: Batch) -> torch.Tensor:
        """Clips in the space of the autoencoder: (B, C, F, H, W)."""
        return encode_video(self.components.get("vae"), batch["video"])

    def _decode(self, content_frame: torch.Tensor, motion_latents: torch.Tensor) -> torch.Tensor:
        clip = self.components["autoencoder"].decode(content_frame, motion_latents).sample
        return decode_video(self.components.get("vae"), clip)


class AutoencoderStage(Stage):
    """Trains the autoencoder to reconstruct clips (CMD, section 3.1)."""

    autoencoder: CMDAutoencoder

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        super().__init__(config, components, trained=("autoencoder",))
        if config.objective.coarse_warp_weight and self.autoencoder.config.base not in ("warp", "layers"):
            raise ValueError(f"objective.coarse_warp_weight: base {self.autoencoder.config.base!r} moves nothing")

    def forward(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        level = self.config.objective.motion_latents_noise
        if level:
            draws = generators(self.config.seed, batch["number"])
            motion_latents = motion_latents + level * draw_noise(motion_latents, draws)
        reconstruction, flow = self.autoencoder.decode_with_flow(content_frame, motion_latents)
        loss = reconstruction_loss(reconstruction, clip, self.config.objective.reconstruction)
        if flow is not None and self.config.objective.coarse_warp_weight:
            coarse = coarse_warp_loss(content_frame, clip, flow, self.autoencoder.config.fold)
            loss = loss + self.config.objective.coarse_warp_weight * coarse
        if self.config.objective.anchor_weight:
            middle = clip[:, :, clip.shape[2] // 2]
            loss = loss + self.config.objective.anchor_weight * reconstruction_loss(content_frame, middle, "l2")
        return loss

    def compile_trained(self) -> None:
        for part in self.autoencoder.children():  # its methods call them one by one
            part.compile()

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        reconstruction = self._decode(content_frame, motion_latents)
        still = decode_video(self.components.get("vae"), content_frame[:, :, None]).expand_as(batch["video"])
        return {
            "loss": (reconstruction - batch["video"]).square().mean(),
            "psnr": psnr(reconstruction, batch["video"]),
            "psnr_content_frame": psnr(still, batch["video"]),
        }

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        clip = self._clip_latents(batch)
        content_frame, motion_latents = self.autoencoder.encode(clip, return_dict=False)
        reconstruction = self._decode(content_frame, motion_latents)
        still = decode_video(self.components.get("vae"), content_frame[:, :, None])
        return tile([still, evenly(batch["video"]), evenly(reconstruction)])

    @torch.no_grad()
    def noisy_batch(self, batch: Batch) -> NoisyBatch:
        """A validation batch as something to put to several autoencoders, with nothing noisy about it."""
        clip = self._clip_latents(batch)

        def call(model: Any) -> torch.Tensor:
            decoded = model.decode(*model.encode(clip, return_dict=False)).sample
            return decode_video(self.components.get("vae"), decoded)

        return NoisyBatch(call, batch["video"], frames=2)

    def finish(self, batches: list[Batch]) -> None:
        """Measure the motion latents' mean and standard deviation, so that the motion model sees unit variance."""
        device = self._device()
        latents = torch.cat(
            [self.autoencoder.encode(self._clip_latents(to_device(batch, device))).motion_latents for batch in batches]
        )
        channels = latents.transpose(0, 1).flatten(1).double()  # (D, everything)
        self.autoencoder.register_to_config(
            latents_mean=channels.mean(dim=1).tolist(), latents_std=channels.std(dim=1).clamp(min=1e-6).tolist()
        )


class DiffusionStage(Stage):
    """What the content and the motion stage share: noise, timesteps, conditions and their dropout."""

    denoiser: str
    scheduler: str
    text_encoder_name = "text_encoder"
    guidance_built_in = False

    def sample(self, batch: Batch) -> torch.Tensor:
        """The clean sample x_0 that is diffused."""
        raise TypeError(f"{type(self).__name__} has no sample")

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        """The denoiser's output at noise levels (B,), see `cmd_video.losses`."""
        raise TypeError(f"{type(self).__name__} has no denoiser")

    def denoise(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        """The denoiser's output at the sampler's timesteps (B,), which for DDPM's schedule are the levels."""
        return self.predict(noisy, timestep, condition)

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        """A clean sample as clips (B, 3, F, H, W) in about [-1, 1]; F = 1 for pictures."""
        raise TypeError(f"{type(self).__name__} has no pixels")

    def forward(self, batch: Batch) -> torch.Tensor:
        draws = generators(self.config.seed, batch["number"])
        timestep = torch.cat([self._draw_level(draw) for draw in draws])
        dropped = [torch.rand((), generator=draw).item() < self.config.objective.condition_dropout for draw in draws]
        return self._loss(batch, draws, timestep, self._drop(batch, dropped)).mean()

    def _draw_level(self, draw: torch.Generator) -> torch.Tensor:
        scheduler, objective = self.components[self.scheduler], self.config.objective
        if objective.log_sigma_normal is not None:
            return draw_level(noise_levels(scheduler), *objective.log_sigma_normal, draw)
        return draw_timestep(scheduler.config.num_train_timesteps, draw, objective.logit_normal)

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self._loss(batch, *self._validation_draws(batch), batch).mean()}

    def _validation_draws(self, batch: Batch) -> tuple[list[torch.Generator], torch.Tensor]:
        """Generators and timesteps that depend on nothing but the samples' numbers."""
        draws = generators(self.config.seed + 1, batch["number"])
        steps = self.components[self.scheduler].config.num_train_timesteps
        chosen = [VALIDATION_TIMESTEPS[int(n) % len(VALIDATION_TIMESTEPS)] for n in batch["number"]]
        return draws, torch.tensor(chosen) * steps // 1000

    def _noised(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean sample x_0, noise, and x_0 noised up to the timestep; all of one shape."""
        with torch.no_grad():
            sample = self.sample(batch)
        noise = draw_noise(sample, draws)
        levels = noise_levels(self.components[self.scheduler])
        return sample, noise, levels.add_noise(sample, noise, timestep.to(sample.device))

    def _loss(
        self, batch: Batch, draws: list[torch.Generator], timestep: torch.Tensor, condition: Batch
    ) -> torch.Tensor:
        sample, noise, noisy = self._noised(batch, draws, timestep)
        timestep = timestep.to(sample.device)
        prediction = self.predict(noisy, timestep, self._disturb({**batch, **condition}, draws))
        return self._task_loss(prediction, sample, noise, timestep)

    def _task_loss(
        self, prediction: torch.Tensor, sample: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Denoising loss of each sample (B,), weighted as the objective says."""
        scheduler = self.components[self.scheduler]
        target = diffusion_target(scheduler, sample, noise, timestep)
        gamma, power = self.config.objective.min_snr_gamma, self.config.objective.snr_power
        return diffusion_loss(scheduler, prediction, target, timestep, gamma, power)

    @contextmanager
    def using(self, model: Any) -> Iterator[None]:
        """Another denoiser in place of the stage's own."""
        own, self.components[self.denoiser] = self.components[self.denoiser], model
        try:
            yield
        finally:
            self.components[self.denoiser] = own

    @torch.no_grad()
    def noisy_batch(self, batch: Batch) -> NoisyBatch:
        """A validation batch as something to put to several denoisers: fixed timesteps, noise and conditions."""
        draws, timestep = self._validation_draws(batch)
        sample, noise, noisy = self._noised(batch, draws, timestep)
        timestep = timestep.to(sample.device)
        target = diffusion_target(self.components[self.scheduler], sample, noise, timestep)

        def call(model: Any) -> torch.Tensor:
            with self.using(model):
                return self.predict(noisy, timestep, batch)

        return NoisyBatch(
            call, target, frames=2 if sample.ndim == 5 or self.denoiser == "motion_transformer" else None
        )

    def _disturb(self, condition: Batch, draws: list[torch.Generator]) -> Batch:
        """Noise on conditions, in training."""
        return condition

    def _drop(self, batch: Batch, dropped: list[bool]) -> Batch:
        """Replace the dropped conditions by the empty prompt and the label that stands for none."""
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped, batch["prompt"], strict=True)]
        labels = batch["class_label"].clone()
        labels[torch.tensor(dropped, device=labels.device)] = self._null_label()
        return {"prompt": prompts, "class_label": labels}

    def sampler(self) -> Any:
        """A sampler for validation."""
        return DDIMScheduler.from_config(self.components[self.scheduler].config)

    def _null_label(self) -> int:
        return null_label(self.components[self.denoiser])

    def _text(self, prompts: list[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.text_encoder_name not in self.components:
            return None, None
        tokenizer = self.components[self.text_encoder_name.replace("text_encoder", "tokenizer")]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_encoder_name in self.trained):
            features = encode_prompts(tokenizer, self.components[self.text_encoder_name], prompts)
        return features.hidden_states, features.pooled


class ContentStage(DiffusionStage):
    """Trains the image model on single frames ("image") or on content frames ("content"); CMD, equation 7."""

    denoiser, scheduler = "unet", "content_scheduler"
    unet: UNet2DConditionModel | DiTTransformer2DModel

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        text = config.objective.train_text_encoder
        super().__init__(config, components, trained=("unet", "text_encoder") if text else ("unet",))
        self.adapters: dict[str, torch.Tensor] | None = None
        if config.objective.lora_rank:
            if not isinstance(self.unet, UNet2DConditionModel):
                raise ValueError(f"objective.lora_rank: {type(self.unet).__name__} is no UNet2DConditionModel")
            from peft import LoraConfig

            self.unet.requires_grad_(False)
            rank = config.objective.lora_rank
            torch.manual_seed(config.seed)  # of the adapters' first weights
            self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))

    def finish(self, batches: list[Batch]) -> None:
        """Merge the adapters of a LoRA run into the UNet."""
        if self.config.objective.lora_rank:
            from peft import get_peft_model_state_dict

            self.adapters = get_peft_model_state_dict(self.unet)
            self.unet.fuse_lora()
            self.unet.unload_lora()

    def save_extras(self, folder: Path) -> None:
        """The adapters of a LoRA run, as diffusers' `load_lora_weights` reads them."""
        if self.adapters is not None:
            StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=self.adapters)

    def sample(self, batch: Batch) -> torch.Tensor:
        if "content_frame" in batch:
            return batch["content_frame"]  # (B, C, H, W)
        if self.config.stage == "image":
            return encode_images(self.components.get("vae"), batch["video"][:, :, 0])
        return self.components["autoencoder"].encode(self._clip_latents(batch)).content_frame

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        model = self.components["unet"]
        labels = class_labels(model, condition["class_label"])
        if labels is not None:  # a class-conditional DiT
            return model(noisy, timestep, class_labels=labels).sample
        hidden_states, _ = self._text(condition["prompt"])
        return model(noisy, timestep, hidden_states).sample

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        return decode_video(self.components.get("vae"), sample[:, :, None])

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        return tile([self.pixels(batch, draw_samples(self, batch))])


class MotionStage(DiffusionStage):
    """Trains the motion transformer on motion latents of true clips, given true content frames; CMD, equation 8."""

    denoiser, scheduler = "motion_transformer", "motion_scheduler"
    motion_transformer: CMDMotionTransformer

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        if "motion_text_encoder" in components:
            self.text_encoder_name = "motion_text_encoder"
        text = ("motion_text_encoder",) if config.objective.train_text_encoder else ()
        super().__init__(config, components, trained=("motion_transformer", *text))

    def sample(self, batch: Batch) -> torch.Tensor:
        if "motion_latents" not in batch:
            autoencoder: CMDAutoencoder = self.components["autoencoder"]
            content_frame, motion_latents = autoencoder.encode(self._clip_latents(batch), return_dict=False)
            batch["content_frame"] = content_frame
            batch["motion_latents"] = autoencoder.normalize_latents(motion_latents)
        return batch["motion_latents"]  # (B, D, F, H' + W')

    def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: Batch) -> torch.Tensor:
        content_frame = condition["content_frame"]
        model = self.components["motion_transformer"]
        labels = class_labels(model, condition["class_label"])
        pooled = self._text(condition["prompt"])[1] if config_of(model).text_dim else None
        return model(noisy, timestep, content_frame, pooled_text=pooled, class_labels=labels).sample

    def _disturb(self, condition: Batch, draws: list[torch.Generator]) -> Batch:
        content_frame, level = condition["content_frame"], self.config.objective.content_frame_noise
        if level and self.training:
            content_frame = content_frame + level * draw_noise(content_frame, draws)
        return {**condition, "content_frame": content_frame}

    def pixels(self, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        return self._decode(batch["content_frame"], self.components["autoencoder"].denormalize_latents(sample))

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        true, generated = (self.pixels(batch, sample) for sample in (self.sample(batch), draw_samples(self, batch)))
        still = decode_video(self.components.get("vae"), batch["content_frame"][:, :, None])
        return tile([still, evenly(true), evenly(generated)])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors; the numbers stay."""
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) and key != "number" else value
        for key, value in batch.items()
    }
