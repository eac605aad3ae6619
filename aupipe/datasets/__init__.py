"""Raw corpora → one manifest. This folder is the registry: a module here is a layout and holds a class `Dataset`.

A layout knows where its files lie and what its codes mean; what it hands on is the same for all: a row for every frame that
has a label or an image, labels null where they are not coded. To add a layout, add a file with a class `Dataset` as
described by `Layout`; `_tables` has what readers of label files share, `aupipe.archives` finds files in folders and zips.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from aupipe.archives import is_junk
from aupipe.datasets._notes import collect_notes, fail, note
from aupipe.datasets._tables import read_lines
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, inventory_schema, label_arrays, manifest_schema

if TYPE_CHECKING:
    from aupipe.config import Corpus

__all__ = [
    "Layout", "Partition", "Session", "build_manifest", "dataset_of", "get_dataset", "is_junk", "known_layouts",
    "list_files", "note", "published_partition", "read_lines", "survey", "tabulate",
]  # fmt: skip

_log = logging.getLogger(__name__)
_CONSTANT = "all coded frames have the same labels; is it the right file?"
_UNCODED = "no frame is coded; is it the right file?"
_PER_AU = ("coded", "positive", "intensities")
_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Partition:
    """A published division of a corpus's subjects.

    parts: sets of subjects that are the test sides of its folds. `aliases`: names under which others number those folds →
    the index of the part that the fold tests on. `splits`: an official division "train", "val", "test" → subjects.
    """

    parts: tuple[frozenset[str], ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """One recording of one subject. `labels` and `frames` (a file, a folder, or a place in a zip) are POSIX paths relative
    to the raw root, None where there is none. `group`, `split` and `part` go into the manifest as they are. `unread`: its
    labels turned out to be malformed and are not to be read.
    """

    subject: str
    session: str
    labels: str | None = None
    frames: str | None = None
    group: str | None = None
    split: str | None = None
    part: str | None = None
    unread: bool = False


class Layout(Protocol):
    """What the class `Dataset` of every layout offers.

    It is made as `Dataset(aus, **options)`: its keyword-only arguments are the options that params.yaml may set under
    `corpora.<name>.options`; each checks its own value and raises ConfigError.
    """

    @property
    def aus(self) -> AUSet: ...

    @property
    def published(self) -> Partition | None: ...

    @property
    def landmark_scheme(self) -> str | None:
        """The scheme of the landmarks that come with the corpus ("ibug49", "ibug66"), or None if none do.

        A layout that has one takes the option `landmarks: bool = False` and fills the column only if it is set.
        """

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """All recordings under `raw`, those with labels or media alone included. Raises DataError for another layout."""

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """The rows of one session, in manifest_schema(aus), frames ascending; without labels if it has none or is `unread`.

        Raises DataError for malformed labels.
        """


def known_layouts() -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_")))


def get_dataset(layout: str, aus: AUSet | None = None, options: Mapping[str, Any] | None = None) -> Layout:
    """The reader of a layout, for the AUs that a corpus codes; by default those of the published tables.

    Raises ConfigError for an unknown layout or option.
    """
    if layout not in known_layouts():
        raise ConfigError(f"unknown layout '{layout}'; known are {', '.join(known_layouts())}")
    kind = importlib.import_module(f"aupipe.datasets.{layout}").Dataset
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options or {}:
        if name not in known:
            raise ConfigError(f"the layout {layout} has no option '{name}'; known are {', '.join(known) or 'none'}")
    dataset: Layout = kind(aus, **(options or {}))
    return dataset


def dataset_of(corpus: Corpus) -> Layout:
    """The reader of a corpus of params.yaml, with its options. Raises ConfigError for one that its layout does not have."""
    options = dict(corpus.options)
    if corpus.frames == "landmarks":
        options["mask_lost"] = True
    if corpus.landmarks == "supplied":
        if get_dataset(corpus.layout, corpus.au_set, options).landmark_scheme is None:
            raise ConfigError(f"no landmarks come with the layout {corpus.layout}; set the corpus's landmarks to blazemesh")
        options["landmarks"] = True
    return get_dataset(corpus.layout, corpus.au_set, options)


def published_partition(dataset: Layout, manifest: pa.Table) -> Partition | None:
    """The division that the layout publishes, or else the one that came with the data: parts, or an official split.

    Parts are sorted by name and have aliases like "part-2". Raises DataError for a subject on two sides of it.
    """
    if dataset.published is not None:
        return dataset.published
    parts, splits = (_by_value(manifest, column) for column in ("part", "split"))
    if parts:
        return Partition(tuple(parts.values()), {f"part-{name}": n for n, name in enumerate(parts)})
    return Partition(splits=splits) if splits else None


def list_files(raw: Path) -> pa.Table:
    """Every file under a raw root, in inventory_schema(), sorted by path.

    Left out are hidden files and folders and what file managers leave behind. Links are followed, but never back into a
    folder that they lie in. Raises DataError where the root is missing or empty.
    """
    _require_folder(raw)
    rows = sorted(_walk(raw, "", ()))
    if not rows:
        raise _nothing_in(raw, "the folder is empty")
    paths, sizes, times = zip(*rows, strict=True)
    return pa.table([pa.array(paths), pa.array(sizes), pa.array(times)], schema=inventory_schema())


def build_manifest(dataset: Layout, raw: Path, *, strict: bool = False) -> pa.Table:
    """One row for every frame that has a label or an image, sorted by subject, session and frame.

    `strict` turns oddities that are otherwise logged and survived into errors. Raises DataError.
    """
    return survey(dataset, raw, strict=strict)[0]


def survey(dataset: Layout, raw: Path, *, strict: bool = False) -> tuple[pa.Table, dict[str, Any]]:
    """The manifest, and a report on it in plain values: what each session holds, and every oddity that was survived.

    A malformed file does not end it: its error, with file and line, is in the log and in the report's `errors`, and its
    labels are not coded. Raises DataError if that leaves no frame coded, and with `strict` for any oddity, after all
    sessions have been read and named in the log.
    """
    _require_folder(raw)
    with collect_notes() as general:
        sessions = sorted(dataset.sessions(raw, strict=strict), key=lambda s: (s.subject, s.session))
    if not sessions:
        raise _nothing_in(raw, "the folder holds no session of its layout")
    entries, errors = [], []
    done, tables = [manifest_schema(dataset.aus).empty_table()], []
    for session in sessions:
        with collect_notes() as notes:
            table = _read(dataset, raw, session, strict)
            errors += notes.errors
            if table is None:
                continue
            entries.append(_describe(session, table, dataset.aus, notes))
        tables.append(table)
        if len(tables) == _TOGETHER:  # a table of a few rows needs many times their memory
            done, tables = [*done, pa.concat_tables(tables).combine_chunks()], []
    total = _total(entries)
    if errors and (strict or not sum(total["coded"]) + sum(total["intensities"])):
        more = f" (and {len(errors) - 1} more, see the log)" if len(errors) > 1 else ""
        raise DataError(errors[0] + more)
    if errors:
        _log.error("%d label files are malformed and left out, their frames are not coded; --strict ends here", len(errors))
    for message in (_CONSTANT, _UNCODED):
        if suspects := [f"{e['subject']}/{e['session']}" for e in entries if message in e["notes"]]:
            _log.warning("%d sessions, %s among them: %s", len(suspects), suspects[0], message)
    table = pa.concat_tables([*done, *tables]).combine_chunks()
    return table, {"aus": list(dataset.aus), **total, "errors": errors, "notes": general, "sessions": entries}


def _read(dataset: Layout, raw: Path, session: Session, strict: bool) -> pa.Table | None:
    """The rows of a session; without its labels if those are malformed, and None if that does not help, or with `strict`."""
    for attempt in (session, replace(session, labels=None, unread=True)):
        try:
            return dataset.read_session(raw, attempt, strict=strict)
        except DataError as error:
            fail(str(error))
        if strict:
            break
    return None


def tabulate(dataset: Layout, session: Session, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of one session in manifest_schema(dataset.aus), from the columns that a reader has; at least `frame`.

    Subject, session, group, split and part are the session's; columns that are not given are null.
    """
    rows = len(columns["frame"])
    same = {name: getattr(session, name) for name in ("subject", "session", "group", "split", "part")}
    layout = manifest_schema(dataset.aus)
    unknown = set(columns) - set(layout.names)
    assert not unknown, f"no columns of a manifest: {unknown}"
    arrays = []
    for f in layout:
        if f.name in columns:
            values = columns[f.name]
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, f.type))
        else:
            value = same.get(f.name)
            arrays.append(pa.nulls(rows, f.type) if value is None else pa.repeat(pa.scalar(value, f.type), rows))
    return pa.Table.from_arrays(arrays, schema=layout)


def _describe(session: Session, table: pa.Table, aus: AUSet, notes: list[str]) -> dict[str, Any]:
    """What a session holds; a label without an image, and an image without a label, are both counted."""
    labels_NM, mask_NM = label_arrays(table, aus)
    intensities = [len(table) - table[c].null_count for c in aus.intensity_columns]
    coded = mask_NM.any(1)
    for name, has in (("labels", session.labels), ("frames", session.frames)):
        if has is None:
            notes.append(f"no {name}")
    if coded.sum() > 1 and _is_constant(labels_NM[coded], mask_NM[coded]):
        notes.append(_CONSTANT)
    elif session.labels is not None and not coded.any() and not any(intensities):
        notes.append(_UNCODED)
    return {
        "subject": session.subject,
        "session": session.session,
        "labels": session.labels,
        "frames": session.frames,
        "rows": table.num_rows,
        "labelled": int(coded.sum()),
        "images": table.num_rows - table["source"].null_count,
        "missing": table["source"].null_count,
        "coded": mask_NM.sum(0).tolist(),
        "positive": labels_NM.sum(0).astype(int).tolist(),
        "intensities": intensities,
        "notes": notes,
    }


def _by_value(manifest: pa.Table, column: str) -> dict[str, frozenset[str]]:
    """Value of a column, sorted → its subjects; subjects without one are left out."""
    pairs = manifest.group_by(["subject", column]).aggregate([])
    found: dict[str, str] = {}
    for subject, value in zip(pairs["subject"].to_pylist(), pairs[column].to_pylist(), strict=True):
        if value is not None and found.setdefault(subject, value) != value:
            both = " and ".join(sorted([found[subject], value]))
            raise DataError(f"subject '{subject}' has two values of {column}, {both}; give each subject one")
    return {v: frozenset(s for s, own in found.items() if own == v) for v in sorted(set(found.values()))}


def _is_constant(labels_NM: Any, mask_NM: Any) -> bool:
    """Whether no AU changes over the rows that it is coded in."""
    return all(len(set(labels[mask].tolist())) < 2 for labels, mask in zip(labels_NM.T, mask_NM.T, strict=True))


def _total(entries: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {name: sum(e[name] for e in entries) for name in ("rows", "labelled", "images", "missing")}
    lists = {name: [sum(values) for values in zip(*(e[name] for e in entries), strict=True)] for name in _PER_AU}
    return {"subjects": len({e["subject"] for e in entries}), **counts, **lists}


def _nothing_in(raw: Path, why: str) -> DataError:
    return DataError(
        f"no corpus in {raw}: {why}; run `dvc repro synthesize` for a synthetic corpus, "
        f"or set AUPIPE_RAW to the folder that holds {raw.name}"
    )


def _require_folder(raw: Path) -> None:
    if not raw.is_dir():
        raise _nothing_in(raw, "there is no such folder")


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of all files below; `above` identifies the folders on the way here, so that links end."""
    try:
        here = folder.stat()
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        _log.warning("left out %s: %s", folder, error.strerror)
        return
    for entry in found:
        try:
            entry.name.encode()
            is_folder = entry.is_dir()
            state = None if is_folder else entry.stat()
        except (OSError, UnicodeEncodeError) as error:  # a link that leads nowhere, a name that is no text
            _log.warning("left out %r: %s", entry.path, error)
            continue
        if is_junk(entry.name, folder=is_folder):
            continue
        if state is None:
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, identity))
        elif entry.is_file():
            yield f"{prefix}{entry.name}", state.st_size, state.st_mtime_ns
