"""Importance of blocks: views share weights, useless blocks count as useless, content and motion are told apart."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from cmd_video.models import CMDMotionTransformer
from cmd_video.pruning.blocks import without_blocks
from cmd_video.pruning.importance import (
    NoisyBatch,
    importance_and_cost,
    measure_importance,
    removable_units,
    weight_importance,
)
from cmd_video.pruning.pruned_models import prune
from cmd_video.pruning.selection import select_by_importance


def batch_of(example, model):
    with torch.no_grad():
        prediction = example.call(model)
    draw = torch.Generator().manual_seed(3)
    return NoisyBatch(example.call, prediction + 0.1 * torch.randn(prediction.shape, generator=draw))


@pytest.fixture
def denoiser(denoiser_example, awake):
    return awake(denoiser_example)


def test_a_view_is_the_pruned_model_with_shared_weights(denoiser_example, denoiser, selection):
    view = without_blocks(denoiser, denoiser_example.removed)
    student = prune(denoiser, selection(denoiser, denoiser_example.removed))
    with torch.no_grad():
        assert torch.equal(denoiser_example.call(view), denoiser_example.call(student))
    own = {id(parameter) for parameter in denoiser.parameters()}
    assert all(id(parameter) in own for parameter in view.parameters())
    assert len(list(view.parameters())) < len(list(denoiser.parameters()))


def test_every_unit_can_leave_and_costs_something(denoiser_example, denoiser):
    rows = measure_importance(denoiser, [batch_of(denoiser_example, denoiser)])
    assert len(rows) == len(removable_units(denoiser)) >= 2
    assert all(0 < row.parameters < 1 and 0 < row.flops < 1 and row.content > 0 for row in rows)
    assert all(row.motion == 0 for row in rows)  # no dimension of frames was named
    selection = select_by_importance(denoiser, *importance_and_cost(rows, "parameters"), budget=0.95)
    prune(denoiser, selection)


def test_a_block_that_does_nothing_is_the_first_to_leave():
    torch.manual_seed(0)
    model = CMDMotionTransformer(num_layers=4, dim=16, num_heads=2).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.blocks[2].modulation[1].weight.data.zero_()  # gates at zero: the identity
    model.blocks[2].modulation[1].bias.data.zero_()
    inputs = torch.randn(2, 8, 4, 8), torch.tensor([5, 900]), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        batch = NoisyBatch(lambda one: one(*inputs).sample, model(*inputs).sample + 0.1, frames=2)
    rows = {row.block: row for row in measure_importance(model, [batch])}
    assert rows["blocks.2"].loss == pytest.approx(0, abs=1e-6) and rows["blocks.2"].content < 1e-9
    assert all(rows[name].content + rows[name].motion > 1e-4 for name in ("blocks.0", "blocks.1", "blocks.3"))
    chosen = select_by_importance(model, *importance_and_cost(list(rows.values())), budget=0.85)
    assert "blocks.2" in chosen.removed


@pytest.mark.parametrize("budget", [0.9, 0.7, 0.6])
def test_units_that_overlap_are_not_counted_twice(budget):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    total = sum(parameter.numel() for parameter in unet.parameters())

    def share(names):
        return sum(parameter.numel() for parameter in without_blocks(unet, names).parameters()) / total

    names = ["+".join(unit) for unit in removable_units(unet)]
    cost = {name: 1 - share(name.split("+")) for name in names}
    importance = {name: float(number) for number, name in enumerate(reversed(names))}
    chosen = select_by_importance(unet, importance, cost, budget)
    assert share(chosen.removed) <= budget + 1e-6
    stays = float(re.search(r"[\d.]+ of the cost stays", chosen.reason)[0].split()[0])
    assert share(chosen.removed) == pytest.approx(stays, abs=2e-3)


def test_importance_of_another_model_is_refused():
    model = CMDMotionTransformer(num_layers=3, dim=16, num_heads=2)
    with pytest.raises(ValueError, match="importance: CMDMotionTransformer has no block 'layers.1'"):
        select_by_importance(model, {"layers.1": 1.0}, {"layers.1": 0.3}, 0.8)


class TwoBranches(nn.Module):
    """Adds one picture to all frames in its first block, and a trend over time in its second."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([_Add(torch.ones(1, 1, 1)), _Add(torch.linspace(-1, 1, 5).view(5, 1, 1))])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class _Add(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x):
        return x + self.value @ torch.ones(1, 1, x.shape[-1])


def test_what_all_frames_share_is_content_and_the_rest_is_motion():
    model, x = TwoBranches(), torch.zeros(2, 5, 1, 3)
    with torch.no_grad():
        batch = NoisyBatch(lambda one: one(x), model(x) + 1, frames=1)
    content, motion = measure_importance(model, [batch])
    assert content.content > 0.1 and content.motion == pytest.approx(0, abs=1e-9)
    assert motion.motion > 0.1 and motion.content == pytest.approx(0, abs=1e-9)


def test_weight_importance_is_the_share_of_what_leaves():
    torch.manual_seed(0)
    model = CMDMotionTransformer(num_layers=3, dim=16, num_heads=2).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.blocks[1].modulation[1].weight.data.zero_()  # gates at zero: nothing inside the block has a gradient
    model.blocks[1].modulation[1].bias.data.zero_()
    inputs = torch.randn(2, 8, 4, 8), torch.tensor([5, 900]), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        batch = NoisyBatch(lambda one: one(*inputs).sample, model(*inputs).sample + 0.1)

    def absolute(module):
        return sum(parameter.abs().sum().item() for parameter in module.parameters())

    magnitude = weight_importance(model, [batch], "magnitude")
    assert set(magnitude) == {"blocks.0", "blocks.1", "blocks.2"}
    for number, block in enumerate(model.blocks):
        assert magnitude[f"blocks.{number}"] == pytest.approx(absolute(block) / absolute(model), rel=1e-5)

    taylor = weight_importance(model, [batch], "taylor")
    assert taylor["blocks.1"] == 0 and min(taylor["blocks.0"], taylor["blocks.2"]) > 0.01
    model.zero_grad()
    (batch.call(model) - batch.target).square().mean().backward()
    products = {name: (p * p.grad).abs().sum().item() for name, p in model.named_parameters() if p.grad is not None}
    expected = sum(value for name, value in products.items() if name.startswith("blocks.0."))
    assert taylor["blocks.0"] == pytest.approx(expected / sum(products.values()), rel=1e-4)
