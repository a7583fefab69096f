"""Features in which sprites are compared: what the classifiers that ship with the package see, at 64 pixels.

extractor = build("sprites-action", None, "cpu")                 # or `build_extractor("sprites-action")`
"""

import torch

from cmd_video.evaluation.networks.extractors import RESIZE, Extractor, as_video, resized
from cmd_video.evaluation.networks.weights import digest_weights
from cmd_video.models.whole import load_whole
from cmd_video.pipelines.shipped import sprites_folder

from .classifier import SpriteClassifier


def build(name: str, weights: None, device: str) -> Extractor:
    """Of "sprites-action" per clip, with its classes; of "sprites-appearance" per frame, where several shapes and
    colors are there at once, so that there are no classes.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    folder = sprites_folder() / "classifiers" / name.removeprefix("sprites-")
    model = load_whole(SpriteClassifier, folder, "extractor").to(device).eval()

    def features(frames: torch.Tensor) -> torch.Tensor:
        return model(resized(as_video(frames).to(device), 64))[1]

    def classify(features: torch.Tensor) -> torch.Tensor:
        return model.classify(features.to(device)).detach().cpu()

    resize, digest = f"{RESIZE}, to 64", digest_weights(model)
    if name == "sprites-action":
        return Extractor(name, "clip", 2, resize, digest, features, classify)
    return Extractor(name, "frame", 1, resize, digest, features)
