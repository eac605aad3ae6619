"""prefetch.py: what is made ahead comes in order, errors too; memory is used again when nobody has it, and never before."""

import threading

import numpy as np
import pytest
import torch

from aupipe.prefetch import _KEPT, Buffers, prefetch


def test_items_are_made_ahead_of_their_use_and_no_further():
    made, third = [], threading.Event()

    def make():
        for n in range(10):
            made.append(n)
            if n == 2:
                third.set()
            yield n

    items = prefetch(make(), 2)
    assert next(items) == 0
    assert third.wait(60), "the next two are made while the caller is busy"
    assert len(made) <= 3
    assert list(items) == list(range(1, 10))


def test_error_comes_where_the_item_would_have():
    def make():
        yield 1
        raise ValueError("broken")

    items = prefetch(make(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    items = prefetch(iter(range(1000)), 2)
    next(items)
    items.close()
    assert threading.active_count() == before


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "hold", [lambda a: a, lambda a: a[1:, ::2], lambda a: torch.from_numpy(a), lambda a: torch.from_numpy(a)[1]]
)
def test_memory_is_not_given_away_while_somebody_has_it(hold):
    buffers = Buffers()
    array = buffers.empty(4, 5)
    place, held = address(array), hold(array)
    del array
    others = [buffers.empty(4, 5) for _ in range(3)]
    assert place not in [address(other) for other in others]
    del held
    assert place in [address(other) for other in [buffers.empty(4, 5)]]


def test_other_shapes_of_the_same_size_share_and_many_are_let_go():
    buffers = Buffers()
    place = address(buffers.empty(4, 5))
    assert address(buffers.empty(2, 10)) == place
    kept = [buffers.empty(6) for _ in range(20)]
    assert len(buffers._kept) <= _KEPT
    assert len({address(array) for array in kept}) == 20
    assert all(array.dtype == np.uint8 for array in kept)
