"""The structure of a picture in content frames: inversion in closed form, AdaIN, hooks, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch.nn import functional as F

from cmd_video.denoisers.content import ContentDenoiser
from cmd_video.diffusion.condition import Condition
from cmd_video.diffusion.plan import steps_at
from cmd_video.diffusion.solvers import EtaSolver
from cmd_video.pipelines.sampling import ModelSampling
from cmd_video.techniques.structure_injection import Settings, ddim_invert, patch_adain

ALL = {"share": 0.6, "resnets": (0, 1), "queries": (0, 1)}


@pytest.mark.parametrize("count", [5, 40])
def test_inversion_and_back_is_the_sample_of_a_gaussian(process, gaussian, count):
    denoise = gaussian(process, 0.3, 0.5)
    levels = torch.linspace(-1, 600, count + 1)[1:].round().long().tolist()
    x_0 = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    solver = EtaSolver(process, levels[::-1])
    steps = {solver.level(step, x_0)[0][0].item(): step for step in _steps(solver)}
    x = ddim_invert(process, lambda x, level: denoise(x, steps[level]), x_0, levels, rounds=40)
    assert (x - x_0).abs().max() > 0.1
    for level in levels[::-1]:
        x = solver.step(denoise, x, steps[level], None)
    torch.testing.assert_close(x, x_0, rtol=0, atol=1e-5)


def test_many_small_steps_keep_the_place_in_a_gaussian(process, gaussian):
    """(x_t - a m) / sqrt(a^2 s^2 + g^2) is constant along the probability flow."""
    mean, spread, top = 0.3, 0.5, 600
    denoise, levels = gaussian(process, mean, spread), list(range(0, top + 1))
    solver = EtaSolver(process, levels[::-1])
    steps = {solver.level(step, torch.zeros(1, 1))[0][0].item(): step for step in _steps(solver)}
    x_0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    x = ddim_invert(process, lambda x, level: denoise(x, steps[level]), x_0, levels)
    a, g = process.at(torch.tensor([top]), x)
    torch.testing.assert_close(
        (x - a * mean) / (a**2 * spread**2 + g**2).sqrt(), (x_0 - mean) / spread, rtol=0, atol=0.02
    )


def _steps(solver: EtaSolver) -> list[Any]:
    return steps_at(solver.timesteps, 1000)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 6, 10)])
@pytest.mark.parametrize("patch", [4, 64])
def test_adain_of_features_with_themselves_is_the_identity(shape, patch):
    features = noise(*shape)
    torch.testing.assert_close(patch_adain(features, features, patch), features, rtol=0, atol=1e-6)


def test_adain_gives_mean_and_deviation_of_each_patch():
    features, like = 3 * noise(2, 3, 8, 12) + 1, noise(2, 3, 8, 12, seed=1)
    made = patch_adain(features, like, 4)

    def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = F.unfold(x, 4, stride=4).unflatten(1, (3, 16))  # (B, C, 16, patches)
        return patches.mean(2), patches.std(2, correction=0)

    for found, wanted in zip(statistics(made), statistics(like), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (made - like).abs().max() > 0.1


def test_a_patch_larger_than_the_map_is_the_map():
    made, like = patch_adain(3 * noise(1, 2, 6, 6) + 1, noise(1, 2, 6, 6, seed=1), 64), noise(1, 2, 6, 6, seed=1)
    torch.testing.assert_close(made.mean((2, 3)), like.mean((2, 3)), rtol=0, atol=1e-6)


def test_a_flat_patch_takes_the_mean():
    flat, like = torch.ones(1, 1, 4, 4), noise(1, 1, 4, 4)
    torch.testing.assert_close(patch_adain(flat, like, 4), like.mean().expand(1, 1, 4, 4), rtol=0, atol=1e-6)


@pytest.fixture
def parts(tiny_components) -> tuple[ContentDenoiser, UNet2DConditionModel]:
    components = tiny_components("unet", "content_scheduler", "tokenizer", "text_encoder")
    components["unet"].eval()
    return ContentDenoiser(components), components["unet"]


@pytest.fixture
def sampled(parts) -> Callable[..., torch.Tensor]:
    """Content frames for pictures, with guidance."""

    @torch.no_grad()
    def run(
        wraps: list[dict[str, Any]], pictures: torch.Tensor | None, z: torch.Tensor, **fields: Any
    ) -> torch.Tensor:
        denoiser, model = parts
        how = ModelSampling(num_inference_steps=4, guidance={"scale": 3.0}, wraps=wraps, **fields)
        told = denoiser.encode(Condition({"prompt": ["a red ball"] * len(z)}))
        nothing = denoiser.encode(Condition({"prompt": [""] * len(z)}))
        rows = {} if pictures is None else {"structure": pictures}
        conditions = {"all": told.having(**rows), "nothing": nothing.having(**rows)}
        return how.run(denoiser, model, conditions, z)

    return run


def hooks(model: torch.nn.Module) -> int:
    return sum(len(each._forward_hooks) for each in model.modules())


def test_no_share_or_no_picture_changes_nothing(sampled):
    z, pictures = noise(2, 12, 8, 8), noise(2, 12, 8, 8, seed=1)
    plain = sampled([], None, z)
    assert torch.equal(sampled([{"kind": "structure_injection", **ALL, "share": 0.0}], pictures, z), plain)
    assert torch.equal(sampled([{"kind": "structure_injection", **ALL}], None, z), plain)
    changed = sampled([{"kind": "structure_injection", **ALL}], pictures, z)
    assert (changed - plain).abs().max() > 1e-3


@pytest.mark.parametrize("off", ["resnets", "queries"])
def test_each_kind_of_layer_counts(sampled, off):
    z, pictures = noise(1, 12, 8, 8), noise(1, 12, 8, 8, seed=1)
    both, one = (
        sampled([{"kind": "structure_injection", **ALL, **change}], pictures, z) for change in ({}, {off: None})
    )
    assert not torch.equal(both, one)
    assert not torch.equal(one, sampled([], None, z))


def test_a_batch_equals_its_frames(sampled):
    z, pictures = noise(3, 12, 8, 8), noise(3, 12, 8, 8, seed=1)[[2, 0, 2]]
    wraps = [{"kind": "structure_injection", **ALL}]
    both = sampled(wraps, pictures, z)
    for number in range(3):
        one = slice(number, number + 1)
        torch.testing.assert_close(sampled(wraps, pictures[one], z[one]), both[one], rtol=0, atol=1e-4)


def test_hooks_are_gone_after_a_run_and_after_an_error(sampled, parts, monkeypatch):
    z, pictures, wraps = noise(1, 12, 8, 8), noise(1, 12, 8, 8, seed=1), [{"kind": "structure_injection", **ALL}]
    sampled(wraps, pictures, z)
    assert hooks(parts[1]) == 0
    seen = []

    def fail(*arguments: Any) -> None:
        seen.append(hooks(parts[1]))
        raise RuntimeError("stop")

    handle = parts[1].conv_out.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        sampled(wraps, pictures, z)
    handle.remove()
    assert seen == [1] and hooks(parts[1]) == 0  # the inversion asks first, without hooks
    handle = parts[1].conv_out.register_forward_hook(lambda *arguments: fail() if hooks(parts[1]) > 1 else None)
    with pytest.raises(RuntimeError, match="stop"):
        sampled(wraps, pictures, z)
    handle.remove()
    assert seen[-1] > 1 and hooks(parts[1]) == 0


def test_the_papers_layers_of_stable_diffusion_are_among_those_of_the_default():
    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    resnets = [each for block in model.up_blocks for each in block.resnets]
    attentions = [each.transformer_blocks[0].attn1.to_q for block in model.up_blocks[1:] for each in block.attentions]
    layers = Settings().layers(model)
    assert [number for number, each in enumerate(resnets) if each in layers] == [3, 4, 5, 6, 7]
    assert [number for number, each in enumerate(attentions) if each in layers] == [0, 1, 2, 3, 4]


def test_what_does_not_go_with_it_is_refused(parts):
    denoiser, model = parts
    settings = Settings()
    with pytest.raises(ValueError, match="structure_image: features of a DiTTransformer2DModel are not known"):
        dit = DiTTransformer2DModel(2, 8, 3, num_layers=1, num_embeds_ada_norm=5)
        settings.check(dit, denoiser, ModelSampling())
    with pytest.raises(ValueError, match="structure_image: the content model was distilled for 4 steps"):
        ModelSampling(starts=(999, 749, 499, 249), wraps=[settings]).check(denoiser, model)
    reuse = {"kind": "feature_reuse", "interval": 2}
    for wraps in ([settings, reuse], [reuse, settings]):
        with pytest.raises(ValueError, match="reuse_interval: 2, but with structure_image only 1 is allowed"):
            ModelSampling(wraps=wraps).check(denoiser, model)
    with pytest.raises(ValueError, match="wraps: feature_reuse asks the network itself"):
        ModelSampling(wraps=[reuse, reuse]).check(denoiser, model)
    with pytest.raises(ValueError, match="structure_injection: no layers"):
        Settings(resnets=(0.9, 0.95), queries=None).check(model, denoiser, ModelSampling())
    assert ModelSampling(wraps=[settings]).check(denoiser, model) is None
