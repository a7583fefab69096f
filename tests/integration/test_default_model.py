"""The models that ship with the package: they load by name, are small, and generate; sprites in and out."""

import pytest
import torch

from cmd_video import CMDPipeline
from cmd_video.data.sprites import SpritesDataset
from cmd_video.evaluation.reconstruction import reconstruction_metrics
from cmd_video.pipelines.shipped import DEFAULT_MODEL, SHIPPED


@pytest.fixture(scope="module")
def pipe():
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_small_and_safe(name):
    files = [path for path in SHIPPED[name].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    most = 60e6 if SHIPPED[name] == DEFAULT_MODEL else 25e6
    assert 1e6 < sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= most


def test_turbo_needs_four_steps_each_without_guidance():
    turbo = CMDPipeline.from_pretrained("turbo")
    turbo.set_progress_bar_config(disable=True)
    calls = []
    for model in (turbo.unet, turbo.motion_transformer):
        model.register_forward_pre_hook(lambda model, args, kwargs: calls.append(len(args[0])), with_kwargs=True)
    out = turbo("a red circle moves to the right", generator=torch.Generator().manual_seed(0), output_type="pt")
    assert calls == [1] * 8
    assert out.frames.shape == (1, 16, 3, 64, 64)
    first, last = (red_center(out.frames[0, number]) for number in (0, -1))
    assert last - first > 8  # pixels
    with pytest.raises(ValueError, match="num_inference_steps: 8, but the model was distilled for 4 steps"):
        turbo("a red circle", num_inference_steps=8)


def test_pruned_has_half_the_denoisers(pipe):
    pruned = CMDPipeline.from_pretrained("pruned")
    pruned.set_progress_bar_config(disable=True)
    for small, whole in ((pruned.unet, pipe.unet), (pruned.motion_transformer, pipe.motion_transformer)):
        assert small.num_parameters() < 0.55 * whole.num_parameters()
    generator = torch.Generator().manual_seed(0)
    out = pruned("a red circle moves to the right", num_inference_steps=10, generator=generator, output_type="pt")
    assert red_center(out.frames[0, -1]) - red_center(out.frames[0, 0]) > 8


def red_center(frame):
    """Mean column of what is red in a frame (3, H, W) in [0, 1]."""
    red = (frame[0] > 0.6) & (frame[1] < 0.4) & (frame[2] < 0.4)
    assert red.sum() > 20
    return red.nonzero()[:, 1].float().mean().item()


def test_it_generates_what_its_configuration_says(pipe):
    out = pipe(
        "a red circle moves to the right",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    assert out.frames.shape == (1, 16, 3, 64, 64)
    assert out.frames.std() > 0.02


def test_reconstruction_of_held_out_sprites(pipe):
    dataset = SpritesDataset(16, split="held_out", seed=11)
    videos = torch.stack([dataset[number]["video"] for number in range(16)])
    metrics = reconstruction_metrics(pipe.autoencoder, pipe.vae, [videos])
    assert metrics["reconstruction"]["psnr"] >= 28
    assert metrics["reconstruction"]["psnr"] >= metrics["content_frame"]["psnr"] + 4
    assert metrics["reconstruction"]["psnr"] > metrics["mean_frame"]["psnr"]


def test_motion_latents_have_unit_variance(pipe):
    from cmd_video.pipelines.image_space import encode_video

    dataset = SpritesDataset(32, seed=12)
    videos = torch.stack([dataset[number]["video"] for number in range(32)])
    with torch.no_grad():
        latents = pipe.autoencoder.encode(encode_video(pipe.vae, videos)).motion_latents
        normalized = pipe.autoencoder.normalize_latents(latents)
    assert normalized.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 8, abs=0.15)
    assert normalized.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 8, abs=0.2)
