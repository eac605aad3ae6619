"""What the readers of label files share: text in any encoding, tables of codes, columns that are merged over frames."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets._notes import note, remark
from aupipe.schema import DataError
from aupipe.video import count_frames

Found = TypeVar("Found")

NULL = -1  # in memory, where labels are not yet Arrow columns; a corpus's own code for "not coded" maps to it
_BAD = -2
_FRAME_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
IMAGE_NAME = re.compile(r"(\d+)\.(?:jpe?g|png|bmp|tiff?|webp)", re.ASCII | re.IGNORECASE)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
OCCURRENCE_CODES = {"0": 0, "1": 1}
INTENSITY_CODES = {f"{n}{zero}": n for zero in ("", ".0", ",0") for n in range(6)}  # a spreadsheet may add decimals


def read_lines(path: Path) -> list[str]:
    """The lines of a text file on disk or in a zip, whatever its encoding and line ends; blank ones at the end are dropped.

    UTF-8 and UTF-16 with a byte-order mark, else UTF-8, else Windows-1252. Raises DataError for a file that cannot be read.
    """
    return decode_lines(archives.read_bytes(path))


def decode_lines(data: bytes) -> list[str]:
    """As `read_lines`, of bytes."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # spreadsheets and FaceReader export it
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip(" \t,;\x1a"):
        lines.pop()
    return lines


def sniff_separator(lines: Sequence[str]) -> str:
    """The separator of a table: tab or semicolon where the first line that is not blank has one, else a comma."""
    first = next((line for line in lines if line.strip()), "")
    return next((mark for mark in ("\t", ";") if mark in first.strip()), ",")


def read_codes(
    path: Path,
    lines: Sequence[str],
    positions: Sequence[int],
    codes: Mapping[str, int],
    *,
    width: int,
    skip: int = 0,
    strict: bool = False,
    drop: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Frame numbers (n,), ascending, from the first column, and codes (n, k) from the columns at `positions`.

    `codes` maps a cell's text to its value (NULL: not coded); `skip` lines are the header. Blank lines and blank cells
    beyond `width` are passed over. Rows out of order are sorted, and rows that say the same twice become one, with a note.
    `drop`: a column in which "1" makes the whole row NULL. Raises DataError with the line for anything else that is not a
    whole row of known codes, and for two rows of one frame that disagree.
    """
    separator = sniff_separator(lines)
    rows: dict[int, tuple[list[int], int]] = {}
    previous, unsorted, repeated = -1, 0, 0
    for n, line in enumerate(lines[skip:], skip + 1):
        cells = _split_row(path, line, n, separator, width)
        if cells is None:
            continue
        number = parse_frame(path, cells[0], n)
        row = [codes.get(cells[p], _BAD) for p in positions]
        if _BAD in row:
            wrong = cells[positions[row.index(_BAD)]][:20]
            raise DataError(f"{path}, line {n}: {wrong!r} is not one of the codes {', '.join(codes)}")
        if drop is not None and cells[drop] == "1":
            row = [NULL] * len(row)
        if number in rows:
            if rows[number][0] != row:
                raise DataError(f"{path}, line {n}: frame {number} was coded otherwise in line {rows[number][1]}")
            repeated += 1
        else:
            rows[number] = (row, n)
        unsorted += number < previous
        previous = number
    if not rows:
        raise DataError(f"{path} holds no labelled frame")
    if unsorted or repeated:
        note(
            f"{path}: {unsorted} rows out of order, sorted; {repeated} rows twice with the same codes, kept once",
            strict=strict,
        )
    frames = np.array(sorted(rows), np.int64)
    return frames, np.array([rows[f][0] for f in frames.tolist()], np.int8).reshape(len(frames), len(positions))


def parse_frame(path: Path, cell: str, line: int) -> int:
    """A frame number, 0 to 999 999 999. Raises DataError with the line for anything else."""
    if not _FRAME_NUMBER.fullmatch(cell):
        raise DataError(f"{path}, line {line}: {cell[:20]!r} is not a frame number")
    return int(cell)


def _split_row(path: Path, line: str, n: int, separator: str, width: int) -> list[str] | None:
    """The cells of a row, or None for a blank line."""
    cells = [cell.strip() for cell in line.split(separator)]
    if len(cells) != width:
        if not line.strip(" \t,;"):
            return None
        if len(cells) < width or any(cells[width:]):
            raise DataError(f"{path}, line {n}: {len(cells)} columns instead of {width}")
    return cells


class LabelColumns:
    """Label columns of one session, each with frame numbers of its own: (n,) int64, ascending, and codes (n,) int8."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[NDArray[np.int64], NDArray[np.int8]]] = {}

    def add(self, name: str, frames: NDArray[np.int64], values: NDArray[np.int8]) -> None:
        self._columns[name] = (frames, values)

    def frames(self) -> NDArray[np.int64]:
        """Every frame that any column has a row for."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(frames for frames, _ in self._columns.values())]))

    def spread(
        self, names: Sequence[str], frames: NDArray[np.int64], lost: Sequence[tuple[int, int]] = ()
    ) -> dict[str, pa.Array]:
        """The named columns over `frames` (ascending, a superset of each column's own), null where a column has no row or
        NULL; ready for `tabulate`: int8 for names that end in _c, float32 for the others.

        `lost`: ranges of frames, first and last, that are taken as not coded whatever the columns say.
        """
        masked = np.zeros(len(frames), bool)
        for first, last in lost:
            masked |= (frames >= first) & (frames <= last)
        if masked.any():
            remark(f"{masked.sum()} frames on which the supplied landmarks were lost are taken as not coded (mask_lost)")
        return {name: self._spread(name, frames, masked) for name in names}

    def _spread(self, name: str, frames: NDArray[np.int64], masked: NDArray[np.bool_]) -> pa.Array:
        kind = pa.int8() if name.endswith("_c") else pa.float32()
        if name not in self._columns:
            return pa.nulls(len(frames), kind)
        values = np.full(len(frames), NULL, np.int8)
        own, codes = self._columns[name]
        values[np.searchsorted(frames, own)] = codes
        values[masked] = NULL
        return pa.array(values, mask=values == NULL).cast(kind)


def index_images(folder: Path, raw: Path, *, name: re.Pattern[str] = IMAGE_NAME, strict: bool = False) -> dict[int, str]:
    """Frame number → source of every image in a folder (on disk or in a zip), by `int(stem)`, ascending.

    Padding does not matter, and no path is ever made up from a number. `name`: what an image is called, with its number as
    a group. An image that is called otherwise is noted and left out; a folder that cannot be listed is noted and has none.
    Of two images of one number the first is taken, which is noted.
    """
    found: dict[int, archives.Entry] = {}
    try:
        entries = archives.list_folder(folder)
    except DataError as error:
        note(str(error), strict=strict)
        return {}
    for entry in entries:
        match = name.fullmatch(entry.name)
        number = int(match[1]) if match else -1
        if entry.folder or not entry.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        if not match or number >= 2**31:
            note(f"{entry.path} is not named by a frame number; left out", strict=strict)
        elif number in found:
            names = [found[number].name, entry.name]
            note(f"{folder} has two images of frame {number}, {' and '.join(names)}; the first is taken", strict=strict)
        else:
            found[number] = entry
    start = len(str(folder))  # a path for each image would take longer than all the rest
    inner = "" if folder == raw else archives.relative(folder, raw)
    return {number: (inner + found[number].place[start:]).lstrip("/") for number in sorted(found)}


def frame_columns(frames: NDArray[np.int64], source: Mapping[int, str], *, is_video: bool = False) -> dict[str, Any]:
    """The columns frame, source and index of a manifest; `source` has the images, or the video, whose first frame is 1."""
    numbers = frames.tolist()
    return {
        "frame": frames.astype(np.int32),
        "source": [source.get(n) for n in numbers],
        "index": [n - 1 if is_video and n in source else None for n in numbers],
    }


def keep_first(found: dict[Any, Path], key: Any, path: Path, what: str, *, strict: bool = False) -> None:
    """Of two places that hold the same thing the first counts; two that differ are noted, a mere copy is in the report."""
    first = found.setdefault(key, path)
    if first == path:
        return
    if archives.same_content(first, path):
        remark(f"{what}: {path} is a copy of {first}")
    else:
        note(f"{what}: {first} and {path} differ; the first is taken", strict=strict)


class Kept(Generic[Found]):
    """What `look(raw, strict)` found under a raw root, so that each session is read without looking again."""

    def __init__(self, look: Callable[[Path, bool], Found]) -> None:
        self._look = look
        self._found: tuple[Path, Found] | None = None

    def look(self, raw: Path, strict: bool) -> Found:
        found = self._look(raw, strict)
        self._found = raw, found
        return found

    def of(self, raw: Path) -> Found:
        """What was found the last time; looked for now if it was elsewhere."""
        return self._found[1] if self._found is not None and self._found[0] == raw else self.look(raw, False)


def list_video(path: Path, labelled: NDArray[np.int64], *, strict: bool = False) -> Sequence[int]:
    """The frames of a video, counted from 1; where it cannot be opened, which is noted, those that are labelled."""
    try:
        return range(1, count_frames(path) + 1)
    except DataError as error:
        note(str(error), strict=strict)
        return labelled.tolist()


def check_overlap(what: str, labelled: NDArray[np.int64], images: NDArray[np.int64], *, strict: bool = False) -> None:
    """Compare the frames that have a label row with those that have an image; `what` names the label file.

    One or two labelled frames without an image are usual; more than 2 and more than 0.5 % suggest that labels and
    recording do not belong together.
    """
    missing = int(np.isin(labelled, images, invert=True).sum())
    if missing > max(2, 0.005 * len(labelled)):
        note(f"{what}: {missing} of {len(labelled)} labelled frames have no image", strict=strict)
