"""Counting: closed forms for layers and attention, both conventions, memory by following tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmd_video.benchmark.cost import Cost, count, num_parameters, weight_bytes
from cmd_video.benchmark.memory import peak_bytes

LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (4, 5, 6), 4 * 5 * 6 * 10),
    "linear without bias": (lambda: nn.Linear(6, 10, bias=False), (4, 5, 6), 4 * 5 * 6 * 10),
    "convolution": (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 7, 5), 2 * 8 * 7 * 5 * 3 * 9),
    "grouped convolution": (lambda: nn.Conv2d(4, 8, 3, groups=2), (1, 4, 7, 5), 8 * 5 * 3 * 2 * 9),
    "strided 3-D convolution": (lambda: nn.Conv3d(2, 4, 2, stride=2), (1, 2, 4, 4, 4), 4 * 8 * 2 * 8),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 5, 2, stride=2), (1, 3, 4, 4), 3 * 16 * 5 * 4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_counts_its_multiply_adds(name, frozen):
    build, shape, expected = LAYERS[name]
    with torch.device("meta"):
        layer, x = build().requires_grad_(not frozen), torch.zeros(shape)
    for tensor in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):  # not contiguous: another operation below
        assert count(lambda tensor=tensor: layer(tensor)) == Cost(expected, 2 * expected)


def test_attention_counts_in_one_convention_only():
    with torch.device("meta"):
        query, key = torch.zeros(2, 4, 100, 16), torch.zeros(2, 4, 30, 16)
    cost = count(lambda: F.scaled_dot_product_attention(query, key, key))
    assert cost == Cost(0, 2 * 2 * (2 * 4 * 100 * 30 * 16))  # scores, and their product with the values


def test_backward_pass_costs_twice_the_forward_pass():
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.zeros(4, 8, requires_grad=True)
    forward = count(lambda: model(x).sum())
    assert count(lambda: model(x).sum(), backward=True).flops == 3 * forward.flops


def test_costs_add_and_multiply():
    assert Cost(1, 2) + Cost(10, 20) * 3 == Cost(31, 62)


def test_parameters_and_bytes():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    assert num_parameters([model]) == 3 * 2 + 2 + 2 + 2
    assert weight_bytes([model]) == 2 * (12 + 2 + 2) + 8  # running statistics, and a counter of 8 bytes


def test_peak_counts_what_is_alive_at_once():
    with torch.device("meta"):
        x = torch.zeros(1000)  # not counted

    def chain():
        y = x + 1
        y = y + 1  # the first is still alive while the second is made
        y = y + 1
        return y.view(10, 100)  # no memory of its own

    def hoard():
        return [x + number for number in range(5)]

    assert peak_bytes(chain) == 2 * 4000
    assert peak_bytes(hoard) == 5 * 4000
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_peak_of_attention_is_without_scores_and_of_training_with_what_backward_needs():
    with torch.device("meta"):
        query = torch.zeros(1, 1, 1000, 8)
        layers = nn.Sequential(*(nn.Linear(100, 100) for _ in range(4)))
        x = torch.zeros(50, 100)
    assert peak_bytes(lambda: F.scaled_dot_product_attention(query, query, query)) == 1000 * 8 * 4
    activations = 50 * 100 * 4
    assert peak_bytes(lambda: layers(x).sum()) <= 2 * activations + 4
    gradients = 4 * 100 * 100 * 4  # all are there at the end, with the first layer's gradient of its output
    assert gradients + activations <= peak_bytes(lambda: layers(x).sum(), backward=True) < gradients + 4 * activations
