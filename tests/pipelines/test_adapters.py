"""LoRA files on whole and pruned content models: each adapter goes to the layer it was trained for."""

import os
import pickle

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from cmd_video.cli.errors import describe, is_mistake
from cmd_video.pruning.adapters import renaming
from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.selection import BlockSelection

REMOVED = {
    "stages": ["down_blocks.2", "mid_block", "up_blocks.0"],
    "layers": ["down_blocks.2.layers.0", "up_blocks.0.layers.1"],
    "middle": ["mid_block"],
}


@pytest.fixture
def whole(text_pipeline):
    """A content model of three stages, each layer with attention, in a pipeline's place."""
    torch.manual_seed(3)
    channels = text_pipeline.unet.config.in_channels
    return UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 16, 16),
        layers_per_block=2, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip


def lora(model, only="", form="peft"):
    """Adapters of rank 2 for the keys of all attention layers, by the names that a file has."""
    halves = {"peft": ("lora_A.weight", "lora_B.weight"), "diffusers": ("lora.down.weight", "lora.up.weight")}[form]
    found = {}
    for name, module in model.named_modules():
        if name.endswith("to_k") and name.startswith(only):
            found[f"unet.{name}.{halves[0]}"] = torch.randn(2, module.in_features)
            found[f"unet.{name}.{halves[1]}"] = torch.randn(module.out_features, 2)
    return found


def adapted(model):
    """Layers with adapters: the first half of each, and the weight under it."""
    layers = [module for module in model.modules() if hasattr(module, "base_layer")]
    return [(next(iter(layer.lora_A.values())).weight, layer.base_layer.weight) for layer in layers]


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize(
    "name", ["a.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "a.pt"]
)
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_as_adapters_runs_nothing(text_pipeline, name, write, tmp_path):
    before = {key: weight.clone() for key, weight in text_pipeline.unet.state_dict().items()}
    with (tmp_path / name).open("wb") as file:
        write({"unet.a": Evil(tmp_path / "canary")}, file)
    for given in (tmp_path / name, tmp_path):
        with pytest.raises((ValueError, OSError, SafetensorError, pickle.UnpicklingError)) as error:
            text_pipeline.load_lora_weights(given)
        assert is_mistake(error.value) and "\n" not in describe(error.value)
        assert not (tmp_path / "canary").exists()
    assert all(torch.equal(weight, before[key]) for key, weight in text_pipeline.unet.state_dict().items())


@pytest.mark.parametrize("form", ["peft", "diffusers"])
@pytest.mark.parametrize("removed", REMOVED)
def test_adapters_of_the_whole_model_find_their_layers_in_what_is_left(text_pipeline, whole, removed, form, caplog):
    file = lora(whole, form=form)
    weights = dict(whole.named_parameters())
    text_pipeline.unet = prune(whole, BlockSelection("UNet2DConditionModel", REMOVED[removed], "by hand"))
    left = sum(name.endswith("to_k") for name, _ in text_pipeline.unet.named_modules())
    text_pipeline.load_lora_weights(file)
    found = adapted(text_pipeline.unet)
    assert len(found) == left < len(file) // 2
    for half, weight in found:
        (name,) = [key for key, each in file.items() if each.shape == half.shape and torch.equal(each, half)]
        layer = name.removeprefix("unet.").split(".lora")[0]
        assert torch.equal(weights[f"{layer}.weight"], weight), layer


def test_a_whole_model_takes_its_adapters_as_they_are_named(text_pipeline, whole):
    text_pipeline.unet, file = whole, lora(whole)
    text_pipeline.load_lora_weights(file)
    assert len(adapted(whole)) == len(file) // 2


def test_what_fits_both_models_at_different_layers_must_be_said(text_pipeline, whole):
    file = lora(prune(whole, BlockSelection("UNet2DConditionModel", REMOVED["stages"], "by hand")), "up_blocks.0")
    text_pipeline.unet = student = prune(whole, BlockSelection("UNet2DConditionModel", REMOVED["stages"], "by hand"))
    with pytest.raises(ValueError, match="trained_on: the adapters fit"):
        text_pipeline.load_lora_weights(file)
    assert not adapted(student)
    text_pipeline.load_lora_weights(file, trained_on="pruned")
    assert len(adapted(student)) == len(file) // 2
    text_pipeline.unload_lora_weights()
    with pytest.raises(ValueError, match="all are for blocks that this pruned model lacks"):
        text_pipeline.load_lora_weights(file, trained_on="whole")  # its own up_blocks.0 is what was taken out


def test_what_is_in_the_same_place_in_both_needs_no_word(text_pipeline, whole):
    file = lora(whole, "down_blocks.0")
    text_pipeline.unet = prune(whole, BlockSelection("UNet2DConditionModel", REMOVED["stages"], "by hand"))
    text_pipeline.load_lora_weights(file)
    assert len(adapted(text_pipeline.unet)) == len(file) // 2


def broken(file, how):
    name = next(iter(file))
    match how:
        case "no such layer":
            return {**file, "unet.nowhere.to_k.lora_A.weight": torch.zeros(2, 8)}
        case "no such block":
            return {**file, "unet.down_blocks.7.attentions.0.to_k.lora_A.weight": torch.zeros(2, 8)}
        case "another size":
            return {**file, name: torch.zeros(2, 77)}
        case "another part":
            return {**file, "motion_transformer.blocks.0.lora_A.weight": torch.zeros(2, 8)}
        case "no prefix":
            return {name.removeprefix("unet."): file[name]}
        case "text encoder":
            return {**file, "text_encoder.nowhere.lora_A.weight": torch.zeros(2, 8)}
        case "nothing":
            return {}


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(
    "how", ["no such layer", "no such block", "another size", "another part", "no prefix", "text encoder", "nothing"]
)
def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(text_pipeline, whole, how, pruned):
    file, model = lora(whole), whole
    if pruned:
        model = prune(whole, BlockSelection("UNet2DConditionModel", REMOVED["stages"], "by hand"))
    text_pipeline.unet = model
    with pytest.raises(ValueError, match="^adapters: "):
        text_pipeline.load_lora_weights(broken(file, how))
    assert not adapted(model)


def test_a_transformer_of_classes_takes_none(class_pipeline):
    with pytest.raises(ValueError, match="DiTTransformer2DModel, which takes none"):
        class_pipeline.load_lora_weights({"unet.x.lora_A.weight": torch.zeros(2, 2)})


def test_an_unknown_word_for_whose_layers_they_are_is_refused(whole):
    with pytest.raises(ValueError, match="trained_on: 'teacher' is none of whole, pruned"):
        renaming({}, whole, "teacher")


def add(pipeline, part):
    from peft import LoraConfig

    targets = ["to_q"] if part == "unet" else ["q_proj"]
    getattr(pipeline, part).add_adapter(LoraConfig(r=2, target_modules=targets))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_pipeline_with_adapters_in_place_is_not_saved(text_pipeline, part, tmp_path):
    add(text_pipeline, part)
    with pytest.raises(ValueError, match=f"save_pretrained: {part} holds adapters"):
        text_pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_unloaded_is_saved_and_comes_back(text_pipeline, whole, fused, tmp_path):
    text_pipeline.unet = whole
    before = whole.state_dict()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"].clone()
    text_pipeline.load_lora_weights(lora(whole))
    if fused:
        text_pipeline.fuse_lora()
        with pytest.raises(ValueError, match="unet holds adapters"):
            text_pipeline.save_pretrained(tmp_path / "model")
    text_pipeline.unload_lora_weights()
    text_pipeline.save_pretrained(tmp_path / "model")
    again = type(text_pipeline).from_pretrained(tmp_path / "model").unet.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in text_pipeline.unet.state_dict().items())
    kept = again["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"]
    assert torch.equal(kept, before) != fused
