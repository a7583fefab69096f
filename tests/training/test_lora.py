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
        return tiny_config("content", folder, objective={"lora_rank": 2}, optimizer__lr=0.05, **changes)

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

    save = loop._save

    def save_and_stop(run, step, *arguments):
        save(run, step, *arguments)
        if step == 4:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_and_stop)
        with pytest.raises(Stop):
            run_train(lora_config(tmp_path / "parts"))
    run_train(lora_config(tmp_path / "parts"))
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_lora_belongs_to_stages_with_a_unet(tiny_config, tmp_path):
    with pytest.raises(
        ValueError, match="objective.lora_rank: it belongs to image, content, not to the stage 'motion'"
    ):
        TrainConfig.model_validate(tiny_config("motion", tmp_path, objective={"lora_rank": 4}))
