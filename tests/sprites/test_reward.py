"""The reward of the demonstration: what is named and seen counts, what is not, or not named, counts against it."""

import pytest
import torch

from cmd_video.sprites.reward import build, objects_of, read_pictures
from cmd_video.sprites.scenes import SpritesDataset
from cmd_video.techniques.reward_particles import reward_named


@pytest.fixture(scope="module")
def scenes():
    """Scenes with one object and with two, and a frame of each."""
    dataset = SpritesDataset(40, num_frames=4, height=64, width=64, split="held_out")
    found = [dataset.scene(number) for number in range(40)]
    return [(scene, dataset[number]["video"][:, 0]) for number, scene in enumerate(found) if objects_of(scene.prompt)]


def test_objects_of_a_prompt():
    assert objects_of("a large red ball and a pink plus sign move up") == {"red": "circle", "pink": "cross"}
    assert objects_of("a clip of the sea") == {}


def test_true_pictures_are_worth_more_than_those_of_other_prompts(scenes):
    pictures = torch.stack([picture for _, picture in scenes])
    prompts = [scene.prompt for scene, _ in scenes]
    own = read_pictures(pictures, prompts)
    assert own.median() > 1.9 and own.max() <= 2
    others = read_pictures(pictures, prompts[1:] + prompts[:1])
    assert (own > others).float().mean() > 0.9


def test_nothing_to_see_is_worth_minus_one():
    assert read_pictures(torch.zeros(1, 3, 64, 64), ["a red circle moves up"]).item() == -1


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="reward: 'a clip of the sea' names no sprite"):
        read_pictures(torch.zeros(1, 3, 64, 64), ["a clip of the sea"])
    with pytest.raises(ValueError, match="reward: 'x', but the reader of sprites needs no file"):
        build("x")
    with pytest.raises(ValueError, match="reward: 'beauty' is none of sprites, clip"):
        reward_named("beauty")
    with pytest.raises(ValueError, match="reward: clip needs a folder or hub id"):
        reward_named("clip")
    assert reward_named("sprites") is read_pictures
