"""The reader against the truth: it must be right on true clips, still right on worn ones, and never lenient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cmd_video.sprites.reader import UNCLEAR, read_scene, score_adherence
from cmd_video.sprites.scenes import COLORS, SHAPES, Split, SpriteScene, render, sample_scene

SEED = 1234  # a world of scenes that the reader's constants were not chosen on


def draw(scene: SpriteScene, side: int = 64) -> torch.Tensor:
    return render(scene, 16, side, side)


def scenes_of(count: int, motion: str | None = None, num_objects: int | None = None) -> list[SpriteScene]:
    found, index = [], 0
    while len(found) < count:
        scene = sample_scene(index, SEED)
        if motion in (None, scene.motion) and num_objects in (None, len(scene.objects)):
            found.append(scene)
        index += 1
    return found


def worn(video: torch.Tensor, seed: int) -> torch.Tensor:
    """Blur of 0.7 pixels, noise of 0.03, jitter of 0.7 pixels, a color shift of up to 15/255, flickering size."""
    channels, num_frames, height, width = video.shape
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(num_frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + 0.02 * torch.randn(num_frames, generator=generator)
    theta[:, :, 2] = 0.7 * torch.randn(num_frames, 2, generator=generator) * 2 / width
    grid = F.affine_grid(theta, [num_frames, channels, height, width], align_corners=False)
    frames = F.grid_sample(video.movedim(1, 0), grid, padding_mode="border", align_corners=False)
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / 0.7) ** 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    frames = F.conv2d(F.pad(frames, (3, 3, 3, 3), mode="replicate"), kernel.expand(3, 1, 7, 7), groups=3)
    frames = frames + (torch.rand(3, 1, 1, generator=generator) * 2 - 1) * 2 * 15 / 255
    return (frames + 0.06 * torch.randn(frames.shape, generator=generator)).clamp(-1, 1).movedim(0, 1)


def rates(scenes: list[SpriteScene], videos: list[torch.Tensor]) -> dict[str, float]:
    scores = [score_adherence(scene, read_scene(video)) for scene, video in zip(scenes, videos, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


@pytest.mark.parametrize(("split", "side"), [("train", 64), ("held_out", 64), ("train", 128), ("held_out", 96)])
def test_true_clips_are_read_right(split: Split, side: int) -> None:
    scenes = [sample_scene(index, SEED, split) for index in range(110 if side == 64 else 30)]
    assert min(rates(scenes, [draw(scene, side) for scene in scenes]).values()) >= 0.99


def test_other_aspect_and_length() -> None:
    scenes = [sample_scene(index, SEED) for index in range(30)]
    assert min(rates(scenes, [render(scene, 24, 64, 112) for scene in scenes]).values()) >= 0.96


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_worn_clips_are_read_right(split: Split) -> None:
    scenes = [sample_scene(index, SEED, split) for index in range(60)]
    videos = [worn(draw(scene), number) for number, scene in enumerate(scenes)]
    assert min(rates(scenes, videos).values()) >= 0.96


def test_other_scenes_agree_only_by_chance() -> None:
    scenes = [sample_scene(index, SEED) for index in range(60)]
    readings = [read_scene(draw(scene)) for scene in scenes]
    for a, scene in enumerate(scenes):
        for b, reading in enumerate(readings):
            score, other = score_adherence(scene, reading), scenes[b]
            shown = {(item.color, item.shape) for item in other.objects}
            assert score["motion"] == (scene.motion == other.motion), (a, b)
            assert score["color"] == ({i.color for i in scene.objects} == {i.color for i in other.objects}), (a, b)
            assert score["shape"] == all((i.color, i.shape) in shown for i in scene.objects), (a, b)


@pytest.mark.parametrize("motion", ["left", "up-right", "bounce", "orbit", "rotate", "grow", "pan-left"])
def test_a_frozen_clip_is_still(motion: str) -> None:
    for scene in scenes_of(4, motion):
        assert read_scene(draw(scene)[:, 8:9].repeat(1, 16, 1, 1)).motion == "still"


@pytest.mark.parametrize(
    ("motion", "reversed_motion"),
    [
        ("left", "right"),
        ("down", "up"),
        ("up-left", "down-right"),
        ("grow", "shrink"),
        ("shrink", "grow"),
        ("pan-left", "pan-right"),
        ("bounce", "bounce"),
        ("still", "still"),
    ],
)
def test_a_reversed_clip_shows_the_reverse(motion: str, reversed_motion: str) -> None:
    for scene in scenes_of(4, motion):
        assert read_scene(draw(scene).flip(1)).motion == reversed_motion


def test_shuffled_frames_show_no_motion() -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for motion in ("left", "orbit", "bounce", "grow", "pan-right"):
        for scene in scenes_of(3, motion):
            assert read_scene(draw(scene)[:, order]).motion == UNCLEAR


@pytest.mark.parametrize("color", COLORS)
def test_a_recolored_clip_shows_the_new_color(color: str) -> None:
    for scene in scenes_of(2, num_objects=1):
        (item,) = scene.objects
        recolored = replace(scene, objects=(replace(item, color=color),))
        reading = read_scene(draw(recolored))
        assert [found.color for found in reading.objects] == [color]
        assert score_adherence(scene, reading)["color"] == (item.color == color)


def test_an_object_that_changes_or_vanishes_is_wrong() -> None:
    for scene in scenes_of(10, num_objects=1):
        (item,) = scene.objects
        video = draw(scene)
        changes = {
            "color": replace(item, color="red" if item.color != "red" else "blue"),
            "shape": replace(item, shape=SHAPES[(SHAPES.index(item.shape) + 4) % len(SHAPES)]),
        }
        for name, changed in changes.items():
            half = torch.cat([video[:, :8], draw(replace(scene, objects=(changed,)))[:, 8:]], dim=1)
            assert not score_adherence(scene, read_scene(half))[name]
        if scene.motion != "orbit":  # an orbit would come back into the frame
            empty = draw(replace(scene, objects=(replace(item, x=-5.0),)))
            gone = torch.cat([video[:, :10], empty[:, 10:]], dim=1)
            score = score_adherence(scene, read_scene(gone))
            assert not score["color"] and not score["shape"]
            twin = draw(replace(scene, objects=(item, replace(item, x=(item.x + 0.5) % 1, y=(item.y + 0.4) % 1))))
            assert not score_adherence(scene, read_scene(twin))["shape"]


def test_one_of_two_objects_is_not_enough() -> None:
    for scene in scenes_of(10, num_objects=2):
        reading = read_scene(draw(replace(scene, objects=scene.objects[:1])))
        score = score_adherence(scene, reading)
        assert not score["color"] and not score["shape"]
        extra = score_adherence(replace(scene, objects=scene.objects[:1]), read_scene(draw(scene)))
        assert not extra["color"] and extra["shape"]


def test_nothing_is_read_from_nothing() -> None:
    noise = torch.randn(3, 16, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for video in (torch.zeros(3, 16, 64, 64), noise):
        reading = read_scene(video)
        assert reading.motion == UNCLEAR and all(item.shape == UNCLEAR for item in reading.objects)
    for value in (-1.0, 0.0, 1.0):
        assert read_scene(torch.full((3, 16, 64, 64), value)).objects == ()


def test_the_clip_is_not_changed() -> None:
    video = draw(sample_scene(0, SEED))
    before = video.clone()
    read_scene(video)
    assert torch.equal(video, before)


@pytest.mark.parametrize("shape", [(16, 3, 64, 64), (3, 1, 64, 64), (3, 16, 16, 64), (1, 3, 16, 64, 64)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="video: expected"):
        read_scene(torch.zeros(shape))
