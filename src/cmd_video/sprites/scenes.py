"""Sprites: a procedural, captioned video set with complete ground truth, for training and measuring small video
models.

Each clip shows one or two anti-aliased shapes on a plain or textured background. Scene `index` is a pure function of
(seed, split, index); a tenth of all (shape, color, motion) combinations is held out and never appears in training.

    scene = sample_scene(index=7, seed=0, split="train");  video = render(scene, num_frames=16, height=64, width=64)

Coordinates are fractions of the frame, x to the right and y downwards; F frames, H, W as everywhere.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .outlines import signed_distance
from .words import (
    BACKGROUND_WORDS,
    COLORS,
    DIRECTIONS,
    MOTION_WORDS,
    MOTIONS,
    ROTATION_INVARIANT,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
)

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class SpriteObject:
    """One object: names of its attributes, its anchor (the path's middle) and its angle in radians."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    angle: float


@dataclass(frozen=True)
class SpriteScene:
    """Ground truth of a clip: everything `render` needs, and the prompt that describes it."""

    objects: tuple[SpriteObject, ...]
    motion: str
    extent: float  # length of the path, height of the bounce or radius of the orbit, as a fraction of the frame
    phase: float  # start angle of an orbit
    background: str
    background_colors: tuple[tuple[float, float, float], tuple[float, float, float]]  # two RGB tones in [0, 1]
    background_angle: float
    background_period: float
    prompt: str

    def combinations(self) -> list[tuple[str, str, str]]:
        """The (shape, color, motion) of each object."""
        return [(item.shape, item.color, self.motion) for item in self.objects]


def is_held_out(shape: str, color: str, motion: str) -> bool:
    """Whether a combination belongs to the tenth that training never sees (fixed, independent of any seed)."""
    return hashlib.sha256(f"{shape}/{color}/{motion}".encode()).digest()[0] < 26


def all_combinations(split: Split) -> list[tuple[str, str, str]]:
    """Every possible (shape, color, motion) of a split, in a fixed order."""
    return [
        (shape, color, motion)
        for motion in MOTIONS
        for shape in SHAPES
        for color in COLORS
        if not (motion == "rotate" and shape in ROTATION_INVARIANT)
        and is_held_out(shape, color, motion) == (split == "held_out")
    ]


_COMBINATIONS = {split: all_combinations(split) for split in ("train", "held_out")}
_BY_MOTION = {
    split: {m: [(s, c) for s, c, motion in combos if motion == m] for m in MOTIONS}
    for split, combos in _COMBINATIONS.items()
}


def sample_scene(
    index: int,
    seed: int = 0,
    split: Split = "train",
    pairs: float = 0.25,
    motion_weights: Mapping[str, float] | None = None,
) -> SpriteScene:
    """Scene number `index`, the same on every machine: a share `pairs` of scenes with two objects, motions uniform
    or as often as `motion_weights` says (a motion that it does not name has weight 1).
    """
    rng = np.random.default_rng([index, seed, 0 if split == "train" else 1])
    if motion_weights:
        weights = np.array([motion_weights.get(name, 1.0) for name in MOTIONS])
        motion = MOTIONS[rng.choice(len(MOTIONS), p=weights / weights.sum())]
    else:
        motion = MOTIONS[rng.integers(len(MOTIONS))]
    candidates = _BY_MOTION[split][motion]
    while not candidates:
        motion = MOTIONS[rng.integers(len(MOTIONS))]
        candidates = _BY_MOTION[split][motion]
    first = candidates[rng.integers(len(candidates))]
    others = [combo for combo in candidates if combo[1] != first[1]]
    chosen = [first]
    if others and rng.random() < pairs:
        chosen.append(others[rng.integers(len(others))])

    extent = {"bounce": rng.uniform(0.25, 0.33), "orbit": rng.uniform(0.24, 0.28)}.get(motion, rng.uniform(0.38, 0.48))
    fitting = tuple(SIZES) if len(chosen) == 1 else ("small", "medium")
    sizes = [fitting[rng.integers(len(fitting))] for _ in chosen]
    anchors = _place(rng, motion, extent, [SIZES[size] for size in sizes])
    objects = tuple(
        SpriteObject(shape, color, size, x, y, float(rng.uniform(-0.25, 0.25)))
        for (shape, color), size, (x, y) in zip(chosen, sizes, anchors, strict=True)
    )
    textures = [name for name in BACKGROUND_WORDS if name != "plain"]
    textured = motion.startswith("pan") or rng.random() < 0.5  # on a plain background a pan would look like a slide
    background = textures[rng.integers(len(textures))] if textured else "plain"
    return SpriteScene(
        objects=objects,
        motion=motion,
        extent=float(extent),
        phase=float(rng.uniform(0, 2 * math.pi)),
        background=background,
        background_colors=_muted_tones(rng),
        background_angle=float(rng.uniform(0, math.pi)),
        background_period=float(rng.uniform(0.22, 0.4)),
        prompt=_caption(rng, objects, motion, background),
    )


def _place(rng: np.random.Generator, motion: str, extent: float, radii: list[float]) -> list[tuple[float, float]]:
    """Anchors that keep every object inside the frame on its whole path and apart from the other one."""
    if motion == "orbit":
        return [(0.5, 0.5)] * len(radii)
    reach_x, reach_y = 0.0, 0.0
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        reach_x, reach_y = (extent / 2 * abs(d) / math.hypot(dx, dy) for d in (dx, dy))
    elif motion == "bounce":
        reach_y = extent / 2
    elif motion.startswith("pan"):
        reach_x = PAN_SHIFT / 2
    scale = GROWN if motion in ("grow", "shrink") else 1.0

    low = np.array([[min(reach + radius * scale + 0.01, 0.5) for reach in (reach_x, reach_y)] for radius in radii])
    anchors = rng.uniform(low, 1 - low).tolist()  # (objects, 2)
    if len(radii) == 2:
        needed = scale * sum(radii) + 0.02
        tries = rng.uniform(low, 1 - low, (40, *low.shape)).tolist()  # (40, objects, 2)
        anchors = max(tries, key=lambda pair: min(math.dist(*pair), needed))
    return [(x, y) for x, y in anchors]


def _muted_tones(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Two close, greyish tones, so that no background can be taken for an object's color."""
    tint = rng.uniform(-0.06, 0.06, 3)
    value, contrast = rng.uniform(0.36, 0.6), rng.uniform(0.10, 0.16)
    low, high = ((value + sign * contrast / 2 + tint).round(4).tolist() for sign in (-1, 1))
    return tuple(low), tuple(high)


def _caption(rng: np.random.Generator, objects: tuple[SpriteObject, ...], motion: str, background: str) -> str:
    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    def describe(item: SpriteObject) -> str:
        words = [item.color, pick(SHAPE_WORDS[item.shape])]
        if rng.random() < 0.4:
            words.insert(0, item.size)
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"

    subject = " and ".join(describe(item) for item in objects)
    action = pick(MOTION_WORDS[motion][len(objects) - 1])
    sentence = f"{subject} {action}"
    if motion.startswith("pan") and rng.random() < 0.5:
        sentence = f"the camera pans {motion.removeprefix('pan-')} over {subject}"
    if rng.random() < 0.4:
        sentence = f"{sentence} {pick(BACKGROUND_WORDS[background])}"
    return pick(("{}", "{}", "{}", "a video of {}", "a clip where {}")).format(sentence)


# --- rendering -------------------------------------------------------------------------------------------------------

PAN_SHIFT = 0.26  # how far the scene travels during a camera pan
GROWN, SHRUNK = 1.35, 0.6  # scale at the two ends of "grow" and "shrink"
MOMENTS = 16  # of a clip, one of which an item of a single frame shows


def object_states(scene: SpriteScene, times: np.ndarray) -> np.ndarray:
    """Where each object is: times u in [0, 1] of shape (F,) -> (objects, F, 4) of x, y, radius, angle."""
    u = times.astype(np.float32)
    states = []
    for order, item in enumerate(scene.objects):
        x, y = np.full_like(u, item.x), np.full_like(u, item.y)
        scale, angle = np.ones_like(u), np.full_like(u, item.angle)
        if scene.motion in DIRECTIONS:
            dx, dy = DIRECTIONS[scene.motion]
            x = x + dx / math.hypot(dx, dy) * scene.extent * (u - 0.5)
            y = y + dy / math.hypot(dx, dy) * scene.extent * (u - 0.5)
        elif scene.motion == "bounce":
            y = y + scene.extent * (0.5 - np.abs(np.sin(2 * math.pi * u)))
        elif scene.motion == "orbit":
            turn = scene.phase + math.pi * order + 2 * math.pi * u
            x, y = x + scene.extent * np.cos(turn), y + scene.extent * np.sin(turn)
        elif scene.motion == "rotate":
            angle = angle + math.pi * u
        elif scene.motion == "grow":
            scale = SHRUNK + (GROWN - SHRUNK) * u
        elif scene.motion == "shrink":
            scale = GROWN + (SHRUNK - GROWN) * u
        elif scene.motion.startswith("pan"):
            x = x + _camera_shift(scene, u)
        states.append(np.stack([x, y, SIZES[item.size] * scale, angle], axis=-1))
    return np.stack(states)


def _camera_shift(scene: SpriteScene, u: np.ndarray) -> np.ndarray:
    """Displacement of everything on the screen: a camera that pans right moves the picture left."""
    sign = {"pan-left": 1.0, "pan-right": -1.0}.get(scene.motion, 0.0)
    return sign * PAN_SHIFT * (u - 0.5)


def render(
    scene: SpriteScene, num_frames: int, height: int, width: int, frames: list[int] | None = None
) -> torch.Tensor:
    """Draw a scene.

    Args:
        scene: what to draw.
        num_frames: length F of the whole clip; motion is spread over it.
        height: H in pixels.
        width: W in pixels.
        frames: draw only these frame numbers.

    Returns:
        float32 (3, F or len(frames), H, W), in [-1, 1].
    """
    numbers = np.arange(num_frames) if frames is None else np.asarray(frames)
    u = (numbers / max(num_frames - 1, 1)).astype(np.float32)
    side = min(height, width)
    xs = (np.arange(width, dtype=np.float32) + 0.5) / width
    ys = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    image = _background(scene, u, xs, ys * np.ones_like(xs), (width / side, height / side))  # (F, H, W, 3)
    for item, states in zip(scene.objects, object_states(scene, u), strict=True):
        color = np.asarray(COLORS[item.color], np.float32) / 255
        for number, (x, y, radius, angle) in enumerate(states):
            px, py = (xs - x) * (width / side), (ys - y) * (height / side)  # (H, W), in units of the shorter side
            cosine, sine = math.cos(angle) / radius, math.sin(angle) / radius
            distance = signed_distance(item.shape, px * cosine + py * sine, py * cosine - px * sine) * radius * side
            alpha = np.clip(0.5 - distance, 0, 1)[..., None]  # one pixel of anti-aliasing
            image[number] += alpha * (color - image[number])
    return torch.from_numpy(image * 2 - 1).permute(3, 0, 1, 2).contiguous()


def _background(
    scene: SpriteScene, u: np.ndarray, xs: np.ndarray, ys: np.ndarray, aspect: tuple[float, float]
) -> np.ndarray:
    low, high = (np.asarray(tone, np.float32) for tone in scene.background_colors)
    if scene.background == "plain":
        return np.broadcast_to(low, (len(u), *ys.shape, 3)).copy()
    shifts = _camera_shift(scene, u)
    x = (xs - shifts[:1, None, None] if not shifts.any() else xs - shifts[:, None, None]) * aspect[0]
    y = ys * aspect[1]
    frequency = 2 * math.pi / scene.background_period
    cosine, sine = math.cos(scene.background_angle), math.sin(scene.background_angle)
    a, b = (x * cosine + y * sine) * frequency, (y * cosine - x * sine) * frequency
    if scene.background == "stripes":
        pattern = np.sin(a)
    elif scene.background == "checker":
        pattern = np.sin(a) * np.sin(b)
    elif scene.background == "dots":
        pattern = 2 * np.clip(np.cos(a) + np.cos(b) - 0.6, 0, 1) - 1
    else:
        pattern = np.sin(a + 1.2 * np.sin(b * 0.7))
    mask = (0.5 + 0.5 * np.tanh(2.5 * pattern))[..., None]
    return np.broadcast_to(low + (high - low) * mask, (len(u), *ys.shape, 3)).astype(np.float32)


class SpritesDataset(Dataset):
    """Scenes `start` to `start + length` of a split, rendered on the fly.

    Items are dicts: `video` float32 (3, F, H, W) in [-1, 1], `prompt`, `class_label` (the motion's number in MOTIONS),
    `appearance` float32 (18,), 1 for every one of SHAPES and COLORS that an object has.

    Item n is a pure function of n; from n = length on the scenes come again.

    Args:
        length: number of scenes.
        height: H in pixels.
        width: W in pixels.
        num_frames: F. With 1, an item is one frame, drawn at a moment that is a function of its index.
        seed: which world of scenes.
        split: "train" or "held_out" (combinations that training never sees).
        start: number of the first scene.
        pairs: share of scenes with two objects, in [0, 1].
        motion_weights: how often a motion of MOTIONS comes, relative to 1 for those not named; None = all alike.
    """

    class_names = MOTIONS

    def __init__(
        self,
        length: int,
        height: int = 64,
        width: int = 64,
        num_frames: int = 16,
        seed: int = 0,
        split: Split = "train",
        start: int = 0,
        pairs: float = 0.25,
        motion_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.length, self.height, self.width, self.num_frames = length, height, width, num_frames
        self.seed, self.split, self.start = seed, split, start
        self.pairs, self.motion_weights = pairs, motion_weights

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> SpriteScene:
        """Ground truth of item `index`."""
        return sample_scene(self.start + index % self.length, self.seed, self.split, self.pairs, self.motion_weights)

    def moment(self, index: int) -> int:
        """Which of the MOMENTS of its clip item `index` shows, where an item is one frame."""
        return int(np.random.default_rng([self.start + index, self.seed, 2]).integers(MOMENTS))

    @staticmethod
    def labels(scene: SpriteScene) -> dict[str, torch.Tensor | str | int]:
        """What an item has beside its pictures: `prompt`, `class_label` and `appearance`."""
        names = {name for item in scene.objects for name in (item.shape, item.color)}
        return {
            "prompt": scene.prompt,
            "class_label": MOTIONS.index(scene.motion),
            "appearance": torch.tensor([float(name in names) for name in (*SHAPES, *COLORS)]),
        }

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str | int]:
        scene = self.scene(index)
        if self.num_frames == 1:
            video = render(scene, MOMENTS, self.height, self.width, frames=[self.moment(index)])  # (3, 1, H, W)
        else:
            video = render(scene, self.num_frames, self.height, self.width)
        return {"video": video, **self.labels(scene)}
