"""Read color, shape and motion off a sprite clip without any learning, to measure whether a clip follows its prompt.

    reading = read_scene(video)                      # video: (3, F, H, W) in [-1, 1], for instance a generated one
    score_adherence(scene, reading)                  # {"color": True, "shape": True, "motion": False}

How: backgrounds are two close greyish tones, so an object's color is the palette color that enough pixels of enough
frames are nearest to; its coverage in each frame is correlated with templates of all shapes at all angles; and each
motion of `sprites.MOTIONS` is fitted to the tracked position, size, angle and background by least squares. What fits
nothing is read as `UNCLEAR`, which counts as wrong.

K objects; F frames; H, W as everywhere; S shapes; A template angles; times u in [0, 1].
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmd_video.sprites.scenes import (
    COLORS,
    DIRECTIONS,
    MOTIONS,
    ROTATION_INVARIANT,
    SHAPES,
    SpriteScene,
    signed_distance,
)

UNCLEAR = "unclear"

SIDE = 64  # clips are reduced to this many pixels on the shorter side
MIN_FRAMES = 4  # of a clip
MIN_AREA = 10  # pixels of its color that make an object visible in a frame
MAX_SHARE = 0.35  # of the frame; what covers more is no object
MIN_SEEN = 0.4  # share of the frames in which a color must be visible to be read as an object at all
MIN_VISIBLE = 0.8  # share of the frames in which an object must be visible to count as shown
MIN_SHAPE_SCORE = 0.8  # correlation with the best template below which a shape is UNCLEAR
MIN_KEPT, NEARLY = 0.75, 0.03  # share of the frames in which the shape must be (nearly) the best, else it is UNCLEAR
MAX_MOTION_ERROR = 12.0  # chi^2 per frame and object above which a motion is UNCLEAR

PATCH, NUM_ANGLES = 32, 60  # side of a template in pixels, number of angles over a full turn
REACH = 1.3  # half side of a template, in units of the square root of the object's area
BLURS = (0.03, 0.09, 0.15)  # standard deviations of the templates' blur, in the same units

# One standard deviation of what counts as the same motion (positions in frames, sizes relative to their mean).
POSITION_SIGMA, SIZE_SIGMA, CORRELATION_SIGMA, BACKGROUND_SIGMA = 0.02, 0.06, 0.005, 0.02
SLIDES, PANS, BOUNCES, ORBITS, GROWTHS = (0.32, 0.75), (0.12, 0.32), (0.14, 0.5), (0.13, 0.4), (0.4, 1.2)
TURNS = tuple(sign * math.radians(degrees) for sign in (1, -1) for degrees in (120, 150, 180, 210, 240))
PAN_SHIFTS = tuple(np.arange(PANS[0], PANS[1] + 0.001, 0.025).tolist())
TURN_PENALTY = 0.005  # correlation by which a turn must beat a constant angle
MIN_TEXTURE = 0.02  # standard deviation of a background's brightness below which no pan can be seen


@dataclass(frozen=True)
class ObjectReading:
    """What was read of one object.

    Attributes:
        color: a name of `sprites.COLORS`.
        shape: a name of `sprites.SHAPES`, or UNCLEAR.
        shape_score: correlation with that shape's best template, averaged over frames, at most 1.
        visible: share of the frames in which the object was found.
    """

    color: str
    shape: str
    shape_score: float
    visible: float


@dataclass(frozen=True)
class SceneReading:
    """What was read of a clip.

    Attributes:
        objects: the objects found, in the order of `sprites.COLORS`; may be empty.
        motion: a name of `sprites.MOTIONS`, or UNCLEAR.
        motion_error: chi^2 per frame and object of the best motion's fit; infinite without an object.
    """

    objects: tuple[ObjectReading, ...]
    motion: str
    motion_error: float


@dataclass(frozen=True)
class _Track:
    """One object over its V visible frames."""

    times: Tensor  # (V,), u in [0, 1]
    centers: Tensor  # (V, 2), x and y as fractions of the frame
    sizes: Tensor  # (V,), square root of the area in pixels
    shape: str  # the best, or UNCLEAR
    score: float  # the best shape's mean correlation, at the best angle of each frame
    upright_loss: float  # what one constant angle loses of that score
    turning_loss: float  # what a steady turn loses


def score_adherence(scene: SpriteScene, reading: SceneReading) -> dict[str, bool]:
    """Which attributes of a scene a clip shows.

    `color`: the objects read have the scene's colors, no other, and are visible throughout. `shape`: every object of
    the scene is visible throughout in its color and has its shape. `motion`: it is the scene's.
    """
    shapes = {item.color: item.shape for item in reading.objects if item.visible >= MIN_VISIBLE}
    expected, read = ({item.color for item in part.objects} for part in (scene, reading))
    return {
        "color": read == expected == set(shapes),
        "shape": all(shapes.get(item.color) == item.shape for item in scene.objects),
        "motion": reading.motion == scene.motion,
    }


@torch.no_grad()
def read_scene(video: Tensor) -> SceneReading:
    """Read a clip.

    Args:
        video: float (3, F, H, W) in [-1, 1], at least 4 frames, sides of at least 32 pixels.

    Returns:
        the objects and their common motion.
    """
    if video.ndim != 4 or video.shape[0] != 3 or video.shape[1] < MIN_FRAMES or min(video.shape[2:]) < 32:
        raise ValueError(f"video: expected (3, F >= {MIN_FRAMES}, H >= 32, W >= 32), got {tuple(video.shape)}")
    frames = _at_reading_size((video.detach().float().cpu().clamp(-1, 1) + 1) / 2).movedim(0, -1)  # (F, H, W, 3)
    names, coverage = find_objects(frames)
    tracks = [_track(mask) for mask in coverage]
    readings = tuple(
        ObjectReading(name, track.shape, track.score, len(track.times) / len(frames))
        for name, track in zip(names, tracks, strict=True)
    )
    if not readings:
        return SceneReading((), UNCLEAR, math.inf)
    motion, error = _best_motion(tracks, frames, coverage.sum(0))
    return SceneReading(readings, motion if error <= MAX_MOTION_ERROR else UNCLEAR, error)


def _at_reading_size(video: Tensor) -> Tensor:
    height, width = video.shape[2:]
    scale = SIDE / min(height, width)
    return video if scale >= 1 else F.interpolate(video, (round(height * scale), round(width * scale)), mode="area")


# --- color and coverage ----------------------------------------------------------------------------------------------


def find_objects(frames: Tensor) -> tuple[list[str], Tensor]:
    """Frames (F, H, W, 3) in [0, 1] -> the colors of the objects and their soft coverage (K, F, H, W) in [0, 1]."""
    low, high, tint = _background_tones(frames)
    grey = frames.mean(-1)  # (F, H, W)
    labels = _nearest_colors(frames, low, high, tint)
    cores = {name: labels == number for number, name in enumerate(COLORS)}
    for clean in (lambda core: core, _without_specks):  # the second is slow, so most colors are ruled out before it
        cores = {name: cleaned for name, core in cores.items() if _is_seen(cleaned := clean(core))}

    cores = _without_rims(cores)
    masks = {}
    for name, core in cores.items():
        color = frames[core].median(0).values
        if name in ("white", "black"):  # these differ from the background in brightness only
            edge = high if name == "white" else low
            alpha = (grey - edge) / (color.mean() - edge)
        else:
            direction = color - color.mean() - tint
            alpha = (frames - grey[..., None] - tint) @ direction / direction.square().sum()
        others = [other for other in cores.values() if other is not core]
        allowed = _dilated(core) & ~torch.stack([torch.zeros_like(core), *others]).any(0)
        masks[name] = alpha.clamp(0, 1) * allowed
    masks = {name: mask for name, mask in masks.items() if _is_seen(mask)}
    return list(masks), torch.stack(list(masks.values())) if masks else frames.new_zeros(0, *grey.shape)


def _is_seen(mask: Tensor) -> bool:
    """Whether a mask (F, H, W) covers, in enough frames, as many pixels as an object may."""
    area, most = mask.sum((1, 2)), MAX_SHARE * mask[0].numel()
    return ((area >= MIN_AREA) & (area <= most)).float().mean().item() >= MIN_SEEN


def _nearest_colors(frames: Tensor, low: float, high: float, tint: Tensor) -> Tensor:
    """The number in COLORS of every pixel's nearest color (F, H, W), or -1 for the background."""
    grey = frames.mean(-1)
    palette = torch.tensor(list(COLORS.values())) / 255
    distances = palette.square().sum(-1) - 2 * frames @ palette.T + frames.square().sum(-1, keepdim=True)
    nearest, labels = distances.min(-1)

    off_grey = (frames - grey[..., None] - tint).square().sum(-1)
    off_background = off_grey + 3 * (grey - grey.clamp(low, high)).square()
    # Where white fades into the background, it passes close to pink: what has no tint is never a color.
    neutral = torch.minimum(off_background, 4 * off_grey) < nearest
    names = list(COLORS)
    for name, tone in (("white", high), ("black", low)):
        middle = (palette[names.index(name)].mean() + tone) / 2
        beyond = grey > middle if name == "white" else grey < middle
        labels = torch.where(neutral & beyond, names.index(name), labels)
        neutral = neutral & ~beyond
    return labels.masked_fill(neutral, -1)


def _without_rims(cores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the colors that are no mere rim of a larger object: a blurred yellow edge may look orange."""
    areas = {name: int(core.sum()) for name, core in cores.items()}

    def is_rim(name: str) -> bool:
        larger = [other for other in cores if areas[other] > 1.5 * areas[name]]
        return any((cores[name] & _dilated(cores[other])).sum() > 0.6 * areas[name] for other in larger)

    return {name: core for name, core in cores.items() if not is_rim(name)}


def _background_tones(frames: Tensor) -> tuple[float, float, Tensor]:
    """The darkest and brightest grey of the background and its tint (3,), which sums to 0."""
    grey = frames.mean(-1)
    chroma = frames - grey[..., None]
    tint = chroma.flatten(0, -2)[::7].median(0).values
    plausible = grey[((chroma - tint).square().sum(-1) < 0.1**2) & (grey > 0.15) & (grey < 0.84)]
    if not plausible.numel():
        return 0.4, 0.6, tint
    near = plausible[(plausible - plausible.median()).abs() < 0.2]
    low, high = torch.quantile(near[:: max(1, len(near) // 8192)], torch.tensor([0.03, 0.97])).tolist()
    return low, high, tint - tint.mean()


def _without_specks(mask: Tensor) -> Tensor:
    """Only the pixels of a mask (F, H, W) with at least two neighbours in it."""
    return mask & (F.avg_pool2d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0] * 9 > 2.5)


def _dilated(mask: Tensor) -> Tensor:
    """A mask (F, H, W) and everything up to two pixels from it."""
    return F.max_pool2d(mask.float()[:, None], 5, stride=1, padding=2)[:, 0] > 0


# --- shape -----------------------------------------------------------------------------------------------------------


def _track(coverage: Tensor) -> _Track:
    """Measure one object's coverage (F, H, W) in every frame where it is visible."""
    num_frames, height, width = coverage.shape
    area = coverage.sum((1, 2))
    visible = area >= MIN_AREA
    coverage, area = coverage[visible], area[visible]
    grid_x, grid_y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    x, y = (coverage.sum(1) @ grid_x) / area, (coverage.sum(2) @ grid_y) / area
    size = area.sqrt()

    offsets = _patch_grid() * size[:, None, None, None] + torch.stack([x, y], -1)[:, None, None]  # (V, P, P, 2)
    sampling = offsets / torch.tensor([width, height]) * 2 - 1
    patches = F.grid_sample(coverage[:, None], sampling, align_corners=False).flatten(1)
    scores = (_standardize(patches) @ _templates()).view(len(area), len(BLURS), len(SHAPES), NUM_ANGLES)
    scores = scores.amax(1)  # (V, S, A)
    by_shape = scores.amax(-1).mean(0)
    best = int(by_shape.argmax())
    kept = (scores[:, best].amax(-1) > scores.amax((1, 2)) - NEARLY).float().mean()
    clear = by_shape[best] >= MIN_SHAPE_SCORE and kept >= MIN_KEPT
    times = torch.arange(num_frames)[visible] / (num_frames - 1)
    return _Track(
        times=times,
        centers=torch.stack([x / width, y / height], -1),
        sizes=size,
        shape=SHAPES[best] if clear else UNCLEAR,
        score=by_shape[best].item(),
        upright_loss=by_shape[best].item() - _steady_score(scores[:, best], times, 0.0),
        turning_loss=by_shape[best].item() - max(_steady_score(scores[:, best], times, turn) for turn in TURNS),
    )


def _steady_score(scores: Tensor, times: Tensor, turn: float) -> float:
    """The best mean of scores (V, A) along a course that turns steadily by `turn` over the clip."""
    course = (times[:, None] * turn / (2 * math.pi) * NUM_ANGLES).round().long() + torch.arange(NUM_ANGLES)
    return scores.gather(1, course % NUM_ANGLES).mean(0).max().item()


def _patch_grid() -> Tensor:
    """Coordinates (P, P, 2) of a patch's pixels in units of the square root of the object's area."""
    line = ((torch.arange(PATCH) + 0.5) / PATCH * 2 - 1) * REACH
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _standardize(patches: Tensor) -> Tensor:
    """Rows with mean 0 and norm 1, so that a product of two rows is their correlation."""
    return F.normalize(patches - patches.mean(-1, keepdim=True), dim=-1)


@cache
def _templates() -> Tensor:
    """All templates as columns (P * P, blurs * S * A): centered on the shape's centroid, scaled to area 1."""
    line = np.linspace(-1.1, 1.1, 400, dtype=np.float32)
    fine_x, fine_y = np.meshgrid(line, line)
    grid_x, grid_y = _patch_grid().numpy().reshape(-1, 2).T
    pixel = 2 * REACH / PATCH
    rows = []
    for shape in SHAPES:
        inside = signed_distance(shape, fine_x, fine_y) < 0
        scale = math.sqrt(inside.mean() * 2.2**2)  # the square root of the area of the shape of radius 1
        center_x, center_y = fine_x[inside].mean(), fine_y[inside].mean()
        for angle in np.arange(NUM_ANGLES) * 2 * math.pi / NUM_ANGLES:
            cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
            x, y = grid_x * cosine + grid_y * sine + center_x, grid_y * cosine - grid_x * sine + center_y
            rows.append(np.clip(0.5 - signed_distance(shape, x, y) / (scale * pixel), 0, 1))
    sharp = torch.from_numpy(np.stack(rows).astype(np.float32)).view(-1, PATCH, PATCH)
    distance = torch.arange(PATCH)[:, None] - torch.arange(PATCH)
    blurred = []
    for blur in BLURS:
        kernel = torch.exp(-0.5 * (distance * pixel / blur) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)
        blurred.append((kernel @ sharp @ kernel.T).flatten(1))
    return _standardize(torch.cat(blurred)).T.contiguous()


# --- motion ----------------------------------------------------------------------------------------------------------


def _best_motion(tracks: list[_Track], frames: Tensor, coverage: Tensor) -> tuple[str, float]:
    """The motion that explains objects and background best, and the objects' chi^2 per frame under it."""
    shifts = {"pan-left": PAN_SHIFTS, "pan-right": tuple(-shift for shift in PAN_SHIFTS)}
    hypotheses = [(motion, shift) for motion in MOTIONS for shift in shifts.get(motion, (0.0,))]
    objects = torch.tensor([sum(_object_error(track, *item) for track in tracks) for item in hypotheses])
    every_shift = sorted({shift for _, shift in hypotheses})
    background = dict(zip(every_shift, _background_errors(frames, coverage, every_shift).tolist(), strict=True))
    best = int((objects + torch.tensor([background[shift] for _, shift in hypotheses])).argmin())
    return hypotheses[best][0], objects[best].item() / sum(len(track.times) for track in tracks)


def _object_error(track: _Track, motion: str, shift: float) -> float:
    """chi^2 of one object's positions, sizes and angles under a motion; `shift` is how far a pan moves the picture."""
    u = track.times
    growth = track.sizes[:, None] / track.sizes.mean() - 1
    direction = {"grow": 1.0, "shrink": -1.0}.get(motion, 0.0)
    size_error = _misfit(growth, direction * (u - 0.5)[None, :, None], GROWTHS)
    position_error = min(_misfit(track.centers, *path) for path in _paths(motion, u, shift))
    if motion != "rotate":
        lost = track.upright_loss
    else:
        lost = math.inf if track.shape in ROTATION_INVARIANT else track.turning_loss + TURN_PENALTY
    return position_error / POSITION_SIGMA**2 + size_error / SIZE_SIGMA**2 + len(u) * lost / CORRELATION_SIGMA


def _paths(motion: str, u: Tensor, shift: float) -> list[tuple[Tensor, tuple[float, float]]]:
    """The paths a motion may take: displacement patterns (N, V, 2) and the range of their amplitude."""
    zero = torch.zeros_like(u)
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        pattern = torch.stack([dx * (u - 0.5), dy * (u - 0.5)], -1)[None] / math.hypot(dx, dy)
        return [(pattern, SLIDES)]
    if motion == "bounce":
        return [(torch.stack([zero, -(2 * math.pi * u).sin().abs()], -1)[None], BOUNCES)]
    if motion == "orbit":
        cosine, sine = (2 * math.pi * u).cos(), (2 * math.pi * u).sin()
        quarter = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)])
        return [(quarter, ORBITS), (quarter * torch.tensor([1.0, -1.0]), ORBITS)]
    return [(torch.stack([u - 0.5, zero], -1)[None], (shift, shift))]  # a pan, or at shift 0 no motion


def _misfit(values: Tensor, patterns: Tensor, bounds: tuple[float, float]) -> float:
    """Sum of squares that `offset + amplitudes @ patterns` leaves of values (V, C).

    The offset (C,) is free, the N amplitudes of patterns (N, V, C) have their norm (for N = 1: their value) in bounds.
    """
    values = values - values.mean(0)
    patterns = patterns - patterns.mean(1, keepdim=True)
    flat = patterns.flatten(1)
    gram = flat @ flat.T + 1e-9 * torch.eye(len(flat))
    amplitudes = torch.linalg.solve(gram, flat @ values.flatten())
    if len(amplitudes) == 1:
        amplitudes = amplitudes.clamp(*bounds)
    else:
        amplitudes = amplitudes + 1e-6  # never 0: the smallest allowed motion also has a direction
        amplitudes = F.normalize(amplitudes, dim=0) * amplitudes.norm().clamp(*bounds)
    return (values.flatten() - amplitudes @ flat).square().sum().item()


def _background_errors(frames: Tensor, coverage: Tensor, shifts: list[float]) -> Tensor:
    """chi^2 (len(shifts),) of a background (F, H, W, 3) that stands still while the camera moves by each shift."""
    num_frames = len(frames)
    free = (F.avg_pool2d(_dilated(coverage > 0).float(), 2) == 0).float()  # (F, H / 2, W / 2)
    grey = F.avg_pool2d(frames.mean(-1), 2)
    width = grey.shape[2]
    texture = grey[free > 0].std(correction=0) if free.any() else torch.tensor(0.0)
    u = torch.arange(num_frames) / (num_frames - 1)
    position = torch.arange(width) + torch.tensor(shifts)[:, None, None] * (u[:, None] - 0.5) * width  # (D, F, W)
    left = position.floor().long()
    inside = ((left >= 0) & (left < width - 1)).float()
    fraction = (position - left)[:, :, None]
    errors = []
    for index, weight, known in zip(left.clamp(0, width - 2), fraction, inside, strict=True):
        index = index[:, None].expand(-1, grey.shape[1], -1)
        moved = grey.gather(2, index).lerp(grey.gather(2, index + 1), weight)  # (F, H / 2, W / 2)
        valid = free.gather(2, index) * free.gather(2, index + 1) * known[:, None]
        count = valid.sum(0)
        mean = (moved * valid).sum(0) / count.clamp(min=1)
        variance = ((moved - mean).square() * valid).sum() / (count - 1).clamp(min=0).sum().clamp(min=1)
        errors.append(num_frames * variance / BACKGROUND_SIGMA**2)
    unseen = (torch.tensor(shifts) != 0) & (texture < MIN_TEXTURE)
    return torch.stack(errors).masked_fill(unseen, math.inf)
