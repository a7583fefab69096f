"""Small classifiers of sprites, for features that know what matters in them: how clips move, what frames show.

    classifier = SpriteClassifier("action")
    logits, features = classifier(video)             # (B, 3, F, H, W) in [-1, 1] -> (B, 16), (B, 96)

What Inception and I3D are to photographs and films, trained on sprites: distances in their features stay meaningful
where networks trained on photographs see something foreign.
"""

from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class SpriteClassifier(ModelMixin, ConfigMixin):
    """Four strided convolutions, one value of each channel for all positions, a linear layer.

    That value is the mean for actions and, since objects are small in a frame, the maximum for appearance.

    Args:
        kind: "action" looks at whole clips, by convolutions over time and space; "appearance" at frames one by one.
        num_classes: of `cmd_video.sprites.scenes`: 16 motions, or 8 shapes and 10 colors, several of which may be
            there.
        widths: channels after each convolution; the last is the number of features.
    """

    @register_to_config
    def __init__(
        self,
        kind: Literal["action", "appearance"] = "action",
        num_classes: int = 16,
        widths: tuple[int, ...] = (16, 32, 64, 96),
    ) -> None:
        super().__init__()
        if kind not in ("action", "appearance"):
            raise ValueError(f"kind: {kind!r} is neither 'action' nor 'appearance'")
        if any(width % 8 for width in widths):
            raise ValueError(f"widths: {list(widths)} are not all divisible by 8")
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
            if kind == "action":
                stride: tuple[int, int, int] = (1 if number == 0 else 2, 2, 2)
                layers.append(nn.Conv3d(before, after, 3, stride, padding=1))
            else:
                layers.append(nn.Conv2d(before, after, 3, 2, padding=1))
            layers += [nn.GroupNorm(8, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(widths[-1], num_classes)

    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Look at clips.

        Args:
            video: (B, 3, F, H, W) in [-1, 1].

        Returns:
            logits (N, num_classes) and features (N, widths[-1]); N is B for actions and B * F for appearance.
        """
        if self.config.kind == "appearance":
            video = video.transpose(1, 2).flatten(0, 1)  # (B * F, 3, H, W)
        maps = self.layers(video).flatten(2)  # (N, widths[-1], positions)
        features = maps.amax(dim=2) if self.config.kind == "appearance" else maps.mean(dim=2)  # (N, widths[-1])
        return self.classify(features), features
