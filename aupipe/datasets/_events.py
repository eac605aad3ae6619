"""Tables with one row per event: which AU, from when to when. Own tables, and exports of ELAN and Datavyu."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from aupipe.datasets._cells import Reading
from aupipe.datasets._delimited import Sheet, parse_number, parse_seconds, parse_whole
from aupipe.datasets._facs_strings import INTENSITY_LETTERS, SIDES, FacsCode, parse_facs, parse_unit
from aupipe.schema import DataError

_TIERS = frozenset({"facs", "au", "aus", "action unit", "action units"})
_MARKED = frozenset({"", "x", "1", "yes", "true", "present", "on"})  # an event without an intensity
_CLOCK = re.compile(r"\d+:\d{2}:\d{2}\.\d+", re.ASCII)
_ELAN_COLUMN = re.compile(r"(begin|end) time - (hh:mm:ss\.ms|ss\.msec|msec)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a coder saw from `onset` to `offset`, in seconds or frame numbers; `line` is where it stands."""

    onset: float
    offset: float
    code: FacsCode
    line: int


@dataclass(slots=True)
class EventLabels:
    """Events of one medium. framed: onset and offset are frame numbers, both included, not seconds. scored: whether any
    event of the table has an intensity.
    """

    sheet: Sheet
    framed: bool
    scored: bool = False
    events: list[Event] = field(default_factory=list)


def read_interval_labels(sheet: Sheet, reading: Reading, media: tuple[str, ...] = ("media_id",)) -> dict[str, EventLabels]:
    """Rows media_id, au or facs, onset_s, offset_s (or onset_frame, offset_frame), and if there: intensity, side, coder."""
    au, facs = sheet.find("au"), sheet.find("facs", "aus", "action units", "code")
    level, side, coder, medium = (sheet.find(*names) for names in (("intensity",), ("side",), ("coder",), media))
    framed, onset, offset = _span_columns(sheet)
    if au is None and facs is None:
        raise DataError(f"{sheet.where(1)}: there is no column au (one AU per row) or facs (a code such as 1+2+L4B)")

    def rows() -> Iterator[tuple[str, Event]]:
        for line, cells in sheet:
            if reading.coder is not None and coder is not None and cells[coder] != reading.coder:
                continue
            if side is not None and cells[side].lower() not in SIDES:
                raise DataError(f"{sheet.where(line)}: {cells[side][:20]!r} is no side (L, R, T, B or U)")
            name = cells[medium] if medium is not None else ""
            start, stop = (_parse_bound(sheet, line, cells[p], framed) for p in (onset, offset))
            text = cells[facs if au is None else au]  # type: ignore[index]
            if au is None:
                code = _read_string(sheet, line, text, reading)
            else:
                code = _read_tier(sheet, line, text, cells[level] if level is not None else "", reading)
            yield name, _event(sheet, line, start, stop, code)

    return _gather(sheet, rows(), framed=framed)


def read_elan(sheet: Sheet, reading: Reading, tiers: tuple[str, ...]) -> tuple[dict[str, EventLabels], list[str]]:
    """A tab-delimited export of ELAN: the events, and the tiers that were left out because they hold no FACS codes.

    A tier is named by an AU (`AU12`, `12`, `AU12L`), and its values are intensities or marks, or it is one of `tiers` (by
    default FACS, AU, AUs, Action Units), and its values are FACS strings.
    """
    tier, begin, end, value = _elan_columns(sheet)
    medium = sheet.find("media_id", "file", "file path")

    def rows() -> Iterator[tuple[int, str, str, float, float, str]]:
        for line, cells in sheet:
            name = cells[medium] if medium is not None else ""
            start, stop = (_parse_clock(sheet, line, cells[p], unit) for p, unit in (begin, end))
            yield line, name, cells[tier], start, stop, cells[value]

    return _read_tiers(sheet, rows(), reading, tiers)


def read_datavyu(sheet: Sheet, reading: Reading, tiers: tuple[str, ...]) -> tuple[dict[str, EventLabels], list[str]]:
    """A Datavyu export with times in ms, one row per cell (file, column, onset, offset, ordinal, codes) or with columns
    `name.ordinal, name.onset, name.offset, name.code…` side by side. Columns are what tiers are in `read_elan`.
    """
    if sheet.find("column") is not None:
        return _read_tiers(sheet, _long_datavyu(sheet), reading, tiers)
    return _read_tiers(sheet, _wide_datavyu(sheet), reading, tiers)


def _read_tiers(
    sheet: Sheet, rows: Iterator[tuple[int, str, str, float, float, str]], reading: Reading, tiers: tuple[str, ...]
) -> tuple[dict[str, EventLabels], list[str]]:
    wanted = frozenset(t.lower() for t in tiers) or _TIERS
    others: dict[str, None] = {}

    def events() -> Iterator[tuple[str, Event]]:
        for line, medium, tier, start, stop, value in rows:
            if tier.lower() in wanted:
                code = _read_string(sheet, line, value, reading)
            elif parse_unit(tier) is not None:
                code = _read_tier(sheet, line, tier, value, reading)
            else:
                others.setdefault(tier)
                continue
            yield medium, _event(sheet, line, start, stop, code)

    found = _gather(sheet, events(), framed=False)
    if others and not any(labels.events for labels in found.values()):
        raise DataError(
            f"{sheet.path} has no tier of an AU among {', '.join(others)[:80]!r}; "
            "name those that hold FACS codes in the option tiers"
        )
    return found, list(others)


def _gather(sheet: Sheet, rows: Iterator[tuple[str, Event]], *, framed: bool) -> dict[str, EventLabels]:
    found: dict[str, EventLabels] = {}
    scored = False
    for medium, event in rows:
        (found.get(medium) or found.setdefault(medium, EventLabels(sheet, framed))).events.append(event)
        scored = scored or not all(map(math.isnan, event.code.present.values()))
    for labels in found.values():
        labels.scored = scored
    return found or {"": EventLabels(sheet, framed)}


def _event(sheet: Sheet, line: int, start: float, stop: float, code: FacsCode) -> Event:
    if stop < start:
        raise DataError(f"{sheet.where(line)}: the offset {stop:g} lies before the onset {start:g}")
    return Event(start, stop, code, line)


def _read_string(sheet: Sheet, line: int, text: str, reading: Reading) -> FacsCode:
    """A FACS string; one that stands for "not coded" leaves everything uncertain."""
    if text.lower() != "null" and reading.is_unknown(text):
        return FacsCode({}, frozenset(), False)
    try:
        return parse_facs(text)
    except ValueError:
        raise DataError(f"{sheet.where(line)}: {text[:20]!r} is no FACS code such as 1+2+L4B") from None


def _read_tier(sheet: Sheet, line: int, name: str, value: str, reading: Reading) -> FacsCode:
    """An event of the AU `name`: `value` is an intensity (0 to 5, A to E), a mark, or the AU once more, as in 12C."""
    unit = parse_unit(name)
    if unit is None:
        raise DataError(f"{sheet.where(line)}: {name[:20]!r} is no AU")
    au, level = unit
    if value and reading.is_unknown(value):
        return FacsCode({}, frozenset({au}), True)
    again = parse_unit(value)
    if value.upper() in INTENSITY_LETTERS:
        level = INTENSITY_LETTERS[value.upper()]
    elif (number := parse_number(value)) is not None and 0 <= number <= 5 and value:
        level = number
    elif again is not None and again[0] == au:
        level = again[1]
    elif value.lower() not in _MARKED:
        raise DataError(
            f"{sheet.where(line)}: {value[:20]!r} is no intensity of AU {au} (0 to 5, or A to E); "
            "if it means 'not coded', name it in the option unknown_codes"
        )
    return FacsCode({au: level}, frozenset(), True)


def _span_columns(sheet: Sheet) -> tuple[bool, int, int]:
    """Whether events are in frame numbers, and the columns of onset and offset."""
    for framed, names in ((False, ("onset_s", "offset_s")), (True, ("onset_frame", "offset_frame"))):
        onset, offset = (sheet.find(name, name.replace("_frame", "frame")) for name in names)
        if onset is not None and offset is not None:
            return framed, onset, offset
    raise DataError(f"{sheet.where(1)}: there are no columns onset_s and offset_s, nor onset_frame and offset_frame")


def _parse_bound(sheet: Sheet, line: int, cell: str, framed: bool) -> float:
    value = parse_whole(cell) if framed else parse_seconds(cell)
    if value is None:
        raise DataError(f"{sheet.where(line)}: {cell[:20]!r} is not a {'frame number' if framed else 'time'}")
    return value


def _parse_clock(sheet: Sheet, line: int, cell: str, unit: float) -> float:
    value = parse_seconds(cell)
    if value is None:
        raise DataError(f"{sheet.where(line)}: {cell[:20]!r} is not a time")
    return value * unit


def _elan_columns(sheet: Sheet) -> tuple[int, tuple[int, float], tuple[int, float], int]:
    """Tier, begin and end with seconds per unit, and value; in an export without names, by what the first row looks like."""
    spans: dict[str, tuple[int, float]] = {}
    for position, name in enumerate(sheet.header):
        if match := _ELAN_COLUMN.fullmatch(name):
            spans.setdefault(match[1].lower(), (position, 0.001 if match[2].lower() == "msec" else 1.0))
    if len(spans) == 2:
        known = re.compile(r"(begin|end) time.*|duration.*|participant|annotator|file.*|media_id", re.IGNORECASE)
        tier = sheet.find("tier")
        if tier is None:
            tier = 0
        named = sheet.find("annotation", "value", "annotation value")
        rest = [p for p, name in enumerate(sheet.header) if p != tier and not known.fullmatch(name)]
        if named is None and not rest:
            raise DataError(f"{sheet.where(1)}: there is no column with the annotations' values")
        return tier, spans["begin"], spans["end"], rest[-1] if named is None else named
    clocks = [p for p, cell in enumerate(next(iter(sheet), (0, []))[1]) if _CLOCK.fullmatch(cell)]
    if len(clocks) < 2:
        raise DataError(
            f"{sheet.path} has no begin and end times as hh:mm:ss.ms; export it from ELAN as tab-delimited text with them"
        )
    return 0, (clocks[0], 1.0), (clocks[1], 1.0), len(sheet.header) - 1


def _long_datavyu(sheet: Sheet) -> Iterator[tuple[int, str, str, float, float, str]]:
    columns = [sheet.find(name) for name in ("column", "onset", "offset")]
    if None in columns:
        raise DataError(f"{sheet.where(1)}: a Datavyu export needs the columns column, onset and offset")
    named = {sheet.find(name) for name in ("file", "media_id", "column", "onset", "offset", "ordinal")}
    medium = sheet.find("media_id", "file")
    codes = [p for p in range(len(sheet.header)) if p not in named]
    tier, onset, offset = (p for p in columns if p is not None)
    for line, cells in sheet:
        start, stop = (_parse_clock(sheet, line, cells[p], 0.001) for p in (onset, offset))
        value = next((cells[p] for p in codes if cells[p]), "")
        yield line, cells[medium] if medium is not None else "", cells[tier], start, stop, value


def _wide_datavyu(sheet: Sheet) -> Iterator[tuple[int, str, str, float, float, str]]:
    groups: dict[str, dict[str, int]] = {}
    for position, name in enumerate(sheet.header):
        column, dot, code = name.rpartition(".")
        if dot:
            groups.setdefault(column, {})[code.lower()] = position
    groups = {name: codes for name, codes in groups.items() if {"onset", "offset"} <= set(codes)}
    if not groups:
        raise DataError(f"{sheet.where(1)}: a Datavyu export needs columns onset and offset, or name.onset and name.offset")
    medium = sheet.find("media_id", "file")
    for line, cells in sheet:
        for name, codes in groups.items():
            if not cells[codes["onset"]] and not cells[codes["offset"]]:
                continue  # a column that has fewer cells than its neighbours
            start, stop = (_parse_clock(sheet, line, cells[codes[bound]], 0.001) for bound in ("onset", "offset"))
            values = [cells[p] for code, p in codes.items() if code not in ("ordinal", "onset", "offset")]
            yield line, cells[medium] if medium is not None else "", name, start, stop, next(filter(None, values), "")
