"""LoRA fine-tuning of the content model: adapters learn, the base stays, and the exported forms agree."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from cmd_video.training.components import build_components
from cmd_video.training.config import TrainConfig


@pytest.fixture
def lora_config(tiny_config):
    def make(folder, **changes):
        return tiny_config("content", folder, edit={"kind": "lora", "rank": 2}, optimizer__lr=0.05, **changes)

    return make


def test_adapters_learn_and_the_exported_forms_agree(lora_config, run_train, tmp_path):
    config = lora_config(tmp_path / "run")
    run_train(config)
    folder = tmp_path / "run" / "pipeline"
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000008"
    averaged, optimized = load_file(checkpoint / "ema.safetensors"), load_file(checkpoint / "optimizer.safetensors")
    assert all("lora_" in name for name in averaged)
    assert len(optimized) == 3 * len(averaged)  # two moments and a step count

    valid = TrainConfig.model_validate(config)
    captions = ["a red ball"] * 4
    base = build_components(valid.components, captions, valid.seed)["unet"].state_dict()
    merged = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    assert merged.keys() == base.keys()  # an ordinary UNet
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed and all(any(part in name for part in ("to_q", "to_k", "to_v", "to_out")) for name in changed)

    fresh = build_components(valid.components, captions, valid.seed)["unet"]
    fresh.load_lora_adapter(folder / "lora", weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    other = UNet2DConditionModel.from_pretrained(folder / "unet")
    x, t, tokens = torch.randn(1, 12, 8, 8), torch.tensor([500]), torch.randn(1, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            fresh.eval()(x, t, tokens).sample, other.eval()(x, t, tokens).sample, atol=1e-5, rtol=1e-4
        )


def test_a_resumed_lora_run_is_the_uninterrupted_one(lora_config, run_train, differences, monkeypatch, tmp_path):
    run_train(lora_config(tmp_path / "whole"))
    from cmd_video.training import loop

    class Stop(BaseException):
        pass

    save = loop.save

    def save_and_stop(run, step, *arguments, **options):
        save(run, step, *arguments, **options)
        if step == 4:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", save_and_stop)
        with pytest.raises(Stop):
            run_train(lora_config(tmp_path / "parts"))
    run_train(lora_config(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_lora_belongs_to_stages_with_a_unet(tiny_config, tmp_path, build_tiny):
    with pytest.raises(ValueError, match=r"edit\.kind: 'lora' is not for the stage 'motion'"):
        TrainConfig.model_validate(tiny_config("motion", tmp_path, edit={"kind": "lora", "rank": 4}))
    dit = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "in_channels": 12, "out_channels": 12}
    dit |= {"sample_size": 8, "patch_size": 2, "norm_num_groups": 4, "num_embeds_ada_norm": 16}
    parts = {"components__unet": {"class": "DiTTransformer2DModel", "config": dit}}
    with pytest.raises(ValueError, match=r"edit\.rank: DiTTransformer2DModel is no UNet2DConditionModel"):
        build_tiny("content", edit={"kind": "lora", "rank": 4}, **parts)


@pytest.mark.parametrize(
    ("edit", "objective", "message"),
    [
        ({"kind": "lora"}, {"kind": "consistency"}, "edit: not together with objective.kind 'consistency'"),
        ({"kind": "bridge"}, {}, "kind: 'bridge' is none of lora"),
        ({"kind": "weight_extrapolation"}, {}, "weight_extrapolation"),  # of two models, not of one that learns
        ({"kind": "lora", "rank": -1}, {}, r"edit\.rank"),
        ({"kind": "lora", "width": 3}, {}, r"edit\.width"),
        ({"rank": 3}, {}, "kind: not given"),
        ("lora", {}, "expected fields and a kind, got 'lora'"),
    ],
)
def test_an_edit_that_does_not_fit_is_named(edit, objective, message, tiny_config, tmp_path):
    changes = {"edit": edit, "objective": objective, "validation__num_inference_steps": 4}
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(tiny_config("content", tmp_path, **changes))


def test_adapters_of_rank_zero_are_none(tiny_config, run_train, read_log, tmp_path):
    for name, edit in (("plain", None), ("none", {"kind": "lora", "rank": 0})):
        run_train(tiny_config("content", tmp_path / name, edit=edit, loop__steps=2))
    assert read_log(tmp_path / "plain") == read_log(tmp_path / "none")
    assert not (tmp_path / "none" / "pipeline" / "lora").exists()


def test_a_run_with_adapters_is_another_run(lora_config, tiny_config, run_train, tmp_path):
    run_train(lora_config(tmp_path / "run", loop__steps=1))
    for edit in (None, {"kind": "lora", "rank": 3}):
        with pytest.raises(ValueError, match="belongs to a run with another edit.*choose a new folder"):
            run_train(tiny_config("content", tmp_path / "run", edit=edit, loop__steps=2))
