"""Where BP4D's files are, in the trees that it comes in and in the variants that unpacking makes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from aupipe import archives
from aupipe.archives import Entry
from aupipe.datasets._notes import note
from aupipe.datasets._tables import keep_first
from aupipe.schema import DataError

_SEQUENCE_ROOT, _SUBJECT, _TASK = r"(sequences|2d\+3d|bp4d-(train|devel)).*", r"[FM]\d{3}(\.zip)?", r"T\d{1,2}"
_INTENSITY_ROOT = r"AU_INT|AU Intensity Codes.*"
_LABEL_FILE = re.compile(r"([FM]\d{3})_(T\d{1,2})\.csv", re.ASCII | re.IGNORECASE)
_INTENSITY_FILE = re.compile(r"([FM]\d{3})_(T\d{1,2})_AU0*(\d{1,2})\.csv", re.ASCII | re.IGNORECASE)
_POINTS_FILE = re.compile(r"([FM]\d{3})_?(T\d{1,2})\.mat", re.ASCII | re.IGNORECASE)

Key = tuple[str, str]


@dataclass(slots=True)
class Tree:
    """Where things are: (subject, task) → path; intensities by AU as well, and the folders of their AUs."""

    frames: dict[Key, Path] = field(default_factory=dict)
    labels: dict[Key, Path] = field(default_factory=dict)
    intensities: dict[tuple[Key, int], Path] = field(default_factory=dict)
    intensity_folders: dict[int, Path] = field(default_factory=dict)
    points: dict[Key, Path] = field(default_factory=dict)


def find_tree(raw: Path, strict: bool, *, points: bool) -> Tree:
    """Look through a raw root; for landmarks only if `points`."""
    tree = Tree(_find_frames(raw, strict), _find_labels(raw, strict))
    _find_intensities(raw, tree)
    if points:
        tree.points = _find_points(raw)
    return tree


def _find_frames(raw: Path, strict: bool) -> dict[Key, Path]:
    found: dict[Key, Path] = {}
    roots = [entry.path for entry in archives.search(raw, _SEQUENCE_ROOT)] or [raw]
    for root in roots:
        subjects = _here_or_below(root, _SUBJECT)
        # What was extracted comes before the zip that it came from.
        for subject in sorted(subjects, key=lambda e: e.name.lower().endswith(".zip")):
            who = subject.name[:4].upper()
            try:
                tasks = _here_or_below(subject.path, _TASK)
            except DataError as error:
                note(str(error), strict=strict)
                continue
            for task in tasks:
                key = (who, task.name.upper())
                keep_first(found, key, task.path, f"the images of {'/'.join(key)}", strict=strict)
    return found


def _here_or_below(folder: Path, pattern: str) -> list[Entry]:
    """Folders of this name in `folder`, or else further down, where unpacking often puts them."""
    here = [entry for entry in archives.list_folder(folder) if entry.folder]
    named = [entry for entry in here if re.fullmatch(pattern, entry.name, re.IGNORECASE | re.ASCII)]
    return named or archives.search(folder, pattern)


def _find_labels(raw: Path, strict: bool) -> dict[Key, Path]:
    """Occurrence files, from AU_OCC and, where they lie a level higher, from AUCoding."""
    found: dict[Key, Path] = {}
    for folder in (*archives.search(raw, r"AU_OCC(\.zip)?"), *archives.search(raw, r"AUCoding(\.zip)?")):
        for entry in archives.list_folder(folder.path):
            match = _LABEL_FILE.fullmatch(entry.name)
            if match:
                key = (match[1].upper(), match[2].upper())
                keep_first(found, key, entry.path, f"the labels of {'/'.join(key)}", strict=strict)
            elif entry.name.lower().endswith(".csv"):
                note(f"{entry.path} is not named like F001_T1.csv; left out", strict=strict)
    return found


def _find_intensities(raw: Path, tree: Tree) -> None:
    for root in archives.search(raw, _INTENSITY_ROOT):
        for folder in archives.find(root.path, r"AU\d{1,2}"):
            tree.intensity_folders.setdefault(int(folder.name[2:]), folder.path)
            for entry in archives.list_folder(folder.path):
                if match := _INTENSITY_FILE.fullmatch(entry.name):
                    key = (match[1].upper(), match[2].upper())
                    tree.intensities.setdefault((key, int(match[3])), entry.path)


def _find_points(raw: Path) -> dict[Key, Path]:
    found: dict[Key, Path] = {}
    for root in archives.search(raw, r"2DFeatures(\.zip)?"):
        for folder in (root, *archives.search(root.path, r".*", depth=1)):
            for entry in archives.list_folder(folder.path):
                if match := _POINTS_FILE.fullmatch(entry.name):
                    found.setdefault((match[1].upper(), match[2].upper()), entry.path)
    return found
