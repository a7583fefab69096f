"""Moving pixels by a flow, and pixels folded into channels."""

import pytest
import torch
from torch.nn import functional

from cmd_video.models import AutoencoderPixelUnshuffle
from cmd_video.models.autoencoder_cmd import warp


def picture(height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def constant_flow(dx: list[int], dy: list[int], height: int, width: int, fold: int) -> torch.Tensor:
    """(2, 2 fold^2, F, H / fold, W / fold): whole pixels per frame, in the unit of `warp`."""
    flow = torch.zeros(2, 2, fold**2, len(dx), height // fold, width // fold)
    for frame, (x, y) in enumerate(zip(dx, dy, strict=True)):
        flow[:, 0, :, frame], flow[:, 1, :, frame] = 2 * x / width, 2 * y / height
    return flow.flatten(1, 2)


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_zero_flow_is_the_identity(fold):
    content_frame = functional.pixel_unshuffle(picture(8, 16), fold)
    moved = warp(content_frame, torch.zeros(2, 2 * fold**2, 3, 8 // fold, 16 // fold), fold)
    assert moved.shape == (2, 3 * fold**2, 3, 8 // fold, 16 // fold)
    torch.testing.assert_close(moved, content_frame[:, :, None].expand_as(moved), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fold", [1, 4])
def test_a_known_shift_moves_pixels(fold):
    pixels = picture(8, 16)
    dx, dy = [0, 3, -2, 0], [0, 0, 1, -5]
    moved = warp(functional.pixel_unshuffle(pixels, fold), constant_flow(dx, dy, 8, 16, fold), fold)
    for frame, (x, y) in enumerate(zip(dx, dy, strict=True)):
        rows = (torch.arange(8) + y).clamp(0, 7)  # from outside the frame: its edge
        columns = (torch.arange(16) + x).clamp(0, 15)
        expected = pixels[:, :, rows][..., columns]
        found = functional.pixel_shuffle(moved[:, :, frame], fold)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fold", [1, 4])
def test_each_pixel_has_its_own_flow(fold):
    pixels, flow = picture(8, 16), torch.zeros(2, 2, 1, 8, 16)
    flow[0, 0, 0, 5, 6] = 2 * 3 / 16  # one pixel of the first sample takes the colour three to its right
    folded = functional.pixel_unshuffle(flow[:, :, 0], fold)[:, :, None]
    moved = functional.pixel_shuffle(warp(functional.pixel_unshuffle(pixels, fold), folded, fold)[:, :, 0], fold)
    expected = pixels.clone()
    expected[0, :, 5, 6] = pixels[0, :, 5, 9]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_does_not_move_the_pixels_of_a_wide_frame():
    """Positions need more than bfloat16's eight bits from 512 pixels on."""
    content_frame = picture(4, 1024, torch.bfloat16)
    moved = warp(content_frame, torch.zeros(2, 2, 1, 4, 1024, dtype=torch.bfloat16), 1)
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved[:, :, 0], content_frame, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_loses_nothing(patch):
    vae, images = AutoencoderPixelUnshuffle(patch_size=patch), picture(8, 12)
    latents = vae.encode(images).latents
    assert latents.shape == (2, 3 * patch**2, 8 // patch, 12 // patch)
    assert torch.equal(vae.decode(latents).sample, images)
    assert torch.equal(vae.encode(images, return_dict=False)[0], latents)
    assert torch.equal(vae.decode(latents, return_dict=False)[0], images)
    # a latent pixel holds the pixels of its own patch, colour by colour
    corner = images[:, :, patch : 2 * patch, :patch].flatten(1)
    assert torch.equal(latents[:, :, 1, 0], corner)


def test_a_fold_saved_and_loaded(tmp_path):
    vae = AutoencoderPixelUnshuffle(in_channels=1, patch_size=2, scaling_factor=1.5)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderPixelUnshuffle.from_pretrained(tmp_path)
    assert dict(loaded.config) | {"_name_or_path": ""} == dict(vae.config) | {"_name_or_path": ""}
    images = torch.rand(1, 1, 4, 4)
    assert torch.equal(loaded.encode(images).latents, vae.encode(images).latents)
    assert loaded.dtype == torch.float32 and loaded.device.type == "cpu"
