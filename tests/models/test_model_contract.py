"""What every model of ours can do as a diffusers model: checkpointing, SDPA, saving, bfloat16, one compiled graph."""

from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from diffusers import UNet2DConditionModel
from torch.nn import functional

NAMES = ("autoencoder", "autoencoder_sprites", "motion_transformer")
ATTENTIONS = {"autoencoder": 4, "autoencoder_sprites": 4, "motion_transformer": 2}
BLOCKS = {"autoencoder": 2, "autoencoder_sprites": 2, "motion_transformer": 2}


@pytest.fixture
def model_and_inputs(make_autoencoder, make_motion_transformer, random_clip, motion_inputs) -> Callable[[str], tuple]:
    def make(name: str) -> tuple:
        if name == "motion_transformer":
            model = make_motion_transformer(num_classes=3, text_dim=5)
            return model, motion_inputs(model)
        model = make_autoencoder("sprites" if name.endswith("sprites") else "paper")
        return model, {"sample": random_clip(model.config.in_channels)}

    return make


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients(model_and_inputs, monkeypatch, name):
    model, inputs = model_and_inputs(name)
    model.train().requires_grad_(True)
    calls = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(a[0]) or real(*a, **k))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs).sample.square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert not calls and all(gradient.abs().max() > 0 for gradient in plain.values()), "a parameter is not used"
    model.enable_gradient_checkpointing()
    checkpointed = gradients()
    assert len(calls) == BLOCKS[name]
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        model(**inputs)
    assert len(calls) == BLOCKS[name]


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_torchs_own(model_and_inputs, monkeypatch, name):
    model, inputs = model_and_inputs(name)
    calls = []
    real = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda q, k, v: calls.append(q.shape) or real(q, k, v)
    )
    model(**inputs)
    assert len(calls) == ATTENTIONS[name]


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same_to_the_bit(model_and_inputs, tmp_path, name):
    model, inputs = model_and_inputs(name)
    if name != "motion_transformer":
        model.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert not loaded.training
    assert torch.equal(loaded(**inputs).sample, model(**inputs).sample)
    known = {key: value for key, value in model.config.items() if not key.startswith("_")}
    for key, value in known.items():
        assert loaded.config[key] == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(model_and_inputs, name):
    model, inputs = model_and_inputs(name)
    exact = model(**inputs).sample
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    rounded = model.to(torch.bfloat16)(**half).sample
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).square().mean().sqrt() < 0.05 * exact.std() + 0.01


@pytest.mark.parametrize("name", [*NAMES, "unet"])
def test_compiles_to_one_graph(model_and_inputs, name):
    if name == "unet":
        torch.manual_seed(0)
        model = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
        inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 9])}
        inputs["encoder_hidden_states"] = torch.randn(2, 5, 8)
    else:
        model, inputs = model_and_inputs(name)
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=count)(**inputs).sample
        torch.testing.assert_close(compiled, model(**inputs).sample, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    torch._dynamo.reset()
