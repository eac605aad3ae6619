"""What copies of corpora suffer in their label files. Each function does one kind of damage to a recording on disk and
returns where, and what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aupipe.synthetic.recording import Written

_BOM = b"\xef\xbb\xbf"
_NAMED = (1, 2, 4, 5, 6, 7, *range(9, 21), *range(22, 40))  # AUs of BP4D's later releases, and 25 and 26


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def lengthen(written: Written, rows: int) -> tuple[Path, str]:
    """Label rows beyond the last frame, like the last one. Where rows are numbered, the numbers go on."""
    for n, table in enumerate(written.tables):
        lines = _lines(table)
        number, comma, rest = lines[-1].partition(",")
        is_numbered = int(number) == written.numbers[-1] and not (written.header and lines[0].startswith("AU"))
        new = [f"{int(number) + k}{comma}{rest}" if is_numbered else lines[-1] for k in range(1, rows + 1)]
        _rewrite(written.tables[n], lines + new)
    return written.tables[0], f"{rows} label rows more than frames, up to frame {written.numbers[-1] + rows}"


def shorten(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    rows = max(1, min(3, len(written.numbers) - 1))
    for table in written.tables:
        _rewrite(table, _lines(table)[:-rows])
    return written.tables[0], f"{rows} label rows fewer than frames, the last of frame {written.numbers[-1] - rows}"


def mark_order(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    for table in written.tables:
        table.write_bytes(_BOM + table.read_bytes().replace(b"\n", b"\r\n"))
    return written.tables[0], f"byte-order mark and CRLF in {len(written.tables)} tables"


def trail(written: Written, ending: str, name: str) -> tuple[Path, str]:
    table = written.tables[0]
    _rewrite(table, [line + ending for line in _lines(table)])
    return table, f"{name} on every line"


def add_blank(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[0]
    table.write_text(table.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return table, "a blank last line"


def forget_intensity(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[1:][int(rng.integers(len(written.tables) - 1))]
    lines = _lines(table)
    row = int(rng.integers(len(lines)))
    frame, _, before = lines[row].partition(",")
    lines[row] = f"{frame},9"
    _rewrite(table, lines)
    return table, f"frame {frame}: 9 instead of {before}"


def lose_table(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    table = written.tables[1:][int(rng.integers(len(written.tables) - 1))]
    table.unlink()
    return table, "the file of one AU is missing"


def hold_labels(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """Every row like the first, but for its frame number."""
    for n, table in enumerate(written.tables):
        lines = _lines(table)
        head, rows = (lines[:1], lines[1:]) if written.header and n == 0 else ([], lines)
        has_number = not (head and head[0].startswith("AU"))
        same = rows[0].partition(",")[2]
        held = [f"{row.partition(',')[0]},{same}" if has_number else rows[0] for row in rows]
        _rewrite(table, head + held)
    return written.tables[0], "all rows are like the first"


def lose_labels(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    for table in written.tables:
        table.unlink()
    return written.tables[0], "frames without labels"


def repeat_rows(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """A row or a few that are there twice, in every file of the recording."""
    count = min(int(rng.integers(1, 4)), len(written.numbers))
    first = int(rng.integers(len(written.numbers) - count + 1))
    _rearrange(written, lambda rows: rows[: first + count] + rows[first:])
    return written.tables[0], f"{count} rows from frame {written.numbers[first]} on are there twice"


def disorder_rows(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """The recording's second part before its first, in every file."""
    cut = int(rng.integers(1, max(2, len(written.numbers))))
    _rearrange(written, lambda rows: rows[cut:] + rows[:cut])
    return written.tables[0], f"the rows from frame {written.numbers[min(cut, len(written.numbers) - 1)]} on come first"


def separate_by(written: Written, mark: str, name: str, decimals: str = "") -> tuple[Path, str]:
    """Cells separated otherwise, as spreadsheets of other countries do, and perhaps with decimals."""
    for n, table in enumerate(written.tables):
        header = 1 if written.header and n == 0 else 0
        lines = [line.replace(",", mark) for line in _lines(table)]
        _rewrite(table, lines[:header] + [line + decimals for line in lines[header:]])
    return written.tables[0], f"{name} in {len(written.tables)} tables"


def widen(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """UTF-16, as spreadsheets export it."""
    for table in written.tables:
        table.write_bytes(b"\xff\xfe" + table.read_bytes().decode("utf-8").encode("utf-16-le"))
    return written.tables[0], f"UTF-16 in {len(written.tables)} tables"


def name_columns(written: Written, rng: np.random.Generator) -> tuple[Path, str]:
    """The occurrence file of BP4D's later releases: named columns, of which the frame's is called 1 as that of AU1 is."""
    table = written.tables[0]
    rows = [line.split(",") for line in _lines(table)]
    named = [",".join([row[0], *(row[au] for au in _NAMED)]) for row in rows[1:]]
    _rewrite(table, [",".join(map(str, (1, *_NAMED))), *named])
    return table, f"a header that names {len(_NAMED)} AUs, and 1 twice"


def _rearrange(written: Written, order: Callable[[list[str]], list[str]]) -> None:
    for n, table in enumerate(written.tables):
        lines = _lines(table)
        header = 1 if written.header and n == 0 else 0
        _rewrite(table, lines[:header] + order(lines[header:]))
