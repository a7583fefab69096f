"""What `make demo` shows is what its prompts say: read off the clips by the reader of sprites."""

from pathlib import Path

import pytest
import torch

from cmd_video import CMDPipeline
from cmd_video.sprites.reader import read_scene

PROMPTS = (Path(__file__).parents[2] / "examples" / "demo_prompts.txt").read_text().splitlines()
SAID = {
    "a red circle moves to the right": ("red", "circle", "right"),
    "a green star moves up and to the left": ("green", "star", "up-left"),
    "a blue heart grows": ("blue", "heart", "grow"),
    "a yellow square bounces up and down": ("yellow", "square", "bounce"),
}


@pytest.fixture(scope="module")
def pipe():
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_demo_has_four_prompts():
    assert list(SAID) == PROMPTS


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_demo_clip_shows_its_prompt_and_moves(number, pipe):
    draw = torch.Generator().manual_seed(number)  # as `cmd-video generate` does
    frames = pipe(PROMPTS[number], generator=draw, output_type="pt").frames[0]  # (F, 3, H, W) in [0, 1]
    reading = read_scene(frames.transpose(0, 1) * 2 - 1)
    color, shape, motion = SAID[PROMPTS[number]]
    assert [(item.color, item.shape) for item in reading.objects] == [(color, shape)]
    assert reading.motion == motion
    change = (frames[1:] - frames[:-1]).abs().mean() * 255
    assert change > 0.8  # levels of 255 between neighbouring frames; a clip that stands still has 0.2
