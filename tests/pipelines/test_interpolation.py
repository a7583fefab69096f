"""Frames between two given ones by a small Stable Video Diffusion of diffusers' own classes."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cmd_video.denoisers.latent_space import encode_images
from cmd_video.pipelines import interpolation
from cmd_video.pipelines.interpolation import interpolate_video
from cmd_video.pipelines.pictures import read_batch

SIZE = {"num_frames": 3, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def components():
    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), num_attention_heads=(2, 4), cross_attention_dim=16, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24, layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        patch_size=112, projection_dim=16,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        prediction_type="v_prediction",
    )  # fmt: skip
    return {
        "video_model": unet.eval(),
        "video_scheduler": scheduler,
        "vae": vae.eval(),
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "feature_extractor": None,
    }


def picture(seed, height=16, width=24):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_both_given_frames_are_in_the_latents(components, monkeypatch):
    found = []
    plain = interpolation.VideoDenoiser.pixels
    monkeypatch.setattr(
        interpolation.VideoDenoiser, "pixels", lambda self, x_0, told: found.append(x_0) or plain(self, x_0, told)
    )
    first, last = picture(0), picture(1)
    clips = interpolate_video(components, first, last, **SIZE, generator=seeds(0))
    assert clips.shape == (1, 3, 3, 16, 24)
    assert clips.isfinite().all() and clips.abs().max() <= 1
    for number, given in ((0, first), (-1, last)):
        with torch.no_grad():
            latents = encode_images(components["vae"], read_batch(given))
        torch.testing.assert_close(found[0][:, :, number], latents)
    assert found[0][:, :, 1:-1].std() > 0


def test_a_batch_is_its_clips_made_singly(components):
    pairs = [(picture(0), picture(1)), (picture(2), picture(3))]
    batch = interpolate_video(components, *map(list, zip(*pairs, strict=True)), **SIZE, generator=seeds(5, 6))
    for number, (first, last) in enumerate(pairs):
        alone = interpolate_video(components, first, last, **SIZE, generator=seeds(5 + number))
        torch.testing.assert_close(batch[number : number + 1], alone, atol=1e-3, rtol=1e-3)


def test_each_frame_and_the_scale_change_what_lies_between(components):
    plain = {"first": picture(0), "last": picture(1), "num_frames": 3, "num_inference_steps": 1}
    expected = interpolate_video(components, **plain, generator=seeds(0))
    for change in ({"first": picture(8)}, {"last": picture(8)}, {"guidance_scale": 0.0}, {"fps": 24}):
        found = interpolate_video(components, **{**plain, **change}, generator=seeds(0))
        assert not torch.equal(found[:, :, 1:-1], expected[:, :, 1:-1])


def test_a_network_is_asked_four_times_a_step(components):
    rows = []
    model = components["video_model"]
    handle = model.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    interpolate_video(components, picture(0), picture(1), num_frames=2, num_inference_steps=3)
    handle.remove()
    assert rows == [2, 2] * 3  # with and without the picture, forward and backward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": None}, "first: not given; frames lie between a first and a last one"),
        ({"last": None}, "last: not given"),
        ({"last": []}, "last: 0 pictures"),
        ({"last": picture(1, 16, 16)}, r"last: 1 of 16x16 \(height x width\), the first frames are 1 of 16x24"),
        ({"last": [picture(1), picture(2)]}, "last: 2 of 16x24"),
        ({"first": picture(0, 14, 24)}, "first, height: 14 is not a positive multiple of 4"),
        ({"num_frames": 1}, "num_frames: 1, but first and last frame are two"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 is not a positive"),
        ({"guidance_scale": 2.5}, "guidance_scale: 2.5, CFG.. takes 0 to 1"),
        ({"generator": seeds(0, 1)}, "generator: 2 generators for 1 clips"),
    ],
)
def test_what_does_not_fit_is_refused(components, change, message):
    with pytest.raises(ValueError, match=message) as found:
        interpolate_video(components, **{"first": picture(0), "last": picture(1), **SIZE, **change})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_model": None}, "components: video_model is missing; needed are video_model, video_scheduler, vae"),
        ({"video_scheduler": None}, "components: video_scheduler is missing"),
        ({"vae": None}, "components: a UNetSpatioTemporalConditionModel needs 'vae'"),
        ({"image_encoder": None}, "components: a UNetSpatioTemporalConditionModel needs 'image_encoder'"),
        ({"video_scheduler": diffusers.EDMEulerScheduler()}, "the noise of EDMEulerScheduler is not known here"),
    ],
)
def test_components_that_do_not_fit_are_refused(components, change, message):
    with pytest.raises(ValueError, match=message):
        interpolate_video({**components, **change}, picture(0), picture(1), **SIZE)


def test_a_model_that_is_told_a_text_is_refused(components):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 32}
    text = diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), in_channels=4, out_channels=4, num_layers=1, **sizes)
    for model in (text, components["vae"]):
        with pytest.raises(ValueError, match=f"a {type(model).__name__} is not told a first frame"):
            interpolate_video({**components, "video_model": model}, picture(0), picture(1), **SIZE)
