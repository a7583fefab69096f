"""Text features and the space of content frames, which training and the pipeline share."""

import pytest
import torch
from diffusers import AutoencoderKL

from cmd_video.denoisers import latent_space
from cmd_video.denoisers.latent_space import (
    decode_images,
    decode_video,
    encode_images,
    encode_video,
    spatial_ratio,
)
from cmd_video.denoisers.prompts import encode_prompts
from cmd_video.training.tokenizer import train_tokenizer


@pytest.fixture
def vae(request, make_text_pipeline):
    return make_text_pipeline(request.param).vae


KINDS = pytest.mark.parametrize("vae", [None, "unshuffle", "kl", "tiny"], indirect=True)


def images(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@KINDS
@torch.no_grad()
def test_the_ratio_is_the_real_one(vae):
    latents, ratio = encode_images(vae, images()), spatial_ratio(vae)
    assert latents.shape[2:] == (16 // ratio, 24 // ratio)
    assert decode_images(vae, latents).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("vae", [None, "unshuffle"], indirect=True)
def test_lossless_spaces_come_back(vae):
    torch.testing.assert_close(decode_images(vae, encode_images(vae, images())), images())


@pytest.mark.parametrize("vae", ["kl"], indirect=True)
@torch.no_grad()
def test_scale_and_shift_are_stable_diffusions(vae):
    """(latents - shift) * scale on the way in, latents / scale + shift on the way out; the mode, so no chance."""
    mode = vae.encode(images()).latent_dist.mode()
    latents = encode_images(vae, images())
    torch.testing.assert_close(latents, (mode - 0.1) * 0.18215)
    torch.testing.assert_close(decode_images(vae, latents), vae.decode(mode).sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("vae", ["unshuffle"], indirect=True)
def test_the_scale_of_folded_pixels(vae):
    torch.testing.assert_close(encode_images(vae, images()), 2 * torch.nn.functional.pixel_unshuffle(images(), 2))


@KINDS
@torch.no_grad()
def test_clips_go_frame_by_frame(vae):
    clip = images(6).view(2, 3, 3, 16, 24).transpose(1, 2)  # (B, 3, F, H, W)
    latents = encode_video(vae, clip)
    video = decode_video(vae, latents)
    assert video.shape == clip.shape
    for sample in range(2):
        for frame in range(3):
            expected = encode_images(vae, clip[sample : sample + 1, :, frame])[0]
            torch.testing.assert_close(latents[sample, :, frame], expected, rtol=1e-4, atol=1e-5)
            expected = decode_images(vae, latents[sample : sample + 1, :, frame])[0]
            torch.testing.assert_close(video[sample, :, frame], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vae", ["kl", "tiny"], indirect=True)
@torch.no_grad()
def test_images_are_encoded_in_slices(vae, monkeypatch):
    """However many they are, so many pixels at once; the numbers stay."""
    whole, sizes, encode = encode_images(vae, images(7)), [], vae.encode
    monkeypatch.setattr(latent_space, "MAX_PIXELS", 3 * 16 * 24)
    monkeypatch.setattr(vae, "encode", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    torch.testing.assert_close(encode_images(vae, images(7)), whole, rtol=0, atol=1e-6)
    assert sizes == [3, 3, 1]


def test_images_of_the_right_size_pass(make_image):
    from cmd_video.pipelines.pictures import check_pictures

    for name in ("image", "last_image", "content_frame"):
        check_pictures({name: [make_image(8, 12), torch.rand(3, 8, 12)]}, 8, 12, 4, [0.1, 0.9])
        with pytest.raises(ValueError, match=f"{name}: 8x12 .* the clip is 12x8"):
            check_pictures({name: [make_image(8, 12)]}, 12, 8, 4, [0.1, 0.9])


@torch.no_grad()
def test_pooled_text_is_the_mean_without_padding(tokenizer, make_text_encoder):
    encoder = make_text_encoder()
    prompts = ["a", "a red ball", ""]
    features = encode_prompts(tokenizer, encoder, prompts)
    assert features.hidden_states.shape == (3, 16, 16) and features.pooled.shape == (3, 16)
    assert features.truncated == [None] * 3
    for number, prompt in enumerate(prompts):
        length = len(tokenizer(prompt).input_ids)
        assert 2 <= length < 16
        torch.testing.assert_close(features.pooled[number], features.hidden_states[number, :length].mean(dim=0))
        alone = encode_prompts(tokenizer, encoder, [prompt])
        torch.testing.assert_close(alone.hidden_states[0], features.hidden_states[number], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_77_tokens_of_clip(make_text_encoder):
    clip_tokenizer = train_tokenizer(["a red ball", "a blue square"], vocab_size=530, model_max_length=77)
    words = [*"abcdefghijklmnopqrstuvwxyz"] * 4  # 104 tokens of one letter
    features = encode_prompts(clip_tokenizer, make_text_encoder(77), [" ".join(words), " ".join(words[:75]), "a"])
    assert features.hidden_states.shape == (3, 77, 16)
    assert features.truncated == [" ".join(words[75:]), None, None]
    torch.testing.assert_close(features.hidden_states[0], features.hidden_states[1])


# --- autoencoders that say how their latents lie ---------------------------------------------------------------------

SPACES = {
    "plain": {},
    "shifted": {"shift_factor": 0.3},
    "mean and deviation": {"latents_mean": [5.0, -1.0, 0.0, 2.0], "latents_std": [2.0, 0.5, 1.0, 4.0]},
    "mean alone": {"latents_mean": [5.0, -1.0, 0.0, 2.0]},
    "deviation alone": {"latents_std": [2.0, 0.5, 1.0, 4.0]},
    "shift and deviation": {"shift_factor": 0.3, "latents_std": [2.0, 0.5, 1.0, 4.0]},
}


def kl(**settings):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=4, **settings,
    ).eval()  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("space", SPACES)
def test_an_autoencoders_own_mean_and_deviation_are_taken(space):
    """(raw - mean) * scaling_factor / std, and back: Playground 2.5's, in diffusers' words."""
    vae, said = kl(**SPACES[space]), SPACES[space]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    raw = vae.encode(images).latent_dist.mode()
    mean = torch.tensor(said.get("latents_mean", [said.get("shift_factor", 0.0)] * 4)).view(4, 1, 1)
    std = torch.tensor(said.get("latents_std", [1.0] * 4)).view(4, 1, 1)
    latents = encode_images(vae, images)
    torch.testing.assert_close(latents, (raw - mean) * vae.config.scaling_factor / std)
    torch.testing.assert_close(decode_images(vae, latents), vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
    if not set(said) & {"latents_mean", "latents_std"}:
        assert torch.equal(latents, (raw - said.get("shift_factor", 0.0)) * vae.config.scaling_factor)


@pytest.mark.parametrize(
    "settings",
    [{"shift_factor": 0.1, "latents_mean": [0.0] * 4}, {"latents_mean": [0.0] * 3}, {"latents_std": [1.0] * 5}],
)
def test_what_an_autoencoder_says_twice_or_for_other_channels_is_refused(settings):
    with pytest.raises(ValueError, match="^vae: "):
        encode_images(kl(**settings), torch.zeros(1, 3, 16, 16))
