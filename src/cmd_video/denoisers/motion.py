"""The motion model: a DiT over motion latents, told the content frame, text or class (CMD, equation 8).

denoiser = MotionDenoiser(components)
motion_latents, condition = denoiser.example(batch)        # condition has the row "content_frame"
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.guidance import Ask
from cmd_video.diffusion.plan import Step

from .denoiser import Batch, Denoiser, timesteps
from .labels import class_labels, config_of, null_label, with_null
from .latent_space import decode_video, encode_video
from .prompts import encode_prompt_rows
from .references import ROW, ends_of_clips, with_references


class MotionDenoiser(Denoiser):
    """Needs `motion_transformer`, `motion_scheduler` and `autoencoder`; with prompts `motion_text_encoder` and
    `motion_tokenizer`, or the content model's; `vae` unless in pixels.
    """

    component, scheduler = "motion_transformer", "motion_scheduler"
    remembers = True

    def __init__(self, components: Mapping[str, Any], learns_text: bool = False) -> None:
        super().__init__(components, learns_text)
        own = components.get("motion_text_encoder") is not None
        self.text_encoder = "motion_text_encoder" if own else "text_encoder"

    def example(self, batch: Batch) -> tuple[Tensor, Condition]:
        rows = {"prompt": batch["prompt"], "class": batch["class_label"]}
        if "motion_latents" in batch:
            content_frame, motion_latents = batch["content_frame"], batch["motion_latents"]
        else:
            autoencoder = self.components["autoencoder"]
            clip = encode_video(self.components.get("vae"), batch["video"])  # (B, C, F, h, w)
            content_frame, motion_latents = autoencoder.encode(clip, return_dict=False)
            motion_latents = autoencoder.normalize_latents(motion_latents)  # (B, D, F, H' + W')
        rows["content_frame"] = content_frame
        if references := config_of(self.components[self.component]).num_references:
            rows[ROW] = ends_of_clips(batch, self.components.get("vae"), references)
        return motion_latents, Condition(rows)

    def encode(self, condition: Condition) -> Condition:
        """`content_frame` (B, C, h, w), given frames, and as the model knows them `pooled` (B, D), `labels` (B,)."""
        model = self.components[self.component]
        told: dict[str, Any] = condition.only(["content_frame", ROW]).rows
        null = null_label(model)
        if null:
            told["labels"] = class_labels(model, with_null(condition["class"], condition.is_absent("class"), null))
        if config_of(model).text_dim:
            told["pooled"] = encode_prompt_rows(self.components, self.text_encoder, condition, self.learns_text).pooled
        return Condition(told)

    def told(self, model: Any) -> tuple[str, ...]:
        config = config_of(model)
        known = (("labels", null_label(model)), ("pooled", config.text_dim), (ROW, config.num_references))
        return ("content_frame", *(name for name, takes in known if takes))

    def call(self, model: Any, x: Tensor, timestep: Tensor, told: Condition) -> Tensor:
        if timestep.ndim == 2:  # (N, F), the same within a patch of frames
            timestep = timestep[:, :: config_of(model).patch_size]  # (N, F / patch_size)
        pooled, labels = (told.get(name) for name in ("pooled", "labels"))
        return model(x, timestep, frames_of(model, told), pooled, labels).sample  # (N, D, F, H' + W')

    def ask(self, model: Any, told: Condition) -> Ask:
        pooled, labels = (told.get(name) for name in ("pooled", "labels"))
        fixed: list[Tensor] = []  # of the content frame, the same at each step

        def ask(x: Tensor, step: Step) -> Tensor:
            if not fixed:
                frames = frames_of(model, told)
                model.check_inputs(x, frames, pooled, labels)
                fixed.append(self.compiled(fixed_tokens)(model, x, frames).clone())
            return self.compiled(motion_step)(model, x, timesteps(x, step), fixed[0], pooled, labels)

        return ask

    def pixels(self, x_0: Tensor, condition: Condition) -> Tensor:
        autoencoder = self.components["autoencoder"]
        clip = autoencoder.decode(condition["content_frame"], autoencoder.denormalize_latents(x_0)).sample
        return decode_video(self.components.get("vae"), clip)  # (B, 3, F, H, W)


def frames_of(model: Any, told: Condition) -> Tensor:
    """The content frame, with the given frames of a model that takes such: (N, C + R (C + 1), h, w)."""
    return with_references(told["content_frame"], told.get(ROW), config_of(model).num_references)


def fixed_tokens(model: Any, x: Tensor, content_frame: Tensor) -> Tensor:
    """What a motion transformer computes alike at every step of a clip: (N, S_z + S_c, dim)."""
    ready(model)
    return model.embed_content_frame(x, content_frame)


def motion_step(
    model: Any, x: Tensor, timestep: Tensor, fixed: Tensor, pooled: Tensor | None, labels: Tensor | None
) -> Tensor:
    """A motion transformer's forward pass behind its `embed_content_frame`: (N, D, F, H' + W')."""
    ready(model)
    condition = model.embed_condition(timestep, pooled, labels)  # (N, dim)
    tokens = model.run(model.blocks, model.embed_latents(x, fixed), condition)  # (N, S_z + S_c, dim)
    return model.project(tokens, condition, x)


def ready(model: torch.nn.Module) -> None:
    """Under model offload a network's weights come to the device when its `forward` is called, or here."""
    hook = getattr(model, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model)


def motion_shape(autoencoder: Any, content_frame: Tensor, num_frames: int) -> tuple[int, int, int, int]:
    """Of motion latents for content frames (B, C, h, w): (B, D, F, H' + W')."""
    places = sum(side // autoencoder.config.patch_size for side in content_frame.shape[-2:])
    return len(content_frame), autoencoder.config.latent_channels, num_frames, places
