"""Where a training's faces are: streamed, or decoded once and kept, on the host or on the device. All give the same batches.

`host`: in a file in the machine's memory, which all its workers share: the first fills it, the last removes it.
`device`: in the memory of each worker's GPU; only the numbers of rows travel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from aupipe import shared
from aupipe.clips import ClipSpec, label_columns, label_values, load_ahead, make_batch, window_steps
from aupipe.codec import decode_faces
from aupipe.config import ALIGN_SIZE, code, fingerprint
from aupipe.order import Epoch
from aupipe.prefetch import Buffers, prefetch
from aupipe.schema import Batch, ConfigError
from aupipe.shards import load_index, read_rows
from aupipe.storage import is_address
from aupipe.values import nearest

logger = logging.getLogger(__name__)

LEVELS = ("auto", "stream", "host", "device")
Batches = Callable[..., Iterator[Batch]]  # with the signature of clips.clip_batches

_ROWS = 1024  # decoded at a time: 16 shares for threads
_SHARES = {"device": 0.6, "host": 0.5}  # of the free memory that `auto` takes at most
_MOST = 0.9  # that a level which was asked for takes


class NoRoomError(Exception):
    """A level's memory does not hold the faces."""


@contextlib.contextmanager
def open_level(
    level: str, stream: Batches, shards: Path, plans: Sequence[pa.Table], spec: ClipSpec, device: str = "cpu"
) -> Iterator[Level]:
    """What gives batches like `stream`, and of the same bytes, from the level that is asked for or the next that has room.

    plans: all that will be read, which decides the size. Nothing is decoded before the first batch is asked for, and
    nothing is left behind at the end. Raises ConfigError for an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"unknown level '{level}' of the loader{nearest(level, LEVELS)}; known are {', '.join(LEVELS)}")
    with ExitStack() as stack:
        yield Level(level, stream, Path(shards), plans, spec, device, stack)


class Level:
    """A source of batches with the signature of `clips.clip_batches`. `level` is the one in use, None before the first."""

    def __init__(
        self,
        asked: str,
        stream: Batches,
        shards: Path,
        plans: Sequence[pa.Table],
        spec: ClipSpec,
        device: str,
        stack: ExitStack,
    ) -> None:
        self.asked, self.stream, self.shards, self.plans = asked, stream, shards, plans
        self.spec, self.device, self.stack = spec, device, stack
        self.level: str | None = None
        self.source: Batches = stream

    def __call__(self, plan: pa.Table, shards: Path, spec: ClipSpec, **options: Any) -> Iterator[Batch]:
        if self.level is None:
            self.level, self.source = self._choose()
        return self.source(plan, shards, spec, **options)

    def _choose(self) -> tuple[str, Batches]:
        if self.asked == "stream":
            return "stream", self.stream
        sessions = Sessions(self.shards, self.plans, self.spec)
        on_gpu = torch.device(self.device).type != "cpu"
        for level in ("device", "host") if self.asked == "device" or (self.asked == "auto" and on_gpu) else ("host",):
            started = time.monotonic()
            try:
                faces = self._keep(sessions, level, _SHARES[level] if self.asked == "auto" else _MOST)
            except NoRoomError as error:
                log = logger.info if self.asked == "auto" else logger.warning
                log("no room for level '%s' of the loader (%s); trying the next", level, error)
                continue
            text = "level '%s' of the loader: %d faces, %.1f GB, in %.1f s"
            logger.info(text, level, sessions.rows, sessions.bytes / 1e9, time.monotonic() - started)
            return level, Resident(sessions, faces, self.spec).batches
        return "stream", self.stream

    def _keep(self, sessions: Sessions, level: str, share: float) -> Callable[[NDArray[np.int64]], Any]:
        """The faces of all sessions at a level, as what gathers some of them. Raises NoRoomError."""
        if level == "device":
            _check_room(sessions.bytes, _free_memory(self.device), share)
            try:
                return partial(_gather_on_device, _fill_device(sessions, self.device))
            except torch.OutOfMemoryError as error:
                raise NoRoomError(str(error).split("\n")[0]) from None
        if not shared.exists(sessions.key):
            _check_room(sessions.bytes, shared.free_memory(), share)
        try:
            pixels = self.stack.enter_context(shared.open_array(sessions.key, sessions.shape, sessions.decode))
        except OSError as error:
            raise NoRoomError(str(error)) from None
        return partial(_gather_on_host, pixels, self.device, Buffers())


def _check_room(wanted: int, free: int, share: float) -> None:
    if wanted > share * free:
        raise NoRoomError(f"{wanted / 1e9:.1f} GB of faces, {free / 1e9:.1f} GB free, of which {share:.0%} may be used")


def _free_memory(device: str) -> int:
    return shared.free_memory() if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[0]


class Sessions:
    """The sessions that plans read, one after the other: `first[path]` is the number of a session's first row."""

    def __init__(self, shards: Path, plans: Sequence[pa.Table], spec: ClipSpec) -> None:
        wanted = {path for plan in plans for path in pc.unique(plan["path"]).to_pylist()}
        entries = [entry for entry in load_index(shards)["sessions"] if entry["path"] in wanted]
        self.shards, self.align, self.size = shards, spec.align, ALIGN_SIZE[spec.align]
        self.lengths = {entry["path"]: entry["rows"] for entry in entries}
        ends = np.cumsum(list(self.lengths.values()))
        self.first = dict(zip(self.lengths, (ends - list(self.lengths.values())).tolist(), strict=True))
        self.rows = int(ends[-1])
        self.shape = (self.rows, self.size, self.size, 3)
        self.bytes = int(np.prod(self.shape))
        files = [] if any(map(is_address, self.lengths)) else [_stamp(shards / path) for path in self.lengths]
        self.key = fingerprint([entries, files, spec.align], code("resident", "shared", "codec"))[:32]

    def read(self, columns: list[str]) -> Iterator[tuple[str, int, pa.Table]]:
        """Path, number of the first row, and some columns of every stretch of _ROWS rows."""
        for path, length in self.lengths.items():
            for start in range(0, length, _ROWS):
                rows = np.arange(start, min(start + _ROWS, length))
                yield path, self.first[path] + start, read_rows(self.shards, path, rows, columns)

    def decode(self, out_NHWC: NDArray[np.uint8]) -> None:
        """All faces, in the order of the sessions; zeros where there is none."""
        for _ in self.iter_faces(lambda count, start: out_NHWC[start : start + count]):
            pass

    def iter_faces(self, make: Callable[[int, int], NDArray[np.uint8]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Number of the first row and faces of every stretch, decoded into what `make(count, start)` gives."""
        with ThreadPoolExecutor(os.cpu_count()) as pool, closing(prefetch(self.read([self.align]), 2)) as parts:
            for path, start, table in parts:
                faces = make(table.num_rows, start)
                decode_faces(table[self.align].combine_chunks(), faces, [path], pool)
                yield start, faces

    def read_values(self, spec: ClipSpec) -> dict[str, NDArray[np.float32]]:
        """The labels of all rows, as `clips.label_values` gives them."""
        tables = pa.concat_tables(table for *_, table in self.read(["status", *label_columns(spec)]))
        return label_values(tables, spec)


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


class Resident:
    """Batches out of faces and labels that are in memory, without work for a single frame."""

    def __init__(self, sessions: Sessions, gather: Callable[[NDArray[np.int64]], Any], spec: ClipSpec) -> None:
        self.first, self.gather, self.values = sessions.first, gather, sessions.read_values(spec)

    def batches(
        self,
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
        """The batches of `clips.clip_batches`; `shards` are those that were kept."""
        this = Epoch(train, seed, epoch)
        make = partial(self._make, spec=spec, epoch=this)
        yield from load_ahead(plan, spec, this, lambda part: part, make, rank=rank, world=world, start=start)

    def _make(self, part: pa.Table, spec: ClipSpec, epoch: Epoch) -> Batch:
        frames_B = part["frames"].to_numpy()
        path_B = part["path"].combine_chunks().dictionary_encode()
        first_B = np.array([self.first[path] for path in path_B.dictionary.to_pylist()])[path_B.indices.to_numpy()]
        steps_BT = window_steps(frames_B, spec) * (spec.interval if epoch.train else 1)
        rows_BT = (first_B + part["start"].to_numpy())[:, None] + steps_BT
        values = {name: values_NM[rows_BT] for name, values_NM in self.values.items()}
        for values_BTM in values.values():
            values_BTM[np.arange(spec.frames) >= frames_B[:, None]] = np.nan
        return make_batch(part, spec, epoch, self.gather(rows_BT), values)


def _gather_on_host(faces_NHWC: NDArray[np.uint8], device: str, buffers: Buffers, rows_BT: NDArray[np.int64]) -> Any:
    """Rows as an array or, for a GPU, as a pinned tensor, which travels there beside the computation."""
    flat, shape = faces_NHWC.reshape(len(faces_NHWC), -1), (*rows_BT.shape, *faces_NHWC.shape[1:])
    if torch.device(device).type == "cpu":
        out = buffers.empty(*shape)
        _take(flat, rows_BT, out)
        return out
    with torch.cuda.device(device):  # else the memory would be pinned by way of the first GPU
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    _take(flat, rows_BT, pinned.numpy())
    return pinned


def _take(flat: NDArray[np.uint8], rows_BT: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    # "clip" for the rows, which are known to exist, spares a copy of everything.
    np.take(flat, rows_BT.ravel(), axis=0, out=out.reshape(rows_BT.size, -1), mode="clip")


def _fill_device(sessions: Sessions, device: str) -> Tensor:
    faces = torch.empty(sessions.shape, dtype=torch.uint8, device=device)
    shape = sessions.shape[1:]
    for start, part in sessions.iter_faces(lambda count, _: np.empty((count, *shape), np.uint8)):
        faces[start : start + len(part)] = torch.from_numpy(part)
    return faces


def _gather_on_device(faces_NHWC: Tensor, rows_BT: NDArray[np.int64]) -> Tensor:
    # Words of four bytes are copied faster than bytes; a row of 3·112² or 3·200² has whole ones.
    words = faces_NHWC.flatten(1).view(torch.int32)
    rows = torch.from_numpy(rows_BT.ravel()).to(words.device)
    taken = words.index_select(0, rows)
    return taken.view(torch.uint8).view(*rows_BT.shape, *faces_NHWC.shape[1:])
