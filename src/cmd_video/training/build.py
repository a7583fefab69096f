"""From a configuration to its stage.

stage = build_stage(config, build_components(config.components));  loss = stage(batch)
"""

from typing import Any

from diffusers import AutoencoderKLTemporalDecoder
from transformers import CLIPTextModel

from cmd_video.denoisers.video_space import VideoAutoencoder
from cmd_video.pipelines.older import starts_of
from cmd_video.pruning.pruned_models import PrunedMixin
from cmd_video.section import named

from .config import STAGES, TrainConfig
from .fit import check_fit
from .stage import Stage


def build_stage(config: TrainConfig, components: dict[str, Any]) -> Stage:
    """The stage that `config.stage` names, over components built before.

    Raises:
        ValueError: a component does not fit the stage.
    """
    for name, component in components.items():
        if name.endswith("scheduler") and starts_of(component) is not None:
            raise ValueError(f"components.{name}: it samples a distilled model; give the one of that model's teacher")
    vae = components.get("vae")
    name, with_video = type(vae).__name__, "video_model" in components
    if isinstance(vae, VideoAutoencoder) and not with_video:
        raise ValueError(f"components.vae: a {name} is for a video_model")
    if isinstance(vae, AutoencoderKLTemporalDecoder) and config.stage != "decoder" and not with_video:
        raise ValueError(f"components.vae: a {name} is for the stage 'decoder' or for a video_model")
    if isinstance(vae, PrunedMixin) and config.stage != "decoder":
        raise ValueError(f"components.vae: a {name} is for the stage 'decoder'; give its teacher")
    encoder = components.get("text_encoder")
    if "video_model" not in components and encoder is not None and not isinstance(encoder, CLIPTextModel):
        raise ValueError(f"components.text_encoder: a {type(encoder).__name__} belongs to a video_model")
    check_fit(config, components)
    return named(STAGES[config.stage].place)(config, components)
