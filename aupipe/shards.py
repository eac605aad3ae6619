"""Session shards: one Parquet file per session with aligned faces, labels, status and the warp of each face.

Every frame of the manifest gets its row, whatever becomes of it. Finished sessions carry a key in a sidecar file, so that
an interrupted build goes on where it was and gives the same bytes in the end; the index is written last. The shards may lie
in a store (see `storage`); index and sidecars are in the checkout in any case.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aupipe import schema, storage
from aupipe.align import AlignedFace, align, resize_face
from aupipe.archives import file_of
from aupipe.codec import encode_face
from aupipe.codec import encode_jpeg as encode_jpeg
from aupipe.config import ALIGN_SIZE, Corpus, code, fingerprint
from aupipe.faces import PREALIGNED, FaceReader, Found, identify
from aupipe.images import Picture
from aupipe.processes import Map, map_processes
from aupipe.schema import DataError, inside, iter_sessions, read_json, write_stream, write_text

logger = logging.getLogger(__name__)

INDEX = "index.json"
_KEYED = re.compile(r"-[0-9a-f]{16}(?=\.parquet$)")  # how `SessionTask.path` ends in a store


@dataclass(frozen=True, slots=True)
class SessionTask:
    """What a worker needs to build one shard: `count` rows of a manifest from `start` on.

    `target` has no suffix (.parquet and .key are added). `store`: where the shard goes instead, if anywhere. A task shares
    the manifest with the others, and takes its own rows alone to another process: Arrow pickles all the rows that a slice
    is of (apache/arrow#26685).
    """

    manifest: pa.Table
    start: int
    count: int
    raw: Path
    target: Path
    corpus: Corpus
    key: str
    store: str | None = None

    @property
    def path(self) -> str:
        """The shard in its folder or store. In a store nothing is written over: readers may be at it, so it has the key."""
        key = "" if self.store is None else f"-{self.key[:16]}"
        return f"{self.target.parent.name}/{self.target.name}{key}.parquet"

    @property
    def rows(self) -> pa.Table:
        return self.manifest.slice(self.start, self.count)

    def __reduce__(self) -> tuple[Any, ...]:
        return SessionTask, (_copy(self.rows), 0, self.count, self.raw, self.target, self.corpus, self.key, self.store)


def build(
    manifest: pa.Table,
    inventory: pa.Table,
    raw: Path,
    out: Path,
    corpus: Corpus,
    *,
    store: str | None = None,
    map: Map | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `out/<subject>/<session>.parquet` for every session of the manifest, then `out/index.json`; return the index.

    `store`: where the Parquet files go instead of `out`. `map(function, tasks)` runs the sessions, results in any order:
    all cores by default, a cluster with `stream.map_sessions`. Raises DataError if more than `corpus.max_bad_fraction` of
    the frames give no face, or if a file cannot be written.
    """
    landmarker = identify(corpus.landmarks)
    base = fingerprint(
        [corpus.aus, corpus.align, corpus.codec, corpus.jpeg_quality, landmarker["name"], landmarker["fingerprint"]],
        code("shards", "codec", "faces", "align", "landmarks", "blazemesh", "video", "images", "archives"),
    )
    files = dict(zip(inventory["path"].to_pylist(), zip_columns(inventory, "size", "mtime_ns"), strict=True))
    tasks = {task.target: task for task in _tasks(manifest, files, raw, out, corpus, base, store)}
    stored = {} if store is None else storage.list_files(store)
    entries = {target: entry for target, task in tasks.items() if (entry := _finished(task, stored)) is not None}
    pending = [task for target, task in tasks.items() if target not in entries]
    (out / INDEX).unlink(missing_ok=True)  # an older one would vouch for shards that are about to change
    if progress:
        progress(len(entries), len(tasks))
    for target, entry in (map or map_processes)(build_session, pending) if pending else ():
        entries[Path(target)] = entry
        _keep(tasks[Path(target)], entry)
        if progress:
            progress(len(entries), len(tasks))
    _remove_strangers(out, tasks.keys(), store)
    index = {
        **({} if store is None else {"store": store}),
        "aus": list(corpus.au_set),
        "align": list(corpus.align),
        "codec": corpus.codec,
        "landmarker": landmarker,
        "sessions": [entries[target] for target in tasks],
    }
    _report_crowds(index)
    _check_budget(index, corpus.max_bad_fraction, out)
    write_text(json.dumps(index, indent=1) + "\n", out / INDEX)
    return index


def load_index(shards: Path) -> dict[str, Any]:
    """The index of a finished folder of shards; a session's `path` is what `read_window` takes, wherever the shard lies.

    Raises DataError where there is none.
    """
    index = read_json(shards / INDEX, "shards")
    if store := index.get("store"):
        index["sessions"] = [entry | {"path": storage.join(store, entry["path"])} for entry in index["sessions"]]
    return index


def local_path(path: str) -> str:
    """What a session's `path` in an index is, or would be, in the checkout: the same name wherever the shard lies."""
    return _KEYED.sub("", path.partition("#")[2]) if storage.is_address(path) else path


def build_session(task: SessionTask) -> tuple[str, dict[str, Any]]:
    """Read, find, align and encode the faces of one session; write its shard, a row group at a time."""
    cv2.setNumThreads(1)  # the sessions run side by side: threads inside one would only fight
    if task.store is None:
        return str(task.target), _write_shard(task, _beside(task.target, ".parquet"))
    with tempfile.TemporaryDirectory(prefix="aupipe-") as folder:
        path = Path(folder) / "shard.parquet"
        entry = _write_shard(task, path)
        storage.put(path, storage.join(task.store, task.path))
    return str(task.target), entry


def _write_shard(task: SessionTask, path: Path) -> dict[str, Any]:
    layout = schema.shard_schema(task.corpus.au_set, task.corpus.align)
    seen: list[dict[str, Any]] = []
    # JPEG bytes do not compress further, and statistics or dictionaries over them only cost; raw ones are to be read fast.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write_stream(_session_parts(task, layout, seen), layout, path, **options)
    return _entry(task, seen) | {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _session_parts(task: SessionTask, layout: pa.Schema, seen: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """The shard's rows, a row group at a time, so that the length of a recording does not matter; fills `seen`."""
    reader = FaceReader(task.raw, task.corpus)
    copied = [name for name in layout.names if name in task.rows.column_names and name != "landmarks"]
    for start in range(0, task.rows.num_rows, schema.ROW_GROUP):
        part = task.rows.slice(start, schema.ROW_GROUP)
        given = zip_columns(part, "source", "index", "landmarks")
        rows = [_face_row(*reader.read(*row), task) for row in given]
        seen += [{name: row.get(name) for name in ("status", "n_faces")} for row in rows]
        columns = {name: part[name] if name in copied else [r.get(name) for r in rows] for name in layout.names}
        yield pa.table(columns, schema=layout)


def _face_row(picture: Picture, found: Found | None, task: SessionTask) -> dict[str, Any]:
    row: dict[str, Any] = {"mode": picture.mode, "time_s": picture.time_s}
    if picture.image is None:
        return {**row, "status": picture.status}
    if task.corpus.landmarks == PREALIGNED:
        faces = {name: resize_face(picture.image, ALIGN_SIZE[name]) for name in task.corpus.align}
        return {**row, "status": schema.OK, "landmarker": PREALIGNED, **_encode(faces, task)}
    if found is None:
        return {**row, "status": schema.NO_FACE, "n_faces": 0}
    row |= {"landmarker": found.landmarker, "confidence": found.confidence, "n_faces": found.faces}
    try:
        faces = {name: align(name, picture.image, found.landmarks, picture.reduced) for name in task.corpus.align}
    except DataError:
        return {**row, "status": schema.BAD_LANDMARKS}
    row |= {"landmarks": found.landmarks.astype(np.float32).ravel(), "face_px": float(np.ptp(found.landmarks, 0).max())}
    return {**row, "status": schema.OK, **_encode(faces, task)}


def _encode(faces: dict[str, AlignedFace], task: SessionTask) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, face in faces.items():
        row[name] = encode_face(face.image, task.corpus.codec, task.corpus.jpeg_quality)
        row[f"{name}_warp"] = face.warp.astype(np.float32).ravel()
    return row


def _entry(task: SessionTask, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """What the planner needs of a session: its rows, its gaps, and which rows can be learned from; and what was seen."""
    table = task.rows
    frames = table["frame"].to_numpy()
    _, mask = schema.label_arrays(table, task.corpus.au_set)
    status = [row["status"] for row in seen]
    ok = np.array([one == schema.OK for one in status])
    gaps = np.flatnonzero(np.diff(frames) != 1) + 1
    starts = np.r_[0, gaps]
    return {
        "path": task.path,
        "subject": table["subject"][0].as_py(),
        "session": table["session"][0].as_py(),
        "rows": table.num_rows,
        "status": dict(Counter(status)),
        "crowded": sum((row["n_faces"] or 0) > 1 for row in seen),
        "runs": np.stack([starts, np.diff(np.r_[starts, len(frames)])], 1).tolist(),
        "usable": _runs(ok & mask.any(1)),
    }


def _runs(flags: np.ndarray) -> list[list[int]]:
    """[start, length] of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, flags.astype(np.int8), 0]))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], 1).tolist()


def zip_columns(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """The rows of some columns as plain tuples."""
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _tasks(
    manifest: pa.Table,
    files: dict[str, tuple[int, int]],
    raw: Path,
    out: Path,
    corpus: Corpus,
    base: str,
    store: str | None,
) -> Iterator[SessionTask]:
    """A task for every session of the manifest. files: path → size and time, of the inventory."""
    start = 0
    for rows in iter_sessions(manifest):
        subject, session = rows["subject"][0].as_py(), rows["session"][0].as_py()
        if any(name in ("", ".", "..") or "/" in name for name in (subject, session)):
            raise DataError(f"subject '{subject}', session '{session}' cannot name a file in {out}; rename them")
        key = fingerprint([base, *_inputs(rows, files)])
        yield SessionTask(manifest, start, rows.num_rows, raw, out / subject / session, corpus, key, store)
        start += rows.num_rows


def _inputs(rows: pa.Table, files: dict[str, tuple[int, int]]) -> tuple[str, list[Any]]:
    """What a shard is made of: the hash of a session's rows, and the size and time of each of its files."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(_copy(rows))
    # A video, or a zip for its members, is one file of the inventory.
    sources = pc.unique(rows["source"]).drop_null().to_pylist()
    return hashlib.sha256(sink.getvalue()).hexdigest(), [files.get(file_of(source)) for source in sources]


def _copy(rows: pa.Table) -> pa.Table:
    """A slice without its neighbours, who would be with it otherwise, if only as bits in the last byte of a validity map."""
    return rows.take(pa.array(range(rows.num_rows))).combine_chunks()


def _beside(target: Path, suffix: str) -> Path:
    """The file of a session; `Path.with_suffix` would take a part of a name with a dot in it for a suffix."""
    return target.with_name(target.name + suffix)


def _finished(task: SessionTask, stored: dict[str, int]) -> dict[str, Any] | None:
    """The index entry of a session that was built from the same inputs by the same code, and is still whole.

    stored: path → bytes of what a store holds, which is not fetched for the sake of its hash.
    """
    try:
        sidecar = _read_sidecar(_beside(task.target, ".key"))
        entry = sidecar["entry"]
        if sidecar["key"] != task.key or entry["path"] != task.path:
            return None
        if task.store is not None:
            return entry if stored.get(task.path) == entry["bytes"] else None
        return entry if entry["sha256"] == _sha256(_beside(task.target, ".parquet")) else None
    except (OSError, KeyError):
        return None


def _read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar, or an empty one where it is absent or damaged."""
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sidecar if isinstance(sidecar, dict) else {}


def _keep(task: SessionTask, entry: dict[str, Any]) -> None:
    """Note that a session is finished; what its sidecar vouched for before goes, if it lies elsewhere."""
    sidecar = _beside(task.target, ".key")
    _remove_shard(sidecar, task.store, keep=task.path)
    write_text(json.dumps({"key": task.key, "entry": entry}), sidecar)


def _remove_shard(sidecar: Path, store: str | None, keep: str = "") -> None:
    path = _read_sidecar(sidecar).get("entry", {}).get("path", f"{sidecar.parent.name}/{sidecar.stem}.parquet")
    local = inside(sidecar.parents[1], path)
    if path == keep:
        return
    if local.exists():
        local.unlink()
    elif store is not None:
        storage.delete(storage.join(store, path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_strangers(out: Path, targets: Collection[Path], store: str | None) -> None:
    """Shards of sessions that the manifest no longer has, if they carry our sidecar; and what a kill left half written."""
    for left in out.rglob(".*.tmp"):
        left.unlink(missing_ok=True)
    for sidecar in out.glob("*/*.key"):
        if sidecar.with_suffix("") not in targets:
            _remove_shard(sidecar, store)
            sidecar.unlink()


def _report_crowds(index: dict[str, Any]) -> None:
    crowded = [entry for entry in index["sessions"] if entry["crowded"]]
    if crowded:
        names = ", ".join(f"{e['subject']}/{e['session']}" for e in crowded[:3]) + (", …" if len(crowded) > 3 else "")
        logger.warning(
            "%d sessions have frames with several faces (%s), in %d frames; one face is followed by continuity, then area: "
            "look whether it is the subject's, and crop the video around the subject if not",
            *(len(crowded), names, sum(entry["crowded"] for entry in crowded)),
        )


def _check_budget(index: dict[str, Any], budget: float, out: Path) -> None:
    total: Counter[str] = Counter()
    for entry in index["sessions"]:
        total.update(entry["status"])
    logger.info("%s: %d sessions, frames %s", out, len(index["sessions"]), dict(total))
    bad = sum(n for status, n in total.items() if status != schema.OK)
    if bad > budget * total.total():
        counts = ", ".join(f"{n} {status}" for status, n in total.items())
        raise DataError(
            f"{out}: {bad} of {total.total()} frames gave no aligned face ({counts}), more than max_bad_fraction "
            f"= {budget}; look at the sessions' sidecars in {out}, then mend the corpus or raise the budget in params.yaml"
        )


def read_window(shards: Path, path: str, start: int, count: int, interval: int, columns: list[str]) -> pa.Table:
    """`count` rows of a shard, `interval` apart from row `start`; see `read_rows`."""
    return read_rows(shards, path, start + interval * np.arange(count), columns)


def read_rows(shards: Path, path: str, rows_N: NDArray[np.integer], columns: list[str]) -> pa.Table:
    """Rows of a shard, given in ascending order; each row group that holds some of them is read once, the others never.

    path: of a session in `load_index(shards)`. Raises DataError for a shard that is absent, damaged or out of reach.
    """
    groups, group_N = np.unique(rows_N // schema.ROW_GROUP, return_inverse=True)
    try:
        file = storage.open_parquet(path) if storage.is_address(path) else _open_local(inside(shards, path))
        table = file.read_row_groups(groups.tolist(), columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the shard {path} cannot be read ({error}); run `dvc repro shards` to make it anew") from None
    place_N = group_N * schema.ROW_GROUP + rows_N % schema.ROW_GROUP
    if place_N[-1] - place_N[0] + 1 == len(place_N):
        return table.slice(place_N[0], len(place_N))  # without copying a face
    return table.take(pa.array(place_N))


def _open_local(path: Path) -> pq.ParquetFile:
    status = path.stat()
    return pq.ParquetFile(path, metadata=_read_footer(path, status.st_size, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=256)  # reading a footer takes as long as reading a row group
def _read_footer(path: Path, *written: int) -> pq.FileMetaData:
    return pq.read_metadata(path)
