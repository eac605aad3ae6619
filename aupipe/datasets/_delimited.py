"""Tables that people and programs save: CSV with commas, semicolons or tabs, decimal points or commas, quoted or not, in any
usual encoding; or Parquet. Rows come as text with the line that they stand in, so that a message can name it.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aupipe.datasets._tables import read_lines, sniff_separator
from aupipe.schema import DataError

_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_FRAME = re.compile(r"(\d{1,9})(?:\.0*)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)", re.ASCII)


Body = Callable[[], Iterator[tuple[int, list[str]]]]


class Sheet:
    """A table of text. Iterating gives (line number from 1, cells), as many cells as the header, blank rows left out.

    `header` is stripped, without blank cells at its end. Raises DataError with file and line, here or while iterating, for
    what is not a table. `kind` is the word for a row in messages: "line", or "row" in a Parquet file.
    """

    def __init__(self, path: Path, header: Sequence[str], body: Body, kind: str) -> None:
        self.path, self.kind, self._body = path, kind, body
        self.header = [cell.strip() for cell in header]

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return self._body()

    def where(self, line: int) -> str:
        return f"{self.path}, {self.kind} {line}"

    def find(self, *names: str) -> int | None:
        """The column of the first of these names (lower case) that the header has, in whatever case; None if none is there.

        Raises DataError if two columns have that name.
        """
        lower = [cell.lower() for cell in self.header]
        for name in names:
            if lower.count(name) > 1:
                raise DataError(f"{self.where(1)}: two columns are called {name}; rename one")
            if name in lower:
                return lower.index(name)
        return None


def read_sheet(path: Path, *, starts: Callable[[list[str]], bool] | None = None, tool: bool = False) -> Sheet:
    """A table with a header in its first line that is not blank.

    starts: where a preamble precedes the header, tells the header's cells. tool: the export of a program that quotes nothing
    and may leave out empty cells at a row's end. Raises DataError for a file that is absent, empty or not a table.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    lines = read_lines(path)
    first = next((n for n, line in enumerate(lines) if line.strip(" \t,;")), None)
    if first is None:
        raise DataError(f"{path} is empty")
    if re.fullmatch(r"sep=.", lines[first].strip(), re.IGNORECASE):  # how Excel is told of the separator
        first += 1
    if starts is not None:
        first = next((n for n, line in enumerate(lines) if starts(_cut(line, sniff_separator([line])))), len(lines))
    if first >= len(lines):
        raise DataError(f"{path} has no header line; export it again, with the names of the columns")
    separator = sniff_separator(lines[first:])
    header = next(iter(_rows(path, lines[: first + 1], first, separator, tool)))[1]
    while header and not header[-1]:
        header.pop()
    if tool:
        header = header + [""] * (1 if lines[first].endswith(separator) else 0)
    return Sheet(path, header, lambda: _body(path, lines, first + 1, separator, len(header), tool), "line")


def bare_sheet(path: Path, header: Sequence[str], separator: str | None = None) -> Sheet:
    """A table without a header line, whose columns are those of `header`; the last one takes what is left of a line.

    separator: None for white space.
    """
    lines = read_lines(path)

    def body() -> Iterator[tuple[int, list[str]]]:
        for n, line in enumerate(lines, 1):
            cells = [cell.strip() for cell in line.strip().split(separator, len(header) - 1)]
            if any(cells):
                yield n, cells + [""] * (len(header) - len(cells))

    return Sheet(path, header, body, "line")


@functools.lru_cache(maxsize=65536)
def parse_number(text: str) -> float | None:
    """A finite number with a decimal point or comma, or None."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", "."))
    return number if math.isfinite(number) else None


def parse_whole(text: str) -> int | None:
    """A frame number from 0, also as 12.0, which is how tables with gaps are saved; or None."""
    match = _FRAME.fullmatch(text)
    return int(match[1]) if match else None


def parse_seconds(text: str) -> float | None:
    """A time of at least 0 in seconds or as [hh:]mm:ss[.fraction], or None."""
    clock = _CLOCK.fullmatch(text)
    if clock:
        return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3].replace(",", "."))
    number = parse_number(text)
    return number if number is not None and number >= 0 else None


def _body(
    path: Path, lines: list[str], first: int, separator: str, width: int, tool: bool
) -> Iterator[tuple[int, list[str]]]:
    for n, cells in _rows(path, lines, first, separator, tool):
        if len(cells) != width:
            if not any(cells):
                continue
            if tool and len(cells) < width:
                cells = cells + [""] * (width - len(cells))
            elif len(cells) < width or any(cells[width:]):
                raise DataError(f"{path}, line {n}: {len(cells)} columns instead of {width}")
        elif not any(cells):
            continue
        yield n, cells[:width]


def _rows(path: Path, lines: list[str], first: int, separator: str, tool: bool) -> Iterator[tuple[int, list[str]]]:
    if tool:
        yield from ((n, _cut(line, separator)) for n, line in enumerate(lines[first:], first + 1))
        return
    reader = csv.reader(lines[first:], delimiter=separator, skipinitialspace=True, strict=True)
    done = 0
    try:
        for cells in reader:
            if reader.line_num != done + 1:  # what lies between two stray quotes would be lost in one cell
                raise DataError(f"{path}, line {first + done + 1}: a quotation mark is not closed on its line")
            done += 1
            yield first + done, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {first + done + 1}: {error}") from None


def _cut(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in line.split(separator)]


def _read_parquet(path: Path) -> Sheet:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None

    def body() -> Iterator[tuple[int, list[str]]]:
        n = 0
        for batch in table.to_batches(max_chunksize=4096):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                n += 1
                yield n, [_text(value) for value in row]

    return Sheet(path, table.column_names, body, "row")


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value).strip()
