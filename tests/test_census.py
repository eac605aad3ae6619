"""census.py counts: worked by hand, with frames that are not coded, sessions that end and frames that are left out."""

import numpy as np
import pyarrow as pa
import pytest

from aupipe import census
from aupipe.facs import AUSet
from aupipe.schema import manifest_schema

N = np.nan


def make_manifest(rows):
    """Rows of (subject, session, frame, AU01_c, AU12_c)."""
    aus = AUSet((1, 12))
    names = ["subject", "session", "frame", *aus.columns]
    layout = manifest_schema(aus)
    columns = {name: [row[names.index(name)] if name in names else None for row in rows] for name in layout.names}
    return pa.table(columns, schema=layout)


MANIFEST = make_manifest(
    [
        ("F001", "T1", 1, 1, 0),
        ("F001", "T1", 2, 1, None),
        ("F001", "T1", 4, None, None),  # frame 3 is not there
        ("F001", "T2", 5, 0, 1),
        ("M001", "T2", 6, 0, None),  # the next number and the same session's name, but somebody else
    ]
)


def test_frames_are_counted_with_and_without_an_index():
    counts = census.count_frames(MANIFEST, None)
    assert counts == {"subjects": 2, "sessions": 3, "frames": 5, "coded": 4, "status": None}
    entries = [{"status": {"ok": 2, "no_face": 1}}, {"status": {"ok": 1}}, {"status": {"missing": 1}}]
    status = census.count_frames(MANIFEST, entries)["status"]
    assert status == {"ok": 3, "no_face": 1, "bad_landmarks": 0, "unreadable": 0, "missing": 1}
    assert census.sessions_of_subjects(MANIFEST) == {"F001": 2, "M001": 1}


def test_block_ends_with_a_session_a_subject_or_a_frame_that_is_left_out():
    assert census.number_blocks(MANIFEST).tolist() == [0, 0, 1, 2, 3]
    assert census.number_blocks(MANIFEST.slice(0, 0)).tolist() == []


def test_rates_leave_out_what_is_not_coded():
    labels_NM = census.nan_labels(MANIFEST, AUSet((1, 12)))
    first, second = census.occurrence_rates(labels_NM, census.number_subjects(MANIFEST))
    assert (first["coded"], first["positive"], first["rate"]) == (4, 2, 0.5)
    # F001: 2 of 3, M001: 0 of 1; quantiles of (0, 2/3)
    assert first["spread"] == pytest.approx([2 / 30, 1 / 6, 1 / 3, 1 / 2, 0.6])
    assert (second["coded"], second["positive"], second["rate"]) == (2, 1, 0.5)
    assert second["spread"] == pytest.approx([0.5] * 5), "M001 has no coded frame of AU 12 and no rate"


def test_rate_of_an_au_that_is_nowhere_coded_is_none():
    (row,) = census.occurrence_rates(np.full((3, 1), N, np.float32), np.array([0, 0, 1]))
    assert row == {"coded": 0, "positive": 0, "rate": None, "spread": None}


@pytest.mark.parametrize(
    ("labels", "blocks", "bouts", "median", "cut", "gaps", "uncoded"),
    [
        ([0, 1, 1, 0, 1, 0], [0] * 6, 2, 1.5, 0, 0, 0),
        ([1, 1, 0], [0] * 3, 1, 2, 1, 0, 0),  # begins with the session
        ([0, 1, 1], [0] * 3, 1, 2, 1, 0, 0),  # ends with it
        ([0, 1, N, 1, 0], [0] * 5, 2, 1, 2, 1, 1),  # a gap cuts one bout into two
        ([0, 1, 1, 1, 0], [0, 0, 0, 1, 1], 2, 1.5, 2, 0, 0),  # another session
        ([N, N, 0, N], [0, 0, 1, 1], 0, None, 0, 2, 3),
        ([N, N], [0, 1], 0, None, 0, 2, 2),
        ([1], [0], 1, 1, 1, 0, 0),
        ([], [], 0, None, 0, 0, 0),
    ],
)
def test_bouts_and_gaps(labels, blocks, bouts, median, cut, gaps, uncoded):
    found = census.describe_bouts(np.array(labels, np.float32), np.array(blocks, int))
    assert (found["bouts"], found["median"], found["cut"]) == (bouts, median, cut)
    assert (found["gaps"], found["uncoded"]) == (gaps, uncoded)


def test_ninety_per_cent_point_and_longest_bout():
    labels = np.concatenate([[0] + [1] * length for length in range(1, 12)] + [[0]]).astype(np.float32)
    found = census.describe_bouts(labels, np.zeros(len(labels), int))
    assert (found["median"], found["ninety"], found["longest"], found["cut"]) == (6, 10, 11, 0)


def test_subjects_with_the_largest_share_of_lost_frames_come_first():
    entries = [
        {"subject": "A", "rows": 10, "status": {"ok": 9, "no_face": 1}},
        {"subject": "B", "rows": 4, "status": {"ok": 2, "missing": 2}},
        {"subject": "A", "rows": 10, "status": {"ok": 10}},
        {"subject": "C", "rows": 3, "status": {"ok": 3}},
        {"subject": "D", "rows": 2, "status": {"unreadable": 2}},
    ]
    assert census.frames_without_face(entries) == [("D", 2, 2), ("B", 2, 4), ("A", 1, 20)]


def test_folds_are_counted_in_subjects_and_frames():
    fold = {"name": "fold1", "train": ["F001"], "val": [], "test": ["M001"], "stats": {}}
    assert census.count_folds(MANIFEST, [fold]) == [{"name": "fold1", "train": (1, 4), "val": (0, 0), "test": (1, 1)}]


def test_published_rates_are_bp4ds():
    first, none, last = census.published_rates(AUSet((1, 9, 24)), "bp4d")
    assert none is None
    assert (round(first, 4), round(last, 4)) == (0.2114, 0.1514)
    assert census.published_rates(AUSet((1, 9)), "disfa") == [None, None]


def test_stretches_are_consecutive_numbers():
    assert census.list_stretches(np.array([2, 3, 4, 7, 9, 10])) == [[2, 3], [7, 1], [9, 2]]
    assert census.list_stretches(np.array([], int)) == []
