"""The models that ship: they load by name, are small, share what they have in common, and generate."""

import hashlib
import importlib.util

import pytest
import torch

from cmd_video import CMDPipeline
from cmd_video.denoisers.latent_space import encode_video
from cmd_video.evaluation.metrics.reconstruction import reconstruction_metrics
from cmd_video.evaluation.protocol.results import digest_model
from cmd_video.pipelines import shipped
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.sprites.scenes import SpritesDataset
from cmd_video.training.components import build_components
from cmd_video.training.config import ComponentConfig


@pytest.fixture(scope="module")
def pipe():
    pipe = CMDPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def turbo():
    pipe = CMDPipeline.from_pretrained("turbo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_small_safe_and_stored_once():
    files = [path for path in shipped.sprites_folder().rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".py"}
    assert sum(path.stat().st_size for path in files) < 30 * 2**20
    weights = [hashlib.sha256(path.read_bytes()).digest() for path in files if path.suffix == ".safetensors"]
    assert len(set(weights)) == len(weights)


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_every_component_comes_in_float32(name):
    pipe = CMDPipeline.from_pretrained(name)
    parts = {key: part for key, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert len(parts) >= 5
    assert {parameter.dtype for part in parts.values() for parameter in part.parameters()} <= {torch.float32}


def test_turbo_has_the_default_models_other_components(pipe, turbo):
    for name in ("autoencoder", "motion_transformer", "text_encoder", "motion_text_encoder"):
        mine, theirs = (getattr(each, name).state_dict() for each in (turbo, pipe))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not torch.equal(turbo.unet.conv_in.weight, pipe.unet.conv_in.weight)
    assert digest_model("turbo") != digest_model("default")


def test_a_recipe_takes_a_shared_component_from_either_name():
    built = [build_components({"autoencoder": ComponentConfig(path=name)})["autoencoder"] for name in shipped.SHIPPED]
    first, second = (part.state_dict() for part in built)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_turbo_saved_elsewhere_is_whole(turbo, tmp_path):
    turbo.save_pretrained(tmp_path / "copy")
    copy = CMDPipeline.from_pretrained(tmp_path / "copy")
    copy.set_progress_bar_config(disable=True)
    clips = [
        each("a red ring", generator=torch.Generator().manual_seed(0), output_type="pt") for each in (turbo, copy)
    ]
    torch.testing.assert_close(
        clips[0].frames, clips[1].frames, rtol=0, atol=1e-5
    )  # elsewhere in memory: not to the bit


def test_without_the_weights_one_line_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(shipped, "find_spec", lambda name: None if name == "cmd_video_sprites" else found(name))
    shipped.sprites_folder.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"pip install 'cmd-video\[sprites\]'") as raised:
            CMDPipeline.from_pretrained()
        assert "\n" not in str(raised.value)
        assert shipped.shared_components(shipped.Path("elsewhere")) == {}  # other models need no weights of ours
    finally:
        shipped.sprites_folder.cache_clear()


def test_turbo_needs_four_content_steps_and_one_motion_step_without_guidance(turbo):
    calls = {"unet": [], "motion_transformer": []}
    handles = [
        model.register_forward_pre_hook(lambda model, args, name=name: calls[name].append(len(args[0])))
        for name, model in (("unet", turbo.unet), ("motion_transformer", turbo.motion_transformer.latent_embed))
    ]
    out = turbo("a red circle moves to the right", generator=torch.Generator().manual_seed(0), output_type="pt")
    for handle in handles:
        handle.remove()
    assert calls == {"unet": [1] * 4, "motion_transformer": [1]}
    assert out.frames.shape == (1, 16, 3, 64, 64)
    first, last = (red_center(out.frames[0, number]) for number in (0, -1))
    assert last - first > 8  # pixels
    with pytest.raises(ValueError, match="num_inference_steps: 8, but the model was distilled for 4 steps"):
        turbo("a red circle", num_inference_steps=8)


def red_center(frame):
    """Mean column of what is red in a frame (3, H, W) in [0, 1]."""
    red = (frame[0] > 0.6) & (frame[1] < 0.4) & (frame[2] < 0.4)
    assert red.sum() > 20
    return red.nonzero()[:, 1].float().mean().item()


def test_it_generates_what_its_configuration_says(pipe):
    generator = torch.Generator().manual_seed(0)
    out = pipe("a red circle moves to the right", num_inference_steps=10, generator=generator, output_type="pt")
    assert out.frames.shape == (1, 16, 3, 64, 64)
    assert red_center(out.frames[0, -1]) - red_center(out.frames[0, 0]) > 8


def test_reconstruction_of_held_out_sprites(pipe):
    dataset = SpritesDataset(16, split="held_out", seed=11)
    videos = torch.stack([dataset[number]["video"] for number in range(16)])
    metrics = reconstruction_metrics(pipe.autoencoder, pipe.vae, [videos])
    assert metrics["reconstruction"]["psnr"] >= 28
    assert metrics["reconstruction"]["psnr"] >= metrics["content_frame"]["psnr"] + 4
    assert metrics["reconstruction"]["psnr"] > metrics["mean_frame"]["psnr"]


def test_motion_latents_have_unit_variance(pipe):
    dataset = SpritesDataset(32, seed=12)
    videos = torch.stack([dataset[number]["video"] for number in range(32)])
    with torch.no_grad():
        latents = pipe.autoencoder.encode(encode_video(pipe.vae, videos)).motion_latents
        normalized = pipe.autoencoder.normalize_latents(latents)
    assert normalized.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 8, abs=0.15)
    assert normalized.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 8, abs=0.2)


@pytest.mark.parametrize("model", shipped.SHIPPED)
@pytest.mark.parametrize("steps", [1, 2, 334, 501, 700])
def test_the_motion_steps_of_a_shipped_model_begin_in_pure_noise(model, steps):
    pipe = CMDPipeline.from_pretrained(model)
    motion = pipe.sampling.motion if pipe.sampling.motion.starts else ModelSampling(num_inference_steps=steps)
    motion.check(pipe.motion, pipe.motion_transformer, "motion_")
    assert motion.ready(pipe.motion)[1][0].t == 999
