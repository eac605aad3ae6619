"""BP4D: a folder of JPEGs per subject and task, and one occurrence file for each, with intensities of five AUs beside it.

    Sequences*/F001/T1/0000.jpg            named with 3 or 4 digits, so frames are found by number, never by a made-up name
    AUCoding/AU_OCC/F001_T1.csv            frame, then one column per AU; 0 absent, 1 present, 9 not coded
    AUCoding/AU_INT/AU06/F001_T1_AU06.csv  no header; frame, intensity 0–5, 9 not coded

Labels cover the most expressive part of a recording only. A label's frame number is the JPEG's number, as in all public
protocols on this corpus. Subjects are F001 and M001: two people, so the letter is part of the id.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.datasets import Partition, Session, is_junk, note, read_lines
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import DataError, manifest_schema

# The three parts behind every published three-fold table, one per line. JAA-Net's list files name a fold by the parts it
# trains on, ME-GraphAU's scripts number it; the subjects are the same.
_PARTS = """\
F001 M007 F018 F008 F002 M004 F010 F009 M012 M001 F016 M014 F023 M008
M011 F003 M010 M002 F005 F022 M018 M017 F013 M016 F020 F011 M013 M005
F007 F015 F006 F019 M006 M009 F012 M003 F004 F021 F017 M015 F014
"""
PUBLISHED = Partition(
    parts=tuple(frozenset(line.split()) for line in _PARTS.splitlines()),
    aliases={
        "jaanet-combine_1_2": 2,
        "jaanet-combine_1_3": 1,
        "jaanet-combine_2_3": 0,
        "megraphau-fold1": 2,
        "megraphau-fold2": 1,
        "megraphau-fold3": 0,
    },
)

_SEQUENCE_ROOT = re.compile(r"(sequences|2d\+3d|bp4d-training).*", re.IGNORECASE)
_SUBJECT, _TASK = re.compile(r"[FM]\d{3}", re.ASCII), re.compile(r"T\d{1,2}", re.ASCII)
_LABEL_FILE = re.compile(r"([FM]\d{3})_(T\d{1,2})\.csv", re.ASCII | re.IGNORECASE)
_IMAGE_FILE = re.compile(r"(\d+)\.(?:jpe?g|png)", re.ASCII | re.IGNORECASE)
_FRAME_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_AU_NAME = re.compile(r"(?:AU)?0*(\d{1,2})", re.ASCII | re.IGNORECASE)
_OCCURRENCE_FOLDERS = ("AUCoding/AU_OCC", "AUCoding", "AU_OCC")
_INTENSITY_FOLDERS = ("AUCoding/AU_INT", "AU_INT", "AU Intensity Codes3.0")

_NULL, _BAD = -1, -2  # in memory, where labels are not yet Arrow columns
_OCCURRENCE_CODES = {"0": 0, "1": 1, "9": _NULL}
_INTENSITY_CODES = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "9": _NULL}
_LEGACY_COLUMNS = 50  # from so many on, column N is AU N; below, the header names the AUs


class Dataset:
    """The BP4D layout, read for a set of AUs; by default the twelve of the published tables."""

    published: Partition | None = PUBLISHED

    def __init__(self, aus: AUSet | None = None) -> None:
        self.aus = aus or AU_SETS["bp4d"]

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every recording that has frames. Raises DataError for labels whose folder of frames is missing."""
        frames = _frame_folders(raw)
        labels = _label_files(raw, strict)
        for key, file in labels.items():
            if key not in frames:
                subject, task = key
                raise DataError(
                    f"{raw / file} has labels, but there is no folder {raw / 'Sequences' / subject / task} with its frames; "
                    "extract that recording, or move the label file away"
                )
        return [Session(*key, labels.get(key), folder) for key, folder in sorted(frames.items())]

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label or an image, in manifest_schema(aus). Raises DataError; see the module."""
        numbers, sources = _list_images(raw, session, strict)
        coded = _Columns()
        if session.labels is not None:
            self._read_occurrence(raw / session.labels, coded, strict)
            _check_images(raw / session.labels, coded.frames(), numbers, strict)
        self._read_intensities(raw, session, coded, strict)
        frames = np.union1d(numbers, coded.frames())
        source = np.full(len(frames), None, object)
        source[np.searchsorted(frames, numbers)] = sources
        columns = [
            pa.array([session.subject] * len(frames)),
            pa.array([session.session] * len(frames)),
            pa.array(frames.astype(np.int32)),
            pa.array(source, pa.string()),
            *(coded.spread(name, frames, pa.int8()) for name in self.aus.columns),
            *(coded.spread(name, frames, pa.float32()) for name in self.aus.intensity_columns),
        ]
        return pa.Table.from_arrays(columns, schema=manifest_schema(self.aus))

    def _read_occurrence(self, path: Path, coded: _Columns, strict: bool) -> None:
        lines = read_lines(path)
        header = [cell.strip() for cell in lines[0].rstrip(" \t,").split(",")] if lines else []
        where = _find_columns(path, header)
        missing = [name for name, number in zip(self.aus.names, self.aus, strict=True) if number not in where]
        if missing:
            note(f"{path} has no column for {', '.join(missing)}; taken as not coded", strict=strict)
        present = [(c, n) for c, n in zip(self.aus.columns, self.aus, strict=True) if n in where]
        positions = [where[number] for _, number in present]
        frames, values = _read_codes(path, lines, 1, len(header), positions, _OCCURRENCE_CODES)
        for i, (column, _) in enumerate(present):
            coded.add(column, frames, values[:, i])

    def _read_intensities(self, raw: Path, session: Session, coded: _Columns, strict: bool) -> None:
        root = next((raw / name for name in _INTENSITY_FOLDERS if (raw / name).is_dir()), None)
        if root is None:
            return
        for name, column in zip(self.aus.names, self.aus.intensity_columns, strict=True):
            path = root / name / f"{session.subject}_{session.session}_{name}.csv"
            if path.exists():
                frames, values = _read_codes(path, read_lines(path), 0, 2, [1], _INTENSITY_CODES)
                coded.add(column, frames, values[:, 0])
            elif session.labels is not None and path.parent.is_dir():
                note(f"{path} is missing; the intensity of {name} is taken as not coded there", strict=strict)


class _Columns:
    """Label columns of one session, each with frame numbers of its own: (n,) int64, ascending, and codes (n,) int8."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[NDArray[np.int64], NDArray[np.int8]]] = {}

    def add(self, name: str, frames: NDArray[np.int64], values: NDArray[np.int8]) -> None:
        self._columns[name] = (frames, values)

    def frames(self) -> NDArray[np.int64]:
        """Every frame that any column has a row for."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(frames for frames, _ in self._columns.values())]))

    def spread(self, name: str, frames: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
        """The column over `frames`, null where it has no row or the code says so."""
        values = np.full(len(frames), _NULL, np.int8)
        if name in self._columns:
            own, codes = self._columns[name]
            values[np.searchsorted(frames, own)] = codes
        return pa.array(values, mask=values == _NULL).cast(kind)


def _frame_folders(raw: Path) -> dict[tuple[str, str], str]:
    """(subject, task) → folder of frames, relative to `raw`."""
    folders: dict[tuple[str, str], str] = {}
    for root in _subfolders(raw, _SEQUENCE_ROOT):
        for subject in _subfolders(root, _SUBJECT):
            for task in _subfolders(subject, _TASK):
                key, folder = (subject.name, task.name), task.relative_to(raw).as_posix()
                if key in folders:
                    raise DataError(f"{raw} has the recording {'/'.join(key)} twice: in {folders[key]} and in {folder}")
                folders[key] = folder
    return folders


def _subfolders(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    return [folder / name for name in names if (folder / name).is_dir()]


def _label_files(raw: Path, strict: bool) -> dict[tuple[str, str], str]:
    """(subject, task) → occurrence file, relative to `raw`, from the first of the usual folders that holds any."""
    for folder in _OCCURRENCE_FOLDERS:
        if not (raw / folder).is_dir():
            continue
        files: dict[tuple[str, str], str] = {}
        names = [n for n in sorted(os.listdir(raw / folder)) if n.lower().endswith(".csv") and not is_junk(n)]
        for name in names:
            match = _LABEL_FILE.fullmatch(name)
            key = (match[1].upper(), match[2].upper()) if match else None
            if key is None or key in files:
                note(f"{raw / folder / name} is not named like F001_T1.csv, or is so twice; left out", strict=strict)
                continue
            files[key] = f"{folder}/{name}"
        if files:
            return files
    return {}


def _list_images(raw: Path, session: Session, strict: bool) -> tuple[NDArray[np.int64], list[str]]:
    """Frame numbers (n,), ascending, and the images' paths relative to `raw`."""
    assert session.frames is not None
    folder = raw / session.frames
    found: dict[int, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    for name in names:
        match = _IMAGE_FILE.fullmatch(name)
        number = int(match[1]) if match else -1
        if not match or number >= 2**31:
            if name.lower().endswith((".jpg", ".jpeg", ".png")) and not is_junk(name):
                note(f"{folder / name} is not named by a frame number; left out", strict=strict)
        elif number in found:
            raise DataError(f"{folder} has two images of frame {number}, {found[number]} and {name}; remove one")
        else:
            found[number] = name
    numbers = sorted(found)
    return np.array(numbers, np.int64), [f"{session.frames}/{found[n]}" for n in numbers]


def _check_images(path: Path, labelled: NDArray[np.int64], images: NDArray[np.int64], strict: bool) -> None:
    """A few labelled frames without an image are usual; many suggest that labels and recording do not belong together."""
    missing = int(np.isin(labelled, images, invert=True).sum())
    if missing > max(2, 0.005 * len(labelled)):
        note(f"{path}: {missing} of {len(labelled)} labelled frames have no image", strict=strict)


def _find_columns(path: Path, header: list[str]) -> dict[int, int]:
    """AU number → column. The first release has columns 0 … 99, where column N is AU N; later ones name some 35 AUs."""
    if len(header) >= _LEGACY_COLUMNS:
        if header != [str(n) for n in range(len(header))]:
            raise DataError(f"{path}, line 1: expected the header 0,1,2,…,{len(header) - 1}")
        return {n: n for n in range(1, len(header))}
    names = [_AU_NAME.fullmatch(cell) for cell in header[1:]]
    numbers = [int(name[1]) for name in names if name]
    if not numbers or len(numbers) != len(names) or len(set(numbers)) != len(numbers):
        raise DataError(f"{path}, line 1: expected a header that names the frame and then every AU once")
    return {number: column for column, number in enumerate(numbers, 1)}


def _read_codes(
    path: Path, lines: list[str], skip: int, width: int, positions: Sequence[int], codes: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Frame numbers (n,) from the first column and codes (n, k) from the columns at `positions`.

    Blank lines and blank cells beyond `width` are passed over. Raises DataError with the line for anything else that is
    not a whole row of known codes, and for frame numbers that do not ascend.
    """
    pick = operator.itemgetter(0, *positions, 0)  # the last 0 keeps it a tuple when there is no other
    frames: list[int] = []
    values: list[list[int]] = []
    for n, line in enumerate(lines[skip:], skip + 1):
        cells = line.split(",")
        if len(cells) != width:
            if not line.strip(" \t,"):
                continue
            if len(cells) < width or any(cell.strip() for cell in cells[width:]):
                raise DataError(f"{path}, line {n}: {len(cells)} columns instead of {width}")
        frame, *picked, _ = pick(cells)
        row = [codes.get(cell.strip(), _BAD) for cell in picked]
        if _BAD in row:
            wrong = picked[row.index(_BAD)].strip()[:20]
            raise DataError(f"{path}, line {n}: {wrong!r} is not one of the codes {', '.join(codes)}")
        if not _FRAME_NUMBER.fullmatch(frame.strip()):
            raise DataError(f"{path}, line {n}: {frame.strip()[:20]!r} is not a frame number")
        number = int(frame)
        if frames and number <= frames[-1]:
            raise DataError(f"{path}, line {n}: frame {number} follows frame {frames[-1]}; frame numbers must ascend")
        frames.append(number)
        values.append(row)
    if not frames:
        raise DataError(f"{path} holds no labelled frame")
    return np.array(frames, np.int64), np.array(values, np.int8).reshape(len(frames), len(positions))
