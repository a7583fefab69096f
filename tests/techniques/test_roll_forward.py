"""Clips from given first and last frames: the arithmetic of rolling, in a world where it is exact, and the descent."""

import pytest
import torch

from cmd_video.models import CMDAutoencoder, CMDWarpAutoencoder
from cmd_video.techniques.roll_forward import Settings, anchor, roll

WEIGHTS = [0.02, 0.03, 0.9, 0.05]
SPEED = 3.0


class Line:
    """Pictures are numbers, and every clip rises by SPEED from frame to frame through its content frame."""

    def __init__(self, weights: list[float]) -> None:
        self.weights, self.lengths, self.shown = weights, [], []

    def draw(
        self, content_frame: torch.Tensor, frames: int, steps: int | None, shown: int | None = None, given=None
    ) -> torch.Tensor:
        self.lengths.append(frames)
        self.shown.append(shown)
        return torch.zeros(len(content_frame), 1, frames, 2)

    def decode(self, content_frame: torch.Tensor, motion_latents: torch.Tensor, frames: list[int]) -> torch.Tensor:
        place = anchor(self.weights, motion_latents.shape[2])
        return torch.stack([content_frame + SPEED * (number - place) for number in frames], dim=2)

    def frames(self, given: dict[int, float], count: int, patch: int = 2) -> torch.Tensor:
        pictures = {number: torch.full((1, 1, 1, 1), value) for number, value in given.items()}
        made = Settings(refine_steps=0).frames(pictures, count, self.weights, patch, self.draw, self.decode)
        return self.decode(*made, list(range(count))).flatten()


@pytest.mark.parametrize("weights", [WEIGHTS, [0.9, 0.1, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9]])
@pytest.mark.parametrize("count", [4, 6, 16])
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("end", ["first", "last"])
def test_where_motion_goes_on_the_given_frame_is_met_exactly(weights, count, patch, end):
    line = Line(weights)
    number = 0 if end == "first" else count - 1
    if number and anchor(weights, count) == 0:
        with pytest.raises(ValueError, match="before the content frame"):
            line.frames({number: 7.0}, count, patch)
        return
    clip = line.frames({number: 7.0}, count, patch)
    assert clip[number] == 7.0
    torch.testing.assert_close(clip, 7.0 + SPEED * (torch.arange(count) - number))
    assert all(length >= count and (length - count) % patch == 0 for length in line.lengths)


def test_a_picture_at_the_anchor_needs_no_rolling():
    line, settings = Line(WEIGHTS), Settings(refine_steps=0)
    clip = line.frames({2: 5.0}, 4)
    assert clip[2] == 5.0
    assert line.lengths == [4]
    assert settings.passes([2], 4, WEIGHTS) == (None,)
    assert settings.passes([0], 4, WEIGHTS) == settings.passes([0, 3], 4, WEIGHTS) == (5, None)


def test_of_two_pictures_the_one_nearer_to_the_anchor_is_rolled():
    line = Line(WEIGHTS)  # the anchor is 2, the last frame 1 away, the first 2
    clip = line.frames({0: 100.0, 3: 7.0}, 4)
    assert clip[3] == 7.0
    assert line.shown == [3, None]  # a longer clip whose content frame is the last of what is asked for, then that


def test_the_anchor_scales_with_the_length():
    assert [anchor(WEIGHTS, frames) for frames in (1, 2, 4, 6, 16)] == [0, 1, 2, 3, 8]


def test_rolling_by_nothing_is_the_picture_itself():
    picture, line = torch.rand(2, 3, 4, 4), Line(WEIGHTS)
    assert roll(picture, 0, 4, WEIGHTS, 2, None, line.draw, line.decode) is picture


@pytest.fixture(params=[CMDAutoencoder, CMDWarpAutoencoder])
def decode(request):
    """A small decoder that shows what it is told."""
    torch.manual_seed(0)
    extra = {"head_channels": 8, "base": "layers"} if request.param is CMDWarpAutoencoder else {}
    model = request.param(in_channels=3, sample_size=(8, 8), num_frames=4, dim=16, encoder_depth=1, decoder_depth=1,
                          num_heads=2, latent_channels=4, **extra).eval()  # fmt: skip
    for value in model.parameters():
        if not value.detach().any():
            torch.nn.init.normal_(value, std=0.2)
    return lambda content, motion, frames=None: model.decode(content, motion, frames=frames).sample


def noise(batch: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + n)) for n in range(batch)])


def test_chosen_frames_are_those_of_the_whole_clip(decode):
    content, motion = noise(2, 3, 8, 8), noise(2, 4, 4, 8)
    whole = decode(content, motion)
    for frames in ([0], [3, 1], [0, 1, 2, 3]):
        torch.testing.assert_close(decode(content, motion, frames), whole[:, :, frames], rtol=0, atol=1e-5)


@pytest.mark.parametrize("numbers", [[0], [3], [0, 3]])
def test_refining_comes_nearer_to_the_given_frames(decode, numbers):
    given = {number: noise(2, 3, 8, 8, seed=9 + number) for number in numbers}
    begun = noise(2, 3, 8, 8), noise(2, 4, 4, 8)
    misfits = []
    for steps in (0, 5, 20):
        made = Settings(refine_steps=steps).refine(given, *begun, decode)
        shown = decode(*made, numbers)
        misfits.append(float((shown.detach() - torch.stack([*given.values()], dim=2)).square().mean()))
        assert torch.equal(made[0], begun[0]) == (steps == 0 or len(numbers) == 1)  # one frame moves motion alone
        assert not any(value.requires_grad for value in made)
    assert misfits[0] > misfits[1] > misfits[2]


def test_a_batch_is_refined_as_its_clips_alone(decode):
    given = {0: noise(3, 3, 8, 8, seed=9), 3: noise(3, 3, 8, 8, seed=20)}
    begun = noise(3, 3, 8, 8), noise(3, 4, 4, 8)
    settings = Settings(refine_steps=5)
    batch = settings.refine(given, *begun, decode)
    for number in range(3):
        one = slice(number, number + 1)
        alone = settings.refine({n: x[one] for n, x in given.items()}, *(x[one] for x in begun), decode)
        for whole, single in zip(batch, alone, strict=True):
            torch.testing.assert_close(whole[one], single, rtol=0, atol=1e-4)


def test_what_is_met_already_stays(decode):
    begun = noise(1, 3, 8, 8), noise(1, 4, 4, 8)
    shown = decode(*begun, [0, 3]).detach()
    made = Settings(refine_steps=3).refine({0: shown[:, :, 0], 3: shown[:, :, 1]}, *begun, decode)
    for value, before in zip(made, begun, strict=True):
        torch.testing.assert_close(value, before, rtol=0, atol=1e-6)
