"""Recordings and codes of one's own: a table of media, and labels as people and programs write them.

    media.csv     media_id, path, subject_id; if needed kind, session, group_id, split, part, fps, frame_base, frame_offset,
                  face_id, coded_aus, coded_from_s, coded_to_s
    labels.csv    of all media, or a file for each, as in labels/{media_id}.csv; `preset` says what wrote it

Without a media table, every video is taken of which the folder's name is the subject, with its labels beside it. Presets
frame, openface, pyfeat, libreface and facereader have a row per frame; interval, elan and datavyu have a row per event;
facs_strings has codes such as 1+2+L4B for either. docs/data.md describes them all.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aupipe import archives
from aupipe.datasets import Partition, Session, note, tabulate
from aupipe.datasets._cells import NULL, Reading
from aupipe.datasets._delimited import parse_number
from aupipe.datasets._events import EventLabels
from aupipe.datasets._frame_labels import FrameLabels
from aupipe.datasets._label_files import KNOWN_PRESETS, assign, pick_own, read_label_file
from aupipe.datasets._media import FRAMES, IMAGE, Medium, find_path, find_videos, read_media
from aupipe.datasets._place import Frames, Placed, list_frames, place_events, place_rows
from aupipe.datasets._presets import PRESETS
from aupipe.facs import AU_SETS, AUSet
from aupipe.schema import ConfigError, DataError

_FIELD = re.compile(r"\{(\w*)\}")
_SHOWN = 5  # names in a message


@dataclass(slots=True)
class _Corpus:
    """What was found under a raw root: the media table, media by (subject, session), and what labels may call them."""

    table: str | None
    recordings: dict[tuple[str, str], list[Medium]]
    names: dict[str, str]
    labels: str
    shared: dict[str, FrameLabels | EventLabels] | None = None
    strangers: list[str] = field(default_factory=list)


class Dataset:
    """The layout of one's own recordings.

    media, labels: files relative to the raw root; `labels` may hold {media_id}, {subject_id}, {session} and {stem}, the
    medium's path without its suffix. preset: what wrote the labels. threshold: the intensity from which an AU counts as
    present where no occurrence is given; probability_threshold: the same for probabilities. unknown_codes: further codes
    for "not coded". coded_aus: the AUs whose absence is known in tables of events and FACS strings. coder: whose rows are
    read. tiers: of ELAN or Datavyu, those that hold FACS strings. frame_base: the number of a video's first frame in the
    label files. landmarks: take OpenFace's or py-feat's 68 points into the manifest.
    """

    published: Partition | None = None

    def __init__(
        self,
        aus: AUSet | None = None,
        *,
        media: str | None = None,
        labels: str | None = None,
        preset: str = "frame",
        threshold: float = 1.0,
        probability_threshold: float = 0.5,
        unknown_codes: Iterable[str | float] = (),
        coded_aus: Iterable[int] = (),
        coder: str | None = None,
        tiers: Iterable[str] = (),
        frame_base: int | None = None,
        landmarks: bool = False,
    ) -> None:
        self.aus = aus or AU_SETS["synthetic"]
        if preset not in KNOWN_PRESETS:
            raise ConfigError(f"generic: unknown preset {preset!r}; known are {', '.join(KNOWN_PRESETS)}")
        _check(0 < _number(threshold) <= 5, "threshold", "an intensity above 0, at most 5", threshold)
        _check(0 < _number(probability_threshold) <= 1, "probability_threshold", "above 0, at most 1", probability_threshold)
        _check(frame_base in (None, 0, 1) and not isinstance(frame_base, bool), "frame_base", "0 or 1", frame_base)
        for name, text in (("media", media), ("labels", labels), ("coder", coder)):
            _check(text is None or isinstance(text, str), name, "text", text)
        self.media, self.labels, self.preset, self.frame_base = media, labels, preset, frame_base
        self.tiers = tuple(_list_of(tiers, "tiers", str))
        self.coded_aus = frozenset(_list_of(coded_aus, "coded_aus", int))
        codes = [str(code).strip().lower() for code in _list_of(unknown_codes, "unknown_codes", (str, int, float))]
        unknown = frozenset(codes) | {str(number) for code in codes if (number := parse_number(code)) is not None}
        self._tool = PRESETS.get(preset, PRESETS["frame"])
        self._points = landmarks
        self._reading = Reading(self.aus, unknown, float(threshold), float(probability_threshold), coder, landmarks)
        self._found: dict[Path, _Corpus] = {}

    @property
    def landmark_scheme(self) -> str | None:
        return "ibug68" if self._tool.landmarks else None

    def sessions(self, raw: Path, *, strict: bool = False) -> list[Session]:
        """Every recording of the media table; the images of one subject and session are one. Raises DataError."""
        raw = Path(os.path.normpath(raw))
        corpus = self._survey(raw, strict)
        found, without = [], []
        for (subject, session), media in corpus.recordings.items():
            files = [self._label_file(raw, corpus, medium) for medium in media]
            without += [medium.media_id for medium, file in zip(media, files, strict=True) if file is None]
            first, labels = media[0], next((file for file in files if file is not None), None)
            frames = next((medium.path for medium in media if medium.exists), None)
            found.append(Session(subject, session, labels, frames, first.group, first.split, first.part))
        absent = [m.media_id for media in corpus.recordings.values() for m in media if not m.exists]
        if absent:
            note(f"{raw}: {_count(absent, 'recordings')} of the media table are not there", strict=strict)
        if without:
            note(f"{raw}: {_count(without, 'recordings')} have no labels", strict=strict)
        self._report_strangers(raw, corpus, strict)
        return found

    def read_session(self, raw: Path, session: Session, *, strict: bool = False) -> pa.Table:
        """One row per frame that has a label or an image, in manifest_schema(aus). Raises DataError; see the module."""
        raw = Path(os.path.normpath(raw))
        corpus = self._found.get(raw) or self._survey(raw, False)
        media = corpus.recordings[(session.subject, session.session)]
        numbers, sources, index, placed = [], [], [], []
        for position, medium in enumerate(media):
            frames = self._frames(raw, medium, position, strict)
            labels = None if session.unread else self._labels_of(raw, corpus, medium, strict)
            rows = self._place(labels, medium, frames, strict)
            at = {n: i for i, n in enumerate(frames.numbers.tolist())}
            here = [at.get(n) for n in rows.numbers.tolist()]
            numbers += rows.numbers.tolist()
            sources += [None if i is None else frames.sources[i] for i in here]
            index += [None if i is None or frames.index is None else int(frames.index[i]) for i in here]
            placed.append(rows)
        columns = {"frame": numbers, "source": sources, "index": index, **self._label_columns(placed)}
        return tabulate(self, session, columns)

    def _survey(self, raw: Path, strict: bool) -> _Corpus:
        """Read the media table, or the folders, and the label file if there is one for all."""
        table = self.media or next((n for n in ("media.csv", "media.tsv", "media.parquet") if (raw / n).is_file()), None)
        media = find_videos(raw) if table is None else read_media(raw, table, strict=strict)
        recordings: dict[tuple[str, str], list[Medium]] = {}
        for medium in media:
            own = recordings.setdefault((medium.subject, medium.session), [])
            if own and not own[0].kind == medium.kind == IMAGE:
                raise DataError(
                    f"{medium.where or raw / medium.path}: '{medium.subject}' has a session '{medium.session}' already, "
                    f"{own[0].path}; give each recording a session of its own"
                )
            own.append(medium)
        labels = self.labels or ("{stem}.csv" if table is None else "labels.csv")
        unknown = set(_FIELD.findall(labels)) - set(_fields(media[0])) if media else set()
        _check(not unknown, "labels", "a path with none but {media_id}, {subject_id}, {session} and {stem}", labels)
        corpus = _Corpus(table, recordings, _known_names(media), labels)
        if not _FIELD.search(labels):
            path = find_path(raw, labels)
            if path is None:
                raise DataError(f"there is no label file {raw / labels}; name yours in the option labels of the corpus")
            place, keyless = archives.locate(raw, path), all(medium.kind == IMAGE for medium in media)
            read = read_label_file(place, self.preset, self._reading, self.tiers, keyless=keyless, strict=strict)
            corpus.labels = path
            corpus.shared, corpus.strangers = assign(place, read, corpus.names, [m.media_id for m in media])
        self._found = {raw: corpus}
        return corpus

    def _label_file(self, raw: Path, corpus: _Corpus, medium: Medium) -> str | None:
        """The label file of a medium, relative to `raw`, if it has labels."""
        if corpus.shared is not None:
            return corpus.labels if medium.media_id in corpus.shared else None
        fields = _fields(medium)
        return find_path(raw, _FIELD.sub(lambda match: fields[match[1]], corpus.labels))

    def _report_strangers(self, raw: Path, corpus: _Corpus, strict: bool) -> None:
        """Labels that belong to no recording."""
        strangers = list(corpus.strangers)
        head, braces, tail = corpus.labels.partition("{media_id}")
        folder, _, start = head.rpartition("/")
        place = raw / folder
        if braces and "{" not in head + tail and "/" not in tail and place.is_dir():
            own = {f"{start}{m.media_id}{tail}".lower() for media in corpus.recordings.values() for m in media}
            found = archives.find(place, rf"{re.escape(start)}.+{re.escape(tail)}")
            strangers += [
                e.name for e in found if e.name.lower() not in own and archives.relative(e.path, raw) != corpus.table
            ]
        if strangers:
            note(f"{raw}: labels of {_count(strangers, 'recordings')} that the media table does not have", strict=strict)

    def _frames(self, raw: Path, medium: Medium, position: int, strict: bool) -> Frames:
        if medium.kind == IMAGE:
            return Frames(np.array([position]), [medium.path if medium.exists else None])
        stated = medium.frame_base if medium.frame_base is not None else self.frame_base
        base = self._tool.base if stated is None else stated
        return list_frames(raw, medium, base, positional=self._tool.positional, strict=strict)

    def _place(self, labels: FrameLabels | EventLabels | None, medium: Medium, frames: Frames, strict: bool) -> Placed:
        coded = frozenset(medium.coded_aus or self.coded_aus)
        if isinstance(labels, EventLabels):
            if not coded:
                note(f"{labels.sheet.path}: no coded_aus are declared, so only presences are known", strict=strict)
            return place_events(labels, frames, medium, coded, self._reading, strict=strict)
        if isinstance(labels, FrameLabels):
            if medium.kind == IMAGE:
                labels = replace(labels, keys=None, timed=False)
            return place_rows(labels, frames, medium, coded, self._reading, strict=strict)
        shape = (len(frames.numbers), len(self.aus))
        return Placed(frames.numbers, np.full(shape, NULL, np.int8), np.full(shape, np.nan, np.float32))

    def _labels_of(self, raw: Path, corpus: _Corpus, medium: Medium, strict: bool) -> FrameLabels | EventLabels | None:
        if corpus.shared is not None:
            labels = corpus.shared.get(medium.media_id)
            other = next(iter(corpus.shared.values()), None)
            if labels is None and medium.coded_aus and isinstance(other, EventLabels):
                return EventLabels(other.sheet, other.framed, other.scored)  # it was coded, and nothing happened
            return labels
        file = self._label_file(raw, corpus, medium)
        if file is None:
            return None
        place = archives.locate(raw, file)
        read = read_label_file(place, self.preset, self._reading, self.tiers, keyless=medium.kind == IMAGE, strict=strict)
        return pick_own(place, read, corpus.names, medium.media_id, strict=strict)

    def _label_columns(self, placed: list[Placed]) -> dict[str, pa.Array]:
        occurrence = np.concatenate([p.occurrence for p in placed])
        intensity = np.concatenate([p.intensity for p in placed])
        columns = {
            **{c: pa.array(v, mask=v == NULL) for c, v in zip(self.aus.columns, occurrence.T, strict=True)},
            **{c: pa.array(v, mask=np.isnan(v)) for c, v in zip(self.aus.intensity_columns, intensity.T, strict=True)},
        }
        if self._points and len(placed) == 1 and (points := placed[0].landmarks) is not None:
            columns["landmarks"] = pa.array([None if np.isnan(row).any() else row for row in points], pa.list_(pa.float32()))
        return columns


def _fields(medium: Medium) -> dict[str, str]:
    """What the placeholders of the option `labels` stand for."""
    stem = medium.path if medium.kind == FRAMES else medium.path.removesuffix(Path(medium.path).suffix)
    return {"media_id": medium.media_id, "subject_id": medium.subject, "session": medium.session, "stem": stem}


def _known_names(media: list[Medium]) -> dict[str, str]:
    """What label files call a medium → its media_id: that itself, its path, its file's name with and without suffix; names
    that several media share stand for none.
    """
    names: dict[str, str | None] = {}
    for of in (_file_stem, _file_name, lambda m: m.path, lambda m: m.media_id):
        level: dict[str, str | None] = {}
        for medium in media:
            name = of(medium)
            level[name] = medium.media_id if level.get(name, medium.media_id) == medium.media_id else None
        names |= level
    return {name: media_id for name, media_id in names.items() if media_id is not None}


def _file_name(medium: Medium) -> str:
    return medium.path.rpartition("/")[2]


def _file_stem(medium: Medium) -> str:
    return Path(_file_name(medium)).stem


def _count(names: list[str], what: str) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _list_of(values: Any, name: str, kinds: Any) -> list[Any]:
    found = list(values) if isinstance(values, (list, tuple, set, frozenset)) else [values]
    _check(all(isinstance(v, kinds) and not isinstance(v, bool) for v in found), name, "a list", values)
    return found


def _check(holds: bool, name: str, wanted: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"generic: the option {name} is {value!r} instead of {wanted}")
