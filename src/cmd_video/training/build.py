"""From a configuration to its stage.

stage = build_stage(config, build_components(config.components));  loss = stage(batch)
"""

from typing import Any

from diffusers import AutoencoderKLTemporalDecoder
from transformers import CLIPTextModel

from cmd_video.pipelines.sampling import distilled_steps
from cmd_video.pipelines.video_space import VideoAutoencoder
from cmd_video.pruning.pruned_models import PrunedMixin

from .classifier import ClassifierStage
from .config import TrainConfig
from .decoder import DecoderStage
from .distillation import ContentDistillation, MotionDistillation
from .distribution_matching import ContentMatching, MotionMatching
from .recovery import ContentRecovery, MotionRecovery, VideoRecovery
from .stages import AutoencoderStage, ContentStage, MotionStage, Stage
from .video import VideoStage

STAGES: dict[str, Any] = {
    "autoencoder": AutoencoderStage,
    "image": ContentStage,
    "content": ContentStage,
    "motion": MotionStage,
    "video": VideoStage,
    "classifier": ClassifierStage,
    "decoder": DecoderStage,
}
DISTILLATIONS: dict[str, Any] = {"content": ContentDistillation, "motion": MotionDistillation}
MATCHINGS: dict[str, Any] = {"content": ContentMatching, "motion": MotionMatching}
RECOVERIES: dict[str, Any] = {
    "unet": ContentRecovery,
    "motion_transformer": MotionRecovery,
    "video_model": VideoRecovery,
}


def build_stage(config: TrainConfig, components: dict[str, Any]) -> Stage:
    """The stage that `config.stage` names, over components built before.

    Raises:
        ValueError: a component does not fit the stage.
    """
    for name, component in components.items():
        if name.endswith("scheduler") and distilled_steps(component) is not None:
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
    if config.stage == "distill":
        return next(kind for name, kind in RECOVERIES.items() if name in components)(config, components)
    if config.objective.distillation is not None:
        matching = config.objective.distillation.method == "distribution_matching"
        return (MATCHINGS if matching else DISTILLATIONS)[config.stage](config, components)
    return STAGES[config.stage](config, components)
