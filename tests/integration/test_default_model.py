"""The model that ships with the package: it loads without an argument, is small, and generates; sprites in and out."""

import pytest
import torch

from cmd_video import CMDPipeline
from cmd_video.data.sprites import SpritesDataset
from cmd_video.evaluation.metrics import reconstruction_metrics
from cmd_video.pipelines.shipped import DEFAULT_MODEL


@pytest.fixture(scope="module")
def pipe():
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_small_and_safe():
    files = [path for path in DEFAULT_MODEL.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert 1e6 < sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 60e6


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
