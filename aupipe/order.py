"""In which order the clips of a plan come, which of them are a rank's, and which are read together.

The order is a function of (seed, epoch) and the recipe's batch alone: the same for one worker or many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.schema import DataError

if TYPE_CHECKING:
    from aupipe.clips import ClipSpec

POOL = 8192  # frames that short clips are shuffled among; 150 MB as JPEG at 200 pixels
NEIGHBOURS = 32  # rows, half a row group: what is read of a shard together where clips are short


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which pass over a plan: training passes are shuffled, cropped at random and mirrored by (seed, number)."""

    train: bool
    seed: int = 0
    number: int = 0


def find_places(plan: pa.Table, spec: ClipSpec) -> NDArray[np.int64] | None:
    """Which stretch of NEIGHBOURS rows each clip begins in, numbered in the order of the plan, where clips are so short
    that several of a stretch are better read together; None where each may be read by itself, or all together.
    """
    if 2 * spec.frames > NEIGHBOURS or spec.frames * plan.num_rows <= POOL:
        return None
    path_W = plan["path"].combine_chunks().dictionary_encode().indices.to_numpy()
    stretch_W = plan["start"].to_numpy() // NEIGHBOURS
    return np.cumsum((np.diff(path_W, prepend=path_W[0]) != 0) | (np.diff(stretch_W, prepend=stretch_W[0]) != 0))


def pool_steps(spec: ClipSpec) -> int:
    """Steps whose clips are read together and shuffled among each other, where `find_places` finds short ones."""
    return -(-POOL // (spec.frames * spec.batch))


def epoch_order(clips: int, epoch: Epoch, spec: ClipSpec, places: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Rows of the plan in the order of an epoch. Training wraps around, so that the last step is full on every rank.

    With `places` (see `find_places`) it is they that are shuffled, and then the clips of `pool_steps` steps among each
    other: some 256 places at a time. So no row group is read for the sake of one frame. Within a step, which is a sum, clips
    lie in the order of their places, so that the ranks read different ones.
    """
    if not epoch.train:
        return np.arange(clips)
    random = np.random.default_rng([epoch.seed, epoch.number])
    length = -(-clips // spec.batch) * spec.batch
    if places is None:
        return np.resize(random.permutation(clips), length)
    turn_W = random.permutation(places[-1] + 1)[places]
    order = np.resize(np.argsort(turn_W, kind="stable"), length)
    pool = pool_steps(spec) * spec.batch
    for first in range(0, length, pool):
        random.shuffle(order[first : first + pool])
    steps = order.reshape(-1, spec.batch)
    return np.take_along_axis(steps, np.argsort(turn_W[steps], 1, kind="stable"), 1).ravel()


def rank_slice(order: NDArray[np.int64], batch: int, rank: int, world: int) -> NDArray[np.int64]:
    """This rank's share: the `rank`-th part of every global batch, so that a step sees the same clips for any world.

    Raises DataError if the batch cannot be split evenly.
    """
    if batch % world:
        raise DataError(f"a batch of {batch} clips cannot be split over {world} workers; give a multiple of {world}")
    return order[np.arange(len(order)) % batch // (batch // world) == rank]


def steps_per_epoch(plan: pa.Table, batch: int) -> int:
    """Optimiser steps of one training pass, the same on every rank."""
    return -(-plan.num_rows // batch)


def cut_pieces(
    plan: pa.Table, spec: ClipSpec, epoch: Epoch, *, rank: int, world: int, start: int, frames: int = 0
) -> Iterator[pa.Table]:
    """This rank's rows of the plan in the order of a pass from step `start` on, in the pieces that are read at one go.

    They are whole pools where clips are short (see `epoch_order`), else whole steps, or about `frames` frames if given.
    Pieces travel, so their paths are plain text: a dictionary would take all paths of the plan along.
    """
    size, places = spec.batch // world, find_places(plan, spec) if epoch.train else None
    order = rank_slice(epoch_order(plan.num_rows, epoch, spec, places), spec.batch, rank, world)
    length = pool_steps(spec) * size if places is not None else max(1, frames // spec.frames) if frames else size
    first = start * size
    while first < len(order):
        last = first + length - first % length
        piece = plan.take(pa.array(order[first:last]))
        yield piece.cast(
            pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in piece.schema])
        )
        first = last
