"""Pruned models as ordinary components, for every class: same weights, same files, same bits."""

import pytest
import torch
from diffusers import (
    HunyuanVideoTransformer3DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn

from cmd_video.benchmark.cost import count, num_parameters
from cmd_video.benchmark.system import place
from cmd_video.models import CMDAutoencoder, VideoCrafterUNet
from cmd_video.pruning.blocks import Skip, list_blocks, remove_blocks
from cmd_video.pruning.importance import NoisyBatch, measure_importance
from cmd_video.pruning.pruned_models import PRUNED_CLASSES, PrunedUNet2DConditionModel, prune
from cmd_video.pruning.selection import BlockSelection, select_blocks, select_by_importance, select_by_rule


def test_nothing_removed_is_the_teacher_bit_for_bit(example, teacher, selection):
    student = prune(teacher, selection(teacher, ()))
    assert student.state_dict().keys() == teacher.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(example.call(student), example.call(teacher))


def test_saved_and_reloaded_it_is_the_same_model(example, teacher, tmp_path, selection):
    student = prune(teacher, selection(teacher, example.removed))
    assert num_parameters([student]) < num_parameters([teacher])
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    assert list(again.config.removed_blocks) == list(example.removed)
    assert num_parameters([again]) == num_parameters([student])
    assert again.state_dict().keys() == student.state_dict().keys()
    with torch.no_grad():
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())
        ours = example.call(student)
        torch.testing.assert_close(example.call(again), ours, atol=1e-4, rtol=1e-3)  # kernels care about alignment
        assert ours.isfinite().all() and not torch.equal(ours, example.call(teacher))


def test_weights_are_copies_of_the_teachers(example, teacher, selection):
    student = prune(teacher, selection(teacher, example.removed))
    originals = {(tensor.shape, tensor.double().sum().item()) for tensor in teacher.state_dict().values()}
    for name, tensor in student.state_dict().items():
        assert (tensor.shape, tensor.double().sum().item()) in originals, name
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_learns(example, teacher, selection):
    student = prune(teacher.train(), selection(teacher, example.removed))
    assert student.training
    example.call(student).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_removed_transformer_block_is_a_skipped_one(selection):
    """The closed form: a model without block 1 is the whole model in which block 1 does nothing."""
    from cmd_video.models import CMDMotionTransformer

    torch.manual_seed(0)
    teacher = CMDMotionTransformer(num_layers=3, dim=16, num_heads=2).eval()
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(1, 8, 4, 8), torch.tensor([5]), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        student = prune(teacher, selection(teacher, ["blocks.1"]))(*inputs).sample
        teacher.blocks[1] = Skip()
        torch.testing.assert_close(student, teacher(*inputs).sample)


def test_the_skip_connections_keep_their_partners():
    """VDMini's layout: layers 0 and 2 of an up stage stay, with the skip connections that layer 1 did not take."""
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 24), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4
    ).eval()
    student = prune(teacher, select_by_rule(teacher))
    ours, theirs = student.state_dict(), teacher.state_dict()
    for new, old in {
        "down_blocks.0.resnets.0.conv1.weight": "down_blocks.0.resnets.0.conv1.weight",
        "down_blocks.2.resnets.1.conv1.weight": "down_blocks.2.resnets.1.conv1.weight",
        "up_blocks.0.resnets.0.conv1.weight": "up_blocks.1.resnets.0.conv1.weight",
        "up_blocks.1.resnets.1.conv1.weight": "up_blocks.2.resnets.2.conv1.weight",
        "up_blocks.2.resnets.1.conv1.weight": "up_blocks.3.resnets.2.conv1.weight",
        "up_blocks.2.attentions.1.proj_out.weight": "up_blocks.3.attentions.2.proj_out.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "up_blocks.2.upsamplers.0.conv.weight",
    }.items():
        assert torch.equal(ours[new], theirs[old]), new
    assert student.down_blocks[-1].downsamplers is None and len(student.down_blocks) == 3


# --- the paper's numbers, on the meta device -------------------------------------------------------------------------


def on_meta(build):
    return place(build, "meta", torch.float32)


def test_vdmini_on_stable_video_diffusion():
    teacher = on_meta(lambda: UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=14))
    student = prune(teacher, select_by_rule(teacher))
    assert num_parameters([teacher]) / 1e6 == pytest.approx(1524.6, abs=0.1)
    assert num_parameters([student]) / 1e6 == pytest.approx(939.9, abs=0.1)
    with torch.device("meta"):
        inputs = torch.zeros(1, 14, 8, 72, 128), torch.zeros(1), torch.zeros(1, 1, 1024), torch.zeros(1, 3)
    teras = [2 * count(lambda model=model: model(*inputs)).layer_macs / 1e12 for model in (teacher, student)]
    assert teras == pytest.approx([36.10, 25.70], abs=0.01)


def test_vdmini_on_the_layout_of_videocrafter2():
    teacher = on_meta(lambda: VideoCrafterUNet(cross_attention_dim=1024, attention_head_dim=64))
    student = prune(teacher, select_by_rule(teacher))
    assert num_parameters([teacher]) / 1e6 == pytest.approx(1413.3, abs=0.1)
    assert num_parameters([student]) / 1e6 == pytest.approx(816.7, abs=0.1)


def test_a_fifth_less_of_hunyuan_video_is_a_quarter_more_speed():
    teacher = on_meta(HunyuanVideoTransformer3DModel)
    chosen = select_by_rule(teacher, "middle")
    assert len(chosen.removed) == 12 and "transformer_blocks.0" not in chosen.removed
    student = prune(teacher, chosen)
    with torch.device("meta"):
        clip, text = torch.zeros(1, 16, 5, 64, 64), torch.zeros(1, 256, 4096)  # 17 frames of 512x512
        inputs = clip, torch.zeros(1), text, torch.ones(1, 256), torch.zeros(1, 768), torch.zeros(1)
    whole, pruned = (count(lambda model=model: model(*inputs)).flops for model in (teacher, student))
    assert whole / pruned == pytest.approx(1.25, abs=0.01)
    assert num_parameters([teacher]) / 1e9 == pytest.approx(12.8, abs=0.05)


# --- selections ------------------------------------------------------------------------------------------------------


def test_the_rule_leaves_the_encoder_of_an_autoencoder_alone():
    """Its latents are what the diffusion models know."""
    model = CMDAutoencoder(dim=16, num_heads=2, encoder_depth=5, decoder_depth=5)
    removed = select_by_rule(model, "middle").removed
    assert removed and all(name.startswith("decoder.") for name in removed)
    everything = BlockSelection("CMDAutoencoder", tuple(f"decoder.blocks.{n}" for n in range(5)), "by hand")
    with pytest.raises(ValueError, match=r"decoder\.blocks would have no block left"):
        prune(model, everything)


def test_a_selection_is_a_file(tmp_path):
    chosen = BlockSelection("UNet2DConditionModel", ("mid_block",), "by hand")
    (tmp_path / "s.json").write_text(chosen.to_json())
    assert BlockSelection.load(tmp_path / "s.json") == chosen
    for text in ("{}", "[]", "nonsense", '{"model_class": "X", "removed": 3}'):
        with pytest.raises(ValueError, match="selection: not of the form"):
            BlockSelection.from_json(text)


def test_importance_within_a_budget():
    from cmd_video.models import CMDMotionTransformer

    model = CMDMotionTransformer(num_layers=4, dim=16, num_heads=2)
    importance = {"blocks.0": 9.0, "blocks.1": 0.1, "blocks.2": 0.3, "blocks.3": 5.0}
    cost = dict.fromkeys(importance, 0.2)
    assert select_by_importance(model, importance, cost, 0.85).removed == ("blocks.1",)
    assert select_by_importance(model, importance, cost, 0.6).removed == ("blocks.1", "blocks.2")
    assert select_by_importance(model, importance, cost, 1.0).removed == ()
    with pytest.raises(
        ValueError, match="budget: 0.1 cannot be met; with every block that may leave, 0.400 would stay"
    ):
        select_by_importance(model, importance, cost, 0.1)
    with pytest.raises(ValueError, match="budget: 1.5 is not a share"):
        select_by_importance(model, importance, cost, 1.5)


UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 4}
UNET |= {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["down_blocks.7"], "UNet2DConditionModel has no block 'down_blocks.7'"),
        (["down_blocks.0.layers.1"], "down_blocks.0 loses 1 layers and up_blocks.1 0"),
        (["down_blocks.0", "up_blocks.1"], "whole stages leave in pairs from the innermost outwards"),
        (["down_blocks.1", "up_blocks.0"], "mid_block must leave with the innermost stages"),
        (
            ["down_blocks.0.layers.0", "down_blocks.0.layers.1", "up_blocks.1.layers.0", "up_blocks.1.layers.1"],
            "down_blocks.0 would have no layer left",
        ),
        (["down_blocks.1.layers.0", "up_blocks.0.layers.0"], "gets 8 channels, but it takes 16"),
    ],
)
def test_what_would_not_fit_is_refused(removed, message):
    with pytest.raises(ValueError, match=message):
        remove_blocks(UNet2DConditionModel(**UNET), removed)


def test_wrong_models_are_refused(tmp_path):
    unet = UNet2DConditionModel(**UNET)
    with pytest.raises(ValueError, match="model: Linear cannot be pruned; known are UNet2DConditionModel"):
        prune(nn.Linear(1, 1), BlockSelection("Linear", (), ""))
    with pytest.raises(ValueError, match="selection: it is for WanTransformer3DModel, the teacher is a UNet2D"):
        prune(unet, BlockSelection("WanTransformer3DModel", (), ""))
    with pytest.raises(ValueError, match="teacher: expected a UNet2DConditionModel, got a Linear"):
        PrunedUNet2DConditionModel.from_teacher(nn.Linear(1, 1), BlockSelection("UNet2DConditionModel", (), ""))
    with pytest.raises(ValueError, match="rule: 'vdmini' is for UNets and decoders of at least 3 stages"):
        select_by_rule(unet)
    with pytest.raises(ValueError, match="rule: 'middle' is for transformers of at least 3 blocks, not for UNet2D"):
        select_by_rule(unet, "middle")
    with pytest.raises(ValueError, match="rule: 'random' is none of vdmini, middle"):
        select_by_rule(unet, "random")
    with pytest.raises(ValueError, match="Linear has no blocks that are known here"):
        list_blocks(nn.Linear(1, 1))
    assert len(PRUNED_CLASSES) == 13


def test_a_second_round_is_one_with_all_blocks(example, teacher, selection):
    """Blocks of a pruned model leave by its own names; what comes out is as if all had left at once."""
    for first, second in rounds(example):
        once = prune(teacher, selection(teacher, [*first, *second]))
        half = prune(teacher, selection(teacher, first))
        twice = prune(half, selection(half, renamed(first, second)))
        assert type(twice) is type(once) and set(twice.config.removed_blocks) == {*first, *second}
        ours, expected = twice.state_dict(), once.state_dict()
        assert ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in ours)
        with torch.no_grad():
            assert torch.equal(example.call(twice), example.call(once))


def rounds(example):
    """The example's blocks in two halves that each fit: pairs and innermost stages stay together."""
    removed = example.removed
    if "mid_block" in removed:
        inner = [name for name in removed if name in ("down_blocks.3", "mid_block", "up_blocks.0")]
        layers = [name for name in removed if name not in inner]
        return [(inner, layers), (layers, inner), (["mid_block"], [name for name in removed if name != "mid_block"])]
    return [(removed[:1], removed[1:])] if len(removed) > 1 else [((), removed)]


def renamed(first, second):
    """Names that blocks have once others have left: numbers move up."""
    names = []
    for name in second:
        parts = name.split(".")
        if parts[0] == "up_blocks" and "up_blocks.0" in first:
            parts[1] = str(int(parts[1]) - 1)
        elif parts[-1].isdigit() and parts[0] not in ("up_blocks", "down_blocks"):
            before = name.rpartition(".")[0] + "."
            earlier = [other for other in first if other.startswith(before)]
            parts[-1] = str(int(parts[-1]) - sum(int(other.rpartition(".")[2]) < int(parts[-1]) for other in earlier))
        names.append(".".join(parts))
    return names


def test_one_function_selects_by_rule_by_measurement_and_by_weights():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**UNET, "layers_per_block": 2}).eval()
    generator = torch.Generator().manual_seed(0)
    noisy, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 16, 16), (2, 3, 16)))
    batch = NoisyBatch(lambda model: model(noisy, torch.tensor([5, 900]), text).sample, noisy)
    rows = measure_importance(unet, [batch])
    for cost in ("parameters", "flops"):
        chosen = select_blocks(unet, rows, budget=0.8, cost=cost)
        left = {row.block: getattr(row, cost) for row in rows}
        expected = select_by_importance(unet, {row.block: row.loss for row in rows}, left, 0.8)
        assert chosen == expected and chosen.removed
    light = select_blocks(unet, "magnitude", budget=0.8)
    small = prune(unet, light)
    assert num_parameters([small]) <= 0.8 * num_parameters([unet]) and "magnitude" in light.reason
    wan = PRUNED_CLASSES["WanTransformer3DModel"].teacher_class()(
        num_attention_heads=1, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=5
    )
    assert select_blocks(wan, "middle") == select_by_rule(wan, "middle")
    for arguments, message in (
        ({"by": "middle", "budget": 0.5}, "budget: 0.5, but the rule 'middle' has none"),
        ({"by": "magnitude"}, "budget: give the share"),
        ({"by": rows}, "budget: give the share"),
        ({"by": "nothing"}, "rule: 'nothing' is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            select_blocks(wan, **arguments)


@pytest.mark.parametrize(
    "example", ["UNet2DConditionModel", "CMDMotionTransformer", "WanTransformer3DModel"], indirect=True
)
def test_a_pruned_model_compiles(example, teacher, selection):
    student = prune(teacher, selection(teacher, example.removed))
    compiled = torch.compile(student, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(example.call(compiled), example.call(student), atol=1e-5, rtol=1e-4)


def test_models_without_a_middle_are_pruned_too(selection):
    teacher = UNet2DConditionModel(**{**UNET, "layers_per_block": 2}, mid_block_type=None)
    assert "mid_block" not in list_blocks(teacher)
    student = prune(teacher, selection(teacher, ["down_blocks.0.layers.1", "up_blocks.1.layers.1"]))
    assert len(student.down_blocks[0].resnets) == 1 and student.mid_block is None
    assert select_blocks(teacher, "magnitude", budget=0.9).removed


@pytest.mark.parametrize("example", ["AutoencoderKL"], indirect=True)
def test_a_middle_that_has_left_a_decoder_is_no_block(example, teacher, selection):
    student = prune(teacher, selection(teacher, ["decoder.mid_block"]))
    assert "decoder.mid_block" not in list_blocks(student)
    again = prune(student, select_blocks(student, "magnitude", budget=0.97))
    assert len(again.config.removed_blocks) >= 2
    with pytest.raises(ValueError, match="has no block 'decoder.mid_block'"):
        prune(student, selection(student, ["decoder.mid_block"]))
