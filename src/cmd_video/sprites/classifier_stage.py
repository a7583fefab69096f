"""The stage "classifier": small networks that tell clips' classes, or sprites' shapes and colors, for evaluation.

stage = ClassifierStage(config, components);  loss = stage(batch)  # batch: video, class_label, appearance
"""

from typing import Any

import torch
import torch.nn.functional as F

from cmd_video.denoisers.labels import check_labels
from cmd_video.training.config import TrainConfig
from cmd_video.training.grids import evenly, tile
from cmd_video.training.stage import Batch, Stage

from .classifier import SpriteClassifier


class ClassifierStage(Stage):
    """Cross-entropy: over the classes of a clip (of sprites: motions), or for each shape and color whether a frame
    shows it.
    """

    classifier: SpriteClassifier

    def __init__(self, config: TrainConfig, components: dict[str, Any]) -> None:
        super().__init__(config, components, trained=("classifier",))
        self.by_frame = self.classifier.config.kind == "appearance"
        for name, data in (("data", config.data), ("validation.data", config.validation.data)):
            if self.by_frame and data.kind != "sprites":
                raise ValueError(f"{name}.kind: {data.kind!r}, appearance is learned from sprites, that say theirs")

    @property
    def num_classes(self) -> int:
        return 0 if self.by_frame else int(self.classifier.config.num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        logits, _ = self.classifier(batch["video"])
        return self._losses(logits, self._target(batch)).mean()

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss, and how often a clip's class, or all shapes and colors of a frame, are right."""
        logits, _ = self.classifier(batch["video"])
        target = self._target(batch)
        right = ((logits > 0) == (target > 0.5)).all(dim=1) if self.by_frame else logits.argmax(dim=1) == target
        return {"loss": self._losses(logits, target).mean(), "accuracy": right.float().mean()}

    def sample_grid(self, batch: Batch) -> torch.Tensor:
        """The clips, the hardest first."""
        logits, _ = self.classifier(batch["video"])
        losses = self._losses(logits, self._target(batch)).view(len(batch["video"]), -1).mean(dim=1)
        return tile([evenly(batch["video"][losses.argsort(descending=True)])])

    def _target(self, batch: Batch) -> torch.Tensor:
        """Classes (B,), or shapes and colors of every frame (B * F, 18).

        Raises:
            ValueError: a clip has no class, or one that the classifier does not know.
        """
        if not self.by_frame:
            check_labels(batch["class_label"], self.classifier.config.num_classes)
            return batch["class_label"]
        return batch["appearance"].repeat_interleave(batch["video"].shape[2], dim=0)

    def _losses(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Per clip or frame (N,)."""
        if self.by_frame:
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
        return F.cross_entropy(logits, target, reduction="none")
