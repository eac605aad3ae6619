"""The look at a corpus: one HTML page of counts, rates, co-occurrence, bouts and faces, from what lies under data/.

Whatever a stage has not made yet is named on the page with the command that makes it. Faces are shown of rendered people,
and of real ones only if `include_faces` says so. The same data give the same page.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from aupipe import __version__, census, schema, shards
from aupipe.census import Labels, list_stretches, nan_labels
from aupipe.codec import encode_jpeg, read_jpeg
from aupipe.config import ALIGN_SIZE, PACKAGE
from aupipe.facs import ACTION_UNITS, AUSet
from aupipe.folds import label_stats
from aupipe.schema import DataError, iter_sessions, read_json, read_table

STRIPS, STRIP_FRAMES, PAIRS = 3, 12, 3
_AGES = (0.0, 0.8, 0.4, 0.0, 0.8, 0.4)  # wanted on the contact sheet, so that age goes with neither tone nor sex
_SEED = 0  # of the sessions and faces that are shown


@dataclass(frozen=True, slots=True)
class Material:
    """What there is of a corpus: its manifest; card, shard index and folds, each None where its stage has not run."""

    name: str
    data: Path
    manifest: pa.Table
    card: dict[str, Any] | None
    index: dict[str, Any] | None
    folds: list[dict[str, Any]] | None

    @property
    def aus(self) -> AUSet:
        return census.coded_aus(self.manifest)

    @property
    def is_synthetic(self) -> bool:
        """Only the generator signs its cards; a corpus without a card counts as one of real people."""
        return self.card is not None and "generator" in self.card

    @property
    def files(self) -> dict[str, Path]:
        """The stage that makes each file → the file."""
        name, data = self.name, self.data
        paths = {"synthesize": data / "cards" / f"{name}.json", "manifest": data / "manifest" / f"{name}.parquet"}
        return paths | {"shards": data / "shards" / name / shards.INDEX, "folds": data / "folds" / f"{name}.json"}


def load(corpus: str, data: Path) -> Material:
    """Raises DataError if there is no manifest, or if one of the files is damaged."""
    manifest = read_table(data / "manifest" / f"{corpus}.parquet", "manifest")
    bare = Material(corpus, data, manifest, None, None, None)
    card, folds = (
        read_json(bare.files[stage], stage) if bare.files[stage].exists() else None for stage in ("synthesize", "folds")
    )
    index = shards.load_index(bare.files["shards"].parent) if bare.files["shards"].exists() else None
    return Material(corpus, data, manifest, card, index, folds and folds["folds"])


def compose(corpus: str, data: Path = Path("data"), *, include_faces: bool = False) -> str:
    """The page of a corpus as HTML text. Raises DataError if there is not even a manifest."""
    m = load(corpus, data)
    labels_NM, block_N = nan_labels(m.manifest, m.aus), census.number_blocks(m.manifest)
    entries, with_faces = (m.index["sessions"] if m.index else None), m.is_synthetic or include_faces
    faces = FaceReader(m) if with_faces and m.index else None
    values = {
        "version": __version__,
        "m": m,
        "units": [ACTION_UNITS[number] for number in m.aus],
        "head": census.count_frames(m.manifest, entries),
        "with_faces": with_faces,
        "commands": {stage: f"dvc repro {stage}" for stage, path in m.files.items() if not path.exists()},
        "sheet": _attempt(lambda: render_sheet(m.card or {})) if m.is_synthetic else None,
        "pairs": _attempt(lambda: sample_pairs(m, faces)) if faces else None,
        "strips": list(film_strips(m, faces)),
        "rates": census.occurrence_rates(labels_NM, census.number_subjects(m.manifest)),
        "published": census.published_rates(m.aus, (m.card or {}).get("layout", "")),
        "phi": label_stats(labels_NM).to_json()["pearson"],
        "bouts": [census.describe_bouts(column, block_N) for column in labels_NM.T],
        "sessions": sorted(Counter(census.sessions_of_subjects(m.manifest).values()).items()),
        "without_face": None if entries is None else census.frames_without_face(entries),
        "card": {k: list(_flatten(v)) for k, v in (m.card or {}).items() if k not in ("aus", "assumptions")},
        "hashes": [(path.relative_to(m.data), _sha256(path)) for path in m.files.values() if path.exists()],
        "folds": census.count_folds(m.manifest, m.folds) if m.folds else None,
    }
    environment = Environment(loader=FileSystemLoader(PACKAGE), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"percent": _percent, "count": _count, "phi": _phi}
    return environment.get_template("inspection.html").render(values)


class FaceReader:
    """Aligned faces out of a corpus's shards as data URIs, in the smallest alignment that it has."""

    def __init__(self, m: Material) -> None:
        assert m.index is not None
        self.align = min(m.index["align"], key=lambda name: ALIGN_SIZE[name])
        self.folder = m.files["shards"].parent
        self.found = {(e["subject"], e["session"]): (e["path"], e["rows"]) for e in m.index["sessions"]}

    def statuses(self, subject: str, session: str) -> list[str]:
        """The status of every frame of a session; empty if the shards do not have it."""
        if (subject, session) not in self.found:
            return []
        path, rows = self.found[subject, session]
        return shards.read_window(self.folder, path, 0, rows, 1, ["status"])["status"].to_pylist()

    def image(self, subject: str, session: str, row: int) -> str | None:
        """The aligned face of a row, or None where there is none."""
        table = shards.read_window(self.folder, self.found[subject, session][0], row, 1, 1, [self.align])
        face = table[self.align][0].as_py()
        return face and _data_uri(read_jpeg(face, ALIGN_SIZE[self.align]))


def choose_people(seed: int, subjects: int) -> list[int]:
    """Up to six subjects of a rendered corpus: of each skin tone a woman and a man, of ages apart."""
    from aupipe.synthetic.identity import TONES, draw_identity

    people = [draw_identity(seed, subject) for subject in range(subjects)]
    chosen: list[int] = []
    for age, (tone, sex) in zip(_AGES, itertools.product(TONES, "FM"), strict=True):
        left = [p for p in people if p.subject not in chosen]
        alike = [p for p in left if (p.tone, p.sex) == (tone, sex)] or left
        chosen += [min(alike, key=lambda p: abs(p.age - age)).subject] if alike else []
    return chosen


def render_sheet(card: dict[str, Any]) -> dict[str, Any]:
    """Identities × AU combinations, each tile a picture: {people: names, columns: [(caption, [data URI per person])]}."""
    from aupipe.synthetic.corpus import contact_sheet
    from aupipe.synthetic.identity import name_subject
    from aupipe.synthetic.scene import SHEET_COLUMNS

    height, seed = 188, int(card["params"]["seed"])
    people = choose_people(seed, int(card["params"]["subjects"]))
    sheet = contact_sheet(seed, people, SHEET_COLUMNS, height=height)
    body = sheet[len(sheet) - height * len(people) :]  # below the captions, which the page sets itself
    columns = []
    for combination, strip in zip(SHEET_COLUMNS, np.split(body, len(SHEET_COLUMNS), 1), strict=True):
        tiles = [_data_uri(encode_jpeg(tile, 88)) for tile in np.split(strip, len(people))]
        columns.append(("AU " + "\u2009+\u2009".join(map(str, combination)) if combination else "neutral", tiles))
    return {"people": [name_subject(subject) for subject in people], "columns": columns}


def find_pair(labels_NM: Labels, j: int, ok_N: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Rows with AU j on and off in which the fewest other AUs differ, or None if the session has no such two faces."""
    on, off = (np.flatnonzero(ok_N & (labels_NM[:, j] == value)) for value in (1, 0))
    on, off = (rows[:: 1 + len(rows) // 500] for rows in (on, off))  # a long video has enough
    if not (len(on) and len(off)):
        return None
    code = np.where(np.isnan(labels_NM), -1, labels_NM)
    differing = (code[on][:, None] != code[off][None]).sum(2)
    row, column = np.unravel_index(int(differing.argmin()), differing.shape)
    return int(on[row]), int(off[column])


def sample_pairs(m: Material, faces: FaceReader) -> list[list[dict[str, str | None]]]:
    """For each AU up to three people, drawn at random, with the AU on and off in one session; see `find_pair`."""
    sessions = list(iter_sessions(m.manifest))
    order = np.random.default_rng(_SEED).permutation(len(sessions))
    # Each AU starts elsewhere in the order, so that it has people of its own.
    starts = np.linspace(0, len(sessions), len(m.aus), endpoint=False).astype(int)
    orders = [(sessions[i] for i in np.roll(order, -start)) for start in starts]
    return [list(_pairs_of(j, m.aus, ordered, faces)) for j, ordered in enumerate(orders)]


def _pairs_of(j: int, aus: AUSet, sessions: Iterable[pa.Table], faces: FaceReader) -> Iterator[dict[str, str | None]]:
    """The pairs of one AU, each of another subject."""
    seen: set[str] = set()
    for rows in sessions:
        subject, session = rows["subject"][0].as_py(), rows["session"][0].as_py()
        labels_NM = nan_labels(rows, aus)
        if subject in seen or not {0, 1} <= set(labels_NM[:, j].tolist()):
            continue
        ok_N = np.array(faces.statuses(subject, session)) == schema.OK
        if len(ok_N) == rows.num_rows and (pair := find_pair(labels_NM, j, ok_N)):
            on, off = (faces.image(subject, session, row) for row in pair)
            yield {"subject": subject, "on": on, "off": off}
            seen.add(subject)
        if len(seen) == PAIRS:
            return


def film_strips(m: Material, faces: FaceReader | None) -> Iterator[dict[str, Any]]:
    """A few sessions of different subjects, drawn at random: some faces, and each AU's course on the axis of frames."""
    sessions = list(iter_sessions(m.manifest))
    seen: set[str] = set()
    for i in np.random.default_rng(_SEED).permutation(len(sessions)):
        rows = sessions[i]
        subject, session, frame_N = rows["subject"][0].as_py(), rows["session"][0].as_py(), rows["frame"].to_numpy()
        if subject in seen or np.isnan(nan_labels(rows, m.aus)).all():
            continue
        seen.add(subject)
        x_N = frame_N - frame_N[0]
        yield {
            "title": f"{subject}, session {session}",
            "ends": (int(frame_N[0]), int(frame_N[-1])),
            "span": int(x_N[-1]) + 1,
            "lanes": [_lane(rows, name, x_N) for name in m.aus.names],
            "faces": _strip_faces(faces, subject, session, x_N) if faces else None,
        }
        if len(seen) == STRIPS:
            return


def _strip_faces(faces: FaceReader, subject: str, session: str, x_N: NDArray[np.integer]) -> list[dict[str, Any]] | str:
    """Faces evenly over a session, each with its place and width as shares of the axis; a sentence if unreadable."""
    step, span = -(-len(x_N) // STRIP_FRAMES), int(x_N[-1]) + 1
    numbers = range(step // 2, len(x_N), step)
    try:
        status = faces.statuses(subject, session)
        if len(status) != len(x_N):
            return "the shards are of another manifest; run `dvc repro shards`"
        images = [faces.image(subject, session, n) for n in numbers]
    except DataError as error:
        return str(error)
    return [
        {"at": (float(x_N[n]) + 0.5) / span, "width": step / span, "status": status[n], "image": image}
        for n, image in zip(numbers, images, strict=True)
    ]


def _lane(rows: pa.Table, name: str, x_N: NDArray[np.integer]) -> dict[str, Any]:
    """The course of an AU: [x, width] of coded and of positive stretches, and the steps of its intensity as an SVG path."""
    label_N = rows[f"{name}_c"].to_numpy().astype(float)
    column = f"{name}_r"
    intensity_N = rows[column].to_numpy() if column in rows.column_names else np.full(len(x_N), np.nan)
    coded, present = list_stretches(x_N[~np.isnan(label_N)]), list_stretches(x_N[label_N == 1])
    return {"coded": coded, "present": present, "steps": draw_steps(x_N, np.asarray(intensity_N, float))}


def draw_steps(x_N: NDArray[np.integer], value_N: NDArray[np.floating]) -> str:
    """An SVG path with a level of 5 − value over [x, x + 1], interrupted where the value is NaN or an x is left out."""
    path, last_x, last_y = [], None, None
    known = ~np.isnan(value_N)
    for x, y in zip(x_N[known].tolist(), (5 - value_N[known]).round(2).tolist(), strict=True):
        if x != last_x:
            path.append(f"M{x} {y:g}")
        elif y != last_y:
            path.append(f"V{y:g}")
        path.append(f"H{x + 1}")
        last_x, last_y = x + 1, y
    return "".join(path)


def _attempt(make: Callable[[], Any]) -> Any:
    """What `make` returns; for a DataError its sentence, which goes where the pictures would have stood."""
    try:
        return make()
    except DataError as error:
        return str(error)


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as lines: {"a": {"b": 1}} → ("a.b", "1")."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.1f}".removesuffix(".0")


def _phi(value: float | None) -> str:
    """.42, −.17; the nought before the point is left out, so that fifteen columns fit a phone."""
    if value is None:
        return "–"
    text = f"{abs(value):.2f}".removeprefix("0")
    return f"−{text}" if value < 0 and text != ".00" else text
