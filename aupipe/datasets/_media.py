"""The table of one's own media: which video, folder of frames or image is whose; or, without a table, folders of videos."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aupipe import archives
from aupipe.datasets._delimited import Sheet, parse_number, parse_seconds, read_sheet
from aupipe.datasets._notes import note
from aupipe.datasets._tables import IMAGE_SUFFIXES
from aupipe.schema import DataError

VIDEO, FRAMES, IMAGE = KINDS = ("video", "frames", "image")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".ts", ".3gp", ".flv")
_DEPTH = 6
_KNOWN = {
    "media_id", "path", "kind", "subject_id", "session", "group_id", "split", "part", "fps", "frame_base", "frame_offset",
    "face_id", "coded_aus", "coded_from_s", "coded_to_s",
}  # fmt: skip
_FOR_PEOPLE = {"sex", "age", "skin", "license", "licence", "coder", "comment", "notes"}
_AU = re.compile(r"(?:AU)?(\d{1,2})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Medium:
    """One row of the table.

    path: POSIX, relative to the raw root, as on disk where it `exists`. fps: of a folder of frames. frame_base: the number
    that a label file gives the first frame of a video. frame_offset: added to a label's frame number to give that of the
    image, or the position in the video. face_id: whose rows of a label file with several faces are meant.
    coded_aus: AUs whose absence is known too, in the span `coded` (from, to) in seconds.
    """

    media_id: str
    path: str
    kind: str
    subject: str
    session: str
    exists: bool = True
    group: str | None = None
    split: str | None = None
    part: str | None = None
    fps: float | None = None
    frame_base: int | None = None
    frame_offset: int = 0
    face_id: str | None = None
    coded_aus: tuple[int, ...] | None = None
    coded: tuple[float | None, float | None] = (None, None)
    where: str = field(default="", compare=False)


def read_media(raw: Path, name: str, *, strict: bool = False) -> list[Medium]:
    """The media table `name`, a path relative to `raw`. Raises DataError with file and line for what cannot be meant."""
    sheet = read_sheet(archives.locate(raw, name))
    base = Path(name).parent.as_posix()
    column = {n: p for n in sorted(_KNOWN) if (p := sheet.find(n)) is not None}
    for needed, why in (
        ("media_id", "which names each recording in the label files"),
        ("path", "which says where each recording lies"),
        ("subject_id", "without which people could be on both sides of a fold"),
    ):
        if needed not in column:
            raise DataError(f"{sheet.where(1)}: there is no column {needed}, {why}; add it to the table")
    unused = [n for n in sheet.header if n and n.lower() not in _KNOWN | _FOR_PEOPLE]
    if unused:
        note(f"{sheet.path}: the columns {', '.join(unused)} are not used")
    media: dict[str, Medium] = {}
    for line, cells in sheet:
        medium = _parse_row(sheet, line, {n: cells[p] for n, p in column.items()}, raw, "" if base == "." else base)
        before = media.setdefault(medium.media_id, medium)
        if before is not medium:
            if before != medium:
                raise DataError(f"{sheet.where(line)}: the media_id '{medium.media_id}' stands for something else above")
            note(f"{sheet.where(line)}: '{medium.media_id}' is listed twice; taken once", strict=strict)
    if not media:
        raise DataError(f"{sheet.path} lists no recording")
    _check_sharing(sheet, list(media.values()), strict)
    return list(media.values())


def find_videos(raw: Path) -> list[Medium]:
    """Every video below `raw`; its folder bears its subject's name. Raises DataError for one that lies in no folder."""
    media = []
    for path in _walk_videos(raw, _DEPTH):
        relative = archives.relative(path, raw)
        *_, folder, _ = (raw.name, *relative.split("/"))
        if "/" not in relative:
            raise DataError(
                f"{path} lies in no folder named after its subject, and there is no media.csv to say whose it is; "
                "put the videos of each person into a folder of their own, or write the table"
            )
        media.append(Medium(relative.rpartition(".")[0], relative, VIDEO, folder, path.stem))
    return media


def find_path(raw: Path, source: str) -> str | None:
    """A path as it is on disk, relative to `raw`; None if it is not there.

    Names that differ in case or Unicode form alone are the same. Raises DataError if it leads out of `raw`.
    """
    place = archives.locate(raw, source)
    try:
        if archives.exists(place):
            return archives.relative(place, raw)
    except (OSError, ValueError):  # a name that no file can have
        return None
    outer, members = archives.split_zip(place)
    here = raw
    for part in (*outer.relative_to(raw).parts, *(p for member in members for p in member.split("/") if p)):
        name = unicodedata.normalize("NFC", part).lower()
        try:
            entry = next((e for e in archives.list_folder(here) if e.name.lower() == name), None)
        except DataError:
            return None
        if entry is None:
            return None
        here = entry.path
    return archives.relative(here, raw)


def _parse_row(sheet: Sheet, line: int, row: dict[str, str], raw: Path, base: str) -> Medium:
    where = sheet.where(line)
    for name in ("media_id", "path", "subject_id"):
        if not row[name]:
            raise DataError(f"{where}: {name} is empty")
    media_id = unicodedata.normalize("NFC", row["media_id"])
    path = row["path"].replace("\\", "/")
    try:
        found = find_path(raw, f"{base}/{path}" if base else path)
    except DataError:
        raise DataError(f"{where}: the path '{row['path']}' leads out of {raw}; copy or link the media into it") from None
    kind = row.get("kind", "").lower() or _guess_kind(path)
    if kind not in KINDS:
        raise DataError(f"{where}: the kind '{kind}' is none of {', '.join(KINDS)}")
    session = row.get("session") or ("images" if kind == IMAGE else media_id.replace("/", "-"))
    for name, value in (("subject_id", row["subject_id"]), ("session", session)):
        if "/" in value or value in (".", ".."):
            raise DataError(f"{where}: the {name} '{value}' cannot name a file; use letters, digits, - and _")
    split = row.get("split", "").lower() or None
    if split not in (None, "train", "val", "test"):
        raise DataError(f"{where}: the split '{split}' is none of train, val, test")
    return Medium(
        media_id, found or (f"{base}/{path}" if base else path), kind, row["subject_id"], session, found is not None,
        group=row.get("group_id") or None, split=split, part=row.get("part") or None,
        fps=_positive(where, "fps", row.get("fps", "")),
        frame_base=_whole(where, "frame_base", row.get("frame_base", ""), (0, 1)),
        frame_offset=_whole(where, "frame_offset", row.get("frame_offset", "")) or 0,
        face_id=row.get("face_id") or None,
        coded_aus=_coded_aus(where, row.get("coded_aus", "")),
        coded=_coded_span(where, row), where=where,
    )  # fmt: skip


def _guess_kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return VIDEO if suffix in VIDEO_SUFFIXES else IMAGE if suffix in IMAGE_SUFFIXES else FRAMES


def _positive(where: str, name: str, cell: str) -> float | None:
    if not cell:
        return None
    number = parse_number(cell)
    if number is None or not 0 < number <= 10_000:
        raise DataError(f"{where}: {name} is '{cell[:20]}', which is no number of frames per second")
    return number


def _whole(where: str, name: str, cell: str, allowed: tuple[int, ...] | None = None) -> int | None:
    if not cell:
        return None
    number = parse_number(cell)
    if number is None or not number.is_integer() or abs(number) >= 2**30 or (allowed and number not in allowed):
        wanted = " or ".join(map(str, allowed)) if allowed else "a whole number"
        raise DataError(f"{where}: {name} is '{cell[:20]}' instead of {wanted}")
    return int(number)


def _coded_aus(where: str, cell: str) -> tuple[int, ...] | None:
    if not cell:
        return None
    tokens = [_AU.fullmatch(token) for token in re.split(r"[+,;\s]+", cell) if token]
    numbers = [int(token[1]) for token in tokens if token]
    if not tokens or len(numbers) != len(tokens):
        raise DataError(f"{where}: coded_aus is '{cell[:30]}' instead of AU numbers such as 1+2+4")
    return tuple(dict.fromkeys(numbers))


def _coded_span(where: str, row: dict[str, str]) -> tuple[float | None, float | None]:
    span = []
    for name in ("coded_from_s", "coded_to_s"):
        cell = row.get(name, "")
        value = parse_seconds(cell) if cell else None
        if cell and value is None:
            raise DataError(f"{where}: {name} is '{cell[:20]}', which is not a time")
        span.append(value)
    start, stop = span
    if start is not None and stop is not None and stop < start:
        raise DataError(f"{where}: coded_to_s lies before coded_from_s")
    return start, stop


def _check_sharing(sheet: Sheet, media: list[Medium], strict: bool) -> None:
    """What is more often a slip than meant: a file listed under two names, and two spellings of one person."""
    paths: dict[tuple[str, str | None], Medium] = {}
    people: dict[str, str] = {}
    for medium in media:
        first = paths.setdefault((medium.path, medium.face_id), medium)
        if first is not medium:
            note(f"{medium.where}: '{medium.media_id}' is the same file as '{first.media_id}'", strict=strict)
        spelling = people.setdefault(medium.subject.casefold(), medium.subject)
        if spelling != medium.subject:
            note(
                f"{medium.where}: are the subjects '{spelling}' and '{medium.subject}' one person? They count as two",
                strict=strict,
            )


def _walk_videos(folder: Path, depth: int) -> Iterator[Path]:
    for entry in archives.list_folder(folder):
        if entry.path.suffix.lower() in VIDEO_SUFFIXES and not entry.folder:
            yield entry.path
        elif entry.folder and depth and entry.path.is_dir():
            yield from _walk_videos(entry.path, depth - 1)
