"""Conditions: rows are left out, replaced, chosen and stacked without touching what they came from."""

import pytest
import torch

from cmd_video.diffusion.condition import Condition, stacked


@pytest.fixture
def condition() -> Condition:
    return Condition({"prompt": ["a", "b", "c"], "class": torch.tensor([1, 2, 3]), "frame": torch.eye(3)})


def test_it_has_rows_of_as_many_samples(condition):
    assert len(condition) == 3 and "prompt" in condition and "label" not in condition
    assert condition["prompt"] == ["a", "b", "c"]
    assert not condition.is_absent("prompt").any() and condition.is_absent("prompt").shape == (3,)


def test_dropped_rows_are_absent_and_the_others_stay(condition):
    some = condition.dropped([True, False, False], ("prompt", "class"))
    assert some.is_absent("prompt").tolist() == some.is_absent("class").tolist() == [True, False, False]
    assert not some.is_absent("frame").any() and some["prompt"] is condition["prompt"]
    assert not condition.is_absent("prompt").any()  # the first one is as it was
    more = some.dropped(torch.tensor([False, True, False]), ("prompt",))
    assert more.is_absent("prompt").tolist() == [True, True, False]
    assert more.is_absent("class").tolist() == [True, False, False]


def test_without_leaves_out_all_rows_of_a_name(condition):
    nothing = condition.without("prompt", "class")
    assert nothing.is_absent("prompt").all() and nothing.is_absent("class").all()
    assert not nothing.is_absent("frame").any()
    assert not condition.without().absent


def test_having_replaces_and_adds_and_keeps_what_is_absent(condition):
    other = condition.dropped([True, False, True], ("class",)).having(
        **{"frame": torch.zeros(3, 2), "mask": [0, 1, 2]}
    )
    assert other["frame"].shape == (3, 2) and other["mask"] == [0, 1, 2] and other["prompt"] == ["a", "b", "c"]
    assert other.is_absent("class").tolist() == [True, False, True]
    assert condition["frame"].shape == (3, 3) and "mask" not in condition


def test_only_keeps_the_names_that_there_are(condition):
    few = condition.without("prompt").only(("class", "prompt", "label"))
    assert list(few.rows) == ["class", "prompt"] and few.is_absent("prompt").all()


def test_chosen_samples_keep_rows_and_absences_together(condition):
    which = torch.tensor([True, False, True])
    some = condition.dropped([False, False, True], ("prompt",)).chosen(which)
    assert len(some) == 2 and some["prompt"] == ["a", "c"] and some["class"].tolist() == [1, 3]
    assert torch.equal(some["frame"], torch.eye(3)[[0, 2]])
    assert some.is_absent("prompt").tolist() == [False, True]
    everything = condition.chosen(torch.ones(3, dtype=torch.bool))
    assert everything["prompt"] == condition["prompt"] and torch.equal(everything["class"], condition["class"])


def test_stacked_conditions_lie_one_behind_the_other():
    one, two = (
        Condition({"tokens": torch.full((2, 3), value), "labels": torch.tensor([0, 1])}) for value in (1.0, 2.0)
    )
    both = stacked([one, two])
    assert len(both) == 4 and both["tokens"][:, 0].tolist() == [1, 1, 2, 2] and both["labels"].tolist() == [0, 1, 0, 1]
    assert stacked([one]) is one
    parts = both.chosen(torch.tensor([False, False, True, True]))
    assert torch.equal(parts["tokens"], two["tokens"])
