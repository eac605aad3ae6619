"""Planner and shuffle at 10⁸ frames and 64 GPUs: planning is measured here, reading from an object store is simulated.

1. Planning: `plan_clips`, `epoch_order` and `rank_slice` on an index of 10⁵ sessions without any shard; seconds, and the
   memory of a process that does nothing else; seconds are of the processor.
2. Reading: requests of one clip, counted by a file system under the real `read_window`; row groups, bytes and shares of the
   ranks, of the real order of an epoch.
3. Waiting: a discrete simulation of 64 ranks that step together, each with so many clips read at a time and so many steps
   ahead, while requests take a lognormal time. Its constants, below, are assumptions: nothing here is a store or a GPU.

Run: python benchmarks/planner.py [sessions]   (10⁵ by default, which takes two minutes and 4 GB)
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from numpy.typing import NDArray

from aupipe import schema
from aupipe.clips import ClipSpec, plan_clips
from aupipe.facs import AU_SETS
from aupipe.order import Epoch, epoch_order, find_places, pool_steps, rank_slice
from aupipe.shards import INDEX, load_index, read_window
from aupipe.stream import TASK_FRAMES

WORLD = 64
PEOPLE_SESSIONS, FRAMES = 10, 1000  # sessions of a person, frames of a session
AUS = AU_SETS["bp4d"]
FACE = {"face200": 200 * 200 * 3, "face112": 112 * 112 * 3}  # bytes in memory
STEPS = 400  # of the simulation
TOGETHER, AHEAD = (2, 16, 128, 512), (2, 8, 32, 64)
NODE = 8  # GPUs of a node


@dataclass(frozen=True, slots=True)
class Store:
    """Where shards lie, assumed: seconds to a request's first byte (median, and sigma of the logarithm), and the rates of a
    connection and of a node. One request in a thousand takes ten times as long.
    """

    name: str
    latency_s: float
    spread: float
    bytes_per_s: float
    node_bytes_per_s: float


OBJECTS = Store("object store", 0.030, 0.6, 60e6, 12.5e9)  # 99 % of the requests within 0.12 s; 100 Gbit/s
DISK = Store("the node's own disk", 0.0003, 0.6, 2e9, 12e9)  # three or four NVMe drives
SLOW, SLOWER = 0.001, 10.0


@dataclass(frozen=True, slots=True)
class Case:
    """A way of training: its clips, clips per GPU and step, bytes of a face, and frames/s that a GPU is taken to train."""

    name: str
    frames: int
    stride: int
    align: str
    batch: int
    face_bytes: int
    rate: float

    @property
    def spec(self) -> ClipSpec:
        return ClipSpec(AUS, self.frames, self.stride, 1, self.align, 176, self.batch * WORLD)

    @property
    def group_bytes(self) -> int:
        return schema.ROW_GROUP * self.face_bytes

    @property
    def step_s(self) -> float:
        return self.batch * self.frames / self.rate


CASES = (
    Case("clips of 48, every 96th frame", 48, 96, "face200", 8, 9_200, 10_000),
    Case("clips of 48, every 9th frame", 48, 9, "face200", 8, 9_200, 10_000),
    Case("runs of 4, every 4th frame", 4, 4, "face112", 64, 4_000, 40_000),
)


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests for a file that is new to a process (`footer`), for every file opened, and for each row group."""

    footer: int
    footer_bytes: int
    opening: int
    group: int

    def count(self, reads: Reads, known: float) -> NDArray[np.floating]:
        """Requests for each clip; `known`: share of the files opened whose footer is in memory."""
        return reads.opened_RSB * (self.footer * (1 - known) + self.opening) + self.group * reads.groups_RSB


@dataclass(frozen=True, slots=True)
class Reads:
    """What is read for a clip alone, by rank, step and clip: row groups, and whether its file is opened; rank 0's files."""

    groups_RSB: NDArray[np.int64]
    opened_RSB: NDArray[np.bool_]
    files_N: NDArray[np.int64]


def main(sessions: int) -> None:
    with tempfile.TemporaryDirectory(prefix="aupipe-") as folder:
        root = Path(folder)
        write_index(root, sessions)
        size = (root / INDEX).stat().st_size / 1e6
        print(f"{sessions} sessions, {sessions * FRAMES:.0e} frames, {WORLD} ranks; {INDEX} {size:.0f} MB\n")
        report_planning(root)
        requests = count_requests(root / "store")
        for case in CASES[1:]:
            report_reading(root, case, requests)


def write_index(root: Path, sessions: int) -> None:
    """The index of a corpus in a store: every session in three runs of frames, each with five that cannot be used."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(sessions):
        person, own = divmod(number, PEOPLE_SESSIONS)
        cuts = [0, *sorted(rng.choice(np.arange(60, FRAMES - 60, 60), 2, replace=False).tolist()), FRAMES]
        runs = [[start, stop - start] for start, stop in itertools.pairwise(cuts)]
        entry: dict[str, Any] = {
            "path": f"P{person:05d}/T{own}-0123456789abcdef.parquet",
            "subject": f"P{person:05d}",
            "session": f"T{own}",
        }
        entry |= {"rows": FRAMES, "status": {schema.OK: FRAMES - 15, schema.NO_FACE: 15}, "crowded": 0}
        entry |= {"runs": runs, "usable": [[start, length - 5] for start, length in runs]}
        entries.append(entry | {"bytes": 13_800_000, "sha256": "0" * 64})
    landmarker = {"name": "blazemesh", "fingerprint": "0"}
    store = {"store": "s3://bucket/data/shards/large", "aus": list(AUS), "align": ["face200", "face112"]}
    schema.write_text(json.dumps(store | {"landmarker": landmarker, "sessions": entries}, indent=1), root / INDEX)


def report_planning(root: Path) -> None:
    print(f"{'planning':30s} {'clips':>11s} {'index s':>8s} {'plan s':>7s} {'order s':>8s} {'plan MB':>8s} {'peak MB':>8s}")
    for case in CASES:
        # Each in a process of its own: peaks of memory do not go down again.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            cost = alone.submit(measure_planning, root, case).result()
        seconds = f"{cost['index_s']:8.1f} {cost['plan_s']:7.1f} {cost['order_s']:8.2f}"
        print(f"{case.name:30s} {cost['clips']:11,.0f} {seconds} {cost['plan_mb']:8.0f} {cost['peak_mb']:8.0f}", flush=True)
    print()


def measure_planning(root: Path, case: Case) -> dict[str, float]:
    """Seconds and megabytes of planning a case and of one rank's order of an epoch."""
    before = memory("VmRSS")
    marks = [time.process_time()]  # of this process: other programs may take a share of the cores
    people = {session["subject"] for session in load_index(root)["sessions"]}
    marks.append(time.process_time())
    plan = plan_clips(root, people, case.spec, train=True)
    marks.append(time.process_time())
    order = epoch_order(plan.num_rows, Epoch(True, 0, 1), case.spec, find_places(plan, case.spec))
    plan.take(pa.array(rank_slice(order, case.spec.batch, 3, WORLD)))
    marks.append(time.process_time())
    index_s, plan_s, order_s = np.diff(marks).tolist()
    return {
        **{"clips": plan.num_rows, "index_s": index_s, "plan_s": plan_s - index_s, "order_s": order_s},
        **{"plan_mb": len(pickle.dumps(plan, 5)) / 1e6, "peak_mb": memory("VmHWM") - before},
    }


def memory(which: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1000


class _CountingFiles(LocalFileSystem):
    """Local files that note what an object store would be asked for: 0 for opening (HEAD), the bytes of every read (GET)."""

    protocol = "counting"
    asked: ClassVar[list[int]] = []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        self.asked.append(0)
        return _CountingFile(file, self.asked)


class _CountingFile:
    def __init__(self, file: Any, asked: list[int]) -> None:
        self.file, self.asked = file, asked

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.asked.append(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def count_requests(folder: Path) -> Requests:
    """What `read_window` asks for, counted, for 48 frames of a shard of FRAMES rows with two alignments."""
    layout = schema.shard_schema(AUS, ("face200", "face112"))
    rng = np.random.default_rng(0)
    rows = []
    for number in range(FRAMES):
        row = {"subject": "P", "session": "T", "frame": number, "status": schema.OK, "mode": "rgb", "face_px": 300.0}
        row |= {"landmarks": rng.random(98, np.float32), "face200": rng.bytes(9200), "face112": rng.bytes(4000)}
        rows.append(row | {f"{align}_warp": rng.random(6, np.float32) for align in ("face200", "face112")})
    table = pa.table({name: [row.get(name) for row in rows] for name in layout.names}, schema=layout)
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    schema.write_table(table, folder / "P/T.parquet", **options)
    fsspec.register_implementation("counting", _CountingFiles, clobber=True)
    new, known, crossing = (ask(folder, start) for start in (0, 0, 40))
    print("requests of a clip of 48 frames, counted:")
    for name, asked in (("file not seen before", new), ("footer kept", known), ("footer kept, two row groups", crossing)):
        heads, read = asked.count(0), sum(asked)
        print(f"  {name:28s} {heads} HEAD, {len(asked) - heads} GET, {read / 1e6:.2f} MB")
    footer = len(new) - len(known)
    group = len(crossing) - len(known)
    return Requests(footer, sum(new) - sum(known), len(known) - group, group)


def ask(folder: Path, start: int) -> list[int]:
    """Bytes of every request for a window that begins at row `start`, 0 for a HEAD."""
    _CountingFiles.asked.clear()
    read_window(folder, f"fsspec+counting://{folder}#P/T.parquet", start, 48, 1, ["face200", "status", *AUS.columns])
    return list(_CountingFiles.asked)


def report_reading(root: Path, case: Case, requests: Requests) -> None:
    people = {session["subject"] for session in load_index(root)["sessions"]}
    plan = plan_clips(root, people, case.spec, train=True)
    reads = find_reads(plan, case)
    known = {size: share_kept(reads.files_N, size) for size in (128, 1024)}
    groups, asked = reads.groups_RSB.mean(), float(requests.count(reads, known[1024]).mean())
    read = groups * case.group_bytes + reads.opened_RSB.mean() * requests.footer_bytes * (1 - known[1024])
    rate, amplification = case.rate / case.frames, groups * schema.ROW_GROUP / case.frames
    per_rank, per_step = reads.groups_RSB.sum((1, 2)), reads.groups_RSB.sum(2)
    lines = (
        f"\n{case.name}: {plan.num_rows:,} clips, {case.batch} for each GPU and step, {case.rate:,.0f} frames/s of a GPU",
        f"  read {amplification:.2f} times the frames used",
        f"  footers in memory {known[128]:.1%} of the time with 128 kept, {known[1024]:.1%} with 1024",
        f"  requests of a clip {asked:.2f}, per second {asked * rate * WORLD:,.0f}",
        f"  requests of an epoch, in millions {asked * plan.num_rows / 1e6:,.0f}",
        f"  MB/s from the store to a GPU {read * rate / 1e6:,.0f}, of pixels {case.rate * FACE[case.align] / 1e6:,.0f}",
        f"  Gbit/s to a node {NODE * read * rate * 8 / 1e9:,.1f}, GB/s to all {read * rate * WORLD / 1e9:,.1f}",
        f"  busiest rank over mean, in {STEPS} steps {per_rank.max() / per_rank.mean():.3f}",
        f"  busiest rank over mean, in one step {(per_step.max(0) / per_step.mean(0)).mean():.2f}",
    )
    print(*lines, sep="\n")
    report_waiting(case, reads, requests, known[1024])


def find_reads(plan: pa.Table, case: Case) -> Reads:
    """What is read for each clip of the first STEPS steps of an epoch, by the very order and pieces of `cut_pieces`."""
    spec = case.spec
    places = find_places(plan, spec)
    order = epoch_order(plan.num_rows, Epoch(True, 0, 1), spec, places)[: STEPS * spec.batch]
    piece = pool_steps(spec) * case.batch if places is not None else max(1, TASK_FRAMES // case.frames)
    rows_RN = np.stack([rank_slice(order, spec.batch, rank, WORLD) for rank in range(WORLD)])
    file_RN = plan["path"].combine_chunks().dictionary_encode().indices.to_numpy()[rows_RN].astype(np.int64)
    start_RN, count_RN = plan["start"].to_numpy()[rows_RN], plan["frames"].to_numpy()[rows_RN]
    touched_RN2 = np.stack([start_RN, start_RN + count_RN - 1], 2) // schema.ROW_GROUP + FRAMES * file_RN[..., None]
    opened_RN = mark_first(file_RN, piece)
    groups_RN = mark_first(touched_RN2.reshape(WORLD, -1), 2 * piece).reshape(touched_RN2.shape).sum(2)
    shape = (WORLD, -1, case.batch)
    return Reads(groups_RN.reshape(shape), opened_RN.reshape(shape), file_RN[0][opened_RN[0]])


def mark_first(keys_RN: NDArray[np.int64], piece: int) -> NDArray[np.bool_]:
    """Where a key occurs for the first time in each piece of a row."""
    first_RN = np.zeros(keys_RN.shape, bool)
    within = np.arange(keys_RN.shape[1]) // piece * (keys_RN.max() + 1)
    for keys, first in zip(keys_RN, first_RN, strict=True):
        first[np.unique(keys + within, return_index=True)[1]] = True
    return first_RN


def share_kept(files_N: NDArray[np.int64], size: int) -> float:
    """How often a file is among the `size` last used, of the order in which one rank reads."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for file in files_N.tolist():
        hits += file in kept
        kept[file] = None
        kept.move_to_end(file)
        if len(kept) > size:
            kept.popitem(last=False)
    return hits / len(files_N)


def report_waiting(case: Case, reads: Reads, requests: Requests, known: float) -> None:
    for store in (OBJECTS, DISK):
        seconds = draw_seconds(reads, case, store, requests, known)
        link_RSB = reads.groups_RSB * case.group_bytes / (store.node_bytes_per_s / NODE)
        print(f"  waiting for data from {store.name}, {seconds.mean() * 1e3:.1f} ms per clip, by clips read at a time and")
        print("  steps read ahead; in brackets seconds to the first step")
        print("    at a time" + "".join(f"{f'{ahead} ahead':>16s}" for ahead in AHEAD))
        for together in TOGETHER:
            shares = [simulate(seconds, link_RSB, case.step_s, together, ahead) for ahead in AHEAD]
            print(f"    {together:9d}" + "".join(f"{share:9.1%} ({begun:4.1f})" for share, begun in shares), flush=True)


def draw_seconds(reads: Reads, case: Case, store: Store, requests: Requests, known: float) -> NDArray[np.float64]:
    """Seconds to read each clip: the footer's requests in turn if it is new, the file opened, then row groups at once."""
    rng = np.random.default_rng(1)

    def wait(*shape: int) -> NDArray[np.float64]:
        slow = np.where(rng.random(shape) < SLOW, SLOWER, 1.0)
        return store.latency_s * np.exp(store.spread * rng.standard_normal(shape)) * slow

    shape, most = reads.groups_RSB.shape, requests.group * int(reads.groups_RSB.max())
    footer = wait(requests.footer, *shape).sum(0) + requests.footer_bytes / store.bytes_per_s
    opening = wait(requests.opening, *shape).sum(0) + np.where(rng.random(shape) < known, 0, footer)
    asked = np.arange(most).reshape(-1, 1, 1, 1) < requests.group * reads.groups_RSB
    group = np.where(asked, wait(most, *shape), 0).max(0) + (reads.groups_RSB > 0) * case.group_bytes / store.bytes_per_s
    return np.where(reads.opened_RSB, opening, 0) + group


def simulate(
    seconds_RSB: NDArray[np.float64], link_RSB: NDArray[np.float64], step_s: float, together: int, ahead: int
) -> tuple[float, float]:
    """(share of the time that all ranks wait for the slowest one's data, seconds to the first step).

    A rank reads `together` clips at a time, in order, and no step's clips before the step `ahead` of it has begun; all pass
    its share of the node's link one after the other, for `link_RSB` seconds each.
    """
    R, S, B = seconds_RSB.shape
    free, link, begun = np.zeros((R, together)), np.zeros(R), np.zeros(S)
    ranks, now = np.arange(R), 0.0
    for step in range(S):
        ready, allowed = np.zeros(R), begun[step - ahead] if step >= ahead else 0.0
        for clip in range(B):
            slot = free.argmin(1)
            asked = np.maximum(free[ranks, slot], allowed)
            link = np.maximum(link, asked) + link_RSB[:, step, clip]
            done = np.maximum(asked + seconds_RSB[:, step, clip], link)
            free[ranks, slot] = done
            ready = np.maximum(ready, done)
        begun[step] = max(now, ready.max())
        now = begun[step] + step_s
    steady = S // 4  # what was read ahead before the first step is used up
    return max(0.0, 1 - (S - steady) * step_s / (now - begun[steady])), float(begun[0])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
