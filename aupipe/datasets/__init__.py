"""Raw corpora → one manifest. This folder is the registry: a module here is a layout and holds a class `Dataset`.

A layout knows where its files lie and what its codes mean; what it hands on is the same for all: a row for every frame that
has a label or an image, labels null where they are not coded.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, inventory_schema, manifest_schema

_log = logging.getLogger(__name__)
_JUNK_FILES, _JUNK_FOLDERS = {"thumbs.db", "desktop.ini"}, {"__MACOSX"}  # hidden names are ignored by their dot


@dataclass(frozen=True, slots=True)
class Partition:
    """A published division of a corpus: its parts as sets of subjects, which are the test sides of its folds, and
    `aliases` from the names under which others number those folds to the index of the part that they test on.
    """

    parts: tuple[frozenset[str], ...]
    aliases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """One recording of one subject: its label file and its folder of frames or video, as POSIX paths relative to the raw
    root; None where there is none.
    """

    subject: str
    session: str
    labels: str | None
    frames: str | None


class Layout(Protocol):
    """What the class `Dataset` of every layout offers."""

    @property
    def aus(self) -> AUSet: ...

    @property
    def published(self) -> Partition | None: ...

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """All recordings under `raw`. Raises DataError where the tree is not of this layout."""

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """The rows of one session, in manifest_schema(aus), frames ascending. Raises DataError for malformed labels."""


def known_layouts() -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_")))


def get_dataset(layout: str, aus: AUSet | None = None) -> Layout:
    """The reader of a layout, for the AUs that a corpus codes; by default those of the published tables.

    Raises ConfigError for an unknown layout.
    """
    if layout not in known_layouts():
        raise ConfigError(f"unknown layout '{layout}'; known are {', '.join(known_layouts())}")
    dataset: Layout = importlib.import_module(f"aupipe.datasets.{layout}").Dataset(aus)
    return dataset


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
    _require_folder(raw)
    sessions = sorted(dataset.sessions(raw, strict=strict), key=lambda s: (s.subject, s.session))
    if not sessions:
        raise _nothing_in(raw, "the folder holds no session of its layout")
    tables = [dataset.read_session(raw, session, strict=strict) for session in sessions]
    return pa.concat_tables([manifest_schema(dataset.aus).empty_table(), *tables]).combine_chunks()


def is_junk(name: str, *, folder: bool = False) -> bool:
    """Whether a name is hidden or left behind by a file manager (.DS_Store, ._x, Thumbs.db, __MACOSX)."""
    return name.startswith(".") or (name in _JUNK_FOLDERS if folder else name.lower() in _JUNK_FILES)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever its line ends and byte-order mark; blank ones at the end are dropped.

    Bytes that are no text come back as replacement characters, for the reader to complain about with a line number.
    Raises DataError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # spreadsheets export UTF-16
    text = data.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip(" \t,;\x1a"):
        lines.pop()
    return lines


def note(message: str, *, strict: bool) -> None:
    """Something odd that a run survives: a line in the log, or with `strict` a DataError."""
    if strict:
        raise DataError(message)
    _log.warning("%s", message)


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
