"""cmd-video: text, class or image to video with a content frame and motion latents (CMD, arXiv 2403.14148).

    from cmd_video import CMDPipeline
    video = CMDPipeline.from_pretrained()("a red ball moves to the right").frames[0]

The names below are imported on first use, so that `import cmd_video` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmark.measure import cost
    from .evaluation.evaluate import evaluate
    from .models import (
        MOTION_TRANSFORMER_SIZES,
        AutoencoderPixelUnshuffle,
        CMDAutoencoder,
        CMDAutoencoderOutput,
        CMDMotionTransformer,
        CMDWarpAutoencoder,
    )
    from .pipelines import CMDPipeline, CMDPipelineOutput
    from .studies.importance import importance

__version__ = "0.1.0"
__all__ = [
    "MOTION_TRANSFORMER_SIZES",
    "AutoencoderPixelUnshuffle",
    "CMDAutoencoder",
    "CMDAutoencoderOutput",
    "CMDMotionTransformer",
    "CMDPipeline",
    "CMDPipelineOutput",
    "CMDWarpAutoencoder",
    "cost",
    "evaluate",
    "importance",
]
_PLACES = {
    "cost": ".benchmark.measure",
    "evaluate": ".evaluation.evaluate",
    "importance": ".studies.importance",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cmd_video' has no attribute {name!r}")
    place = _PLACES.get(name, ".pipelines" if "Pipeline" in name else ".models")
    return getattr(import_module(place, __name__), name)
