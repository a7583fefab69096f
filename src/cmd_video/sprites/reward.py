"""A reward for searches: how well a picture shows the objects that its prompt names, and no others, by the reader.

reward = build();  pipe(prompt, sampling=..., reward=reward)

Whoever searches by the reader must judge the clips by something else, such as the classifiers of sprites. K pictures.
"""

import re

import torch

from .reader import MIN_FRAMES, UNCLEAR, read_scene
from .words import COLORS, SHAPE_WORDS

SHAPE_OF = {word: shape for shape, words in SHAPE_WORDS.items() for word in words}
OBJECT = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPE_OF)})\b")


def objects_of(prompt: str) -> dict[str, str]:
    """Color to shape of the objects that a prompt names; without any it is no prompt of sprites."""
    return {color: SHAPE_OF[word] for color, word in OBJECT.findall(prompt)}


def read_pictures(pictures: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """How well pictures show what their prompts name: (K,).

    1 for each object named that is there, and up to 1 more by how well its shape fits, or less by how well another
    does; -1 for each that is not there, and for each color that was not named; over the number of objects named.

    Args:
        pictures: (K, 3, H, W) in [-1, 1], sides of at least 32 pixels.
        prompts: their K prompts.

    Raises:
        ValueError: a prompt names no object.
    """
    rewards = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        named = objects_of(prompt)
        if not named:
            raise ValueError(f"reward: {prompt!r} names no sprite, such as 'a red circle'")
        still = picture[:, None].expand(-1, MIN_FRAMES, -1, -1)  # (3, F, H, W)
        found = {item.color: item for item in read_scene(still).objects}
        reward = -float(len(found.keys() - named.keys()))
        for color, shape in named.items():
            item = found.get(color)
            if item is None:
                reward -= 1
            else:
                fit = 0.0 if item.shape == UNCLEAR else item.shape_score if item.shape == shape else -item.shape_score
                reward += 1 + fit
        rewards.append(reward / len(named))
    return torch.tensor(rewards)


def build(path: str | None = None, device: str = "cpu") -> object:
    """The reward; it has no path, and reads on the CPU wherever the pictures are."""
    if path:
        raise ValueError(f"reward: {path!r}, but the reader of sprites needs no file")
    return read_pictures
