"""The procedural set of `cmd_video.sprites.scenes` as the `data` of a training run.

data: {kind: sprites, height: 64, width: 64, seed: 1}
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cmd_video.section import Section

from .words import MOTIONS


class SpritesData(Section):
    """Scenes that are drawn as they are asked for."""

    kind: Literal["sprites"] = "sprites"
    length: int = Field(1_000_000, gt=0, le=10**9)
    """Number of scenes; training draws them again in the same order after that."""
    height: int = Field(64, gt=0, le=2**14)
    """H in pixels."""
    width: int = Field(64, gt=0, le=2**14)
    """W in pixels."""
    num_frames: int = Field(16, gt=0, le=10**9)
    """Frames of a clip; 1 gives single frames, for the image stage."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Which world of scenes."""
    split: Literal["train", "held_out"] = "train"
    """held_out: combinations that training never sees."""
    start: int = Field(0, ge=0, le=10**9)
    """Number of the first scene."""
    pairs: float = Field(0.25, ge=0, le=1)
    """Share of scenes with two objects."""
    motion_weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """How often a motion comes, relative to 1 for those not named: {orbit: 7, rotate: 7}; null = all alike."""
    render: Literal["loader", "device"] = "loader"
    """Where training draws its scenes: one by one as they are loaded, or in batches on the device that trains, where a
    GPU draws thousands of clips a second. Validation clips are drawn once, as they are loaded."""

    @field_validator("motion_weights")
    @classmethod
    def _known_motions(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        unknown = sorted(set(value or {}) - set(MOTIONS))
        if unknown:
            raise ValueError(f"unknown motion {unknown[0]!r}; known: {', '.join(MOTIONS)}")
        return value

    def open(self, on_device: bool = False) -> Any:
        """The dataset; on a device that draws, if the caller will have it."""
        from .renderer import SceneDataset
        from .scenes import SpritesDataset

        kind = SceneDataset if on_device and self.render == "device" else SpritesDataset
        return kind(**self.model_dump(exclude={"kind", "render"}))
