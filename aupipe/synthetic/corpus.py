"""A synthetic corpus on disk, in a real corpus's layout: rendered once, kept recording by recording, described by a card.

    .keys/F001/T1       what the recording was made of, its files and its counts: equal → kept, different → made anew
    .making/…           what is being rendered

The people do not exist. A recording is a function of the spec's seed, its size and rates, and of the numbers that name it,
so that more subjects or sessions leave those that are there as they are, but for what a layout's `role` says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import cv2

from aupipe.assets import provenance
from aupipe.config import SyntheticConfig, code, fingerprint, to_json
from aupipe.processes import Map, map_processes
from aupipe.schema import ConfigError, DataError, write_text
from aupipe.synthetic.affwild2_files import Affwild2Files
from aupipe.synthetic.bp4d_files import Bp4dFiles
from aupipe.synthetic.card import GENERATOR, build_card, card_markdown
from aupipe.synthetic.defects import inject, plan_defects
from aupipe.synthetic.disfa_files import DisfaFiles
from aupipe.synthetic.recording import Recording, Writer
from aupipe.synthetic.render import Actor, prepare_actor
from aupipe.synthetic.scene import contact_sheet

__all__ = ["SubjectTask", "card_markdown", "contact_sheet", "render", "render_subject"]

WRITERS: dict[str, Writer] = {"affwild2": Affwild2Files(), "bp4d": Bp4dFiles(), "disfa": DisfaFiles()}
_KEYS, _MAKING = ".keys", ".making"


@dataclass(frozen=True, slots=True)
class SubjectTask:
    """One item of work: a subject and its recordings that are still to be rendered, each with its key and its damage."""

    spec: SyntheticConfig
    layout: str
    raw: Path
    subject: int
    recordings: tuple[tuple[Recording, str, str | None], ...]


def render(
    spec: SyntheticConfig,
    raw: Path,
    *,
    layout: str = "bp4d",
    map: Map | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Render what is missing under `raw` and return the corpus's card, which is plain JSON.

    `map(function, items)` runs a picklable function over items in any order; by default a process per core.
    `progress(done, total)` counts recordings. Those of an earlier spec are removed, other people's files never: raises
    DataError if `raw` holds files and was not made here, or if the head mesh has not been fetched; ConfigError for a layout
    that the generator cannot write.
    """
    spec = settle(spec, layout)
    writer, base = WRITERS[layout], _generator_key(spec, layout)
    _claim(raw)
    recordings = writer.recordings(spec)
    planned, left_out = plan_defects(spec.defects, layout, recordings) if spec.defects is not None else ({}, [])
    keys = {r: fingerprint([base, to_json(r), planned.get(r)]) for r in recordings}
    _remove_others(raw, writer, spec, recordings)
    missing = [r for r, key in keys.items() if not _is_kept(raw, r, key)]
    for recording in missing:
        _forget(raw, writer, spec, recording.owner, recording.name)
    done = len(keys) - len(missing)
    if progress:
        progress(done, len(keys))
    tasks = [
        SubjectTask(spec, layout, raw, subject, tuple((r, keys[r], planned.get(r)) for r in group))
        for subject, group in itertools.groupby(missing, key=lambda r: r.subject)
    ]
    for count in (map or map_processes)(render_subject, tasks):
        done += count
        if progress:
            progress(done, len(keys))
    shutil.rmtree(raw / _MAKING, ignore_errors=True)
    made = [_read_sidecar(_sidecar(raw, r)) for r in recordings]
    tree = writer.describe_tree(spec)
    damage = [record["damage"] for record in made if record.get("damage")]
    defects = {"seed": spec.defects, "injected": damage, "left_out": left_out, "tree": tree}
    return build_card(spec, layout, base, [record["counts"] for record in made], defects)


def render_subject(task: SubjectTask) -> int:
    """Render one subject's pending recordings; returns how many. Runs in a worker of any kind."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the cores are taken by other subjects
    try:
        actor = prepare_actor(task.spec.seed, task.subject, task.spec.rig)
        for recording, key, defect in task.recordings:
            _write_recording(task, actor, recording, key, defect)
    finally:
        cv2.setNumThreads(threads)
    return len(task.recordings)


def settle(spec: SyntheticConfig, layout: str) -> SyntheticConfig:
    """The spec with what it leaves to the layout filled in. Raises ConfigError for an unknown layout."""
    if layout not in WRITERS:
        raise ConfigError(f"the generator does not write the layout '{layout}'; it writes {', '.join(WRITERS)}")
    writer = WRITERS[layout]
    uncoded = spec.uncoded if writer.has_uncoded else 0
    return replace(spec, fps=spec.fps or writer.fps, margins=spec.margins or writer.margins, uncoded=uncoded)


def _generator_key(spec: SyntheticConfig, layout: str) -> str:
    """What every recording depends on: not how many subjects and sessions there are."""
    fields = {name: value for name, value in to_json(spec).items() if name not in ("subjects", "sessions")}
    return fingerprint([GENERATOR, layout, fields, provenance()["head.npz"]["sha256"]], code("synthetic"))


def _claim(raw: Path) -> None:
    """Make `raw` ours, or refuse: a synthetic corpus never writes where a licence holder's data lies."""
    if raw.exists() and not (raw / _KEYS).is_dir() and (not raw.is_dir() or any(raw.iterdir())):
        raise DataError(
            f"{raw} holds files that the generator did not write; move them away, or set AUPIPE_RAW to another folder"
        )
    (raw / _KEYS).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(raw / _MAKING, ignore_errors=True)


def _sidecar(raw: Path, recording: Recording) -> Path:
    return raw / _KEYS / recording.owner / recording.name


def _read_sidecar(path: Path) -> dict[str, Any]:
    """A recording's record; empty where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _remove_others(raw: Path, writer: Writer, spec: SyntheticConfig, recordings: Sequence[Recording]) -> None:
    """Remove recordings that carry our key and are not wanted; empty folders go with them."""
    wanted = {(r.owner, r.name) for r in recordings}
    for sidecar in sorted((raw / _KEYS).glob("*/*")):
        owner, name = sidecar.parent.name, sidecar.name
        if (owner, name) not in wanted and not name.startswith("."):
            _forget(raw, writer, spec, owner, name)


def _forget(raw: Path, writer: Writer, spec: SyntheticConfig, owner: str, name: str) -> None:
    """Remove a recording and its key. Not for workers: one removes the empty folder that another is about to write to."""
    sidecar = raw / _KEYS / owner / name
    paths = _read_sidecar(sidecar).get("paths") or writer.paths(spec, Recording(0, 0, owner, name))
    _remove(raw, [*paths, sidecar.relative_to(raw).as_posix()])


def _remove(raw: Path, paths: Iterable[str]) -> None:
    """Remove files and folders under `raw`, and the folders above them that are empty then."""
    for path in paths:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            continue  # no file of ours: a key that somebody else wrote
        target = raw / pure
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        for folder in list(target.parents)[: len(pure.parts) - 1]:
            if folder.name == _KEYS or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def _is_kept(raw: Path, recording: Recording, key: str) -> bool:
    record = _read_sidecar(_sidecar(raw, recording))
    return record.get("key") == key and record.get("files") == _list_files(raw, record.get("paths", []))


def _list_files(raw: Path, paths: Iterable[str]) -> str:
    """A hash over names and sizes of files: it notices what is lost or cut short, at the cost of a listing."""
    lines = []
    try:
        for path in paths:
            if (raw / path).is_dir():
                with os.scandir(raw / path) as entries:
                    lines += sorted(f"{path}/{entry.name} {entry.stat().st_size}" for entry in entries)
            else:
                lines.append(f"{path} {(raw / path).stat().st_size}")
    except OSError:
        return ""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_recording(task: SubjectTask, actor: Actor, recording: Recording, key: str, defect: str | None) -> None:
    """The files by way of a temporary folder; the key last, which declares the recording whole."""
    raw, spec, writer = task.raw, task.spec, WRITERS[task.layout]
    making = raw / _MAKING / f"{recording.owner}.{recording.name}.{os.getpid()}"
    making.mkdir(parents=True)
    written = writer.write(raw, making, actor, spec, recording)
    damage = inject(written, defect, spec.defects or 0, recording) if defect else None
    paths = [path.relative_to(raw).as_posix() for path in written.owned]
    record = {"key": key, "paths": paths, "files": _list_files(raw, paths), "counts": written.counts, "damage": damage}
    write_text(json.dumps(record, sort_keys=True) + "\n", _sidecar(raw, recording))
    shutil.rmtree(making)
