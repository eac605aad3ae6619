"""Clips are planned, then read: windows of sessions as rows of a small table, then JPEG bytes, then batches.

The order of an epoch is a function of (seed, epoch) alone; crop and mirror are a function of (seed, epoch, clip). Both are
therefore the same for one worker or many, and for every way of carrying the bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
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
from aupipe.schema import Batch, DataError, intensity_array, label_arrays
from aupipe.shards import load_index, read_window

PLAN = pa.schema(
    [
        ("clip", pa.int64()),  # the row's own number: what a crop or a mirror flag is drawn for
        ("subject", pa.string()),
        ("path", pa.string()),  # of the shard, for read_window
        ("start", pa.int32()),  # row of the first frame
        ("frames", pa.int32()),  # rows of the session in this clip; the rest, up to T, repeats the last one, masked
    ]
)


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """What a clip is: T frames `interval` apart, from which alignment, with which crop; `batch` clips per step in all.

    `intensity`: whether its labels are intensities too.
    """

    aus: AUSet
    frames: int
    stride: int
    interval: int
    align: str
    crop: int
    batch: int
    intensity: bool = False

    @classmethod
    def of(cls, recipe: Recipe, aus: AUSet, batch: int) -> ClipSpec:
        clip, face = recipe.clip, recipe.input
        asked = recipe.loss.intensity > 0
        return cls(aus, clip.frames, clip.stride, clip.interval, face.align, face.crop, batch, asked)


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
    own = [session for session in index["sessions"] if session["subject"] in wanted]
    windows = [_windows(session, spec, train) for session in own]
    starts, frames = (np.concatenate([np.empty(0, np.int32), *(w[i] for w in windows)]) for i in (0, 1))
    if not len(starts):
        raise DataError(f"{shards}: the {len(wanted)} subjects have no usable frame; see the status counts in its index")
    if train and spec.intensity and not any(_codes_intensity(shards, session, spec.aus) for session in own):
        what = "codes no intensity (AUxx_r) of these subjects"
        raise DataError(f"{shards} {what}; set loss.intensity to 0 and model.intensity to false")
    session_N = pa.array(np.repeat(np.arange(len(own)), [len(w[0]) for w in windows]))
    names = [pa.array([session[name] for session in own]).take(session_N) for name in ("subject", "path")]
    return pa.table([np.arange(len(starts)), *names, starts, frames], schema=PLAN)


def _codes_intensity(shards: Path, session: dict[str, Any], aus: AUSet) -> bool:
    table = read_window(shards, session["path"], 0, session["rows"], 1, list(aus.intensity_columns))
    return any(column.null_count < len(column) for column in table.columns)


def _windows(session: dict[str, Any], spec: ClipSpec, train: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """First row and number of frames of each window of a session."""
    # Evaluation of interval-spaced clips would need interleaved windows; frames are taken densely there.
    interval = spec.interval if train else 1
    span = (spec.frames - 1) * interval + 1
    starts, ends = [], []
    for run_start, run_length in session["runs"]:
        last = max(run_length - span, 0) if train else run_length - 1
        starts.append(np.arange(run_start, run_start + last + 1, spec.stride if train else spec.frames, dtype=np.int32))
        ends.append(np.full(len(starts[-1]), run_start + run_length, np.int32))
    start_W = np.concatenate(starts)
    frames_W = np.minimum(spec.frames, (np.concatenate(ends) - start_W - 1) // interval + 1).astype(np.int32)
    if not train:
        return start_W, frames_W
    usable = np.zeros(session["rows"], bool)
    for start, length in session["usable"]:
        usable[start : start + length] = True
    # A short window repeats its last frame, which changes nothing of whether there is any to learn from.
    rows_WT = start_W[:, None] + interval * np.minimum(np.arange(spec.frames), frames_W[:, None] - 1)
    learns_W = usable[rows_WT].any(1)
    return start_W[learns_W], frames_W[learns_W]


def plan_runs(plan: pa.Table, shards: Path, frames: int) -> pa.Table:
    """What a temporal model must see to read the frames of a plan with all their context: every contiguous run of frames
    that the plan touches, whole, in consecutive windows of `frames` frames. `ends` marks the last window of a run.
    """
    runs = {session["path"]: session["runs"] for session in load_index(shards)["sessions"]}
    touched: dict[tuple[str, str], list[int]] = {}
    for subject, path, start in zip(*(plan[name].to_pylist() for name in ("subject", "path", "start")), strict=True):
        touched.setdefault((subject, path), []).append(start)
    rows = []
    for (subject, path), starts in touched.items():
        for run_start, length in runs[path]:
            if any(run_start <= start < run_start + length for start in starts):
                for offset in range(0, length, frames):
                    count = min(frames, length - offset)
                    rows.append((subject, path, run_start + offset, count, offset + count == length))
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table([list(range(len(rows))), *columns], schema=PLAN.append(pa.field("ends", pa.bool_())))


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


def read_clips(plan: pa.Table, shards: Path, spec: ClipSpec, epoch: Epoch, *, faces: bool = True) -> pa.Table:
    """Rows of the plan → the same rows with `faces` (T JPEGs, null where there is none) and `labels` (T·M, NaN = masked);
    with `intensities`, like the labels, if the spec asks for them, and without faces where they are not wanted.
    """
    codes = (*spec.aus.columns, *(spec.aus.intensity_columns if spec.intensity else ()))
    columns = [*([spec.align] if faces else []), "status", *codes]
    interval = spec.interval if epoch.train else 1
    frames = plan["frames"].to_numpy()
    places = zip(plan["path"].to_pylist(), plan["start"].to_pylist(), frames.tolist(), strict=True)
    table = pa.concat_tables([read_window(shards, path, start, count, interval, columns) for path, start, count in places])
    labels, mask = label_arrays(table, spec.aus)
    values = {"labels": np.where(mask, labels, np.float32(np.nan))}
    if spec.intensity:
        values["intensities"] = intensity_array(table, spec.aus)
    ok = pc.equal(table["status"], schema.OK).to_numpy()
    rows_BT = (np.cumsum(frames) - frames)[:, None] + window_steps(frames, spec)
    step = np.arange(spec.frames)
    if faces:
        jpegs = table[spec.align].combine_chunks().take(pa.array(rows_BT.ravel()))
        plan = plan.append_column("faces", _as_lists(jpegs, spec.frames))
    for name, values_NM in values.items():
        values_NM[~ok] = np.nan
        values_BTM = values_NM[rows_BT]
        values_BTM[step >= frames[:, None]] = np.nan
        plan = plan.append_column(name, _as_lists(pa.array(values_BTM.ravel()), spec.frames * len(spec.aus)))
    return plan


def window_steps(frames_B: NDArray[np.integer], spec: ClipSpec) -> NDArray[np.integer]:
    """(B, T): which of its own frames a clip has at each step; a short one repeats its last, which is masked."""
    return np.minimum(np.arange(spec.frames), frames_B[:, None] - 1)


def _as_lists(values: pa.Array, size: int) -> pa.ListArray:
    """A flat column → lists of `size` each."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, size), pa.int32()), values)


def _as_array(lists: pa.ChunkedArray, *shape: int) -> NDArray[np.float32]:
    return np.stack(lists.to_pylist()).astype(np.float32).reshape(shape)


def decode_clips(clips: pa.Table, spec: ClipSpec, epoch: Epoch, pool: ThreadPoolExecutor | None = None) -> Batch:
    """JPEG bytes → a batch of whole aligned faces, with each clip's crop offset and mirror flag drawn.

    A frame without a face is zeros; its labels are masked already. Decoding releases the interpreter, so threads help.
    """
    size = ALIGN_SIZE[spec.align]
    frames = np.zeros((clips.num_rows, spec.frames, size, size, 3), np.uint8)
    paths, counts = clips["path"].to_pylist(), clips["frames"].to_pylist()
    jobs = [
        (jpeg, frames[b, t], paths[b])
        for b, faces in enumerate(clips["faces"])
        for t, jpeg in enumerate(itertools.islice(faces, counts[b]))
    ]
    for _ in (pool.map if pool else map)(_decode_into, jobs):
        pass
    for clip, count in zip(frames, counts, strict=True):
        clip[count:] = clip[count - 1]
    return make_batch(clips, spec, epoch, frames)


def make_batch(clips: pa.Table, spec: ClipSpec, epoch: Epoch, frames: NDArray[np.uint8]) -> Batch:
    """The batch of clips whose frames_BTHWC are known, with what is drawn for each of them."""
    B, T, M = clips.num_rows, spec.frames, len(spec.aus)
    labels = _as_array(clips["labels"], B, T, M)
    intensity = _as_array(clips["intensities"], B, T, M) if spec.intensity else None
    mask = ~np.isnan(labels)
    number = clips["clip"].to_numpy()
    crop, mirror, seed = draw_crops(number, ALIGN_SIZE[spec.align] - spec.crop, epoch)
    real = np.arange(T) < clips["frames"].to_numpy()[:, None]
    return Batch(frames, np.where(mask, labels, 0), mask, crop, mirror, seed, number, real, intensity)


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

    `start` skips that many steps.
    """
    this = Epoch(train, seed, epoch)

    def load(part: pa.Table) -> Batch:
        return decode_clips(read_clips(part, shards, spec, this), spec, this, pool)

    with ThreadPoolExecutor(2) as pool:
        yield from load_ahead(plan, spec.batch, this, load, rank=rank, world=world, start=start)


def load_ahead(
    plan: pa.Table, batch: int, epoch: Epoch, load: Callable[[pa.Table], Batch], *, rank: int, world: int, start: int
) -> Iterator[Batch]:
    """`load` of each of this rank's parts of a pass, in order; one thread reads ahead while the caller computes."""
    size = batch // world
    order = rank_slice(epoch_order(plan.num_rows, epoch, batch), batch, rank, world)[start * size :]
    parts = (plan.take(pa.array(order[i : i + size])) for i in range(0, len(order), size))
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(load, part) for part in itertools.islice(parts, 2)]
        while waiting:
            loaded = waiting.pop(0).result()
            waiting += [ahead.submit(load, part) for part in itertools.islice(parts, 1)]
            yield loaded
