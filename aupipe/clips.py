"""Clips are planned, then read: windows of sessions as rows of a small table, then bytes of faces, then batches.

The order of an epoch is a function of (seed, epoch) alone; crop and mirror are a function of (seed, epoch, clip). Both are
therefore the same for one worker or many, and for every way of carrying the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aupipe import schema
from aupipe.codec import THREADS, decode_faces
from aupipe.config import ALIGN_SIZE, Recipe
from aupipe.facs import AUSet
from aupipe.order import Epoch as Epoch
from aupipe.order import cut_pieces
from aupipe.order import epoch_order as epoch_order
from aupipe.order import rank_slice as rank_slice
from aupipe.order import steps_per_epoch as steps_per_epoch
from aupipe.prefetch import Buffers, prefetch
from aupipe.schema import Batch, DataError, intensity_array, label_arrays
from aupipe.shards import load_index, read_rows, read_window

_NAME = pa.dictionary(pa.int32(), pa.string())  # the text of 10⁷ paths would be a gigabyte, and overflow at 2³¹ bytes
PLAN = pa.schema(
    [
        ("clip", pa.int64()),  # the row's own number: what a crop or a mirror flag is drawn for
        ("subject", _NAME),
        ("path", _NAME),  # of the shard, for read_window
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
    names = [pa.array([session[name] for session in own]).cast(_NAME).take(session_N) for name in ("subject", "path")]
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


def read_clips(plan: pa.Table, shards: Path, spec: ClipSpec, epoch: Epoch, *, faces: bool = True) -> pa.Table:
    """Rows of the plan → the same rows with `faces` (T of them, null where there is none) and `labels` (T·M, NaN = masked);
    with `intensities`, like the labels, if the spec asks for them, and without faces where they are not wanted.
    """
    frames_B = plan["frames"].to_numpy()
    steps_BT = window_steps(frames_B, spec) * (spec.interval if epoch.train else 1)
    filler_BT = np.arange(spec.frames) >= frames_B[:, None]
    columns = [*([spec.align] if faces else []), "status", *label_columns(spec)]
    table, rows_BT = _read_once(plan, steps_BT, shards, columns)
    if faces:
        plan = plan.append_column("faces", _as_lists(_pick(table[spec.align], rows_BT, filler_BT), spec.frames))
    for name, values_NM in label_values(table, spec).items():
        values_BTM = values_NM[rows_BT]
        values_BTM[filler_BT] = np.nan
        plan = plan.append_column(name, _as_lists(pa.array(values_BTM.ravel()), spec.frames * len(spec.aus)))
    return plan


def _read_once(
    plan: pa.Table, steps_BT: NDArray[np.integer], shards: Path, columns: list[str]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """All rows that the clips touch, every shard opened and every row group read once; and where each frame's row is."""
    path_B = plan["path"].combine_chunks().dictionary_encode()
    rows_BT = plan["start"].to_numpy()[:, None] + steps_BT
    place_BT = np.empty(rows_BT.shape, np.int64)
    tables, done = [], 0
    for number, path in enumerate(path_B.dictionary.to_pylist()):
        own = path_B.indices.to_numpy() == number
        rows_N, within = np.unique(rows_BT[own], return_inverse=True)
        tables.append(read_rows(shards, path, rows_N, columns))
        place_BT[own] = done + within.reshape(-1, rows_BT.shape[1])
        done += len(rows_N)
    return pa.concat_tables(tables), place_BT


def _pick(column: pa.ChunkedArray, rows_BT: NDArray[np.integer], filler_BT: NDArray[np.bool_]) -> pa.Array:
    """The faces of clips, one after the other, null where one only fills its clip."""
    rows_N = rows_BT[~filler_BT]
    starts = np.flatnonzero(np.diff(rows_N, prepend=-2) != 1)
    if filler_BT.any() or len(rows_N) < 8 * len(starts):
        return column.take(pa.array(rows_BT.ravel(), mask=filler_BT.ravel())).combine_chunks()
    # Long stretches are copied once, as a whole.
    stretches = zip(rows_N[starts].tolist(), np.diff(starts, append=len(rows_N)).tolist(), strict=True)
    return pa.concat_arrays(chunk for first, count in stretches for chunk in column.slice(first, count).chunks)


def label_columns(spec: ClipSpec) -> tuple[str, ...]:
    """The columns of a shard that a clip's labels are made of."""
    return (*spec.aus.columns, *(spec.aus.intensity_columns if spec.intensity else ()))


def label_values(table: pa.Table, spec: ClipSpec) -> dict[str, NDArray[np.float32]]:
    """`labels` and, if asked for, `intensities` of rows of a shard, (N, M), NaN where not coded or without a face."""
    labels, mask = label_arrays(table, spec.aus)
    values = {"labels": np.where(mask, labels, np.float32(np.nan))}
    if spec.intensity:
        values["intensities"] = intensity_array(table, spec.aus)
    ok = pc.equal(table["status"], schema.OK).to_numpy()
    for values_NM in values.values():
        values_NM[~ok] = np.nan
    return values


def window_steps(frames_B: NDArray[np.integer], spec: ClipSpec) -> NDArray[np.integer]:
    """(B, T): which of its own frames a clip has at each step; a short one repeats its last, which is masked."""
    return np.minimum(np.arange(spec.frames), frames_B[:, None] - 1)


def _as_lists(values: pa.Array, size: int) -> pa.ListArray:
    """A flat column → lists of `size` each."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, size), pa.int32()), values)


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    """The values of all lists of a column, one after the other."""
    parts = [chunk.flatten() for chunk in lists.chunks]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def decode_clips(
    clips: pa.Table, spec: ClipSpec, epoch: Epoch, pool: ThreadPoolExecutor | None = None, buffers: Buffers | None = None
) -> Batch:
    """Faces as bytes → a batch of whole aligned faces, with each clip's crop offset and mirror flag drawn.

    A frame without a face is zeros; its labels are masked already. Decoding releases the interpreter, so threads help.
    """
    size = ALIGN_SIZE[spec.align]
    frames = (buffers or Buffers()).empty(clips.num_rows, spec.frames, size, size, 3)
    decode_faces(_flat(clips["faces"]), frames.reshape(-1, size, size, 3), clips["path"].to_pylist(), pool)
    for clip, count in zip(frames, clips["frames"].to_pylist(), strict=True):
        clip[count:] = clip[count - 1]
    return make_batch(clips, spec, epoch, frames, clip_values(clips))


def clip_values(clips: pa.Table) -> dict[str, NDArray[np.float32]]:
    """`labels` and, if they are there, `intensities` of clips that were read, for `make_batch`."""
    return {name: _flat(clips[name]).to_numpy() for name in ("labels", "intensities") if name in clips.column_names}


def make_batch(plan: pa.Table, spec: ClipSpec, epoch: Epoch, frames: Any, values: dict[str, NDArray[np.float32]]) -> Batch:
    """The batch of clips whose frames_BTHWC are known, with what is drawn for each of them.

    values: `labels` and perhaps `intensities` of all the clips' frames, NaN = masked, as `label_values` names them.
    """
    shape = (plan.num_rows, spec.frames, len(spec.aus))
    labels = values["labels"].reshape(shape)
    intensity = values["intensities"].reshape(shape) if spec.intensity else None
    mask = ~np.isnan(labels)
    number = plan["clip"].to_numpy()
    crop, mirror, seed = draw_crops(number, ALIGN_SIZE[spec.align] - spec.crop, epoch)
    real = np.arange(spec.frames) < plan["frames"].to_numpy()[:, None]
    return Batch(frames, np.where(mask, labels, np.float32(0)), mask, crop, mirror, seed, number, real, intensity)


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
    with ThreadPoolExecutor(THREADS) as pool:
        read = partial(read_clips, shards=shards, spec=spec, epoch=this)
        make = partial(decode_clips, spec=spec, epoch=this, pool=pool, buffers=Buffers())
        yield from load_ahead(plan, spec, this, read, make, rank=rank, world=world, start=start)


def load_ahead(
    plan: pa.Table,
    spec: ClipSpec,
    epoch: Epoch,
    read: Callable[[pa.Table], pa.Table],
    make: Callable[[pa.Table], Batch],
    *,
    rank: int,
    world: int,
    start: int,
) -> Iterator[Batch]:
    """This rank's steps of a pass, in order: pieces of the plan are read on one thread, batches made of them on another."""
    size = spec.batch // world
    pieces = cut_pieces(plan, spec, epoch, rank=rank, world=world, start=start)
    with closing(prefetch(map(read, pieces), 1)) as tables:
        parts = (table.slice(first, size) for table in tables for first in range(0, table.num_rows, size))
        yield from prefetch(map(make, parts), 2)
