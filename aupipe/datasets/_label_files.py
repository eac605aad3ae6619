"""A label file of whatever preset → the labels of each medium in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from aupipe.datasets._cells import Reading
from aupipe.datasets._delimited import Sheet, bare_sheet, read_sheet
from aupipe.datasets._events import EventLabels, read_datavyu, read_elan, read_interval_labels
from aupipe.datasets._facs_strings import parse_facs
from aupipe.datasets._frame_labels import FrameLabels, read_facs_labels, read_frame_labels
from aupipe.datasets._notes import note
from aupipe.datasets._presets import PRESETS
from aupipe.schema import DataError

Labels = Mapping[str, FrameLabels | EventLabels]

FACS, INTERVAL, ELAN, DATAVYU = "facs_strings", "interval", "elan", "datavyu"
KNOWN_PRESETS = (*PRESETS, FACS, INTERVAL, ELAN, DATAVYU)
_FACS_COLUMNS = ("facs", "aus", "action units", "code")
_FACS_MEDIA = ("media_id", "image_path", "path", "name", "filename")


def read_label_file(
    path: Path, preset: str, reading: Reading, tiers: tuple[str, ...], *, keyless: bool, strict: bool
) -> Labels:
    """The labels in a file, by the names that it gives the media; "" where it names none.

    tiers: those with FACS strings. keyless: rows need not say which frame they are of, as with images. Raises DataError.
    """
    if preset in (ELAN, DATAVYU):
        read = read_elan if preset == ELAN else read_datavyu
        events, left_out = read(_elan_sheet(path) if preset == ELAN else read_sheet(path), reading, tiers)
        if left_out:
            note(f"{path}: the tiers {', '.join(left_out)} hold no FACS codes and are left out")
        return events
    if preset == INTERVAL:
        return read_interval_labels(read_sheet(path), reading)
    if preset == FACS:
        return _read_facs(path, reading, keyless)
    tool = PRESETS[preset]
    sheet = read_sheet(path, starts=_is_facereader_header if preset == "facereader" else None, tool=tool.tool)
    return read_frame_labels(sheet, tool, reading, keyless=keyless, strict=strict)


def assign(
    path: Path, read: Labels, names: Mapping[str, str], media_ids: Sequence[str]
) -> tuple[dict[str, FrameLabels | EventLabels], list[str]]:
    """The labels of a file for all media, by media_id, and the names in it that belong to none.

    names: what a medium may be called → its media_id. Raises DataError where nobody can tell whose rows are whose.
    """
    if set(read) == {""}:
        if len(media_ids) > 1:
            raise DataError(
                f"{path} does not say whose rows are whose; add a column media_id, or give a file for each recording, "
                "as in labels: labels/{media_id}.csv"
            )
        return {media_ids[0]: read[""]}, []
    known: dict[str, FrameLabels | EventLabels] = {}
    strangers = []
    for name, labels in read.items():
        medium = _resolve(name, names)
        if medium is None:
            strangers.append(f"'{name}'")
        elif medium in known:
            raise DataError(f"{path} names the recording '{medium}' in two ways, one of them '{name}'; use its media_id")
        else:
            known[medium] = labels
    return known, strangers


def pick_own(
    path: Path, read: Labels, names: Mapping[str, str], media_id: str, *, strict: bool
) -> FrameLabels | EventLabels | None:
    """The labels of one medium in the file that is its own; rows that are named as another's are not."""
    own = [labels for name, labels in read.items() if _resolve(name, names) == media_id]
    if not own and len(read) == 1:
        name = next(iter(read))
        if _resolve(name, names) is None:  # another name for it, such as the path on the machine of the program
            return read[name]
    if not own:
        note(f"{path} holds no label of '{media_id}', whose file it should be", strict=strict)
    return own[0] if own else None


def _resolve(name: str, names: Mapping[str, str]) -> str | None:
    text = unicodedata.normalize("NFC", name).replace("\\", "/")
    file = PurePosixPath(text)
    return names.get(text) or names.get(file.name) or names.get(file.stem)


def _elan_sheet(path: Path) -> Sheet:
    sheet = read_sheet(path, tool=True)
    if any("time" in name.lower() for name in sheet.header):
        return sheet
    return bare_sheet(path, ["tier", *(f"column {n}" for n in range(2, len(sheet.header))), "value"], "\t")


def _is_facereader_header(cells: list[str]) -> bool:
    return any(cell.lower() == "video time" for cell in cells)


def _read_facs(path: Path, reading: Reading, keyless: bool) -> Labels:
    sheet = read_sheet(path)
    column = sheet.find(*_FACS_COLUMNS)
    if column is not None and sheet.find("onset_s", "onset_frame", "onsetframe") is not None:
        return read_interval_labels(sheet, reading, _FACS_MEDIA)
    if column is None:  # `0001.jpg 1+2+L4` on every line, as RAF-AU has it
        sheet, column = bare_sheet(path, ["media_id", "facs"]), 1
        line, cells = next(iter(sheet))
        try:
            parse_facs(cells[1])
        except ValueError:
            raise DataError(f"{sheet.where(line)}: there is no column facs with codes such as 1+2+L4B") from None
    return read_facs_labels(sheet, replace(PRESETS["frame"], media=_FACS_MEDIA), reading, column, keyless=keyless)
