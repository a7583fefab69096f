"""The order of a pass: every clip once, a function of its numbers alone, whole blocks at a time."""

import pickle

import numpy as np
import pytest

from cmd_video.data.order import BlockOrder

SIZES = {"one block": [7], "equal": [4] * 10, "unequal": [5, 0, 3, 8, 1, 4, 4, 2, 9]}


@pytest.mark.parametrize("window", [1, 3, 64])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_pass_has_every_clip_once(sizes, window):
    order = BlockOrder(SIZES[sizes], [3], window)
    for turn in (0, 1):
        assert sorted(order(turn, place) for place in range(len(order))) == list(range(sum(SIZES[sizes])))


def test_passes_and_keys_differ_and_repeat():
    def one(seed, turn):
        order = BlockOrder([16] * 12, [seed], 4)
        return [order(turn, place) for place in range(len(order))]

    assert one(0, 0) == one(0, 0)
    assert one(0, 0) != one(0, 1)
    assert one(0, 0) != one(1, 0)


def test_places_can_be_asked_in_any_order():
    order, again = BlockOrder([16] * 12, [0], 4), BlockOrder([16] * 12, [0], 4)
    places = np.random.default_rng(0).permutation(3 * len(order))
    backwards = {int(n): order(*divmod(int(n), len(order))) for n in places}
    assert [backwards[n] for n in range(len(places))] == [again(*divmod(n, len(again))) for n in range(len(places))]


def test_a_small_set_is_shuffled_whole():
    order = BlockOrder([10] * 5, [0, 1])
    assert [order(2, place) for place in range(50)] == np.random.default_rng([0, 1, 2]).permutation(50).tolist()


def test_a_window_reads_its_blocks_and_no_others():
    order = BlockOrder([6] * 20, [0], 4)
    blocks = [order.block_of(order(0, place))[0] for place in range(len(order))]
    windows = [set(blocks[first : first + 24]) for first in range(0, 120, 24)]
    assert all(len(window) == 4 for window in windows)
    assert set().union(*windows) == set(range(20))


def test_a_clip_lies_in_its_block():
    order = BlockOrder(SIZES["unequal"], [0])
    assert [order.block_of(clip) for clip in (0, 4, 5, 7, 8, 35)] == [(0, 0), (0, 4), (2, 0), (2, 2), (3, 0), (8, 8)]


def test_it_travels_to_loading_processes():
    order = BlockOrder([16] * 12, [5], 4)
    first = order(1, 7)
    assert pickle.loads(pickle.dumps(order))(1, 7) == first


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="sizes: no clip"):
        BlockOrder([0, 0], [0])
