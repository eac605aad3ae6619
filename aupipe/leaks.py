"""A look for leaks before a training: nobody, and no picture, is on two sides of a fold.

Subjects are compared by name and group. Pictures are compared because the same recording can be in a corpus twice under two
names: a few aligned faces of every session, small and grey, correlate almost perfectly with their copies, even if those were
compressed anew, and clearly less with the faces of other people.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.codec import decode_face
from aupipe.config import ALIGN_SIZE
from aupipe.folds import Fold, check_sides
from aupipe.schema import DataError
from aupipe.shards import load_index, read_window

_SIDE = 32  # pixels of a small face
# Copies at half the size and JPEG quality 50 correlate above 0.999; of 180 rendered people, who share their studios, the two
# most alike reach 0.935.
_SAME = 0.985
_FLAT = 4.0  # grey levels; a picture that varies less is blank, and blank pictures are all alike
_PER_SESSION, _AT_MOST = 4, 20_000  # faces looked at
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Twin:
    """Two almost equal pictures on different sides: (side, subject, session, row of the shard) of each."""

    first: tuple[str, str, str, int]
    second: tuple[str, str, str, int]
    correlation: float


def check_leaks(shards: Path, fold: Fold) -> None:
    """Raises DataError, with the names, if a person or a picture is on two sides of the fold."""
    check_sides(fold)
    twins = find_twins(shards, fold)
    if not twins:
        return
    shown = "; ".join(f"{_name(t.first)} and {_name(t.second)}" for t in twins[:3]) + (" …" if len(twins) > 3 else "")
    raise DataError(
        f"{fold.name}: {len(twins)} pictures are on two of its sides: {shown}; the same recording seems to be in {shards} "
        "under two names: remove one from the corpus, or put both into one group"
    )


def find_twins(shards: Path, fold: Fold) -> list[Twin]:
    """Almost equal pictures on different sides of a fold, among a few faces of every session, the most alike first."""
    side_of = {subject: side for side in ("train", "val", "test") for subject in getattr(fold, side)}
    index = load_index(shards)
    sessions = [entry for entry in index["sessions"] if entry["subject"] in side_of and entry["usable"]]
    count = max(1, min(_PER_SESSION, _AT_MOST // max(1, len(sessions))))
    # Of more sessions than can be compared, evenly spaced ones.
    sessions = sessions[:: max(1, -(-len(sessions) // _AT_MOST))]
    places, faces = [], []
    for entry in sessions:
        for row in _pick_rows(entry["usable"], count):
            face = _read_small(shards, entry["path"], row, index["align"][0])
            if face is not None:
                places.append((side_of[entry["subject"]], entry["subject"], entry["session"], row))
                faces.append(face)
    if not faces:
        return []
    return _compare(np.stack(faces), places)


def _compare(faces_ND: NDArray[np.float32], places: list[tuple[str, str, str, int]]) -> list[Twin]:
    side_N = np.array([place[0] for place in places])
    twins = []
    for start in range(0, len(faces_ND), _BLOCK):
        block = slice(start, start + _BLOCK)
        alike = faces_ND[block] @ faces_ND.T
        alike[side_N[block, None] == side_N] = 0
        for i, j in np.argwhere(alike > _SAME).tolist():
            if start + i < j:
                twins.append(Twin(places[start + i], places[j], float(alike[i, j])))
    return sorted(twins, key=lambda twin: -twin.correlation)


def _pick_rows(runs: list[list[int]], count: int) -> list[int]:
    """Evenly spaced rows out of stretches [start, length], the first among them."""
    rows = [row for start, length in runs for row in range(start, start + length)]
    return [rows[i] for i in sorted({len(rows) * n // count for n in range(count)})]


def _read_small(shards: Path, path: str, row: int, align: str) -> NDArray[np.float32] | None:
    """A small grey face as a vector of mean 0 and length 1; None for a blank one."""
    face = read_window(shards, path, row, 1, 1, [align])[align][0]
    image = decode_face(face.as_buffer(), ALIGN_SIZE[align]) if face.is_valid else None
    if image is None:
        return None
    grey: Any = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return None if small.std() < _FLAT else small / np.linalg.norm(small)


def _name(place: tuple[str, str, str, int]) -> str:
    side, subject, session, row = place
    return f"{side} {subject}/{session} row {row}"
