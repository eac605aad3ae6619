"""Label files read a second time, as plainly as can be: what tests hold the rows of the readers against.

Each function takes the lines of a file that a reader has accepted and returns (session, frame) → {column: value, None where
not coded}. It returns None where a plain reading cannot tell: own tables leave much to their writers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Value = float | None
Labels = dict[tuple[str, int], dict[str, Value]]
Plain = Callable[[list[str]], Labels | None]

LEVELS = {"A": 1, "B": 2, "C": 3, "D": 4, "E": 5, "NotActive": 0}
PERIOD = 0.04  # seconds from frame to frame of one's own recordings here


def lines_of(data: bytes) -> list[str]:
    """Text in UTF-16 or UTF-8 or Windows-1252, split at any line end, without blank lines at its end."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    return re.split(r"\r\n|\r|\n", re.sub(r"(\r\n|\r|\n)[\s,;\x1a]*$", "", text))


def cells_of(lines: list[str]) -> list[list[str]]:
    """The cells of every line; the separator is what the first line that is not blank has of tab, semicolon and comma."""
    first = next((line for line in lines if line.strip()), "").strip()
    separator = "\t" if "\t" in first else ";" if ";" in first else ","
    return [[cell.strip() for cell in line.split(separator)] for line in lines]


def put(found: Labels, key: tuple[str, int], values: dict[str, Value]) -> None:
    """A row that contradicts another one must have been refused."""
    assert found.setdefault(key, values) == values, f"{key} is labelled in two ways"


def number(cell: str, *unknown: str) -> Value:
    return None if cell in unknown else float(cell.replace(",", "."))


def bp4d_occurrence(session: str, aus: tuple[int, ...]) -> Plain:
    """A header of 0 … 99, or one that names AUs after the frame; 9 is not coded."""

    def read(lines: list[str]) -> Labels:
        header, *rows = cells_of(lines)
        where = {int(re.sub(r"\D", "", cell)): n for n, cell in enumerate(header) if n and cell}
        found: Labels = {}
        for cells in filter(any, rows):
            values = {f"AU{au:02d}_c": number(cells[where[au]], "9") for au in aus if au in where}
            put(found, (session, int(cells[0])), values)
        return found

    return read


def frame_and_intensity(session: str, column: str, *unknown: str, threshold: int | None = None) -> Plain:
    """Rows "frame,intensity"; the occurrence from `threshold` on, if it is given."""

    def read(lines: list[str]) -> Labels:
        found: Labels = {}
        for cells in filter(any, cells_of(lines)):
            level = number(cells[1], *unknown)
            values = {f"{column}_r": level}
            if threshold is not None and level is not None:
                values[f"{column}_c"] = int(level >= threshold)
            put(found, (session, int(cells[0])), values)
        return found

    return read


def disfaplus(session: str, column: str) -> Plain:
    """Two lines of header, then "000.jpg 3"."""

    def read(lines: list[str]) -> Labels:
        found: Labels = {}
        for line in filter(str.strip, lines[2:]):
            image, level = line.split()
            put(
                found,
                (session, int(image.partition(".")[0])),
                {f"{column}_r": float(level), f"{column}_c": float(level) >= 2},
            )
        return found

    return read


def affwild2_rows(session: str) -> Plain:
    """Row k after the header is frame k."""

    def read(lines: list[str]) -> Labels:
        header, *rows = cells_of(lines)
        aus = [int(cell.lower().removeprefix("au").removeprefix("_")) for cell in header if cell]
        return {
            (session, n): {f"AU{au:02d}_c": number(cell, "-1") for au, cell in zip(aus, cells, strict=False)}
            for n, cells in enumerate(rows, 1)
        }

    return read


def affwild2_multi_task(lines: list[str]) -> Labels:
    """VIDEO/00001.jpg, three cells that do not matter, then the AUs."""
    header, *rows = cells_of(lines)
    aus = [int(cell.lower().removeprefix("au").removeprefix("_")) for cell in header[4:] if cell]
    found: Labels = {}
    for cells in filter(any, rows):
        video, image = re.split(r"[/\\]", cells[0])
        values = {f"AU{au:02d}_c": number(cell, "-1") for au, cell in zip(aus, cells[4:], strict=False)}
        put(found, (video, int(image.partition(".")[0])), values)
    return found


def own_rows(names: dict[str, str], *, frame: str = "frame", media: str | None = None, limit: float = 1.0,
             same: tuple[str, ...] = (), valid: str | None = None, session: str = "a") -> Plain:  # fmt: skip
    """A table with a row per frame. names: its columns → AU01_c, AU12_r, AU12_p …; `same`: columns whose cells must not
    differ for the table to be of one face. Without an AU's occurrence, its intensity or probability counts from `limit` on.
    """

    def read(lines: list[str]) -> Labels | None:
        header, *rows = cells_of(lines)
        wanted = [*names, frame, *same, *([media] if media else []), *([valid] if valid else [])]
        if sorted(set(header) & set(wanted)) != sorted(wanted) or any('"' in line for line in lines):
            return None  # another header: what its columns are called may mean something else
        table = [dict(zip(header, cells, strict=False)) for cells in rows if any(cells)]
        if any(len({row.get(name) for row in table}) > 1 for name in same):
            return None
        found: Labels = {}
        for row in table:
            if media is not None and row[media] not in ("a", "a.mp4"):
                return None
            if not re.fullmatch(r"\d+(\.0*)?", row[frame]) or (valid and row[valid] not in ("0", "1")):
                return None
            seen = valid is None or row[valid] == "1"
            cells = {column: row[name].lower() if seen else "" for name, column in names.items()}
            if not all(re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)?", cell) for cell in cells.values()):
                return None
            put(
                found,
                (session, int(float(row[frame]))),
                _with_occurrence({c: number(t, "") for c, t in cells.items()}, limit),
            )
        return found

    return read


def _with_occurrence(values: dict[str, Value], limit: float) -> dict[str, Value]:
    kept = {name: value for name, value in values.items() if not name.endswith("_p")}
    for name, value in values.items():
        kept.setdefault(f"{name[:4]}_c", None if value is None else int(value >= limit))
    return kept


def facereader(columns: dict[str, str]) -> Plain:
    """Letters in columns after a preamble; times are of a frame each. Of two rows of a frame the first counts."""

    def read(lines: list[str]) -> Labels | None:
        start = next((n for n, line in enumerate(lines) if line.startswith("Video Time")), None)
        if start is None:
            return None
        header, *rows = [[cell.strip() for cell in line.split("\t")] for line in lines[start:]]
        if sorted(set(header) & set(columns)) != sorted(columns):
            return None
        found: Labels = {}
        for cells in filter(any, rows):
            row = dict(zip(header, [*cells, *[""] * len(header)], strict=False))
            values = {column: row[name] for name, column in columns.items()}
            time = re.fullmatch(r"00:00:00\.(\d{3})", row["Video Time"])
            if time is None or int(time[1]) % 40 or not set(values.values()) <= {*LEVELS, "FIT_FAILED"}:
                return None
            levels: dict[str, Value] = {c: LEVELS.get(cell) for c, cell in values.items()}
            if int(time[1]) < 400:
                found.setdefault(("a", int(time[1]) // 40), _with_occurrence(levels, 1))
        return found

    return read


Event = tuple[str, float, float, Value]  # AU, onset, offset, intensity


def events_on_frames(events: list[Event] | None, aus: tuple[int, ...], frames: int) -> Labels | None:
    """What a loop over frames and events makes of them, all AUs being coded: a frame is of an event if its middle is."""
    if events is None:
        return None
    scored = any(level is not None for *_, level in events)
    middles = [(n + 0.5) * PERIOD for n in range(frames)]
    found: Labels = {("a", n): {} for n in range(frames)}
    for au in aus:
        here: list[list[Value]] = [[] for _ in middles]
        for name, onset, offset, level in events:
            if (
                min(
                    abs(bound - edge) for bound in (onset, offset) for edge in (*middles, *(m - PERIOD / 2 for m in middles))
                )
                < 1e-6
            ):
                return None  # on the very edge, where rounding decides
            if int(name) == au:
                covered = [n for n, middle in enumerate(middles) if onset <= middle < offset]
                for n in covered or [n for n in range(frames) if n * PERIOD <= onset < (n + 1) * PERIOD]:
                    here[n].append(level)
        for n, levels in enumerate(here):
            known = [level for level in levels if level is not None]
            values = found["a", n]
            values[f"AU{au:02d}_c"] = int(any(level is None or level >= 1 for level in levels))
            values[f"AU{au:02d}_r"] = max(known) if known else 0 if scored and not levels else None
    return found


def event_table(aus: tuple[int, ...], frames: int, columns: dict[str, str], unit: float, separator: str) -> Plain:
    """A table with a row per event. columns: medium, au, onset, offset, intensity → what they are called there."""

    def parse(row: dict[str, str]) -> Event | None:
        au = re.fullmatch(r"(?:AU)?(\d{1,2})", row["au"])
        times = [re.fullmatch(r"(?:00:00:)?(\d+(?:\.\d*)?)", row[name]) for name in ("onset", "offset")]
        level = re.fullmatch(r"[A-E]|[0-5](?:\.\d+)?|", row["intensity"])
        if row["medium"] != "a" or au is None or int(au[1]) not in aus or None in times or level is None:
            return None
        if row["intensity"] and row["intensity"] not in LEVELS and float(row["intensity"]) > 5:
            return None
        onset, offset = (float(time[1]) * unit for time in times if time)
        amount = None if not level[0] else float(LEVELS.get(level[0], level[0]))
        return au[1], onset, offset, amount

    def read(lines: list[str]) -> Labels | None:
        header, *rows = [[cell.strip() for cell in line.split(separator)] for line in lines]
        named = {part: name for part, name in columns.items() if name}
        if sorted(set(header) & set(named.values())) != sorted(named.values()) or any('"' in line for line in lines):
            return None
        events: list[Event] = []
        for cells in filter(any, rows):
            row = dict(zip(header, [*cells, *[""] * len(header)], strict=False))
            event = parse({"medium": "a", **{part: row[name] for part, name in named.items()}})
            if event is None:
                return None
            events.append(event)
        return events_on_frames(events, aus, frames)

    return read


def facs_rows(aus: tuple[int, ...]) -> Plain:
    """media_id,frame,facs with codes such as 1+4B; all AUs are coded, so those that are not named are absent."""

    def read(lines: list[str]) -> Labels | None:
        header, *rows = cells_of(lines)
        if header != ["media_id", "frame", "facs"] or any('"' in line for line in lines):
            return None
        codes: dict[int, dict[int, Value]] = {}
        for cells in filter(any, rows):
            tokens = (
                [] if cells[2] == "null" else [re.fullmatch(r"(\d{1,2})([A-E]?)", token) for token in cells[2].split("+")]
            )
            if (
                cells[0] != "a"
                or not cells[1].isdecimal()
                or None in tokens
                or any(token and int(token[1]) >= 70 for token in tokens)
            ):
                return None
            code: dict[int, Value] = {}
            for token in filter(None, tokens):
                level = LEVELS.get(token[2])
                code[int(token[1])] = max(filter(None, (code.get(int(token[1])), level)), default=None)
            assert codes.setdefault(int(cells[1]), code) == code or not _differ(codes[int(cells[1])], code, aus)
        scored = any(code.get(au) is not None for code in codes.values() for au in aus)
        found: Labels = {}
        for frame, code in codes.items():
            found["a", frame] = {f"AU{au:02d}_c": int(au in code) for au in aus}
            found["a", frame] |= {f"AU{au:02d}_r": code.get(au, 0 if scored else None) for au in aus}
        return found

    return read


def _differ(one: dict[int, Value], other: dict[int, Value], aus: tuple[int, ...]) -> bool:
    return any((au in one) != (au in other) or one.get(au) != other.get(au) for au in aus)
