"""Aligned faces per second that reach a training loop, through each way of loading them, side by side in one run.

Ours: `stream` (clip plan → Ray Data → batches), the same in one process, and `host` (decoded once). Beside them (a) torch's
DataLoader over JPEG files, (b) over the same Parquet shards, (c) WebDataset, each with two worker processes, and (d) two
plain threads that decode in this process: the ceiling on two cores. All decode with OpenCV, the same faces, 200×200 at
JPEG quality 95, into batches of 8 clips of 48 frames; then of single frames. The loop touches every page of a batch.

Sides take turns, ROUNDS times; medians. Latency is from asking for a pass to its first batch; the rate is that of the rest
of the pass; CPU is that of this process and all that descend from it, Ray's too. The faces are kept in the folder WORK.

Run: python benchmarks/loader.py WORK            (pip install webdataset==1.0.2 for (c))
     python benchmarks/loader.py WORK --memory   a corpus ten times the object store: the largest memory of all processes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from aupipe import schema, stream
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.codec import encode_jpeg
from aupipe.facs import AUSet
from aupipe.order import Epoch, cut_pieces, epoch_order
from aupipe.resident import open_level
from aupipe.shards import INDEX

SESSIONS, LENGTH, SIZE, TEXTURES = 20, 1000, 200, 500
ROUNDS, WORKERS, CLIP, BATCH = 5, 2, 48, 8
AUS = AUSet.named("bp4d")
CLIPS = ClipSpec(AUS, CLIP, CLIP, 1, "face200", 176, BATCH)
FRAMES = replace(CLIPS, frames=1, stride=1, batch=64)
EVERY = 4096  # bytes: a page

Loader = Callable[[int], Iterable[Any]]  # epoch → batches of faces, uint8


@dataclass
class Side:
    """A way of loading and what was measured of it: frames/s, seconds to the first batch, CPU seconds per 1000 frames."""

    name: str
    load: Loader
    passes: int = 1  # over the faces, of one round
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def measure(self, epoch: int) -> None:
        used, started, frames, first, at = cpu_seconds(), time.perf_counter(), 0, 0, 0.0
        for n in range(self.passes):
            for faces in self.load(epoch * self.passes + n):
                frames += touch(faces)
                if not first:
                    first, at = frames, time.perf_counter()
        ended = time.perf_counter()
        self.latencies.append(at - started)
        self.rates.append((frames - first) / (ended - at))
        self.costs.append(1000 * (cpu_seconds() - used) / frames)


def touch(faces: Any) -> int:
    """Read a byte of every page; return the number of faces."""
    flat = np.asarray(faces).reshape(-1)
    assert flat[::EVERY].sum() >= 0
    return flat.size // (3 * SIZE * SIZE)


def family() -> list[psutil.Process]:
    """This process and all that descend from it: Ray's are among them."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """Seconds of processor time of the family, those of its ended members included."""
    total = 0.0
    for process in family():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def make_corpus(work: Path, sessions: int, *, shards_alone: bool = False) -> Path:
    """Shards, JPEG files and tars of the same faces: smooth textures of about 17 KB each, in sessions of LENGTH frames."""
    shards = work / "shards"
    if (shards / INDEX).exists():
        return shards
    random = np.random.default_rng(0)
    faces = [make_face(random) for _ in range(TEXTURES)]
    print(
        f"{TEXTURES} textures, {np.mean([len(face) for face in faces]) / 1000:.1f} KB each, in {sessions} sessions",
        flush=True,
    )
    entries = []
    for number in range(sessions):
        subject = f"F{number:03d}"
        jpegs = [faces[n] for n in random.integers(0, TEXTURES, LENGTH)]
        labels = random.random((LENGTH, len(AUS))) < 0.3
        write_shard(shards, subject, jpegs, labels)
        if not shards_alone:
            write_files(work, subject, jpegs, labels)
        entry = {"path": f"{subject}/T1.parquet", "subject": subject, "session": "T1", "rows": LENGTH}
        entries.append(entry | {"status": {"ok": LENGTH}, "runs": [[0, LENGTH]], "usable": [[0, LENGTH]]})
    index = {"aus": list(AUS), "align": ["face200"], "codec": "jpeg", "sessions": entries}
    schema.write_text(json.dumps(index), shards / INDEX)
    return shards


def make_face(random: np.random.Generator) -> bytes:
    image = np.full((SIZE, SIZE, 3), 120, np.float32)
    for cells, strength in ((6, 40), (25, 25), (70, 9), (SIZE, 2.5)):
        noise = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return encode_jpeg(np.clip(image, 0, 255).astype(np.uint8), 95)


def write_shard(shards: Path, subject: str, jpegs: list[bytes], labels: NDArray[np.bool_]) -> None:
    layout = schema.shard_schema(AUS, ("face200",))
    columns = {"subject": [subject] * LENGTH, "session": ["T1"] * LENGTH, "frame": range(LENGTH), "face200": jpegs}
    columns |= {"status": ["ok"] * LENGTH, **dict(zip(AUS.columns, labels.T.astype(np.int8), strict=True))}
    arrays: list[Any] = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(LENGTH, f.type) for f in layout
    ]
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    schema.write_table(pa.table(arrays, schema=layout), shards / subject / "T1.parquet", **options)


def write_files(work: Path, subject: str, jpegs: list[bytes], labels: NDArray[np.bool_]) -> None:
    folder = work / "jpegs" / subject
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", labels)
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number:04d}.jpg").write_bytes(jpeg)
    (work / "tars").mkdir(exist_ok=True)
    with tarfile.open(work / "tars" / f"{subject}.tar", "w") as tar:
        for start in range(0, LENGTH - CLIP + 1, CLIP):
            members = [(f"{number:02d}.jpg", jpeg) for number, jpeg in enumerate(jpegs[start : start + CLIP])]
            for name, data in [*members, ("labels", labels[start : start + CLIP].tobytes())]:
                info = tarfile.TarInfo(f"{subject}-{start:04d}.{name}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def decode(jpegs: Iterable[Any], out_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    for n, jpeg in enumerate(jpegs):
        face: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        out_THWC[n] = face
    return out_THWC


def empty(*shape: int) -> NDArray[np.uint8]:
    return np.empty((*shape, SIZE, SIZE, 3), np.uint8)


class Windows(Dataset[Any]):
    """Clips of a plan in the order of an epoch, from JPEG files or from shards: what DataLoader's workers read."""

    def __init__(self, plan: pa.Table, spec: ClipSpec, work: Path, kind: str) -> None:
        self.windows = list(zip(plan["path"].to_pylist(), plan["start"].to_pylist(), strict=True))
        self.work, self.kind, self.frames = work, kind, spec.frames
        self.open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        cv2.setNumThreads(1)
        jpegs, labels = self.read(number)
        return torch.from_numpy(decode(jpegs, empty(self.frames))), torch.from_numpy(labels)

    def read(self, number: int) -> tuple[list[Any], NDArray[Any]]:
        path, start = self.windows[number]
        return self.read_files(path, start) if self.kind == "jpeg" else self.read_parquet(path, start)

    def decode(self, number: int, out_THWC: NDArray[np.uint8]) -> None:
        decode(self.read(number)[0], out_THWC)

    def read_files(self, path: str, start: int) -> tuple[list[bytes], NDArray[Any]]:
        folder = self.work / "jpegs" / path.split("/")[0]
        if path not in self.open:
            self.open[path] = np.load(folder / "labels.npy")
        rows = range(start, start + self.frames)
        return [(folder / f"{row:04d}.jpg").read_bytes() for row in rows], self.open[path][start : start + self.frames]

    def read_parquet(self, path: str, start: int) -> tuple[list[Any], NDArray[Any]]:
        if path not in self.open:
            self.open[path] = pq.ParquetFile(self.work / "shards" / path)
        first, last = start // schema.ROW_GROUP, (start + self.frames - 1) // schema.ROW_GROUP
        columns = ["face200", *AUS.columns]
        table = self.open[path].read_row_groups(list(range(first, last + 1)), columns=columns, use_threads=False)
        table = table.slice(start - first * schema.ROW_GROUP, self.frames)
        return [jpeg.as_buffer() for jpeg in table["face200"]], np.stack([table[c].to_numpy() for c in AUS.columns], 1)


class Order:
    """A DataLoader's sampler: the order of our own epochs."""

    def __init__(self, clips: int, spec: ClipSpec) -> None:
        self.clips, self.spec, self.epoch = clips, spec, 0

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.clips, Epoch(True, 0, self.epoch), self.spec).tolist())

    def __len__(self) -> int:
        return -(-self.clips // self.spec.batch) * self.spec.batch


def data_loader(work: Path, plan: pa.Table, spec: ClipSpec, kind: str) -> Loader:
    order = Order(plan.num_rows, spec)
    options: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True, "prefetch_factor": 2}
    loader = DataLoader(Windows(plan, spec, work, kind), spec.batch, sampler=order, **options)

    def load(epoch: int) -> Iterator[Any]:
        order.epoch = epoch
        return (faces for faces, _ in loader)

    return load


def web_dataset(work: Path) -> Loader:
    import webdataset  # type: ignore[import-not-found]

    tars = sorted(str(path) for path in (work / "tars").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, nodesplitter=webdataset.split_by_node)
    clips = dataset.shuffle(20).map(decode_sample).batched(BATCH, partial=False, collation_fn=torch.stack)
    loader = webdataset.WebLoader(clips, batch_size=None, num_workers=WORKERS, persistent_workers=True, prefetch_factor=2)
    return lambda epoch: loader


def decode_sample(sample: dict[str, Any]) -> torch.Tensor:
    cv2.setNumThreads(1)
    return torch.from_numpy(decode((sample[f"{n:02d}.jpg"] for n in range(CLIP)), empty(CLIP)))


def plain_threads(work: Path, plan: pa.Table, spec: ClipSpec) -> Loader:
    windows = Windows(plan, spec, work, "parquet")

    def load(epoch: int) -> Iterator[NDArray[np.uint8]]:
        order = epoch_order(plan.num_rows, Epoch(True, 0, epoch), spec).reshape(-1, spec.batch).tolist()
        with ThreadPoolExecutor(WORKERS) as pool:

            def begin(step: list[int]) -> tuple[NDArray[np.uint8], list[Any]]:
                faces = empty(spec.batch, spec.frames)
                return faces, [pool.submit(windows.decode, *job) for job in zip(step, faces, strict=True)]

            steps = map(begin, order)
            waiting = list(islice(steps, 2))
            while waiting:
                faces, parts = waiting.pop(0)
                for part in parts:
                    part.result()
                yield faces
                waiting += islice(steps, 1)

    return load


def ours(source: Callable[..., Iterator[Any]], shards: Path, plan: pa.Table, spec: ClipSpec) -> Loader:
    return lambda epoch: (batch.frames_BTHWC for batch in source(plan, shards, spec, train=True, seed=0, epoch=epoch))


def compare(title: str, sides: list[Side], rivals: set[str], rounds: int = ROUNDS) -> None:
    """Let the sides take turns, a round to warm up first, and print the medians."""
    for round_ in range(rounds + 1):
        for side in sides:
            side.measure(round_)
            if not round_:
                side.rates, side.latencies, side.costs = [], [], []
    best = max((side for side in sides if side.name[:3] in rivals), key=lambda side: np.median(side.rates))
    print(f"{title}; ratios to the best of {', '.join(sorted(rivals))}")
    print(f"  {'':36s}{'frames/s':>9s}{'ratio':>7s}{'first batch s':>15s}{'CPU s/1000':>12s}")
    for side in sides:
        rate, latency, cost = (float(np.median(values)) for values in (side.rates, side.latencies, side.costs))
        # Rounds in which the sides met the same load are compared with each other.
        ratio = float(np.median(np.array(side.rates) / np.array(best.rates)))
        print(f"  {side.name:36s}{rate:9.0f}{ratio:7.2f}{latency:15.2f}{cost:12.3f}", flush=True)


def amplification(plan: pa.Table, spec: ClipSpec) -> float:
    """Rows of the row groups that the pieces of an epoch read, for each row that they use."""
    read = used = 0
    for piece in cut_pieces(plan, spec, Epoch(True), rank=0, world=1, start=0):
        groups = {(path, start // schema.ROW_GROUP) for path, start in zip(*places(piece), strict=True)}
        read += sum(min(schema.ROW_GROUP, LENGTH - group * schema.ROW_GROUP) for _, group in groups)
        used += piece.num_rows
    return read / used


def places(plan: pa.Table) -> tuple[list[str], list[int]]:
    return plan["path"].to_pylist(), plan["start"].to_pylist()


def compare_loaders(work: Path) -> None:
    shards = make_corpus(work, SESSIONS)
    subjects = [f"F{number:03d}" for number in range(SESSIONS)]
    clips, frames = (plan_clips(shards, subjects, spec, train=True) for spec in (CLIPS, FRAMES))
    stream.connect()
    with open_level("host", clip_batches, shards, [clips, frames], CLIPS) as host:
        sides = [
            Side("ours, stream (Ray)", ours(stream.clip_stream, shards, clips, CLIPS)),
            Side("ours, stream (one process)", ours(clip_batches, shards, clips, CLIPS)),
            Side("ours, host", ours(host, shards, clips, CLIPS), passes=5),
            Side("(a) DataLoader, JPEG files", data_loader(work, clips, CLIPS, "jpeg")),
            Side("(b) DataLoader, Parquet", data_loader(work, clips, CLIPS, "parquet")),
            Side("(d) two threads: the ceiling", plain_threads(work, clips, CLIPS)),
        ]
        if importlib.util.find_spec("webdataset"):
            sides.insert(5, Side("(c) WebDataset", web_dataset(work)))
        else:
            print("(c) is absent: pip install webdataset==1.0.2")
        compare(f"{clips.num_rows} clips of {CLIP} frames, batches of {BATCH}", sides, {"(a)", "(b)", "(c)"})
        sides = [
            Side("ours, stream (Ray)", ours(stream.clip_stream, shards, frames, FRAMES)),
            Side("ours, stream (one process)", ours(clip_batches, shards, frames, FRAMES)),
            Side("ours, host", ours(host, shards, frames, FRAMES), passes=2),
            Side("(a) DataLoader, JPEG files", data_loader(work, frames, FRAMES, "jpeg")),
        ]
        compare(f"{frames.num_rows} single frames, batches of {FRAMES.batch}", sides, {"(a)"}, rounds=3)
    print(f"  rows read for each row used: {amplification(frames, FRAMES):.2f}")


def measure_memory(work: Path, store: int = 100 << 20) -> None:
    """Two ranks iterate over a corpus of ten times the object store; the largest memory, what is shared counted once."""
    shards = make_corpus(work, 60, shards_alone=True)
    size = sum(path.stat().st_size for path in shards.rglob("*.parquet"))
    subjects = [path.name for path in shards.iterdir() if path.is_dir()]
    plan = plan_clips(shards, subjects, CLIPS, train=True)
    stream.OBJECT_STORE_BYTES = store
    stream.connect()
    peak, done = [0], threading.Event()
    watch = threading.Thread(target=sample_memory, args=(peak, done))
    watch.start()
    ranks = [partial(stream.clip_stream, plan, shards, CLIPS, train=True, rank=rank, world=2) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        frames = sum(pool.map(lambda rank: sum(touch(batch.frames_BTHWC) for batch in rank()), ranks))
    done.set()
    watch.join()
    print(f"{frames} frames, {size / 1e9:.2f} GB of shards, {store / 1e9:.2f} GB of object store ({size / store:.1f} times)")
    print(f"  largest memory of all processes: {peak[0] / 2**30:.2f} GiB (PSS)")


def sample_memory(peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.2):
        total = 0
        for process in family():
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += 1024 * int(text.split("\nPss:")[1].split()[0])
        peak[0] = max(peak[0], total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the faces; made where it is absent")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed; wants a folder of its own")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    (measure_memory if options.memory else compare_loaders)(options.work.resolve())


if __name__ == "__main__":
    main()
