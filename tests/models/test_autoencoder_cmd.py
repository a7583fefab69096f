"""The autoencoder against equations 3 to 6: weights, content frame, planes, sizes, the fields that differ."""

import pytest
import torch

from cmd_video.models import CMDWarpAutoencoder

ALL = ("paper", "sprites", "pixels")


@pytest.mark.parametrize("recipe", ALL)
def test_weights_sum_to_one_over_frames_for_each_pixel_and_channel(make_autoencoder, random_clip, recipe):
    autoencoder = make_autoencoder(recipe)
    clip = random_clip(autoencoder.config.in_channels)
    weights = autoencoder.content_weights(clip)
    assert weights.shape == clip.shape and (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones_like(clip[:, :, 0]))
    for axis in range(5):
        assert weights.std(dim=axis).max() > 1e-4, f"the weights do not depend on axis {axis}"


@pytest.mark.parametrize("recipe", ALL)
def test_the_content_frame_is_the_weighted_sum(make_autoencoder, random_clip, recipe):
    autoencoder = make_autoencoder(recipe)
    clip = random_clip(autoencoder.config.in_channels)
    expected = torch.einsum("bcfhw,bcfhw->bchw", clip, autoencoder.content_weights(clip))
    torch.testing.assert_close(autoencoder.encode(clip).content_frame, expected)


@pytest.mark.parametrize("recipe", ALL)
def test_the_content_frame_stays_between_the_frames(make_autoencoder, random_clip, recipe):
    autoencoder = make_autoencoder(recipe)
    clip = 5 * random_clip(autoencoder.config.in_channels, frames=5)
    content_frame = autoencoder.encode(clip).content_frame
    assert (content_frame >= clip.amin(dim=2) - 1e-5).all() and (content_frame <= clip.amax(dim=2) + 1e-5).all()
    assert all((content_frame - frame).abs().max() > 1e-3 for frame in (*clip.unbind(2), clip.mean(dim=2)))


@pytest.mark.parametrize("recipe", ALL)
def test_the_content_frame_of_a_static_clip_is_its_frame(make_autoencoder, random_clip, recipe):
    autoencoder = make_autoencoder(recipe)
    frame = random_clip(autoencoder.config.in_channels, frames=1)
    content_frame = autoencoder.encode(frame.expand(-1, -1, 6, -1, -1)).content_frame
    torch.testing.assert_close(content_frame, frame[:, :, 0], rtol=1e-5, atol=1e-6)


def test_the_mean_switch_is_the_plain_mean_and_matters(make_autoencoder, random_clip):
    clip, weighted = random_clip(), make_autoencoder()
    mean = make_autoencoder(content_frame="mean")
    mean.load_state_dict(
        {name: value for name, value in weighted.state_dict().items() if not name.startswith("content_logits")}
    )
    assert torch.equal(mean.encode(clip).content_frame, clip.mean(dim=2))
    assert torch.equal(mean.content_weights(clip), torch.full_like(clip, 1 / 4))
    assert torch.equal(mean.encode(clip).motion_latents, weighted.encode(clip).motion_latents)
    assert (mean(clip).sample - weighted(clip).sample).abs().max() > 1e-4


def test_the_anchor_bias_prefers_the_middle_frame(make_autoencoder, random_clip):
    clip = random_clip(frames=5)
    plain, anchored = (make_autoencoder(anchor_bias=bias).content_weights(clip) for bias in (0.0, 8.0))
    assert (anchored[:, :, 2] > 0.95).all() and (plain[:, :, 2] < 0.95).all()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(
        anchored[:, :, others] / anchored[:, :, others].sum(2, keepdim=True),
        plain[:, :, others] / plain[:, :, others].sum(2, keepdim=True),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 0), (0, 9), (4, 7)])
def test_an_object_lights_its_row_in_z_x_and_its_column_in_z_y(make_autoencoder, random_clip, row, column):
    """Without transformer blocks a place sees its own patches only, so where the object shows is exact."""
    autoencoder = make_autoencoder(encoder_depth=0)
    empty = random_clip(3, 4, 6, 10)
    clip = empty.clone()
    clip[:, :, 2, row, column] += 1
    change = (autoencoder.encode(clip).motion_latents - autoencoder.encode(empty).motion_latents).abs()
    assert change.shape == (2, 4, 4, 3 + 5)
    assert (change.amax(dim=(0, 1)) > 1e-5).nonzero().tolist() == [[2, row // 2], [2, 3 + column // 2]]


@pytest.mark.parametrize("place", range(8))
def test_z_x_reaches_rows_and_z_y_columns(make_autoencoder, random_clip, place):
    autoencoder = make_autoencoder(decoder_depth=0)
    content_frame, motion_latents = autoencoder.encode(random_clip(3, 4, 6, 10), return_dict=False)
    changed = motion_latents.clone()
    changed[:, :, 1, place] += 1
    change = (
        autoencoder.decode(content_frame, changed).sample - autoencoder.decode(content_frame, motion_latents).sample
    )
    expected = torch.zeros(4, 6, 10, dtype=torch.bool)
    if place < 3:
        expected[1, 2 * place : 2 * place + 2] = True
    else:
        expected[1, :, 2 * (place - 3) : 2 * (place - 3) + 2] = True
    assert torch.equal(change.abs().amax(dim=(0, 1)) > 1e-6, expected)


def test_the_planes_have_their_own_layers(make_autoencoder, random_clip):
    """A clip and its transpose: with one layer for both planes and no blocks, the planes would just change places."""
    autoencoder, clip = make_autoencoder(encoder_depth=0), random_clip(3, 4, 8, 8)
    z_x, z_y = autoencoder.encode(clip).motion_latents.split([4, 4], dim=3)
    shared = autoencoder.motion_out_x(autoencoder.encode_tokens(clip)[0].mean(dim=3)).tanh()
    assert z_x.shape == z_y.shape and (z_y - shared).abs().max() > 1e-3


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize(
    ("frames", "height", "width", "patch"), [(1, 2, 2, 2), (3, 4, 10, 2), (5, 6, 2, 2), (7, 12, 4, 4), (2, 3, 5, 1)]
)
def test_any_size_that_the_patch_divides(make_autoencoder, random_clip, recipe, frames, height, width, patch):
    autoencoder = make_autoencoder(recipe, patch_size=patch)
    clip = random_clip(autoencoder.config.in_channels, frames, height, width)
    encoded = autoencoder.encode(clip)
    assert encoded.content_frame.shape == (*clip.shape[:2], height, width)
    assert encoded.motion_latents.shape == (2, 4, frames, height // patch + width // patch)
    assert encoded.motion_latents.abs().max() < 1
    sample = autoencoder.decode(encoded.content_frame, encoded.motion_latents).sample
    assert sample.shape == clip.shape and sample.isfinite().all()
    assert torch.equal(autoencoder(clip).sample, sample)
    assert torch.equal(autoencoder(clip, return_dict=False)[0], sample)


@pytest.mark.parametrize(
    ("height", "width", "patch", "words"),
    [
        (7, 8, 4, "height: 7 .* patch size 4; nearest is 8"),
        (8, 5, 4, "width: 5 .* patch size 4; nearest is 4"),
        (1, 8, 4, "height: 1 .* nearest is 4"),
        (8, 9, 2, "width: 9 .* nearest is 8"),
        (3, 3, 2, "height: 3 .* nearest is 4"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "content_weights", "forward"])
def test_a_size_that_the_patch_does_not_divide(make_autoencoder, random_clip, height, width, patch, words, method):
    autoencoder = make_autoencoder(patch_size=patch)
    with pytest.raises(ValueError, match=words):
        getattr(autoencoder, method)(random_clip(3, 2, height, width))


@pytest.mark.parametrize("shape", [(1, 4, 2, 8, 8), (1, 2, 3, 8, 8), (3, 2, 8, 8)])
def test_wrong_channels_or_dimensions(make_autoencoder, shape):
    with pytest.raises(ValueError, match=r"video: shape .* is not \(B, 3, F, H, W\)"):
        make_autoencoder().encode(torch.zeros(shape))


@pytest.mark.parametrize("width", [0, 3, 7, 9, 16])
def test_decode_refuses_motion_latents_of_another_width(make_autoencoder, width):
    with pytest.raises(ValueError, match=rf"motion_latents: width {width} is not H' \+ W' = 3 \+ 5"):
        make_autoencoder().decode(torch.zeros(1, 3, 6, 10), torch.zeros(1, 4, 2, width))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 20}, "dim: 20"),
        ({"num_heads": 3}, "dim: 16 is not divisible by 4 [*] num_heads = 12"),
        ({"content_frame": "middle"}, "content_frame: 'middle'"),
        ({"output_activation": "tanh"}, "output_activation: 'tanh'"),
        ({"base": "flow"}, "base: 'flow'"),
        ({"base": "warp"}, "base: 'warp'.*head_channels"),
    ],
)
def test_a_configuration_that_does_not_fit(make_autoencoder, changes, words):
    with pytest.raises(ValueError, match=words):
        make_autoencoder(**changes)


def test_every_frame_is_decoded_from_its_own_motion_latents(make_autoencoder, random_clip):
    autoencoder = make_autoencoder(decoder_depth=0)
    content_frame, motion_latents = autoencoder.encode(random_clip(), return_dict=False)
    order = [2, 0, 3, 1]
    permuted = autoencoder.decode(content_frame, motion_latents[:, :, order]).sample
    torch.testing.assert_close(permuted, autoencoder.decode(content_frame, motion_latents).sample[:, :, order])


def test_sigmoid_keeps_the_output_in_range(make_autoencoder, random_clip):
    for activation, inside in (("sigmoid", True), ("linear", False)):
        autoencoder = make_autoencoder(output_activation=activation)
        autoencoder.unpatch.bias.fill_(3.0)
        assert bool(autoencoder(random_clip()).sample.abs().max() < 1) is inside


@pytest.mark.parametrize("base", ["content", "warp"])
def test_with_a_base_a_fresh_decoder_returns_the_content_frame(random_clip, base):
    torch.manual_seed(0)
    autoencoder = CMDWarpAutoencoder(
        in_channels=12, dim=16, num_heads=2, encoder_depth=1, decoder_depth=1, head_channels=8, base=base, fold=2
    )
    content_frame = random_clip(12)[:, :, 0]
    sample = autoencoder.decode(content_frame, torch.randn(2, 8, 3, 4 + 6)).sample
    torch.testing.assert_close(sample, content_frame[:, :, None].expand(-1, -1, 3, -1, -1), rtol=1e-4, atol=1e-5)


def test_folded_pixels_share_smooth_weights(make_autoencoder, random_clip):
    """The weights of a folded grid are one picture of three channels, twice as large and without steps."""
    weights = make_autoencoder("sprites", anchor_bias=0.0).content_weights(random_clip(12, 2, 8, 12))[:, :, 0]
    logits = torch.nn.functional.pixel_shuffle(weights, 2).logit()  # of the first of two frames: (B, 3, 16, 24)
    assert logits.shape == (2, 3, 16, 24) and logits.std() > 0.01
    for axis in (2, 3):  # a pair of fine values gives the two coarse ones around it, which the next pair gives too
        pairs = logits.movedim(axis, -1)[..., 1:-1].unflatten(-1, (-1, 2))
        before, after = (3 * pairs[..., 0] - pairs[..., 1]) / 2, (3 * pairs[..., 1] - pairs[..., 0]) / 2
        torch.testing.assert_close(before[..., 1:], after[..., :-1], rtol=1e-3, atol=1e-4)


def test_normalisation_has_an_inverse_and_uses_the_statistics(make_autoencoder):
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 0.1, 1.0]
    autoencoder = make_autoencoder(latents_mean=mean, latents_std=std)
    latents = torch.rand(2, 4, 3, 8)
    normal = autoencoder.normalize_latents(latents)
    for channel in range(4):
        torch.testing.assert_close(normal[:, channel], (latents[:, channel] - mean[channel]) / std[channel])
    torch.testing.assert_close(autoencoder.denormalize_latents(normal), latents)
    assert torch.equal(make_autoencoder().normalize_latents(latents), latents)
