"""Positions: rotary attention is relative and really there; blocks start as the identity."""

import math

import pytest
import torch

from cmd_video.models import layers
from cmd_video.models.autoencoder_cmd import VideoTransformer
from cmd_video.models.layers import GEGLU, AdaLNZeroBlock, ResnetBlock, apply_rotary, rotary_table, sincos_table


@pytest.mark.parametrize("shift", [(5,), (7, 0), (0, 11), (3, 8)])
def test_rotary_scores_depend_on_relative_positions_only(shift):
    torch.manual_seed(0)
    positions = torch.randint(0, 20, (12, len(shift)))
    q, k = torch.randn(2, 12, 16)
    moved = rotary_table(positions + torch.tensor(shift), 16)
    here = rotary_table(positions, 16)
    scores = apply_rotary(q, *here) @ apply_rotary(k, *here).T
    torch.testing.assert_close(apply_rotary(q, *moved) @ apply_rotary(k, *moved).T, scores, rtol=1e-4, atol=1e-4)
    assert (apply_rotary(q, *here) @ apply_rotary(k, *moved).T - scores).abs().max() > 0.1
    torch.testing.assert_close(apply_rotary(q, *here).norm(dim=-1), q.norm(dim=-1))


def test_rotary_angles_are_those_of_roformer():
    positions = torch.tensor([[0, 3], [2, 0], [7, 5]])
    cosines, sines = rotary_table(positions, 16)  # 8 angles: four for the first coordinate, four for the second
    for token, (row, column) in enumerate(positions.tolist()):
        for pair in range(8):
            angle = (row if pair < 4 else column) * 10_000 ** (-(pair % 4) / 4)
            assert cosines[token, pair].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert sines[token, pair].item() == pytest.approx(math.sin(angle), abs=1e-5)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    transformer = VideoTransformer(dim=16, depth=1, num_heads=2).requires_grad_(False)
    for block in transformer.blocks:
        block.time_attention.to_qkv.weight *= 4  # far from uniform attention
        block.space_attention.to_qkv.weight *= 4
    return transformer


@pytest.mark.parametrize("axis", [2, 3, 4], ids=["frames", "rows", "columns"])
def test_the_order_of_frames_rows_and_columns_matters(transformer, monkeypatch, axis):
    x, order = torch.randn(1, 16, 4, 4, 4), torch.tensor([2, 0, 3, 1])

    def difference() -> float:
        return (transformer(x.index_select(axis, order)) - transformer(x).index_select(axis, order)).abs().max().item()

    assert difference() > 0.05
    monkeypatch.setattr(layers, "apply_rotary", lambda x, cosine, sine: x)
    assert difference() < 1e-4  # without positions attention could not tell


def test_rows_are_not_columns(transformer, monkeypatch):
    x = torch.randn(1, 16, 2, 4, 4)

    def difference() -> float:
        return (transformer(x.transpose(3, 4)) - transformer(x).transpose(3, 4)).abs().max().item()

    assert difference() > 0.05
    monkeypatch.setattr(layers, "apply_rotary", lambda x, cosine, sine: x)
    assert difference() < 1e-4


def test_attention_is_factorised(transformer):
    """One block: a patch sees its own place at all times, and all places of frames that it got to see."""
    x = torch.randn(1, 16, 3, 2, 2)
    block = transformer.blocks[0]
    block.space_attention.to_out.weight.zero_()
    block.space_attention.to_out.bias.zero_()
    changed = x.clone()
    changed[:, 0, 1, 0, 1] += 1  # of one channel: the same for all would be lost in the norms
    change = (transformer(changed) - transformer(x)).abs().amax(dim=(0, 1))
    assert (change > 1e-5).nonzero().tolist() == [[0, 0, 1], [1, 0, 1], [2, 0, 1]]
    transformer.blocks[0].time_attention.to_out.weight.zero_()
    block.space_attention.to_out.weight.copy_(torch.randn(16, 16))
    change = (transformer(changed) - transformer(x)).abs().amax(dim=(0, 1))
    assert (change > 1e-5).nonzero().tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 7), (16, 16), (8, 48)])
def test_the_sine_table_by_an_independent_computation(height, width):
    dim = 24
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    table = sincos_table(rows.flatten(), columns.flatten(), dim)
    assert table.shape == (height * width, dim)
    for row, column in {(0, 0), (height - 1, 0), (0, width - 1), (height // 2, width // 2), (height - 1, width - 1)}:
        expected = []
        for position in (row, column):
            angles = [position / 10_000 ** (i / (dim // 4)) for i in range(dim // 4)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(table[row * width + column], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    distances = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert distances.min() > 0.1, "two places have one position"


def test_a_fresh_residual_block_is_the_identity():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResnetBlock(8)(x), x)


def test_the_gates_of_an_adaln_block_are_per_sample():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(16, 2).requires_grad_(False)
    block.modulation[1].weight.zero_()
    block.modulation[1].bias.zero_()
    x, condition = torch.randn(3, 5, 16), torch.randn(3, 16)
    assert torch.equal(block(x, condition), x)
    block.modulation[1].weight.normal_()
    condition[1] = 0  # SiLU(0) = 0: this sample's gates stay shut
    out = block(x, condition)
    assert torch.equal(out[1], x[1]) and not torch.equal(out[0], x[0]) and not torch.equal(out[2], x[2])


def test_geglu_s_second_half_is_the_gate():
    """Equation 6 of arXiv 2002.05202: (x W) * GELU(x V), by numbers in which the halves differ."""
    layer = GEGLU(1, mult=1).requires_grad_(False)
    layer.proj_in.weight[:] = torch.tensor([[2.0], [3.0]])
    layer.proj_in.bias.zero_(), layer.proj_out.bias.zero_()
    layer.proj_out.weight.fill_(1.0)
    for x in (-0.7, 0.4, 1.5):
        gelu = 3 * x * 0.5 * (1 + math.erf(3 * x / math.sqrt(2)))
        assert layer(torch.tensor([[x]])).item() == pytest.approx(2 * x * gelu, abs=1e-6)
