"""A licence holder's copy of a corpus against its published counts: what differs, and what is the likely cause.

published_counts.csv and published_spans.csv hold facts that were counted or solved from public files: the subjects, coded
spans and parts of ME-GraphAU's frame lists (BP4D, DISFA); positives per AU and part, the unique integer solutions of the
class weights that it publishes with each fold; DISFA's intensity histogram of the left camera, whose rows add up to the same
sums; and, of Aff-Wild2, the multi-task train set's positives, solved from the class weights of ABAW2022DMACS.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.config import PACKAGE
from aupipe.datasets import get_dataset, survey
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, iter_sessions, label_arrays

LAYOUTS = ("affwild2", "bp4d", "disfa")
SAME, DIFFERS, NOTED = "ok", "differs", "noted"  # noted: there is no published figure to hold it against

# All the AUs that are compared: those of the detection tables, and DISFA's twelve with intensities.
_AUS = {
    "bp4d": AUSet((1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)),
    "disfa": AUSet((1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)),
    "affwild2": AUSet((1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)),
}
_NAMED = 4  # names in one message

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: what was counted, what was found and what is published, the verdict and the likely cause."""

    what: str
    found: int
    published: int | None
    cause: str = ""

    @property
    def verdict(self) -> str:
        if self.published is None:
            return NOTED
        return SAME if self.found == self.published else DIFFERS

    def __str__(self) -> str:
        published = "" if self.published is None else f"{self.published:,}"
        text = f"{self.verdict:8}{self.what:44}{self.found:>11,}{published:>11}"
        return f"{text}  {self.cause}".rstrip()


@dataclass(frozen=True, slots=True)
class _Span:
    """The coded frames of a recording, first and last, and the part of the published partition that it is in."""

    part: str
    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class _Recording:
    """What was found of one: numbers of the coded frames, of them those without an image, and the labels (n, M)."""

    frames: NDArray[np.int64]
    missing: NDArray[np.int64]
    labels_NM: NDArray[np.float32]
    mask_NM: NDArray[np.bool_]


def check_corpus(raw: Path, layout: str, options: Mapping[str, Any] | None = None) -> list[Line]:
    """Compare the corpus under `raw` with the published counts of its layout.

    `options` are the layout's own. Raises ConfigError for a layout without published counts, DataError for a corpus that
    cannot be read.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"there are no published counts of the layout '{layout}'; known are {', '.join(LAYOUTS)}")
    table, report = survey(get_dataset(layout, _AUS[layout], options), raw)
    malformed = [Line("label files that are malformed", len(report["errors"]), 0, error) for error in report["errors"][:1]]
    if layout == "affwild2":
        return malformed + _check_affwild2(table, report)
    found = _collect(table, _AUS[layout])
    spans, counts = _read_spans(layout), _read_counts(layout)
    lines = [
        *malformed,
        *_check_tree(spans, found, report),
        *_check_frames(spans, found),
        *_check_positives(layout, spans, found, counts),
    ]
    return lines + (_check_disfa(table, spans, found, counts) if layout == "disfa" else [])


def _read_spans(layout: str) -> dict[Key, _Span]:
    with (PACKAGE / "published_spans.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["layout"] == layout]
    return {(r["subject"], r["session"]): _Span(r["part"], int(r["first"]), int(r["last"])) for r in rows}


def _read_counts(layout: str) -> dict[tuple[str, str], int]:
    """(part, what) → count; `what` is "frames", an AU, or an AU's intensity as in AU01=3."""
    with (PACKAGE / "published_counts.csv").open(encoding="utf-8", newline="") as file:
        return {(r["part"], r["what"]): int(r["count"]) for r in csv.DictReader(file) if r["layout"] == layout}


def _collect(table: pa.Table, aus: AUSet) -> dict[Key, _Recording]:
    """The recordings that have a label; the right camera of DISFA carries the labels of the left one."""
    found = {}
    for rows in iter_sessions(table):
        labels_NM, mask_NM = label_arrays(rows, aus)
        coded = mask_NM.any(1)
        if coded.any():
            frames = rows["frame"].to_numpy().astype(np.int64)
            absent = rows["source"].is_null().to_numpy()
            key = (rows["subject"][0].as_py(), rows["session"][0].as_py())
            found[key] = _Recording(frames[coded], frames[coded & absent], labels_NM[coded], mask_NM[coded])
    return found


def _check_tree(spans: Mapping[Key, _Span], found: Mapping[Key, _Recording], report: dict[str, Any]) -> Iterator[Line]:
    subjects = {subject for subject, _ in spans}
    strange: set[str] = set()
    for what, has in (("labels", "labelled"), ("images", "images")):
        there = {entry["subject"] for entry in report["sessions"] if entry[has]}
        lacking, strange = sorted(subjects - there), strange | (there - subjects)
        cause = f"{what} of {_list(lacking)} are missing: a zip that was not fetched or extracted?" if lacking else ""
        yield Line(f"subjects with {what}", len(there & subjects), len(subjects), cause)
    yield Line("other subjects", len(strange), 0, f"{_list(sorted(strange))} are not of this corpus" if strange else "")
    lacking = sorted("/".join(key) for key in spans.keys() - found.keys())
    yield Line(
        "coded recordings", len(spans.keys() & found.keys()), len(spans), f"no labels of {_list(lacking)}" if lacking else ""
    )


def _check_frames(spans: Mapping[Key, _Span], found: Mapping[Key, _Recording]) -> Iterator[Line]:
    common = sorted(spans.keys() & found.keys())
    other = [key for key in common if not _same_span(spans[key], found[key].frames)]
    shifts = {int(found[key].frames[0]) - spans[key].first for key in other if len(found[key].frames) == spans[key].frames}
    cause = ""
    if other and len(shifts) == 1 and len(other) > len(common) / 2:
        shift = shifts.pop()
        cause = f"frame numbers are {abs(shift)} {'higher' if shift > 0 else 'lower'} than published: a shifted frame base"
    elif other:
        cause = f"other frames are coded in {_list(['/'.join(key) for key in other])}"
    yield Line("recordings whose coded frames are others", len(other), 0, cause)
    for part in sorted({span.part for span in spans.values()}):
        yield _count_frames(f"coded frames, part {part}", {k: s for k, s in spans.items() if s.part == part}, found)
    yield _count_frames("coded frames", spans, found)
    yield _check_images(found)


def _count_frames(what: str, spans: Mapping[Key, _Span], found: Mapping[Key, _Recording]) -> Line:
    counts = {key: len(found[key].frames) if key in found else 0 for key in spans}
    other = sorted("/".join(key) for key, span in spans.items() if counts[key] != span.frames)
    cause = f"more or fewer in {_list(other)}" if other else ""
    return Line(what, sum(counts.values()), sum(span.frames for span in spans.values()), cause)


def _check_images(found: Mapping[Key, _Recording]) -> Line:
    lacking = {key: rec for key, rec in found.items() if len(rec.missing)}
    whole = sorted("/".join(key) for key, rec in lacking.items() if len(rec.missing) == len(rec.frames))
    ends = [key for key, rec in lacking.items() if rec.missing.tolist() == [int(rec.frames[-1])]]
    cause = ""
    if whole:
        cause = f"no image at all of {_list(whole)}: a zip that was not fetched or extracted?"
    elif ends and len(ends) == len(lacking):
        cause = f"of {len(ends)} recordings the last coded frame alone: images counted from 0 and labels from 1?"
    elif lacking:
        cause = f"single images are missing in {_list(sorted('/'.join(key) for key in lacking))}"
    return Line("coded frames without an image", sum(len(rec.missing) for rec in lacking.values()), 0, cause)


def _check_positives(
    layout: str, spans: Mapping[Key, _Span], found: Mapping[Key, _Recording], counts: Mapping[tuple[str, str], int]
) -> Iterator[Line]:
    parts = sorted({span.part for span in spans.values()})
    for column, name in enumerate(_AUS[layout].names):
        if (parts[0], name) not in counts:
            continue
        total, published_total = 0, 0
        for part in parts:
            records = [found[key] for key, span in spans.items() if span.part == part and key in found]
            positive = int(sum(rec.labels_NM[:, column].sum() for rec in records))
            uncoded = int(sum((~rec.mask_NM[:, column]).sum() for rec in records))
            frames = sum(len(rec.frames) for rec in records)
            published = counts[part, name]
            same_frames = frames == counts[part, "frames"]
            yield Line(f"{name}, part {part}", positive, published, _explain(positive, published, uncoded, same_frames))
            total, published_total = total + positive, published_total + published
        yield Line(name, total, published_total)


def _explain(positive: int, published: int, uncoded: int, same_frames: bool) -> str:
    """Why a count of positives differs from the published one."""
    if positive == published:
        return ""
    if not same_frames:
        return "other frames are coded, see above"
    if uncoded and positive + uncoded == published:
        return f"the {uncoded:,} codes for unknown (9) were counted as present there; here they are not coded"
    if uncoded:
        return f"{uncoded:,} codes for unknown (9) are not counted here"
    if positive > published:
        return "more than published and no code for unknown: nines were turned into ones in this copy?"
    return "fewer than published: another release of the labels, or another threshold?"


def _check_disfa(
    table: pa.Table, spans: Mapping[Key, _Span], found: Mapping[Key, _Recording], counts: Mapping[tuple[str, str], int]
) -> list[Line]:
    """Intensities, and the frames that JAA-Net keeps."""
    from aupipe.datasets.disfa import LOST

    lines = []
    for name, column in zip(_AUS["disfa"].names, _AUS["disfa"].intensity_columns, strict=True):
        levels = table[column].drop_null().to_numpy()
        cause = f"the file of {name} is missing or empty" if not len(levels) else "another release of the labels?"
        for level in range(6):
            line = Line(f"{name} at intensity {level}", int((levels == level).sum()), counts["all", f"{name}={level}"])
            lines.append(Line(line.what, line.found, line.published, cause if line.verdict == DIFFERS else ""))
    kept, published = 0, 0
    for key, span in spans.items():
        ranges = LOST.get(key[0], ())
        published += span.frames - sum(last - first + 1 for first, last in ranges)
        frames = found[key].frames if key in found else np.empty(0, np.int64)
        kept += len(frames) - sum(int(((frames >= first) & (frames <= last)).sum()) for first, last in ranges)
    return [*lines, Line("coded frames with landmarks (JAA-Net's)", kept, published)]


def _check_affwild2(table: pa.Table, report: dict[str, Any]) -> list[Line]:
    """The sizes of the sides, and what must hold of the labels; most of its published figures cannot be checked."""
    aus = _AUS["affwild2"]
    labels_NM, mask_NM = label_arrays(table, aus)
    split_N = np.array(table["split"].fill_null("").to_pylist())
    lines = []
    for side in ("train", "val"):
        videos = {(e["subject"], e["session"]) for e in report["sessions"] if e["labelled"]}
        own = table.filter(pa.array(split_N == side))
        there = {(s, v) for s, v in zip(own["subject"].to_pylist(), own["session"].to_pylist(), strict=True)} & videos
        lines.append(Line(f"labelled videos, {side}", len(there), None))
        lines.append(Line(f"labelled frames, {side}", int((mask_NM.any(1) & (split_N == side)).sum()), None))
    lacking = [name for column, name in enumerate(aus.names) if not mask_NM[:, column].any()]
    cause = f"no column of {_list(lacking)}: annotations of ABAW1 have 8 AUs" if lacking else ""
    lines.append(Line("coded AUs", len(aus) - len(lacking), len(aus), cause))
    present = np.array([name not in lacking for name in aus.names])
    mixed = mask_NM[:, present].any(1) & ~mask_NM[:, present].all(1)
    where = sorted(set(table.filter(pa.array(mixed))["session"].to_pylist()))
    lines.append(
        Line("frames coded in part", int(mixed.sum()), 0, f"-1 is usually a whole row; in {_list(where)}" if where else "")
    )
    without = mask_NM.any(1) & table["source"].is_null().to_numpy()
    lines.append(Line("labelled frames without an image", int(without.sum()), None, "crops are where a face was found"))
    if _is_multi_task(report):
        counts, train = _read_counts("affwild2"), split_N == "train"
        part, valid = "multi-task train", int((mask_NM.all(1) & train).sum())
        lines.append(Line(f"coded frames, {part}", valid, counts[part, "frames"]))
        positive = (labels_NM[train] > 0).sum(0).tolist()
        lines += [Line(f"{n}, {part}", p, counts[part, n]) for n, p in zip(aus.names, positive, strict=True)]
    return lines


def _is_multi_task(report: dict[str, Any]) -> bool:
    """Whether the labels came from the one file of the multi-task challenge's train set."""
    return any("training_set_annotations" in (entry["labels"] or "") for entry in report["sessions"])


def _same_span(span: _Span, frames: NDArray[np.int64]) -> bool:
    return len(frames) == span.frames and int(frames[0]) == span.first and int(frames[-1]) == span.last


def _list(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
