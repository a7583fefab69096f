"""Value ranges and sizes."""

import numpy as np
import pytest
import torch

from cmd_video.data.transforms import flip_horizontal, resize_and_crop_frame, to_float, to_uint8


def test_every_level_survives_the_way_there_and_back():
    frames = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16, 1).repeat(1, 1, 1, 3)
    video = to_float(frames)
    assert video.shape == (3, 2, 8, 16) and video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(to_uint8(video), frames)
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


SIZES = [((40, 60), (20, 30)), ((40, 60), (20, 20)), ((60, 40), (20, 20)), ((10, 10), (33, 17)), ((47, 63), (64, 64))]
SIZES += [((1, 100), (8, 8)), ((64, 64), (64, 64)), ((719, 1281), (64, 64))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resize_covers_and_keeps_a_flat_colour(before, after):
    frames = torch.full((2, *before, 3), 77, dtype=torch.uint8)
    out = torch.stack([resize_and_crop_frame(frame, after) for frame in frames])
    assert out.shape == (2, *after, 3) and out.dtype == torch.uint8 and bool((out == 77).all())


def test_the_middle_is_kept_and_shapes_stay():
    rows, columns = np.mgrid[:80, :160]
    disc = ((rows - 39.5) ** 2 + (columns - 79.5) ** 2 < 30**2) * 255
    frames = torch.from_numpy(disc.astype(np.uint8))[None, :, :, None].repeat(1, 1, 1, 3)
    out = resize_and_crop_frame(frames[0], (40, 40))[:, :, 0].float()
    assert torch.allclose(out, out.T, atol=2) and torch.allclose(out, out.flip(0), atol=2)
    assert out.mean() / 255 == pytest.approx(torch.pi * 15**2 / 40**2, rel=0.02)


def test_flipping_twice_is_nothing():
    frames = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    assert torch.equal(flip_horizontal(frames)[:, :, 0], frames[:, :, -1])
    assert torch.equal(flip_horizontal(flip_horizontal(frames)), frames)
