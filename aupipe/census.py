"""The census of a corpus: counts, base rates and their spread over subjects, bouts, gaps; plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.facs import AUSet
from aupipe.schema import OK, STATUSES, iter_sessions, label_arrays

Labels = NDArray[np.float32]  # NaN = not coded

# Positive frames per AU among BP4D's coded ones (solved from ME-GraphAU's published per-fold weights).
BP4D_FRAMES = 146_847
BP4D_POSITIVES = {
    1: 31_042, 2: 25_110, 4: 29_755, 6: 67_676, 7: 80_616, 10: 87_270,
    12: 82_530, 14: 68_375, 15: 24_869, 17: 50_406, 23: 24_288, 24: 22_229,
}  # fmt: skip


def coded_aus(manifest: pa.Table) -> AUSet:
    """The AUs that a manifest has a column of."""
    return AUSet(tuple(int(c[2:4]) for c in manifest.column_names if c.startswith("AU") and c.endswith("_c")))


def nan_labels(table: pa.Table, aus: AUSet) -> Labels:
    """Occurrence (N, M): 1, 0, or NaN where not coded."""
    labels_NM, mask_NM = label_arrays(table, aus)
    return np.where(mask_NM, labels_NM, np.float32(np.nan))


def number_subjects(table: pa.Table) -> NDArray[np.integer]:
    """A number per row, the same for the rows of one subject."""
    return _codes(table, "subject")


def number_blocks(table: pa.Table) -> NDArray[np.integer]:
    """A number per row that changes where the next row is not the next frame of the same session."""
    subject, session, frame = _codes(table, "subject"), _codes(table, "session"), table["frame"].to_numpy()
    breaks = (np.diff(subject) != 0) | (np.diff(session) != 0) | (np.diff(frame) != 1)
    return np.r_[0, np.cumsum(breaks)][: len(frame)]


def sessions_of_subjects(manifest: pa.Table) -> Counter[str]:
    """How many sessions each subject has."""
    return Counter(rows["subject"][0].as_py() for rows in iter_sessions(manifest))


def count_frames(manifest: pa.Table, sessions: Iterable[dict[str, Any]] | None) -> dict[str, Any]:
    """Subjects, sessions, frames, frames with a label, and of each status; `sessions` of a shard index, None before it."""
    coded = ~np.isnan(nan_labels(manifest, coded_aus(manifest)))
    of_subjects = sessions_of_subjects(manifest)
    status: Counter[str] = Counter()
    for entry in sessions or ():
        status.update(entry["status"])
    return {
        "subjects": len(of_subjects),
        "sessions": of_subjects.total(),
        "frames": manifest.num_rows,
        "coded": int(coded.any(1).sum()),
        "status": None if sessions is None else {name: status[name] for name in STATUSES},
    }


def occurrence_rates(labels_NM: Labels, subject_N: NDArray[np.integer]) -> list[dict[str, Any]]:
    """Per AU the coded and positive frames, their ratio, and the 10, 25, 50, 75 and 90 % points of the subjects' own rates.

    Frames that are not coded count in neither; a rate without a coded frame is None. Subjects weigh the same in the spread.
    """
    coded = ~np.isnan(labels_NM)
    positive_SM = np.zeros((subject_N.max(initial=0) + 1, labels_NM.shape[1]))
    coded_SM = np.zeros_like(positive_SM)
    np.add.at(coded_SM, subject_N, coded)
    np.add.at(positive_SM, subject_N, labels_NM == 1)
    rows = []
    for n_S, positive_S in zip(coded_SM.T, positive_SM.T, strict=True):
        n, positive, seen = int(n_S.sum()), int(positive_S.sum()), n_S > 0
        spread = np.quantile(positive_S[seen] / n_S[seen], [0.1, 0.25, 0.5, 0.75, 0.9]).tolist() if n else None
        rows.append({"coded": n, "positive": positive, "rate": positive / n if n else None, "spread": spread})
    return rows


def published_rates(aus: AUSet, layout: str) -> list[float | None]:
    """BP4D's own rate of each AU where the corpus has BP4D's layout and BP4D codes the AU."""
    return [BP4D_POSITIVES[n] / BP4D_FRAMES if layout == "bp4d" and n in BP4D_POSITIVES else None for n in aus]


def describe_bouts(label_N: Labels, block_N: NDArray[np.integer]) -> dict[str, Any]:
    """Stretches of an AU within a block of consecutive frames: their number, median, 90 % point and longest, in frames.

    `cut`: bouts of which a start or an end was not seen, because the neighbouring frame is not coded or not there; they
    count with the frames that were seen. `gaps` and `uncoded`: stretches and frames in which the AU is not coded.
    """
    value_N = np.where(np.isnan(label_N), -1, label_N)
    start = np.flatnonzero(np.r_[True, (np.diff(value_N) != 0) | (np.diff(block_N) != 0)][: len(value_N)])
    length, value, block = np.diff(np.r_[start, len(value_N)]), value_N[start], block_N[start]
    # Next to a bout in the same block is a stretch of another value: absent (0), or not coded (−1).
    joined = (block[1:] == block[:-1])[: max(len(start) - 1, 0)]
    known_before, known_after = np.r_[False, joined & (value[:-1] == 0)], np.r_[joined & (value[1:] == 0), False]
    is_bout, is_gap = value == 1, value == -1
    bouts = length[is_bout]
    median, ninety = np.quantile(bouts, [0.5, 0.9]).tolist() if len(bouts) else (None, None)
    return {
        "bouts": len(bouts),
        "median": median,
        "ninety": ninety,
        "longest": int(bouts.max()) if len(bouts) else None,
        "cut": int((is_bout & ~(known_before & known_after)[: len(start)]).sum()),
        "gaps": int(is_gap.sum()),
        "uncoded": int(length[is_gap].sum()),
    }


def frames_without_face(sessions: Iterable[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(subject, frames that gave no aligned face, all frames) of every subject with any, the largest share first."""
    bad: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for entry in sessions:
        rows[entry["subject"]] += entry["rows"]
        bad[entry["subject"]] += entry["rows"] - entry["status"].get(OK, 0)
    found = [(subject, n, rows[subject]) for subject, n in bad.items() if n]
    return sorted(found, key=lambda row: (-row[1] / row[2], row[0]))


def count_folds(manifest: pa.Table, folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name of each fold, and (subjects, frames) of its sides."""
    frames = Counter(manifest["subject"].to_pylist())
    sides = ("train", "val", "test")
    return [{"name": f["name"]} | {side: (len(f[side]), sum(frames[s] for s in f[side])) for side in sides} for f in folds]


def list_stretches(x_N: NDArray[np.integer]) -> list[list[int]]:
    """[first, length] of every stretch of consecutive numbers."""
    parts = np.split(x_N, np.flatnonzero(np.diff(x_N) != 1) + 1)
    return [[int(part[0]), len(part)] for part in parts if len(part)]


def _codes(table: pa.Table, column: str) -> NDArray[np.integer]:
    return table[column].combine_chunks().dictionary_encode().indices.to_numpy()
