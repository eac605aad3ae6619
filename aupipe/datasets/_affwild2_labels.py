"""Aff-Wild2's two kinds of label file: one per video, whose rows are its frames, and one for all, whose rows name theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.datasets._notes import note
from aupipe.datasets._tables import NULL, read_lines, sniff_separator
from aupipe.facs import AU_SETS
from aupipe.schema import DataError

_CODES = {"0": 0, "1": 1, "-1": NULL}
_AU_NAME = re.compile(r"AU_?0*(\d{1,2})", re.ASCII | re.IGNORECASE)
_IMAGE = re.compile(r"([^/\\]+)[/\\](\d{1,9})\.(?:jpe?g|png)", re.ASCII | re.IGNORECASE)
_BEFORE_AUS = 4  # columns of the multi-task file: image, valence, arousal, expression


@dataclass(frozen=True, slots=True)
class Table:
    """The label rows of a video: AU numbers, frames (n,) ascending from 1, codes (n, k) int8, NULL where not coded."""

    aus: tuple[int, ...]
    frames: NDArray[np.int64]
    codes: NDArray[np.int8]


def read_frame_rows(path: Path) -> Table:
    """A video's own file: a header, then row k for frame k.

    Raises DataError with the line for a header or a blank line in the middle, which would move all rows after it, and for
    any other row that is not a whole one of known codes.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty; expected a header AU1,AU2,… and a row for each frame")
    separator = sniff_separator(lines)
    aus = _parse_header(path, _cells(lines[0], separator))
    known: dict[str, list[int]] = {}  # few rows are different
    rows = []
    for n, line in enumerate(lines[1:], 2):
        row = known.get(line)
        if row is None:
            if not line.strip(" \t,;"):
                raise DataError(
                    f"{path}, line {n}: a blank line; rows are frames, so all after it would be of the wrong one"
                )
            row = known[line] = _parse_codes(path, n, line.split(separator), len(aus))
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no labelled frame")
    return Table(aus, np.arange(1, len(rows) + 1), np.array(rows, np.int8))


def read_multi_task(path: Path, *, strict: bool = False) -> dict[str, Table]:
    """Video → its rows, of a file of the multi-task challenge, whose rows name their image: VIDEO/00001.jpg.

    Rows that say the same twice become one, with a note. Raises DataError with the line for a malformed row, and for two
    rows of one image that disagree.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} is empty; expected a header and rows VIDEO/00001.jpg,valence,arousal,expression,AU1,…")
    separator = sniff_separator(lines)
    header = _cells(lines[0], separator)[_BEFORE_AUS:]
    aus = AU_SETS["affwild2"].numbers if [h.lower() for h in header] == ["aus"] else _parse_header(path, header)
    videos: dict[str, dict[int, list[int]]] = {}
    repeated = 0
    for n, line in enumerate(lines[1:], 2):
        if not line.strip(" \t,;"):
            continue
        image, *cells = line.split(separator)
        match = _IMAGE.fullmatch(image.strip())
        if match is None:
            raise DataError(f"{path}, line {n}: {image.strip()[:30]!r} is not an image like VIDEO/00001.jpg")
        row = _parse_codes(path, n, cells[_BEFORE_AUS - 1 :], len(aus))
        rows = videos.setdefault(match[1], {})
        if rows.setdefault(int(match[2]), row) != row:
            raise DataError(f"{path}, line {n}: {match[0]} was coded otherwise in a line before")
        repeated += rows[int(match[2])] is not row
    if repeated:
        note(f"{path}: {repeated} rows are there twice with the same codes; kept once", strict=strict)
    return {video: _to_table(aus, rows) for video, rows in videos.items()}


def _to_table(aus: tuple[int, ...], rows: dict[int, list[int]]) -> Table:
    frames = np.array(sorted(rows), np.int64)
    return Table(aus, frames, np.array([rows[n] for n in frames.tolist()], np.int8))


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in line.rstrip(f" \t{separator}").split(separator)]


def _parse_header(path: Path, cells: Sequence[str]) -> tuple[int, ...]:
    names = [_AU_NAME.fullmatch(cell) for cell in cells]
    numbers = tuple(int(name[1]) for name in names if name)
    if not numbers or len(numbers) != len(names) or len(set(numbers)) != len(numbers):
        raise DataError(f"{path}, line 1: expected a header that names every AU once, such as AU1,AU2,AU4")
    return numbers


def _parse_codes(path: Path, n: int, cells: Sequence[str], width: int) -> list[int]:
    texts = [cell.strip() for cell in cells]
    if len(texts) < width or any(texts[width:]):
        raise DataError(f"{path}, line {n}: {len(texts)} AU columns instead of {width}")
    try:
        return [_CODES[text] for text in texts[:width]]
    except KeyError as error:
        raise DataError(f"{path}, line {n}: {error.args[0][:20]!r} is not one of the codes {', '.join(_CODES)}") from None
