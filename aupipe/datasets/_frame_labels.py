"""Tables with one row per frame → labels of each medium, in the numbering or the times of the table."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aupipe.datasets._cells import LEVELS, NULL, Codes, FacsCodes, Reading, parse_cell
from aupipe.datasets._delimited import Sheet, parse_number, parse_seconds, parse_whole
from aupipe.datasets._notes import note
from aupipe.datasets._presets import INTENSITY, LEVEL, OCCURRENCE, PROBABILITY, Preset
from aupipe.schema import DataError

_POINTS = 68


@dataclass(slots=True)
class FrameLabels:
    """Rows of one medium. keys (n,): frame numbers int64 or, where `timed`, seconds float64; None where rows have neither.
    face (n,): whose row it is. occurrence (n, M) int8, 0, 1, NULL or UNNAMED; intensity (n, M) float32, NaN unknown.
    landmarks (n, 136) float32 x, y interleaved, NaN where there are none; or None. lines (n,): where each row stands.
    scored: whether intensities are given at all.
    """

    sheet: Sheet
    timed: bool
    keys: NDArray | None
    face: NDArray[np.str_]
    lines: NDArray[np.int64]
    occurrence: NDArray[np.int8]
    intensity: NDArray[np.float32]
    landmarks: NDArray[np.float32] | None
    scored: bool


@dataclass(slots=True)
class _Rows:
    """What is collected of one medium while a table is read."""

    keys: array = field(default_factory=lambda: array("d"))
    lines: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("f"))
    landmarks: array = field(default_factory=lambda: array("f"))
    faces: list[str] = field(default_factory=list)


def read_frame_labels(
    sheet: Sheet, preset: Preset, reading: Reading, *, keyless: bool = False, strict: bool = False
) -> dict[str, FrameLabels]:
    """The labels of each medium that a table names, under "" where it names none.

    keyless: the rows need neither a frame nor a time, as those of single images. Raises DataError with file and line.
    """
    named = [(p, c) for p, name in enumerate(sheet.header) if (c := preset.parse_column(name))]
    columns = [(p, c) for p, c in named if c.au in reading.aus.numbers]
    if not named:
        raise DataError(
            f"{sheet.where(1)}: no column of an AU was found among {', '.join(sheet.header)[:80]!r}; "
            "is `preset` in params.yaml the program that wrote the file?"
        )
    absent = [name for name, au in zip(reading.aus.names, reading.aus, strict=True) if au not in {c.au for _, c in columns}]
    if absent:
        note(f"{sheet.path} has no column of {', '.join(absent)}; taken as not coded", strict=strict)
    measures = [_measure(sheet, c.measure, p, reading, preset) for p, c in columns]
    unknown = Reading(reading.aus, reading.unknown | preset.unknown)
    codes = {measure: Codes(measure, unknown) for measure in set(measures)}
    positions = [p for p, _ in columns]
    tables = [codes[m] for m in measures]

    def convert(cells: list[str], line: int) -> list[float]:
        try:
            return [table[cells[p]] for table, p in zip(tables, positions, strict=True)]
        except KeyError:
            raise _wrong_code(sheet, line, cells, positions, tables) from None

    rows, timed, keyed = _collect(sheet, preset, reading, convert, keyless)
    owners = [(c.au, m, c.side) for (_, c), m in zip(columns, measures, strict=True)]
    found = {}
    for medium, own in rows.items():
        values = np.frombuffer(own.values, np.float32).reshape(len(own.lines), len(columns))
        occurrence, intensity = _merge_columns(values, owners, reading)
        found[medium] = _labels(sheet, own, timed, keyed, occurrence, intensity, INTENSITY in measures)
    return found


def read_facs_labels(
    sheet: Sheet, preset: Preset, reading: Reading, column: int, *, keyless: bool
) -> dict[str, FrameLabels]:
    """As `read_frame_labels`, of a table whose `column` holds a FACS string per frame."""
    codes = FacsCodes(reading)

    def convert(cells: list[str], line: int) -> tuple[float, ...]:
        try:
            return codes[cells[column]]
        except KeyError:
            raise DataError(f"{sheet.where(line)}: {cells[column][:20]!r} is no FACS code such as 1+2+L4B") from None

    rows, timed, keyed = _collect(sheet, preset, reading, convert, keyless)
    count, found = len(reading.aus), {}
    parts = {medium: np.frombuffer(own.values, np.float32).reshape(-1, 2 * count) for medium, own in rows.items()}
    scored = any(not np.isnan(values[:, count:]).all() for values in parts.values())
    for medium, own in rows.items():
        values = parts[medium]
        present = np.nan_to_num(values[:, :count], nan=NULL).astype(np.int8)
        intensity = values[:, count:].copy()
        present[(present == 1) & (intensity < reading.threshold)] = 0
        found[medium] = _labels(sheet, own, timed, keyed, present, intensity, scored)
    return found


def _collect(
    sheet: Sheet, preset: Preset, reading: Reading, convert: Callable[[list[str], int], Collection[float]], keyless: bool
) -> tuple[dict[str, _Rows], bool, bool]:
    """Rows of each medium, whether their keys are times, and whether they have keys."""
    media, face, valid, coder = (sheet.find(*n) for n in (preset.media, preset.face, preset.valid, ("coder",)))
    key, scale = _key_column(sheet, preset)
    if key is None and not keyless:
        names = " or ".join((*preset.frame[:1], *preset.time))
        raise DataError(f"{sheet.where(1)}: there is no column {names}, so no row says which frame it is of")
    points = _point_columns(sheet) if reading.landmarks and preset.landmarks else []
    rows: dict[str, _Rows] = {}
    for line, cells in sheet:
        if reading.coder is not None and coder is not None and cells[coder] != reading.coder:
            continue
        name = cells[media] if media is not None else ""
        own = rows.get(name) or rows.setdefault(name, _Rows())
        own.keys.append(0 if key is None else _parse_key(sheet, line, cells[key], scale))
        own.lines.append(line)
        own.faces.append(cells[face] if face is not None else "")
        values = convert(cells, line)
        seen = valid is None or _is_yes(sheet, line, cells[valid])
        own.values.extend(values if seen else [math.nan] * len(values))
        if points:
            own.landmarks.extend(_read_points(cells, points) if seen else [math.nan] * len(points))
    if not rows:
        raise DataError(f"{sheet.path} holds no labelled frame")
    return rows, scale is not None, key is not None


def _labels(
    sheet: Sheet, own: _Rows, timed: bool, keyed: bool,
    occurrence: NDArray[np.int8], intensity: NDArray[np.float32], scored: bool,
) -> FrameLabels:  # fmt: skip
    keys = np.array(own.keys, np.float64)
    landmarks = np.array(own.landmarks, np.float32).reshape(len(keys), -1) if own.landmarks else None
    lines, faces = np.array(own.lines, np.int64), np.array(own.faces, np.str_)
    exact = (keys if timed else keys.astype(np.int64)) if keyed else None
    return FrameLabels(sheet, timed, exact, faces, lines, occurrence, intensity, landmarks, scored)


def _key_column(sheet: Sheet, preset: Preset) -> tuple[int | None, float | None]:
    """The column that says which frame a row is of, and, where it holds times, seconds per unit."""
    frame = sheet.find(*preset.frame) if preset.frame else None
    if frame is not None:
        return frame, None
    for name, scale in preset.time.items():
        if (column := sheet.find(name)) is not None:
            return column, scale
    return None, None


def _parse_key(sheet: Sheet, line: int, cell: str, scale: float | None) -> float:
    value = parse_whole(cell) if scale is None else parse_seconds(cell)
    if value is None:
        what = "frame number" if scale is None else "time"
        raise DataError(f"{sheet.where(line)}: {cell[:20]!r} is not a {what}")
    return value if scale is None else value * scale


def _is_yes(sheet: Sheet, line: int, cell: str) -> bool:
    value = 1.0 if cell == "" else parse_cell(cell, OCCURRENCE)
    if value is None:
        raise DataError(f"{sheet.where(line)}: {cell[:20]!r} does not say whether the row is valid (1 or 0)")
    return value == 1


def _measure(sheet: Sheet, measure: str, position: int, reading: Reading, preset: Preset) -> str:
    """FaceReader writes an AU as letters or as a number from 0 to 1; the column's first value tells which."""
    if measure != LEVEL:
        return measure
    known = (cells[position].lower() for _, cells in sheet)
    first = next((c for c in known if not reading.is_unknown(c) and c not in preset.unknown), "")
    return INTENSITY if first in LEVELS else PROBABILITY


def _wrong_code(sheet: Sheet, line: int, cells: list[str], positions: list[int], tables: list[Codes]) -> DataError:
    """The first cell of a row that is no code."""
    position, table = next((p, t) for p, t in zip(positions, tables, strict=True) if t.parse(cells[p]) is None)
    return DataError(
        f"{sheet.where(line)}: {cells[position][:20]!r} in {sheet.header[position]} is {table.meaning}; "
        "if it means 'not coded', name it in the option unknown_codes"
    )


def _merge_columns(
    values: NDArray[np.float32], owners: list[tuple[int, str, str]], reading: Reading
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Columns (n, P) of the same AU → occurrence and intensity (n, M).

    The whole face's column is preferred to those of its sides. An AU is present if it is on one side; it is absent only if
    every side is coded. Occurrence is taken as coded where it is, else from intensities, else from probabilities.
    """
    n = len(values)
    occurrence = np.full((n, len(reading.aus)), NULL, np.int8)
    intensity = np.full((n, len(reading.aus)), np.nan, np.float32)
    limits: Mapping[str, float] = {
        OCCURRENCE: 1.0, INTENSITY: reading.threshold, PROBABILITY: reading.probability_threshold
    }  # fmt: skip
    for k, au in enumerate(reading.aus):
        columns = {m: _pick_sides(owners, au, m) for m in limits}
        if columns[INTENSITY]:
            intensity[:, k] = values[:, columns[INTENSITY]].max(1)  # NaN where one side is unknown
        source = next((m for m in limits if columns[m]), None)
        if source is not None:
            part = values[:, columns[source]]
            present, coded = (part >= limits[source]).any(1), ~np.isnan(part).any(1)
            occurrence[:, k] = np.where(present, 1, np.where(coded, 0, NULL))
    return occurrence, intensity


def _pick_sides(owners: list[tuple[int, str, str]], au: int, measure: str) -> list[int]:
    mine = [i for i, (number, m, _) in enumerate(owners) if (number, m) == (au, measure)]
    return [i for i in mine if not owners[i][2]] or mine


def _point_columns(sheet: Sheet) -> list[int]:
    found = [sheet.find(f"{axis}_{k}") for k in range(_POINTS) for axis in "xy"]
    return [p for p in found if p is not None] if None not in found else []


def _read_points(cells: list[str], columns: list[int]) -> list[float]:
    """Points of a face; all NaN where one of them is no number, or where all are zero, which is no face."""
    points = [parse_number(cells[p]) for p in columns]
    if None in points or not any(points):
        return [math.nan] * len(columns)
    return [p for p in points if p is not None]
