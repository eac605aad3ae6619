"""order.py: the clips of an epoch, of a rank, and of a piece that is read at one go."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import AUS
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe import order as rooms
from aupipe.clips import PLAN, ClipSpec, clip_batches, plan_clips
from aupipe.order import Epoch, cut_pieces, epoch_order, find_places, pool_steps, rank_slice
from aupipe.schema import ROW_GROUP, DataError

SPEC = ClipSpec(AUS, frames=3, stride=2, interval=1, align="face112", crop=96, batch=4)
TEN = replace(SPEC, batch=10)


@settings(max_examples=60, deadline=None)
@given(
    clips=st.integers(1, 90), share=st.integers(1, 5), world=st.integers(1, 4), number=st.integers(0, 9), train=st.booleans()
)
def test_ranks_share_every_global_batch(clips, share, world, number, train):
    batch = share * world
    order = epoch_order(clips, Epoch(train, 5, number), replace(SPEC, batch=batch))
    if train:
        assert len(order) % batch == 0, "every rank has the same number of full steps"
        assert len(order) < clips + batch
    else:
        assert order.tolist() == list(range(clips))
    assert set(order.tolist()) == set(range(clips))
    parts = [rank_slice(order, batch, rank, world) for rank in range(world)]
    for step in range(-(-len(order) // batch)):
        own = [clip for part in parts for clip in part[step * share : (step + 1) * share].tolist()]
        assert own == order[step * batch : (step + 1) * batch].tolist()
    assert sum(map(len, parts)) == len(order)


def test_order_is_a_function_of_seed_and_epoch_alone():
    orders = {(s, n): tuple(epoch_order(50, Epoch(True, s, n), TEN).tolist()) for s in range(3) for n in range(3)}
    assert len(set(orders.values())) == 9
    np.random.default_rng().random(3)
    np.random.seed(1)
    assert all(tuple(epoch_order(50, Epoch(True, s, n), TEN).tolist()) == order for (s, n), order in orders.items())
    assert orders[0, 0] == tuple(epoch_order(50, Epoch(True, 0, 0), replace(SPEC, batch=5)).tolist()), (
        "nor does the batch count"
    )


def test_batch_that_cannot_be_split_is_an_error(shards):
    with pytest.raises(DataError, match="batch of 4 clips cannot be split over 3 workers"):
        rank_slice(np.arange(8), 4, 0, 3)
    with pytest.raises(DataError, match="multiple of 3"):
        next(clip_batches(plan_clips(shards, ["F001"], SPEC), shards, SPEC, train=False, world=3))


def plan_frames(sessions, rows, stride=1):
    """A plan of single frames of that many sessions."""
    starts = np.tile(np.arange(0, rows, stride), sessions)
    paths = np.repeat([f"S{n:03d}/T.parquet" for n in range(sessions)], len(starts) // sessions)
    columns = [np.arange(len(starts)), paths, paths, starts, np.ones(len(starts))]
    return pa.table([pa.array(c).cast(f.type) for c, f in zip(columns, PLAN, strict=True)], schema=PLAN)


FRAMES = replace(SPEC, frames=1, stride=1, batch=64)


def steps_of(plan, spec, epoch, world, start=0):
    """The clips of every step, and the pieces of every rank."""
    pieces = [list(cut_pieces(plan, spec, epoch, rank=rank, world=world, start=start)) for rank in range(world)]
    parts = [np.concatenate([piece["clip"].to_numpy() for piece in own]).reshape(-1, spec.batch // world) for own in pieces]
    return np.sort(np.concatenate(parts, 1), 1), pieces


def count_rows(piece):
    """Rows of the row groups that a piece touches."""
    places = set(zip(piece["path"].to_pylist(), (piece["start"].to_numpy() // ROW_GROUP).tolist(), strict=True))
    return len(places) * ROW_GROUP


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_row_group_is_not_read_for_one_frame(world):
    plan, epoch = plan_frames(100, 10 * ROW_GROUP), Epoch(True, 3, 1)
    steps, pieces = steps_of(plan, FRAMES, epoch, world)
    read = sum(count_rows(piece) for own in pieces for piece in own)
    assert read <= 4 * steps.size, "rows read for rows used, over all ranks"
    assert sorted(set(steps.ravel().tolist())) == list(range(plan.num_rows)), "every frame comes"
    assert steps.size == plan.num_rows
    alone, _ = steps_of(plan, FRAMES, epoch, 1)
    np.testing.assert_array_equal(steps, alone)


def test_short_clips_of_a_large_plan_are_well_mixed():
    plan = plan_frames(100, 640)
    steps, _ = steps_of(plan, FRAMES, Epoch(True, 3, 1), 1)
    sessions = [len(set((step // 640).tolist())) for step in steps]
    assert min(sessions) > 30, "64 frames of a step are of 47 sessions on average if each is drawn by itself"
    again, _ = steps_of(plan, FRAMES, Epoch(True, 3, 1), 1)
    np.testing.assert_array_equal(steps, again)
    for other in (Epoch(True, 3, 2), Epoch(True, 4, 1)):
        assert (steps_of(plan, FRAMES, other, 1)[0] != steps).any()
    pool = pool_steps(FRAMES)
    assert len(set(steps[:pool].ravel().tolist()) & set(steps[pool : 2 * pool].ravel().tolist())) == 0


@pytest.mark.parametrize("start", [1, 127, 128, 300])
def test_pieces_go_on_at_any_step(start):
    plan, epoch = plan_frames(40, 640), Epoch(True, 3, 1)
    whole, _ = steps_of(plan, FRAMES, epoch, 2)
    rest, pieces = steps_of(plan, FRAMES, epoch, 2, start)
    np.testing.assert_array_equal(rest, whole[start:])
    lengths = [piece.num_rows // 32 for piece in pieces[0]]
    assert all((start + sum(lengths[:n])) % pool_steps(FRAMES) == 0 for n in range(1, len(lengths))), "whole pools again"


def test_long_clips_and_small_plans_are_shuffled_one_by_one():
    assert find_places(plan_frames(12, 640), FRAMES) is None, "all of it is one pool"
    assert find_places(plan_frames(100, 640), replace(FRAMES, frames=24)) is None
    places = find_places(plan_frames(100, 640), FRAMES)
    assert len(set(places.tolist())) == places[-1] + 1 == 100 * 640 // rooms.NEIGHBOURS
    order = epoch_order(7680, Epoch(True, 3, 1), FRAMES)
    np.testing.assert_array_equal(order, np.random.default_rng([3, 1]).permutation(7680))


def test_evaluation_keeps_the_order_of_the_plan():
    steps = [
        piece["clip"].to_pylist()
        for piece in cut_pieces(plan_frames(20, 640), FRAMES, Epoch(False), rank=1, world=2, start=1)
    ]
    assert steps[0] == list(range(96, 128))
    assert steps[-1] == list(range(12768, 12800))
