"""Features of video transformers that transformers knows: VideoMAE (arXiv 2203.12602), V-JEPA 2 (arXiv 2506.09985).

extractor = build("vjepa2", "facebook/vjepa2-vitl-fpc64-256", "cpu")      # or `build_extractor("vjepa2:PATH")`
"""

import torch
from transformers import AutoModel

from cmd_video.evaluation.networks.extractors import RESIZE, Extractor, resized
from cmd_video.evaluation.networks.weights import digest_weights
from cmd_video.models.whole import load_whole

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as both families were trained


def build(kind: str, path: str, device: str) -> Extractor:
    """Mean of the last tokens.

    Raises:
        ValueError: there is no such model.
    """
    model = load_whole(AutoModel, path, "extractor")
    if model.config.model_type != kind:
        raise ValueError(f"extractor: {path} holds a {model.config.model_type}, allowed: {kind}")
    model = model.to(device).eval()
    size = getattr(model.config, "image_size", None) or model.config.crop_size
    frames_wanted = getattr(model.config, "num_frames", None) or model.config.frames_per_clip
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    fixed = kind == "videomae"  # its position table has one length

    def clip_features(frames: torch.Tensor) -> torch.Tensor:
        video = (resized(frames.permute(0, 4, 1, 2, 3).float(), size) / 255 - mean) / std  # (B, 3, F, size, size)
        if fixed and video.shape[2] != frames_wanted:
            numbers = torch.linspace(0, video.shape[2] - 1, frames_wanted).round().long()
            video = video[:, :, numbers]
        out = model(video.transpose(1, 2).to(device))
        return out.last_hidden_state.mean(dim=1)

    return Extractor(kind, "clip", 2, f"{RESIZE}, to {size}", digest_weights(model), clip_features)
