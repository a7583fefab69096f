"""Weights along a fine-tuning: its ends, what DARE expects, refusals."""

import pytest
import torch

from cmd_video.techniques.weight_extrapolation import merge


def two():
    torch.manual_seed(0)
    return torch.nn.Linear(30, 40), torch.nn.Linear(30, 40)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("scale", "which"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_two_models_to_the_bit(scale, which):
    models = two()
    expected = weights(models[which])
    merged = merge(*models, scale)
    assert all(torch.equal(value, expected[name]) for name, value in merged.state_dict().items())


def test_beyond_the_ends_it_goes_on_in_a_line():
    base, tuned = two()
    before, after = weights(base), weights(tuned)
    merged = merge(base, tuned, -0.25)
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, before[name] - 0.25 * (after[name] - before[name]))


def test_dropped_entries_are_made_up_for_on_average():
    found = []
    for seed in range(400):
        base, tuned = two()
        before, difference = weights(base), tuned.weight.detach() - base.weight.detach()
        merged = merge(base, tuned, 1.0, keep=0.3, seed=seed)
        step = merged.weight.detach() - before["weight"]
        assert (step == 0).float().mean() == pytest.approx(0.7, abs=0.06)
        torch.testing.assert_close(merged.bias.detach(), tuned.bias.detach())  # vectors stay whole
        found.append(step)
    torch.testing.assert_close(torch.stack(found).mean(dim=0), difference, atol=0.08, rtol=0)


def test_the_same_seed_drops_the_same():
    first, second = (weights(merge(*two(), 0.5, keep=0.5, seed=3)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(merge(*two(), 0.5, keep=0.5, seed=4))
    assert not torch.equal(first["weight"], other["weight"])


def test_other_layouts_are_refused_and_left_alone():
    base, _ = two()
    before = weights(base)
    with pytest.raises(ValueError, match="tuned: weight is not in both models, or not of one shape; 2 such weights"):
        merge(base, torch.nn.Linear(30, 41), 0.5)
    with pytest.raises(ValueError, match="keep"):
        merge(*two(), 0.5, keep=0.0)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
