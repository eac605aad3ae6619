"""A synthetic corpus on disk, in BP4D's layout: rendered once, kept session by session, described by a card.

    Sequences/F001/T1/0000.jpg …          portrait frames, numbered from 0; some subjects have 3-digit names, as in BP4D
    AUCoding/AU_OCC/F001_T1.csv           header 0 … 99; column 0 is the frame, column N is AU N; 9 = not coded
    AUCoding/AU_INT/AU06/F001_T1_AU06.csv frame, intensity 0–5, without a header; AUs 6 10 12 14 17
    .keys/F001/T1                         what the session was made of: equal → kept, different → made anew

The people do not exist. A session is a function of the spec's seed, its size and rates, and of the two numbers that name
it, so that more subjects or sessions leave those that are there as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from aupipe.assets import provenance
from aupipe.config import SyntheticConfig, code, fingerprint, to_json
from aupipe.facs import AU_SETS
from aupipe.processes import Map, map_processes
from aupipe.schema import DataError, write_text
from aupipe.synthetic.identity import TONES, draw_identity, name_subject
from aupipe.synthetic.motion import TARGET_RATES
from aupipe.synthetic.render import Actor, prepare_actor
from aupipe.synthetic.scene import Scene, contact_sheet, film, set_scene

__all__ = ["SubjectTask", "contact_sheet", "render", "render_subject"]

GENERATOR = "1"
LICENCE = "CC0-1.0 (rendered people who do not exist)"
INTENSITY_AUS = (6, 10, 12, 14, 17)
_AUS = AU_SETS["synthetic"]
_KEYS = ".keys"
_UNKNOWN = 9
_ASSUMPTIONS = (
    "The people do not exist; their shapes are drawn from MakeHuman's CC0 head, whose macro shapes carry MakeHuman's names.",
    "Base rates aim at BP4D's published ones (AUs 9, 25, 26 at DISFA's); which AUs go together is assumed, not measured.",
    "Occurrence means intensity of at least 1 of 5 (A); folds of the skin do not move with the light.",
    "Skin tone, age and hair are drawn from smooth distributions that stand for no population.",
)


@dataclass(frozen=True, slots=True)
class SubjectTask:
    """One item of work: a subject and its sessions that are still to be rendered, each with its key."""

    spec: SyntheticConfig
    raw: Path
    subject: int
    sessions: tuple[tuple[int, str], ...]


def render(
    spec: SyntheticConfig, raw: Path, *, map: Map | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Render what is missing under `raw` and return the corpus's card, which is plain JSON.

    `map(function, items)` runs a picklable function over items in any order; by default a process per core.
    `progress(done, total)` counts sessions. Sessions of an earlier spec are removed, other people's files never:
    raises DataError if `raw` holds files and was not made here, or if the head mesh has not been fetched.
    """
    base = _generator_key(spec)
    _claim(raw)
    wanted = {
        (subject, session): fingerprint([base, name_subject(subject), session])
        for subject in range(spec.subjects)
        for session in range(1, spec.sessions + 1)
    }
    _remove_others(raw, {_names(*pair) for pair in wanted})
    missing = [pair for pair, key in wanted.items() if not _is_kept(raw, *pair, key)]
    done = len(wanted) - len(missing)
    if progress:
        progress(done, len(wanted))
    tasks = [
        SubjectTask(spec, raw, subject, tuple((session, wanted[subject, session]) for _, session in pairs))
        for subject, pairs in itertools.groupby(missing, key=lambda pair: pair[0])
    ]
    for count in (map or map_processes)(render_subject, tasks):
        done += count
        if progress:
            progress(done, len(wanted))
    return _write_card(spec, raw, wanted, base)


def render_subject(task: SubjectTask) -> int:
    """Render one subject's pending sessions; returns how many. Runs in a worker of any kind."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the cores are taken by other subjects
    try:
        actor = prepare_actor(task.spec.seed, task.subject)
        for session, key in task.sessions:
            _write_session(task.raw, actor, set_scene(task.spec, task.subject, session), key)
    finally:
        cv2.setNumThreads(threads)
    return len(task.sessions)


def _generator_key(spec: SyntheticConfig) -> str:
    """What every session depends on: not how many subjects and sessions there are."""
    fields = {name: value for name, value in to_json(spec).items() if name not in ("subjects", "sessions")}
    return fingerprint([GENERATOR, fields, provenance()["head.npz"]["sha256"]], code("synthetic"))


def _claim(raw: Path) -> None:
    """Make `raw` ours, or refuse: a synthetic corpus never writes where a licence holder's data lies."""
    if raw.exists() and not (raw / _KEYS).is_dir() and (not raw.is_dir() or any(raw.iterdir())):
        raise DataError(
            f"{raw} holds files that the generator did not write; move them away, or set AUPIPE_RAW to another folder"
        )
    (raw / _KEYS).mkdir(parents=True, exist_ok=True)
    for leftover in raw.glob("Sequences/*/.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _names(subject: int, session: int) -> tuple[str, str]:
    return name_subject(subject), f"T{session}"


def _remove_others(raw: Path, wanted: set[tuple[str, str]]) -> None:
    """Remove sessions that carry our key and are not wanted; an empty subject's folders go with them."""
    for sidecar in sorted((raw / _KEYS).glob("*/*")):
        subject, session = sidecar.parent.name, sidecar.name
        if (subject, session) not in wanted and not session.startswith("."):
            for path in _label_files(raw, subject, session):
                path.unlink(missing_ok=True)
            shutil.rmtree(raw / "Sequences" / subject / session, ignore_errors=True)
            sidecar.unlink()
            for folder in (raw / "Sequences" / subject, sidecar.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _label_files(raw: Path, subject: str, session: str) -> list[Path]:
    coding, name = raw / "AUCoding", f"{subject}_{session}"
    intensity = [coding / "AU_INT" / f"AU{au:02d}" / f"{name}_AU{au:02d}.csv" for au in INTENSITY_AUS]
    return [coding / "AU_OCC" / f"{name}.csv", *intensity]


def _is_kept(raw: Path, subject: int, session: int, key: str) -> bool:
    names = _names(subject, session)
    try:
        sidecar = json.loads((raw / _KEYS / names[0] / names[1]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(sidecar, dict) and sidecar.get("key") == key and sidecar.get("files") == _list_files(raw, *names)


def _list_files(raw: Path, subject: str, session: str) -> str:
    """A hash over names and sizes of a session's files: it notices what is lost or cut short, at the cost of a listing."""
    folder = raw / "Sequences" / subject / session
    try:
        with os.scandir(folder) as entries:
            lines = sorted(f"{entry.name} {entry.stat().st_size}" for entry in entries)
        lines += [f"{path.name} {path.stat().st_size}" for path in _label_files(raw, subject, session)]
    except OSError:
        return ""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_session(raw: Path, actor: Actor, scene: Scene, key: str) -> None:
    """Frames first, under a temporary name; then the labels; the key last, which declares the session whole."""
    subject, session = _names(scene.subject, scene.session)
    sidecar, folder = raw / _KEYS / subject / session, raw / "Sequences" / subject / session
    sidecar.unlink(missing_ok=True)
    temporary = folder.with_name(f".{session}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    digits = 3 if subject[0] == "M" and int(subject[1:]) % 2 == 0 else 4
    options = [cv2.IMWRITE_JPEG_QUALITY, scene.camera.jpeg_quality]
    for frame in range(scene.frames):
        done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(film(actor, scene, frame), cv2.COLOR_RGB2BGR), options)
        if not done:
            raise DataError(f"OpenCV could not encode frame {frame} of {subject}/{session} as JPEG")
        (temporary / f"{frame:0{digits}d}.jpg").write_bytes(jpeg.tobytes())
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    counts = _write_labels(raw, scene)
    files = _list_files(raw, subject, session)
    write_text(json.dumps({"key": key, "files": files, "counts": counts}, sort_keys=True) + "\n", sidecar)


def _write_labels(raw: Path, scene: Scene) -> dict[str, Any]:
    """Write a session's CSV files; returns its counts, per AU of coded and of positive frames."""
    occurrence, intensity, unknown = scene.labels()
    occurrence[unknown], intensity[unknown] = _UNKNOWN, _UNKNOWN
    numbers = range(scene.uncoded, scene.frames)
    rows = [",".join(map(str, range(100)))]
    for frame, coded in zip(numbers, occurrence.tolist(), strict=True):
        cells = [frame, *[_UNKNOWN] * 99]
        for au, value in zip(_AUS, coded, strict=True):
            cells[au] = value
        rows.append(",".join(map(str, cells)))
    first, *others = _label_files(raw, *_names(scene.subject, scene.session))
    write_text("\n".join(rows) + "\n", first)
    for au, path in zip(INTENSITY_AUS, others, strict=True):
        levels = intensity[:, _AUS.index(au)].tolist()
        write_text("".join(f"{frame},{level}\n" for frame, level in zip(numbers, levels, strict=True)), path)
    coded_M, positive_M = (~unknown).sum(0), (occurrence == 1).sum(0)
    return {"frames": len(occurrence), "images": scene.frames, "coded": coded_M.tolist(), "positive": positive_M.tolist()}


def _write_card(spec: SyntheticConfig, raw: Path, sessions: Iterable[tuple[int, int]], base: str) -> dict[str, Any]:
    counts = [json.loads(raw.joinpath(_KEYS, *_names(*pair)).read_text(encoding="utf-8"))["counts"] for pair in sessions]
    people = [draw_identity(spec.seed, subject) for subject in range(spec.subjects)]
    coded = [sum(c["coded"][m] for c in counts) for m in range(len(_AUS))]
    positive = [sum(c["positive"][m] for c in counts) for m in range(len(_AUS))]
    tones = Counter(person.tone for person in people)
    return {
        "layout": "bp4d",
        "licence": LICENCE,
        "generator": {"version": GENERATOR, "sha256": base},
        "params": to_json(spec),
        "seeds": {"root": spec.seed, "streams": "numpy default_rng([root, subject, concern]); noise per frame"},
        "assets": {"head.npz": provenance()["head.npz"]},
        "counts": {
            "subjects": spec.subjects,
            "sessions": len(counts),
            "frames": sum(c["frames"] for c in counts),
            "images": sum(c["images"] for c in counts),
            "sex": dict(sorted(Counter(person.sex for person in people).items())),
            "tone": {tone: tones[tone] for tone in TONES},
        },
        "aus": {
            name: {"coded": c, "positive": p, "rate": round(p / max(c, 1), 4), "aim": TARGET_RATES[au]}
            for au, name, c, p in zip(_AUS, _AUS.names, coded, positive, strict=True)
        },
        "assumptions": list(_ASSUMPTIONS),
    }
