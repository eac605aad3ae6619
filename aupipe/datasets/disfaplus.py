"""DISFA+: posed and spontaneous trials of nine people of DISFA, as images, and a file of intensities for each trial and AU.

    Images/SN001/A1_AU1_TrailNo_1/000.jpg
    Labels/SN001/A1_AU1_TrailNo_1/AU1.txt      two lines of header; then image and intensity 0–5, with spaces between

All nine are in DISFA under the same names, and are in the same parts here, so that nobody is learned from in one corpus and
tested on in the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aupipe import archives
from aupipe.datasets import Partition, Session, note, tabulate
from aupipe.datasets._tables import Kept, check_overlap, frame_columns, index_images, keep_first, read_lines
from aupipe.datasets.disfa import PUBLISHED as DISFA_PARTS
from aupipe.datasets.disfa import check_threshold, coded_aus, note_uncoded, read_intensities
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import DataError

SUBJECTS = frozenset(f"SN{n:03d}" for n in (1, 3, 4, 7, 9, 10, 13, 25, 27))
PUBLISHED = Partition(parts=tuple(part & SUBJECTS for part in DISFA_PARTS.parts), aliases=DISFA_PARTS.aliases)

_IMAGE_ROOT, _LABEL_ROOT = r"images(\.zip)?", r"labels(\.zip)?"
_SUBJECT_FOLDER = r"SN\d{3}(\.zip)?"
_LABELS = re.compile(r"AU0*(\d{1,2})\.txt", re.ASCII | re.IGNORECASE)
_HEADER = 2  # lines
_ROW = re.compile(r"\s*(\d+)\.(?:jpe?g|png|bmp)\s+(\S+)\s*", re.ASCII | re.IGNORECASE)

Key = tuple[str, str]  # subject and trial


class Dataset:
    """The DISFA+ layout; by default DISFA's eight AUs, of the twelve that are coded.

    threshold: the intensity from which on an AU occurs.
    """

    published: Partition | None = PUBLISHED
    landmark_scheme: str | None = None

    def __init__(self, aus: AUSet | None = None, *, threshold: int = 2) -> None:
        self.aus = aus or AU_SETS["disfa"]
        self.threshold = check_threshold("disfaplus", threshold)
        self._trials = Kept(lambda raw, strict: _find_trials(raw, _LABEL_ROOT, strict))
        self._labels = Kept(lambda raw, strict: {key: _list_labels(f) for key, f in self._trials.look(raw, strict).items()})

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every trial that has images or labels. Names of trials are compared as the file system spells them."""
        images = _find_trials(raw, _IMAGE_ROOT, strict)
        labels, folders = self._labels.look(raw, strict), self._trials.of(raw)
        coded = {key: folders[key] for key, files in labels.items() if files}
        if alone := sorted(coded.keys() - images.keys()):
            note(f"{len(alone)} trials have labels and no images, such as {'/'.join(alone[0])}", strict=strict)
        if alone := sorted(images.keys() - coded.keys()):
            note(f"{len(alone)} trials have images and no labels, such as {'/'.join(alone[0])}")
        note_uncoded(self.aus, labels, raw, strict=strict)
        keys = sorted(coded.keys() | images.keys())
        return [Session(*key, _text(coded.get(key), raw), _text(images.get(key), raw)) for key in keys]

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label or an image, numbered as the images are. Raises DataError."""
        labels = self._labels.of(raw)
        files = labels.get((session.subject, session.session), {}) if session.labels is not None else {}
        coded = read_intensities(
            self, self.threshold, files, coded_aus(labels), session, read_rows=read_rows, strict=strict
        )  # fmt: skip
        images = index_images(raw / session.frames, raw, strict=strict) if session.frames is not None else {}
        if files and session.frames is not None:
            check_overlap(str(raw / str(session.labels)), coded.frames(), np.array(list(images), np.int64), strict=strict)
        frames = np.union1d(np.array(list(images), np.int64), coded.frames())
        columns: dict[str, Any] = {
            **frame_columns(frames, images),
            **coded.spread((*self.aus.columns, *self.aus.intensity_columns), frames),
        }
        return tabulate(self, session, columns)


def read_rows(path: Path) -> list[str]:
    """The rows of a label file as "frame,intensity", at the places of its lines. Raises DataError for another line."""
    rows: list[str] = []
    for n, line in enumerate(read_lines(path), 1):
        match = _ROW.fullmatch(line)
        if match is None and n > _HEADER and line.strip():
            raise DataError(f"{path}, line {n}: expected an image and its intensity, got {line.strip()[:20]!r}")
        if match is not None and n <= _HEADER:
            raise DataError(f"{path}, line {n}: expected {_HEADER} lines of header, got {line.strip()[:20]!r}")
        rows.append(f"{match[1]},{match[2]}" if match else "")
    return rows


def _find_trials(raw: Path, root: str, strict: bool) -> dict[Key, Path]:
    """(subject, trial) → folder, below the first folder of this name that holds any, on disk or in a zip."""
    found: dict[Key, Path] = {}
    for entry in archives.search(raw, root):
        for subject in archives.search(entry.path, _SUBJECT_FOLDER):
            inner = archives.find(subject.path, _SUBJECT_FOLDER)  # a zip often has its own name inside once more
            for trial in archives.list_folder(inner[0].path if inner else subject.path):
                if trial.folder:
                    key = subject.name[:5].upper(), trial.name
                    keep_first(found, key, trial.path, f"the trial {'/'.join(key)}", strict=strict)
    return found


def _list_labels(folder: Path) -> dict[int, Path]:
    matches = ((_LABELS.fullmatch(entry.name), entry.path) for entry in archives.list_folder(folder))
    return {int(match[1]): path for match, path in matches if match}


def _text(path: Path | None, raw: Path) -> str | None:
    return None if path is None else archives.relative(path, raw)
