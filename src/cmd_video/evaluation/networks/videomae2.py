"""VideoMAE-v2's ViT-g (arXiv 2303.16727), the features of content-debiased FVD (arXiv 2404.12391).

    model = load_videomae2(Path("vit_g_hybrid_pt_1200e_ssv2_ft.pth"))
    features = model(video)              # (B, 3, 16, 224, 224) in [0, 1] -> (B, 1408)

The network is that of transformers, which has no model of this size; its weights come under their published names.
Content-debiased FVD hands it frames in [0, 1] without the mean and deviation that it was trained with.

B batch, S tokens, D width.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEModel

from cmd_video.evaluation.networks.extractors import EXTRACTORS, RESIZE, Extractor, as_video, resized
from cmd_video.evaluation.networks.weights import digest_weights
from cmd_video.models.published import load_exactly, read_weights

GIANT: dict[str, Any] = {
    "hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 16, "intermediate_size": 6144,
    "patch_size": 14, "image_size": 224, "num_frames": 16, "tubelet_size": 2,
}  # fmt: skip
RENAMED = (
    (r"^patch_embed\.proj\.", "encoder.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.attn\.q_bias$", r"encoder.encoder.layer.\1.attention.attention.query.bias"),
    (r"^blocks\.(\d+)\.attn\.v_bias$", r"encoder.encoder.layer.\1.attention.attention.value.bias"),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.encoder.layer.\1.output.dense."),
)
QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.weight$")


class VideoMAE2(nn.Module):
    """The encoder and the norm of its mean token.

    Args:
        config: of `transformers.VideoMAEConfig`; by default the published ViT-g's.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        settings = VideoMAEConfig(**{**GIANT, **config}, use_mean_pooling=True, layer_norm_eps=1e-6)
        self.encoder = VideoMAEModel(settings)
        self.fc_norm = nn.LayerNorm(settings.hidden_size, eps=1e-6)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Features of clips: (B, 3, F, H, W) in [0, 1] -> (B, D)."""
        tokens = self.encoder(video.transpose(1, 2)).last_hidden_state  # (B, S, D)
        return self.fc_norm(tokens.mean(dim=1))


def load_videomae2(path: Path, **config: Any) -> VideoMAE2:
    """The network with the weights of a published file.

    Raises:
        ValueError: there is no such file, it holds more than weights, or those of another network.
    """
    state = renamed(read_weights(path))
    with torch.device("meta"):  # gigabytes are filled only for weights that fit
        load_exactly(VideoMAE2(**config), state, path)
    return load_exactly(VideoMAE2(**config), state, path)


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names to those of `VideoMAE2`, without the classifier's head."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        found = QKV.match(name)
        if found is not None:
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                weights[f"encoder.encoder.layer.{found[1]}.attention.attention.{part}.weight"] = weight
        elif not name.startswith("head."):
            for pattern, new in RENAMED:
                name = re.sub(pattern, new, name)
            weights[name] = value
    return weights


def build(name: str, path: str, device: str) -> Extractor:
    """The features of content-debiased FVD: 16 frames in [0, 1] at 224 pixels; longer clips evenly thinned out.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"weights: no file {path}; {EXTRACTORS[name].path} is listed in OpenGVLab/VideoMAEv2's MODEL_ZOO"
        )
    model = load_videomae2(Path(path)).to(device)

    def run(frames: torch.Tensor) -> torch.Tensor:
        numbers = torch.linspace(0, frames.shape[1] - 1, 16).round().long()
        return model(resized(as_video(frames[:, numbers], False).to(device) / 255, 224))

    return Extractor(name, "clip", 16, f"{RESIZE}, to 224", digest_weights(model), run)
