"""Sprites: deterministic, held-out combinations kept out, captions true, shares of two-object scenes as asked."""

import numpy as np
import pytest
import torch

from cmd_video.sprites.scenes import (
    MOTION_WORDS,
    SHAPE_WORDS,
    SIZES,
    SpritesDataset,
    is_held_out,
    object_states,
    render,
    sample_scene,
)


def test_an_item_is_a_function_of_its_number():
    first, again = SpritesDataset(20, 32, 32, 4), SpritesDataset(10, 32, 32, 4, start=10)
    for index in (0, 7):
        one, two = first[10 + index], again[index]
        assert torch.equal(one["video"], two["video"]) and one["prompt"] == two["prompt"]
    assert not torch.equal(first[0]["video"], SpritesDataset(20, 32, 32, 4, seed=1)[0]["video"])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_splits_never_meet(split):
    for index in range(300):
        for combination in sample_scene(index, split=split).combinations():
            assert is_held_out(*combination) == (split == "held_out")


@pytest.mark.parametrize("pairs", [0.0, 0.25, 0.7, 1.0])
def test_the_share_of_pairs_is_as_asked(pairs):
    dataset = SpritesDataset(500, pairs=pairs)
    found = np.mean([len(dataset.scene(index).objects) == 2 for index in range(500)])
    assert abs(found - pairs) <= 3 * (pairs * (1 - pairs) / 500) ** 0.5


def test_a_quarter_are_pairs_unless_told_otherwise():
    assert all(sample_scene(index) == sample_scene(index, pairs=0.25) for index in range(50))


def test_motions_come_as_often_as_asked():
    dataset = SpritesDataset(500, motion_weights={"orbit": 7, "rotate": 7})
    motions = [dataset.scene(index).motion for index in range(500)]
    for name, share in (("orbit", 7 / 28), ("rotate", 7 / 28), ("left", 1 / 28)):
        assert abs(motions.count(name) / 500 - share) <= 3 * (share * (1 - share) / 500) ** 0.5
    assert all(sample_scene(index) == sample_scene(index, motion_weights={}) for index in range(20))


def test_captions_name_what_is_there():
    for index in range(200):
        scene = sample_scene(index, pairs=0.5)
        for item in scene.objects:
            assert item.color in scene.prompt and any(word in scene.prompt for word in SHAPE_WORDS[item.shape])
        words = MOTION_WORDS[scene.motion][len(scene.objects) - 1]
        assert any(phrase in scene.prompt for phrase in words) or f"pans {scene.motion[4:]}" in scene.prompt


def test_objects_stay_inside_and_apart():
    for index in range(200):
        scene = sample_scene(index, pairs=0.5)
        states = object_states(scene, np.linspace(0, 1, 16))  # (objects, F, 4)
        assert ((states[..., :2] > 0) & (states[..., :2] < 1)).all()
        if len(scene.objects) == 2:
            gap = np.hypot(*(states[0, :, :2] - states[1, :, :2]).T).min()
            assert gap > 0.7 * sum(SIZES[item.size] for item in scene.objects)


def test_sizes_and_ranges():
    video = render(sample_scene(3), 5, 48, 96)
    assert video.shape == (3, 5, 48, 96) and video.min() >= -1 and video.max() <= 1
    picture = SpritesDataset(4, 32, 32, num_frames=1)[2]
    assert picture["video"].shape == (3, 1, 32, 32)
