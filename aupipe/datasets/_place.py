"""Labels onto frames: what a label file says of numbers, times and spans → one row per frame of the medium."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe import archives
from aupipe.datasets._cells import NULL, UNNAMED, Reading
from aupipe.datasets._events import Event, EventLabels
from aupipe.datasets._frame_labels import FrameLabels
from aupipe.datasets._media import FRAMES, VIDEO, Medium
from aupipe.datasets._notes import note, remark
from aupipe.datasets._tables import check_overlap, index_images
from aupipe.schema import DataError
from aupipe.video import frame_times


@dataclass(slots=True)
class Frames:
    """The frames of a medium. numbers (F,) int64 ascending, as label files count them; sources, their image or video.
    index (F,): positions in a video, or None. times (F,): seconds since the first frame, or None where they are not known.
    """

    numbers: NDArray[np.int64]
    sources: list[str | None]
    index: NDArray[np.int64] | None = None
    times: NDArray[np.float64] | None = None


@dataclass(slots=True)
class Placed:
    """Rows (N,), ascending: frame numbers, occurrence (N, M) with NULL, intensity (N, M) with NaN, landmarks or None."""

    numbers: NDArray[np.int64]
    occurrence: NDArray[np.int8]
    intensity: NDArray[np.float32]
    landmarks: NDArray[np.float32] | None = None


def list_frames(raw: Path, medium: Medium, base: int, *, positional: bool, strict: bool) -> Frames:
    """The frames of a video or of a folder of images; none where it is missing or cannot be read, which is noted.

    base: the number of the first frame of a video. positional: images, too, are numbered by their position.
    """
    nothing = Frames(np.empty(0, np.int64), [])
    if not medium.exists:
        return nothing
    if medium.kind == VIDEO:
        try:
            times = frame_times(archives.locate(raw, medium.path))
        except DataError as error:
            note(str(error), strict=strict)
            return nothing
        index = np.arange(len(times))
        shown = times - times[0] if len(times) and not np.isnan(times).any() else None
        return Frames(index + base - medium.frame_offset, [medium.path] * len(times), index, shown)
    images = index_images(raw / medium.path, raw, strict=strict)
    names = np.array(list(images), np.int64)
    numbers = np.arange(len(names)) + base if positional else names
    first = medium.frame_base if medium.frame_base is not None else names[:1].sum()
    since = (names - first) / medium.fps if medium.fps is not None else None
    return Frames(numbers - medium.frame_offset, [*images.values()], None, since)


def place_rows(
    labels: FrameLabels, frames: Frames, medium: Medium, coded: frozenset[int], reading: Reading, *, strict: bool
) -> Placed:
    """Rows of a table → one row for every frame that has an image or a label.

    Times go to the nearest frame, at most one frame's duration away. Rows that say the same twice become one. Raises
    DataError for two rows of one frame that differ.
    """
    rows = _of_one_face(labels, medium, strict)
    if labels.keys is None:
        keys = np.full(len(rows), frames.numbers[0] if len(frames.numbers) else 0)
    elif labels.timed:
        rows, keys = _nearest_frames(labels, rows, frames, medium, strict)
    else:
        keys = labels.keys[rows]
    rows, keys = _sorted_once(labels, rows, keys, medium, strict)
    if labels.keys is not None and not labels.timed and len(frames.numbers):
        _check_base(labels, keys, frames, medium, strict)
        check_overlap(f"{labels.sheet.path} ({medium.media_id})", keys, frames.numbers, strict=strict)
    numbers = np.union1d(frames.numbers, keys)
    at = np.searchsorted(numbers, keys)
    occurrence = np.full((len(numbers), len(reading.aus)), NULL, np.int8)
    intensity = np.full(occurrence.shape, np.nan, np.float32)
    occurrence[at], intensity[at] = labels.occurrence[rows], labels.intensity[rows]
    _settle_unnamed(occurrence, intensity, coded, reading, labels.scored)
    landmarks = None
    if labels.landmarks is not None:
        landmarks = np.full((len(numbers), labels.landmarks.shape[1]), np.nan, np.float32)
        landmarks[at] = labels.landmarks[rows]
    return Placed(numbers, occurrence, intensity, landmarks)


def place_events(
    labels: EventLabels, frames: Frames, medium: Medium, coded: frozenset[int], reading: Reading, *, strict: bool
) -> Placed:
    """Events → one row per frame.

    A frame belongs to an event if its middle lies in [onset, offset); an event too short for that gets the frame that is
    shown at its onset. In the coded span, AUs of `coded` are absent where no event says otherwise; outside of it all are
    NULL. Of overlapping events of an AU the larger counts. Raises DataError for an event of an AU that is wanted but not
    among the coded.
    """
    shape = (len(frames.numbers), len(reading.aus))
    occurrence, intensity = np.full(shape, UNNAMED, np.int8), np.full(shape, np.nan, np.float32)
    starts, ends = _spans(frames, labels, medium)
    beyond = 0
    for event in labels.events:
        for au in event.code.present:
            if coded and au in reading.aus.numbers and au not in coded:
                raise DataError(
                    f"{labels.sheet.where(event.line)}: AU {au} is coded here, but not among the coded_aus; add it there"
                )
        covered, late = _cover(event, starts, ends, framed=labels.framed)
        beyond += late
        _mark(occurrence, intensity, covered, event, reading)
    if beyond:
        note(f"{labels.sheet.path}: {beyond} events reach beyond the end of '{medium.media_id}'; clipped", strict=strict)
    _settle_unnamed(occurrence, intensity, coded, reading, labels.scored)
    outside = _outside(frames, medium)
    if (occurrence[outside] == 1).any():
        note(f"{labels.sheet.path}: events outside the coded span of '{medium.media_id}' are left out", strict=strict)
    occurrence[outside], intensity[outside] = NULL, np.nan
    return Placed(frames.numbers, occurrence, intensity)


def _of_one_face(labels: FrameLabels, medium: Medium, strict: bool) -> NDArray[np.int64]:
    """The rows of the subject: of the face that the media table names, else of the one that is seen in the most rows."""
    faces = sorted(set(labels.face.tolist()))
    if medium.face_id is not None and faces != [""]:
        if medium.face_id not in faces:
            note(f"{labels.sheet.path} has no face '{medium.face_id}', only {', '.join(faces)[:80]}", strict=strict)
        return np.flatnonzero(labels.face == medium.face_id)
    if len(faces) < 2:
        return np.arange(len(labels.face))
    seen = Counter(labels.face[(labels.occurrence != NULL).any(1)].tolist())
    chosen = max(faces, key=lambda face: seen[face])
    note(
        f"{labels.sheet.path} has {len(faces)} faces for '{medium.media_id}'; face '{chosen}' is taken, which is seen most; "
        "name another in the column face_id of the media table",
        strict=strict,
    )
    return np.flatnonzero(labels.face == chosen)


def _nearest_frames(
    labels: FrameLabels, rows: NDArray[np.int64], frames: Frames, medium: Medium, strict: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that have a frame, of those that share one the nearest, and the numbers of their frames."""
    if len(frames.numbers) == 0:
        return rows[:0], frames.numbers
    times, wanted = _need_times(frames, labels.sheet.path, medium), labels.keys[rows]  # type: ignore[index]
    right = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    right = np.minimum(right, len(times) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
    distance = np.abs(times[nearest] - wanted)
    near = distance <= _duration(times) * 1.001
    if (late := int((~near).sum())) > max(2, 0.005 * len(rows)):
        note(f"{labels.sheet.path}: {late} of {len(rows)} rows lie where '{medium.media_id}' has no frame", strict=strict)
    order = np.lexsort((np.arange(len(rows)), distance, nearest))
    order = order[near[order]]
    order = order[np.unique(nearest[order], return_index=True)[1]]
    if (shared := int(near.sum()) - len(order)) > 0:
        remark(f"{labels.sheet.path}: {shared} rows are nearer to a frame that another row labels")
    return rows[order], frames.numbers[nearest[order]]


def _sorted_once(
    labels: FrameLabels, rows: NDArray[np.int64], keys: NDArray[np.int64], medium: Medium, strict: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by ascending frame, each frame once."""
    order = np.argsort(keys, kind="stable")
    unsorted = int((np.diff(keys) < 0).sum())
    rows, keys = rows[order], keys[order]
    again = np.flatnonzero(np.diff(keys) == 0) + 1
    for i in again.tolist():
        a, b = rows[i - 1], rows[i]
        same = np.array_equal(labels.occurrence[a], labels.occurrence[b])
        if not same or not np.array_equal(labels.intensity[a], labels.intensity[b], equal_nan=True):
            first = labels.sheet.where(int(labels.lines[a])).rpartition(", ")[2]
            raise DataError(
                f"{labels.sheet.where(int(labels.lines[b]))}: '{medium.media_id}', frame {keys[i]} "
                f"is labelled otherwise in {first}"
            )
    if unsorted or len(again):
        note(
            f"{labels.sheet.path} ('{medium.media_id}'): {unsorted} rows out of order, sorted; "
            f"{len(again)} rows twice with the same labels, kept once",
            strict=strict,
        )
    keep = np.setdiff1d(np.arange(len(rows)), again)
    return rows[keep], keys[keep]


def _check_base(labels: FrameLabels, keys: NDArray[np.int64], frames: Frames, medium: Medium, strict: bool) -> None:
    """Label numbers that fit the media exactly when moved by one are counted from another base."""
    if len(keys) < 2 or len(frames.numbers) != len(keys):
        return
    shift = int(keys[0] - frames.numbers[0])
    if abs(shift) == 1 and np.array_equal(keys - shift, frames.numbers):
        remedy = "frame_base" if medium.kind != FRAMES else "frame_offset"
        note(
            f"{labels.sheet.path}: the labels of '{medium.media_id}' count from {keys[0]} and its frames from "
            f"{frames.numbers[0]}, which looks shifted by one; set {remedy} in the media table",
            strict=strict,
        )


def _settle_unnamed(
    occurrence: NDArray[np.int8], intensity: NDArray[np.float32], coded: frozenset[int], reading: Reading, scored: bool
) -> None:
    """AUs that no code names: absent if they belong to the coded ones, which is an intensity of 0 where any are scored."""
    for k, au in enumerate(reading.aus):
        unnamed = occurrence[:, k] == UNNAMED
        occurrence[unnamed, k] = 0 if au in coded else NULL
        if scored and au in coded:
            intensity[unnamed, k] = 0


def _spans(frames: Frames, labels: EventLabels, medium: Medium) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When each frame appears and when the next one does; in frame numbers, n and n + 1."""
    if labels.framed or len(frames.numbers) == 0:
        starts = frames.numbers.astype(np.float64)
        return starts, starts + 1
    starts = _need_times(frames, labels.sheet.path, medium)
    return starts, np.append(starts[1:], starts[-1] + _duration(starts))


def _cover(
    event: Event, starts: NDArray[np.float64], ends: NDArray[np.float64], *, framed: bool
) -> tuple[NDArray[np.bool_], bool]:
    """Which frames belong to an event, and whether it goes on for more than a frame after the last of them."""
    if len(starts) == 0:
        return np.zeros(0, np.bool_), False
    offset = event.offset + 1 if framed else event.offset
    middle = (starts + ends) / 2
    covered = (event.onset <= middle) & (middle < offset)
    if not covered.any():
        covered = (starts <= event.onset) & (event.onset < ends)
    return covered, bool(offset > 2 * ends[-1] - starts[-1])


def _mark(
    occurrence: NDArray[np.int8], intensity: NDArray[np.float32], covered: NDArray[np.bool_], event: Event, reading: Reading
) -> None:
    """Put one event down: present wins over absent, both over uncertain; the larger intensity over the smaller and none."""
    code = event.code
    for k, au in enumerate(reading.aus):
        if au in code.present:
            level = code.present[au]
            occurrence[covered, k] = np.maximum(occurrence[covered, k], 0 if level < reading.threshold else 1)
            intensity[covered, k] = np.fmax(intensity[covered, k], level)
        elif au in code.uncertain or not code.complete:
            unnamed = covered & (occurrence[:, k] == UNNAMED)
            occurrence[unnamed, k] = NULL


def _outside(frames: Frames, medium: Medium) -> NDArray[np.bool_]:
    """Frames before or after the coded span of the media table."""
    start, stop = medium.coded
    outside = np.zeros(len(frames.numbers), np.bool_)
    if (start is None and stop is None) or len(outside) == 0:
        return outside
    times = _need_times(frames, Path(medium.path), medium)
    middle = times + _duration(times) / 2
    if start is not None:
        outside |= middle < start
    if stop is not None:
        outside |= middle >= stop
    return outside


def _need_times(frames: Frames, path: Path, medium: Medium) -> NDArray[np.float64]:
    if frames.times is None:
        remedy = "its fps in the media table" if medium.kind == FRAMES else "a file with time stamps"
        raise DataError(
            f"{path} speaks of seconds, but when the frames of '{medium.media_id}' were taken is not known; give {remedy}"
        )
    return frames.times


def _duration(times: NDArray[np.float64]) -> float:
    """Of a usual frame, in seconds; where there is but one, a 25th."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.04
