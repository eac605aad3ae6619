"""leaks.py: a recording that is in a corpus twice is found, whatever its name; other people's faces are no copies."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_shards

from aupipe import leaks
from aupipe.folds import Fold
from aupipe.leaks import check_leaks, find_twins
from aupipe.schema import DataError, LabelStats, write_table
from aupipe.shards import encode_jpeg

STATS = LabelStats(np.zeros(3), np.zeros((3, 3)), np.zeros(3, int))
FOLD = Fold("fold1", ("F001", "F002"), ("F003",), ("F004", "F005"), STATS)


def smooth_faces(folder, seed=0):
    """Shards whose pictures are smooth: a shape that all people share, something of the person's own, and a little noise."""
    shared = cv2.resize(np.random.default_rng(99).normal(0, 40, (8, 8)), (112, 112), interpolation=cv2.INTER_CUBIC)
    for path in sorted(folder.glob("*/*.parquet")):
        rng = np.random.default_rng([seed, int(path.parent.name[1:]), int(path.stem[1:])])
        own = cv2.resize(rng.normal(0, 25, (8, 8)), (112, 112), interpolation=cv2.INTER_CUBIC)
        table = pq.read_table(path)
        pictures = []
        for row in table["face112"].to_pylist():
            noise = rng.normal(0, 3, (112, 112))
            image = (128 + shared + own + noise).clip(0, 255).astype(np.uint8)
            pictures.append(row and encode_jpeg(np.repeat(image[..., None], 3, 2), 90))
        replace_pictures(path, pictures)
    return folder


def replace_pictures(path, pictures):
    table = pq.read_table(path)
    at = table.column_names.index("face112")
    write_table(table.set_column(at, "face112", pa.array(pictures, pa.binary())), path, compression="none")


@pytest.fixture
def folder(tmp_path):
    return smooth_faces(write_shards(tmp_path / "shards", subjects=5))


def test_people_who_look_alike_are_no_leak(folder):
    assert find_twins(folder, FOLD) == []
    check_leaks(folder, FOLD)


def compress(jpeg):
    """A copy at two thirds of the size, brighter, and compressed hard."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    small = cv2.resize(image, (75, 75), interpolation=cv2.INTER_AREA)
    return encode_jpeg(cv2.convertScaleAbs(cv2.resize(small, (112, 112)), alpha=0.9, beta=20), 50)


@pytest.mark.parametrize("change", [lambda jpeg: jpeg, compress])
def test_recording_under_another_name_is_found(folder, change):
    pictures = pq.read_table(folder / "F002/T1.parquet")["face112"].to_pylist()
    replace_pictures(folder / "F004/T2.parquet", [jpeg and change(jpeg) for jpeg in pictures])
    twins = find_twins(folder, FOLD)
    assert {(t.first[:3], t.second[:3]) for t in twins} == {(("train", "F002", "T1"), ("test", "F004", "T2"))}
    with pytest.raises(DataError, match=r"fold1: \d+ pictures.*train F002/T1 row 0 and test F004/T2 row 0.*one group"):
        check_leaks(folder, FOLD)
    together = replace(FOLD, train=("F001",), test=("F002", "F004", "F005"))
    check_leaks(folder, together)
    check_leaks(folder, replace(FOLD, test=("F005",)))


def test_val_side_is_compared_with_both(folder):
    for number, (source, target) in enumerate([("F001/T1", "F003/T1"), ("F005/T1", "F003/T2")]):
        shutil.copy(folder / f"{source}.parquet", folder / f"{target}.parquet")
        assert {t.first[0] for t in find_twins(folder, FOLD)} == [{"train"}, {"train", "val"}][number]


def test_person_on_two_sides_is_refused_before_any_picture_is_read(tmp_path):
    with pytest.raises(DataError, match=r"F004 \(test and train\)"):
        check_leaks(tmp_path / "absent", replace(FOLD, train=("F004",)))


def test_blank_pictures_are_not_compared(folder):
    blank = encode_jpeg(np.full((112, 112, 3), 30, np.uint8), 90)
    for name in ("F001/T1", "F004/T1"):
        replace_pictures(folder / f"{name}.parquet", [blank] * 20)
    assert find_twins(folder, FOLD) == []


def test_many_sessions_are_thinned_evenly(folder, monkeypatch):
    read = []
    real = leaks._read_small
    monkeypatch.setattr(
        leaks, "_read_small", lambda folder, path, row, align: read.append((path, row)) or real(folder, path, row, align)
    )
    find_twins(folder, FOLD)
    assert len(read) == 10 * 4
    for limit, expected in ((20, 20), (10, 10), (5, 5), (3, 3)):
        read.clear()
        monkeypatch.setattr(leaks, "_AT_MOST", limit)
        find_twins(folder, FOLD)
        assert len(read) == expected
