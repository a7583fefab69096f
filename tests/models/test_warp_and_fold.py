"""Moving pixels by a flow, and pixels folded into channels."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cmd_video.models import AutoencoderPixelUnshuffle, CMDAutoencoder, CMDWarpAutoencoder
from cmd_video.models.autoencoder_warp import lay_over, warp


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


@pytest.mark.parametrize("fold", [1, 4])
def test_a_masked_layer_uncovers_the_background(fold):
    """A bright square moves over stripes: with its mask the stripes stay where they are, closed form."""
    stripes = torch.arange(16).remainder(2).float().expand(1, 3, 8, 16)
    covered, square = stripes.clone(), torch.zeros(1, 1, 8, 16)
    square[..., 2:5, 3:6] = 1
    covered = covered * (1 - square) + 5 * square  # what the content frame shows
    moved_square = square.roll(4, dims=3)
    expected = stripes * (1 - moved_square) + 5 * moved_square
    flow = constant_flow([-4], [0], 8, 16, fold)[:1]  # every pixel comes from four to its left
    folded, background, mask = (
        functional.pixel_unshuffle(each, fold)[:, :, None] for each in (covered, stripes, moved_square)
    )
    found = lay_over(warp(folded[:, :, 0], flow, fold), background, mask)[:, :, 0]
    torch.testing.assert_close(functional.pixel_shuffle(found, fold), expected, rtol=1e-4, atol=1e-4)


def test_layers_start_at_the_content_frame_and_every_part_learns():
    config = {"in_channels": 12, "sample_size": (8, 8), "dim": 24, "encoder_depth": 1, "decoder_depth": 1}
    config |= {"num_heads": 2, "latent_channels": 4, "head_channels": 16, "base": "layers", "fold": 2}
    torch.manual_seed(0)
    model = CMDWarpAutoencoder(**config)
    clip = torch.randn(2, 12, 4, 8, 8)
    content_frame, motion_latents = model.encode(clip, return_dict=False)
    start = model.decode(content_frame, motion_latents).sample
    torch.testing.assert_close(start, content_frame[:, :, None].expand_as(start), rtol=1e-4, atol=1e-4)
    for head in (model.head, model.background):
        torch.nn.init.normal_(head.conv_out.weight, std=0.1)
    (model(clip).sample - clip).square().mean().backward()
    for head in (model.head, model.background):  # residual, flow and mask; the painted background
        assert head.conv_out.weight.grad.flatten(1).any(dim=1).all()


def test_layers_need_a_head():
    with pytest.raises(ValueError, match="base: 'layers' is none of"):
        CMDWarpAutoencoder(base="layers")


def save_as_before(folder: Path, model: CMDAutoencoder) -> None:
    """As a version wrote it that had the fields of `CMDWarpAutoencoder` in `CMDAutoencoder`."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    fields = {**CMDWarpAutoencoder.additions, **config, "_class_name": "CMDAutoencoder"}
    (folder / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("recipe", ["paper", "sprites"])
def test_what_was_saved_before_there_was_a_subclass_loads(make_autoencoder, random_clip, tmp_path, caplog, recipe):
    model = make_autoencoder(recipe)
    save_as_before(tmp_path / "old", model)
    loaded = CMDAutoencoder.from_pretrained(tmp_path / "old")
    assert type(loaded) is type(model) and not caplog.records
    clip = random_clip(model.config.in_channels)
    assert torch.equal(loaded.eval()(clip).sample, model(clip).sample)
    loaded.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["_class_name"] == type(model).__name__
    assert torch.equal(type(model).from_pretrained(tmp_path / "new")(clip).sample, model(clip).sample)


def test_the_papers_autoencoder_has_no_field_of_the_small_models():
    with pytest.raises(TypeError, match="head_channels"):
        CMDAutoencoder(head_channels=8)


def test_a_fold_that_the_channels_are_no_grid_of():
    with pytest.raises(ValueError, match="in_channels: 12 is no grid of 4 x 4 pixels"):
        CMDWarpAutoencoder(in_channels=12, fold=4)
