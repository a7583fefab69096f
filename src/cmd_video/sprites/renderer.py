"""Sprites drawn in batches, on the device where training wants them; `sprites.render` stays the reference.

    packed = torch.stack([pack_scene(scene) for scene in scenes]).to("cuda")
    videos = render_scenes(packed, num_frames=16, height=64, width=64)  # (B, 3, F, H, W)

A data loader then only draws numbers and carries vectors (`SceneDataset`). Nothing here looks at a value on the host,
so `render_scenes` can be compiled and captured in a CUDA graph: every outline and every texture is computed for all
scenes and chosen by `torch.where`, one after another, which costs arithmetic but no memory. A CPU feels that: there
`render_scenes` pays only when it is compiled.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .scenes import GROWN, MOMENTS, PAN_SHIFT, SHRUNK, SpriteScene, SpritesDataset
from .words import BACKGROUND_WORDS, COLORS, DIRECTIONS, SHAPES, SIZES

BACKGROUNDS = tuple(BACKGROUND_WORDS)
OBJECT_SLOTS = 2
OBJECT_FIELDS = (
    "present",  # 1, or 0 in the slot of an object that is not there
    "shape",  # number in SHAPES
    *("red", "green", "blue"),  # in [0, 1]
    "radius",  # fraction of the shorter side
    *("x", "y"),  # anchor
    "angle",
)
SCENE_FIELDS = (
    *("first_time", "last_time"),  # moments u of the first and the last frame drawn; [0, 1] is the whole clip
    # Motion, as what every kind of it does to an object's anchor, size and angle. What the scene's motion does not do
    # is 0 (a scale is 1), so that nothing has to be chosen by a motion's number.
    *("travel_x", "travel_y"),  # from u = 0 to 1
    "bounce",  # height
    *("orbit", "phase"),  # radius, and start angle of the first object
    "spin",  # angle from u = 0 to 1
    *("first_scale", "last_scale"),
    "camera",  # how far everything goes to the right from u = 0 to 1
    "background",  # number in BACKGROUNDS; then its two tones in [0, 1]
    *("low_red", "low_green", "low_blue"),
    *("high_red", "high_green", "high_blue"),
    *("background_angle", "background_period"),
)
FIELDS = (*(f"{name}_{slot}" for slot in range(OBJECT_SLOTS) for name in OBJECT_FIELDS), *SCENE_FIELDS)

Fields = dict[str, Tensor]


def pack_scene(scene: SpriteScene, times: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """A scene as a vector with everything that `render_scenes` needs; FIELDS names its numbers.

    Args:
        scene: what to draw.
        times: moments of the first and the last frame, from 0, where the motion starts, to 1, where it ends. Of a
            single frame the first counts.

    Returns:
        float32 (len(FIELDS),).

    Raises:
        ValueError: there are more than two objects, or a shape or a background that is not known.
    """
    if len(scene.objects) > OBJECT_SLOTS:
        raise ValueError(f"scene.objects: {len(scene.objects)} objects, where {OBJECT_SLOTS} have a place")
    values = dict.fromkeys(FIELDS, 0.0)
    for slot in range(OBJECT_SLOTS):
        values[f"radius_{slot}"] = 1.0  # never 0, because coordinates are divided by it
    for slot, item in enumerate(scene.objects):
        red, green, blue = (channel / 255 for channel in COLORS[item.color])
        shape = _number("shape", item.shape, SHAPES)
        numbers = (1.0, shape, red, green, blue, SIZES[item.size], item.x, item.y, item.angle)
        values |= {f"{name}_{slot}": value for name, value in zip(OBJECT_FIELDS, numbers, strict=True)}
    values |= _pack_motion(scene)
    values["first_time"], values["last_time"] = times
    values["background"] = _number("background", scene.background, BACKGROUNDS)
    for tone, color in zip(("low", "high"), scene.background_colors, strict=True):
        values[f"{tone}_red"], values[f"{tone}_green"], values[f"{tone}_blue"] = color
    values["background_angle"], values["background_period"] = scene.background_angle, scene.background_period
    return torch.tensor([values[name] for name in FIELDS], dtype=torch.float32)


def _number(what: str, name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise ValueError(f"{what}: {name!r} is not one of {', '.join(names)}")
    return names.index(name)


def _pack_motion(scene: SpriteScene) -> dict[str, float]:
    dx, dy = DIRECTIONS.get(scene.motion, (0, 0))
    step = scene.extent / (math.hypot(dx, dy) or 1.0)
    first_scale, last_scale = {"grow": (SHRUNK, GROWN), "shrink": (GROWN, SHRUNK)}.get(scene.motion, (1.0, 1.0))
    return {
        "travel_x": dx * step,
        "travel_y": dy * step,
        "bounce": scene.extent * (scene.motion == "bounce"),
        "orbit": scene.extent * (scene.motion == "orbit"),
        "phase": scene.phase,
        "spin": math.pi * (scene.motion == "rotate"),
        "first_scale": first_scale,
        "last_scale": last_scale,
        "camera": {"pan-left": PAN_SHIFT, "pan-right": -PAN_SHIFT}.get(scene.motion, 0.0),
    }


def render_scenes(packed: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """Draw scenes, up to float rounding as `sprites.render` draws each of them.

    Args:
        packed: float32 (B, len(FIELDS)) from `pack_scene`, on any device.
        num_frames: length F of the clips; motion is spread over it.
        height: H in pixels.
        width: W in pixels.

    Returns:
        float32 (B, 3, F, H, W) in [-1, 1], on the same device.

    Raises:
        ValueError: `packed` has another shape or another type.
    """
    if packed.ndim != 2 or packed.shape[1] != len(FIELDS):
        raise ValueError(f"packed: shape {tuple(packed.shape)}, where (scenes, {len(FIELDS)}) is due")
    if packed.dtype != torch.float32:
        raise ValueError(f"packed: {packed.dtype}, where torch.float32 is due")
    scene = {name: column[:, None, None, None] for name, column in zip(FIELDS, packed.unbind(1))}  # (B, 1, 1, 1) each
    steps = _count(num_frames, packed.device)[:, None, None] / max(num_frames - 1, 1)  # (F, 1, 1)
    frame = _Frame(
        u=scene["first_time"] + (scene["last_time"] - scene["first_time"]) * steps,  # (B, F, 1, 1)
        xs=_count(width, packed.device) + 0.5,  # (W,)
        ys=_count(height, packed.device)[:, None] + 0.5,  # (H, 1)
    )
    # Coverages before the picture, which is three times as large: outlines need most memory on their way.
    coverages = [_coverage(scene, slot, frame) for slot in range(OBJECT_SLOTS)]  # (B, F, H, W) each
    image = _background(scene, frame)  # (B, 3, F, H, W)
    for slot, coverage in enumerate(coverages):
        color = _color(scene, f"red_{slot}", f"green_{slot}", f"blue_{slot}")  # (B, 3, 1, 1, 1)
        image.lerp_(color, coverage[:, None])
    return image.mul_(2).sub_(1)


class _Frame(NamedTuple):
    """Where and when to draw; everything inside is in pixels."""

    u: Tensor  # (B, F, 1, 1), moments in the clip
    xs: Tensor  # (W,), middles of pixels
    ys: Tensor  # (H, 1)

    @property
    def width(self) -> int:
        return self.xs.shape[0]

    @property
    def height(self) -> int:
        return self.ys.shape[0]

    @property
    def side(self) -> int:
        return min(self.width, self.height)


def _count(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.float32, device=device)


def _color(scene: Fields, *names: str) -> Tensor:
    return torch.stack([scene[name] for name in names], dim=1)  # (B, 3, 1, 1, 1)


def _background(scene: Fields, frame: _Frame) -> Tensor:
    """The picture without objects: (B, 3, F, H, W), RGB in [0, 1]."""
    low, high = (_color(scene, f"{tone}_red", f"{tone}_green", f"{tone}_blue") for tone in ("low", "high"))
    plain = scene["background"] == BACKGROUNDS.index("plain")  # (B, 1, 1, 1)
    return torch.lerp(low, torch.where(plain[:, None], low, high), _texture(scene, frame)[:, None])


def _texture(scene: Fields, frame: _Frame) -> Tensor:
    """How much of the second tone each pixel of the background has: (B, F, H, W) in [0, 1]."""
    x = frame.xs - scene["camera"] * (frame.u - 0.5) * frame.width  # (B, F, 1, W)
    frequency = 2 * math.pi / (scene["background_period"] * frame.side)
    cosine, sine = scene["background_angle"].cos() * frequency, scene["background_angle"].sin() * frequency
    a, b = x * cosine + frame.ys * sine, frame.ys * cosine - x * sine  # (B, F, H, W), angles of waves

    def choose(name: str, pattern: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(scene["background"] == BACKGROUNDS.index(name), pattern, otherwise)

    pattern = a.sin()  # stripes; every pattern is (B, F, H, W) in [-1, 1]
    pattern = choose("checker", pattern * b.sin(), pattern)
    pattern = choose("dots", (a.cos() + b.cos() - 0.6).clamp(0, 1) * 2 - 1, pattern)
    pattern = choose("waves", (a + 1.2 * (b * 0.7).sin()).sin(), pattern)
    return 0.5 + 0.5 * (2.5 * pattern).tanh()  # not `sigmoid`: see `_signed_distance`


def _coverage(scene: Fields, slot: int, frame: _Frame) -> Tensor:
    """How much of each pixel an object covers: (B, F, H, W) in [0, 1], with one pixel of anti-aliasing."""
    item = {name: scene[f"{name}_{slot}"] for name in OBJECT_FIELDS}
    u = frame.u  # this and the next ones up to `sine` are (B, F, 1, 1)
    turn = scene["phase"] + math.pi * slot + 2 * math.pi * u
    x = item["x"] + (scene["travel_x"] + scene["camera"]) * (u - 0.5) + scene["orbit"] * turn.cos()
    y = item["y"] + scene["travel_y"] * (u - 0.5) + scene["orbit"] * turn.sin()
    y = y + scene["bounce"] * (0.5 - (2 * math.pi * u).sin().abs())
    angle = item["angle"] + scene["spin"] * u
    scale = scene["first_scale"] + (scene["last_scale"] - scene["first_scale"]) * u
    radius = item["radius"] * scale * frame.side
    cosine, sine = angle.cos() / radius, angle.sin() / radius
    px, py = frame.xs - x * frame.width, frame.ys - y * frame.height  # (B, F, 1, W), (B, F, H, 1)
    across, down = px * cosine + py * sine, py * cosine - px * sine  # (B, F, H, W), in the object's radius
    distance = torch.ones_like(across)
    for number, shape in enumerate(SHAPES):
        distance = torch.where(item["shape"] == number, _signed_distance(shape, across, down), distance)
    return (0.5 - distance * radius).clamp(0, 1) * item["present"]


def _signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """As `shapes.signed_distance`, for tensors.

    Only with operations that round an element the same wherever it stands in a tensor, so that a scene looks the same
    in every batch. On a CPU, `atan2` and `sigmoid` do not.
    """
    if shape == "circle":
        return _length(x, y) - 0.9
    if shape == "ring":
        return (_length(x, y) - 0.72).abs() - 0.22
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.76
    if shape == "triangle":
        return torch.maximum(x.abs() * 0.866 - y * 0.5, y) - 0.5
    if shape == "cross":
        ax, ay = x.abs(), y.abs()
        return torch.minimum(torch.maximum(ax - 0.95, ay - 0.32), torch.maximum(ax - 0.32, ay - 0.95))
    if shape == "crescent":
        return torch.maximum(_length(x, y) - 0.95, 0.72 - _length(x, y, 0.5))
    if shape == "heart":
        ax, up = x.abs(), 0.12 - y
        discs = _length(ax, up, 0.4384, 0.4384) - 0.62
        return torch.minimum((ax + up.abs()) * 0.7071 - 0.62, discs)
    if shape == "star":  # folded by mirrors at 72 and 36 degrees from the tip that points up, then at the tip itself
        across, along = x.abs(), -y
        for mirror in (2 * math.pi / 5, math.pi / 5):
            beyond = (across * math.cos(mirror)).sub_(along * math.sin(mirror)).clamp_(min=0)
            across.sub_(beyond * (2 * math.cos(mirror)))
            along.add_(beyond * (2 * math.sin(mirror)))
        notch_x, notch_y = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
        length = math.hypot(1 - notch_x, notch_y)
        return ((along - 1) * notch_y + across.abs() * (1 - notch_x)) / length
    raise ValueError(f"shape: {shape!r} has no outline")


def _length(x: Tensor, y: Tensor, center_x: float = 0.0, center_y: float = 0.0) -> Tensor:
    return (x - center_x).square_().add_((y - center_y).square_()).sqrt_()  # in place: memory is at its peak here


@lru_cache
def compiled_renderer() -> Callable[..., Tensor]:
    """`render_scenes` through `torch.compile`: fewer kernels, that touch memory less often."""
    return torch.compile(render_scenes)


class SceneDataset(SpritesDataset):
    """As `SpritesDataset`, with the scene's numbers in place of its pictures, which `finish` draws for a whole batch.

    Items are dicts: `scene` float32 (len(FIELDS),) from `pack_scene`, and `prompt`, `class_label` and `appearance` as
    there. With num_frames = 1 the moment that is drawn, the same as there, is in the vector.

    Attributes:
        compiled: whether `finish` draws through `torch.compile`.
    """

    compiled = False

    def __getitem__(self, index: int) -> dict[str, Tensor | str | int]:
        scene = self.scene(index)
        times = (0.0, 1.0)
        if self.num_frames == 1:
            times = (self.moment(index) / (MOMENTS - 1),) * 2
        return {"scene": pack_scene(scene, times), **self.labels(scene)}

    def finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Draw a collated batch.

        Args:
            batch: with `scene` (B, len(FIELDS)), on the device that is to draw it.

        Returns:
            The batch with `video` float32 (B, 3, F, H, W) in [-1, 1] in place of `scene`.

        Raises:
            ValueError: `scene` has another shape or another type.
        """
        draw = compiled_renderer() if self.compiled else render_scenes
        video = draw(batch["scene"], self.num_frames, self.height, self.width)
        return {"video": video, **{name: value for name, value in batch.items() if name != "scene"}}
