"""Clips are planned, then read: windows of sessions as rows of a small table, then JPEG bytes, then batches.

The order of an epoch is a function of (seed, epoch) alone; crop and mirror are a function of (seed, epoch, clip). Both are
therefore the same for one worker or many, and for every way of carrying the bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aupipe import schema
from aupipe.config import ALIGN_SIZE, Recipe
from aupipe.facs import AUSet
from aupipe.schema import Batch, DataError, label_arrays
from aupipe.shards import load_index, read_window

PLAN = pa.schema(
    [
        ("clip", pa.int64()),  # the row's own number: what a crop or a mirror flag is drawn for
        ("subject", pa.string()),
        ("path", pa.string()),  # of the shard, relative to the folder of shards
        ("start", pa.int32()),  # row of the first frame
        ("frames", pa.int32()),  # rows of the session in this clip; the rest, up to T, repeats the last one, masked
    ]
)


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """What a clip is: T frames `interval` apart, from which alignment, with which crop; `batch` clips per step in all."""

    aus: AUSet
    frames: int
    stride: int
    interval: int
    align: str
    crop: int
    batch: int

    @classmethod
    def of(cls, recipe: Recipe, aus: AUSet, batch: int) -> ClipSpec:
        clip = recipe.clip
        return cls(aus, clip.frames, clip.stride, clip.interval, recipe.input.align, recipe.input.crop, batch)


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which pass over a plan: training passes are shuffled, cropped at random and mirrored by (seed, number)."""

    train: bool
    seed: int = 0
    number: int = 0


def plan_clips(shards: Path, subjects: Iterable[str], spec: ClipSpec, *, train: bool = False) -> pa.Table:
    """Windows over every contiguous run of frames of these subjects, in the order of the index.

    For evaluation the windows are dense and disjoint, so every frame is in exactly one clip. For training a new window
    starts every `stride` frames, and windows without any frame to learn from are left out.
    Raises DataError if a subject has no shard, or if nothing is left.
    """
    index, wanted = load_index(shards), set(subjects)
    if spec.align not in index["align"]:
        raise DataError(f"{shards} holds {index['align']}, not '{spec.align}'; add it to the corpus's align in params.yaml")
    absent = wanted - {s["subject"] for s in index["sessions"]}
    if absent:
        raise DataError(f"{shards} has no shard of subject {min(absent)} ({len(absent)} missing); run `dvc repro shards`")
    rows = [
        (session["subject"], session["path"], start, frames)
        for session in index["sessions"]
        if session["subject"] in wanted
        for start, frames in _windows(session, spec, train)
    ]
    if not rows:
        raise DataError(f"{shards}: the {len(wanted)} subjects have no usable frame; see the status counts in its index")
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table([list(range(len(rows))), *columns], schema=PLAN)


def _windows(session: dict[str, Any], spec: ClipSpec, train: bool) -> Iterator[tuple[int, int]]:
    # Evaluation of interval-spaced clips would need interleaved windows; frames are taken densely there.
    interval = spec.interval if train else 1
    usable = np.zeros(session["rows"], bool)
    for start, length in session["usable"]:
        usable[start : start + length] = True
    span = (spec.frames - 1) * interval + 1
    for run_start, run_length in session["runs"]:
        last = max(run_length - span, 0) if train else run_length - 1
        for offset in range(0, last + 1, spec.stride if train else spec.frames):
            frames = min(spec.frames, (run_length - offset - 1) // interval + 1)
            start = run_start + offset
            if not train or usable[start : start + frames * interval : interval].any():
                yield start, frames


def epoch_order(clips: int, epoch: Epoch, batch: int) -> NDArray[np.int64]:
    """Rows of the plan in the order of an epoch. Training wraps around, so that the last step is full on every rank."""
    if not epoch.train:
        return np.arange(clips)
    order = np.random.default_rng([epoch.seed, epoch.number]).permutation(clips)
    return np.resize(order, -(-clips // batch) * batch)


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


def read_clips(plan: pa.Table, shards: Path, spec: ClipSpec, epoch: Epoch) -> pa.Table:
    """Rows of the plan → the same rows with `faces` (T JPEGs, null where there is none) and `labels` (T·M, NaN = masked)."""
    columns = [spec.align, "status", *spec.aus.columns]
    interval = spec.interval if epoch.train else 1
    frames = plan["frames"].to_numpy()
    places = zip(plan["path"].to_pylist(), plan["start"].to_pylist(), frames.tolist(), strict=True)
    table = pa.concat_tables([read_window(shards / path, start, count, interval, columns) for path, start, count in places])
    values, mask = label_arrays(table, spec.aus)
    ok = pc.equal(table["status"], schema.OK).to_numpy()
    values[~(mask & ok[:, None])] = np.nan
    # A short clip repeats its last frame, masked.
    step = np.arange(spec.frames)
    rows_BT = (np.cumsum(frames) - frames)[:, None] + np.minimum(step, frames[:, None] - 1)
    labels_BTM = values[rows_BT]
    labels_BTM[step >= frames[:, None]] = np.nan
    faces = table[spec.align].combine_chunks().take(pa.array(rows_BT.ravel()))
    plan = plan.append_column("faces", _as_lists(faces, spec.frames))
    return plan.append_column("labels", _as_lists(pa.array(labels_BTM.ravel()), spec.frames * len(spec.aus)))


def _as_lists(values: pa.Array, size: int) -> pa.ListArray:
    """A flat column → lists of `size` each."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, size), pa.int32()), values)


def decode_clips(clips: pa.Table, spec: ClipSpec, epoch: Epoch, pool: ThreadPoolExecutor | None = None) -> Batch:
    """JPEG bytes → a batch of whole aligned faces, with each clip's crop offset and mirror flag drawn.

    A frame without a face is zeros; its labels are masked already. Decoding releases the interpreter, so threads help.
    """
    size, (B, T, M) = ALIGN_SIZE[spec.align], (clips.num_rows, spec.frames, len(spec.aus))
    frames = np.zeros((B, T, size, size, 3), np.uint8)
    paths = clips["path"].to_pylist()
    jobs = [(jpeg, frames[b, t], paths[b]) for b, faces in enumerate(clips["faces"]) for t, jpeg in enumerate(faces)]
    for _ in (pool.map if pool else map)(_decode_into, jobs):
        pass
    labels = np.stack(clips["labels"].to_pylist()).astype(np.float32).reshape(B, T, M)
    mask = ~np.isnan(labels)
    number = clips["clip"].to_numpy()
    crop, mirror, seed = draw_crops(number, size - spec.crop, epoch)
    real = np.arange(T) < clips["frames"].to_numpy()[:, None]
    return Batch(frames, np.where(mask, labels, 0), mask, crop, mirror, seed, number, real)


def _decode_into(job: tuple[pa.BinaryScalar, NDArray[np.uint8], str]) -> None:
    jpeg, target, path = job
    if jpeg.is_valid:
        data = np.frombuffer(jpeg.as_buffer(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
        if image is None or image.shape != target.shape:
            raise DataError(f"the shard {path} holds a face that is no JPEG of its size; run `dvc repro shards` to mend it")
        target[:] = image


def draw_crops(
    clips: NDArray[np.int64], slack: int, epoch: Epoch
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """One offset (top, left) in [0, slack]², one mirror flag and one seed per clip; outside training centre, none and 0."""
    if not epoch.train:
        return np.full((len(clips), 2), slack // 2), np.zeros(len(clips), bool), np.zeros(len(clips), np.int64)
    streams = [np.random.default_rng([epoch.seed, epoch.number, int(clip)]) for clip in clips]
    crops = np.stack([stream.integers(0, slack + 1, 2) for stream in streams])
    mirror = np.array([stream.random() < 0.5 for stream in streams])
    return crops, mirror, np.array([stream.integers(2**62) for stream in streams])


def clip_batches(
    plan: pa.Table,
    shards: Path,
    spec: ClipSpec,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """This rank's batches of one pass, in this process: the reference that `stream.clip_stream` must equal.

    `start` skips that many steps. One thread reads ahead while the caller computes.
    """
    this = Epoch(train, seed, epoch)
    size = spec.batch // world
    order = rank_slice(epoch_order(plan.num_rows, this, spec.batch), spec.batch, rank, world)[start * size :]
    parts = (plan.take(pa.array(order[i : i + size])) for i in range(0, len(order), size))

    def load(part: pa.Table) -> Batch:
        return decode_clips(read_clips(part, shards, spec, this), spec, this, pool)

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(2) as pool:
        waiting = [ahead.submit(load, part) for part in itertools.islice(parts, 2)]
        while waiting:
            batch = waiting.pop(0).result()
            waiting += [ahead.submit(load, part) for part in itertools.islice(parts, 1)]
            yield batch
