"""datasets/disfa: label files as others save them, malformed and mutated, and the landmarks that come with the corpus."""

import io
import random

import numpy as np
import pytest
from raw_trees import (
    FRAMES,
    SAVED_AS,
    add_labels,
    add_video,
    disfa_tree,
    levels_of,
    mutate,
    read,
    read_or_complain,
    zip_folder,
)
from scipy.io import savemat

from aupipe.datasets import build_manifest, get_dataset, survey
from aupipe.datasets._disfa_tree import parse_landmarks
from aupipe.datasets.disfa import LOST
from aupipe.schema import DataError


@pytest.fixture
def raw(tmp_path):
    return disfa_tree(tmp_path / "disfa")


def manifest(raw, **options):
    return read("disfa", raw, **options)


def points_file(points, **options):
    file = io.BytesIO()
    savemat(file, {"pts": points}, **options)
    return file.getvalue()


def points_of(frame):
    return np.arange(132, dtype=float).reshape(66, 2) + frame


VARIANTS = SAVED_AS | {
    "blank lines": lambda text: text.replace("\n", "\n\n").encode() + b" \n",
    "trailing commas": lambda text: text.replace("\n", ",\n").encode(),
    "trailing spaces": lambda text: text.replace("\n", "  \n").encode(),
    "padded numbers": lambda text: "".join(f"{line.zfill(7)}\n" for line in text.splitlines()).encode(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_file_as_others_save_it(raw, variant, caplog):
    path = raw / "ActionUnit_Labels/SN001/SN001_au12.txt"
    path.write_bytes(VARIANTS[variant](path.read_text()))
    assert manifest(raw, strict=True)["AU12_r"].to_pylist() == levels_of(12)
    assert not caplog.records


ODD = {
    "out of order": "2,1\n1,0\n3,2\n",
    "twice the same": "1,0\n2,1\n2,1\n3,2\n",
}


@pytest.mark.parametrize("kind", ODD)
def test_rows_out_of_order_or_twice(raw, kind, caplog):
    (raw / "ActionUnit_Labels/SN001/SN001_au12.txt").write_text(ODD[kind])
    assert manifest(raw)["AU12_r"].to_pylist() == [0, 1, 2, None, None, None]
    assert "SN001_au12.txt: " in caplog.text
    with pytest.raises(DataError, match="SN001_au12"):
        manifest(raw, strict=True)


ERRORS = {
    "unknown code": ("1,0\n2,6\n", r"SN001_au12\.txt, line 2: '6' .* codes 0, 1, 2, 3, 4, 5"),
    "nine": ("1,9\n", "line 1: '9'"),
    "minus one": ("1,0\n2,-1\n", "line 2: '-1'"),
    "fraction": ("1,0\n2,1.5\n", "line 2: '1.5'"),
    "blank": ("1,0\n2,\n", "line 2: ''"),
    "question mark": ("1,?\n", "line 1: '\\?'"),
    "conflict": ("1,0\n2,1\n2,2\n", "line 3: frame 2 was coded otherwise"),
    "no number": ("x,1\n", "line 1: 'x'"),
    "negative": ("-3,1\n", "line 1: '-3'"),
    "header": ("frame,intensity\n1,0\n", "line 1"),
    "one column": ("1\n", "line 1"),
    "three columns": ("1,0,1\n", "line 1"),
    "empty": ("", "holds no labelled frame"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)), "SN001_au12"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_malformed_labels_name_file_and_line(raw, error):
    data, message = ERRORS[error]
    path = raw / "ActionUnit_Labels/SN001/SN001_au12.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=message) as caught:
        manifest(raw, strict=True)
    assert "\n" not in str(caught.value)
    table, report = survey(get_dataset("disfa"), raw)
    assert report["errors"] == [str(caught.value)]
    assert table["AU12_c"].null_count == table["AU12_r"].null_count == FRAMES
    assert table["AU01_r"].to_pylist() == levels_of(1), "the other files are read"


def test_labels_that_count_from_0_are_not_read(raw):
    (raw / "ActionUnit_Labels/SN001/SN001_au12.txt").write_text("".join(f"{n},1\n" for n in range(FRAMES)))
    for strict in (True, False):
        with pytest.raises(DataError, match=r"frame 0.*count from 1"):
            manifest(raw, strict=strict)


def test_one_bad_file_does_not_hide_the_others(raw, caplog):
    for subject in ("SN002", "SN003"):
        add_video(raw / f"Videos_LeftCamera/LeftVideo{subject}_comp.avi")
        add_labels(raw / f"ActionUnit_Labels/{subject}", subject)
        (raw / f"ActionUnit_Labels/{subject}/{subject}_au1.txt").write_text("1,7\n")
    with pytest.raises(DataError, match=r"SN002_au1\.txt.*1 more"):
        manifest(raw, strict=True)
    assert "SN003_au1.txt" in caplog.text
    assert manifest(raw)["AU01_r"].null_count == 2 * FRAMES


def test_frames_with_lost_landmarks(raw):
    assert sum(last - first + 1 for ranges in LOST.values() for first, last in ranges) == 4670
    assert set(LOST) <= frozenset().union(*get_dataset("disfa").published.parts)
    assert all(1 <= first <= last <= 4845 for ranges in LOST.values() for first, last in ranges)
    path = raw / "Videos_LeftCamera/LeftVideoSN011_comp.avi"
    add_video(path)
    folder = raw / "ActionUnit_Labels/SN011"
    folder.mkdir()
    (folder / "SN011_au12.txt").write_text("".join(f"{n},3\n" for n in (4528, 4529, 4533, 4534, 4830, 4845)))
    rows = manifest(raw, mask_lost=True).filter((np.arange(2 * FRAMES + 6) >= 2 * FRAMES).tolist())
    assert rows["frame"].to_pylist() == [4528, 4529, 4533, 4534, 4830, 4845]
    assert rows["AU12_c"].to_pylist() == [1, None, None, 1, None, None]
    assert rows["AU12_r"].to_pylist() == [3, None, None, 3, None, None]
    assert manifest(raw)["AU12_c"].null_count == FRAMES  # the frames of SN011's video, which have no labels


NAMES = {
    "tmp_frame_lm": ("tmp_frame_lm", "SN001_{:04d}_lm.mat", 0),
    "frame_lm": ("frame_lm", "SN001_{:04d}_lm.mat", 0),
    "l": ("tmp_frame_lm", "l0{:04d}_lm.mat", 1),
}


def add_points(folder, name, base, frames=FRAMES, **options):
    folder.mkdir(parents=True)
    for n in range(frames):
        (folder / name.format(n + base)).write_bytes(points_file(points_of(n), **options))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("compressed", [False, True])
def test_supplied_landmarks(raw, kind, compressed, caplog):
    folder, name, base = NAMES[kind]
    add_points(raw / "Landmark_Points/SN001" / folder, name, base, do_compression=compressed)
    dataset = get_dataset("disfa", None, {"landmarks": True})
    assert dataset.landmark_scheme == "ibug66"
    table = build_manifest(dataset, raw, strict=True)
    for n, points in enumerate(table["landmarks"].to_pylist()):
        np.testing.assert_array_equal(np.reshape(points, (66, 2)), points_of(n) - 1)  # from pixel 0, not 1
    assert manifest(raw)["landmarks"].null_count == FRAMES
    assert not caplog.records


@pytest.mark.parametrize("tree", ["Landmark_Points/Landmark_Points", "Landmarks", "landmark_points", "Landmark_Point"])
def test_where_landmarks_lie(raw, tree):
    add_points(raw / tree / "SN001/frame_lm", "SN001_{:04d}_lm.mat", 0)
    whole = manifest(raw, landmarks=True, strict=True)
    assert whole["landmarks"].null_count == 0
    zip_folder(raw / tree / "SN001")
    assert manifest(raw, landmarks=True, strict=True) == whole
    zip_folder(raw / tree.split("/")[0])
    assert manifest(raw, landmarks=True, strict=True) == whole


def test_missing_and_spoilt_landmarks_are_null(raw, caplog):
    folder = raw / "Landmark_Points/SN001/frame_lm"
    add_points(folder, "l0{:04d}_lm.mat", 1)
    (folder / "l00002_lm.mat").unlink()
    (folder / "l00003_lm.mat").write_bytes(points_file(np.zeros((66, 2))))
    (folder / "l00004_lm.mat").write_bytes(points_file(np.full((66, 2), np.nan)))
    assert parse_landmarks(points_file(points_of(0) * 1e300)) is None
    whole = (folder / "l00005_lm.mat").read_bytes()
    table, report = survey(get_dataset("disfa", None, {"landmarks": True}), raw, strict=True)
    assert [points is None for points in table["landmarks"].to_pylist()] == [False, True, True, True, False, False]
    assert "landmarks of 3 frames, 2 files without any; they are counted from 1" in report["sessions"][0]["notes"]
    assert table["AU12_c"].null_count == 0
    (folder / "l00005_lm.mat").write_bytes(whole[: len(whole) // 2])
    assert manifest(raw, landmarks=True)["landmarks"].null_count == 4
    assert "1 files of landmarks cannot be read" in caplog.text
    assert "l00005_lm.mat" in caplog.text
    with pytest.raises(DataError, match=r"l00005_lm\.mat"):
        manifest(raw, landmarks=True, strict=True)


def test_a_subject_without_landmarks(raw, caplog):
    assert manifest(raw, landmarks=True)["landmarks"].null_count == FRAMES
    assert "no folder of landmarks of SN001" in caplog.text


def nested(depth):
    """A variable `pts` that is a cell in a cell in a cell …: a parser that goes down without looking dies of it."""
    value = np.zeros((66, 2))
    for _ in range(depth):
        cell = np.empty((1, 1), object)
        cell[0, 0] = value
        value = cell
    return points_file(value, do_compression=True)


HOSTILE = {
    "empty": b"",
    "text": b"pts = 66x2",
    "header alone": points_file(points_of(0))[:128],
    "half": points_file(points_of(0))[:600],
    "half compressed": points_file(points_of(0), do_compression=True)[:300],
    "MATLAB 7.3": b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n\x1a\n" + bytes(500),
    "other shape": points_file(np.zeros((49, 2))),
    "turned": points_file(np.zeros((2, 66))),
    "text variable": points_file(np.array("x" * 66)),
    "objects": nested(3),
    "struct": points_file({"a": np.zeros((66, 2))}),
    "other name": b"",
    "too large": points_file(np.random.default_rng(0).random((66, 2))) + bytes(2**16),
    "bomb": points_file(np.zeros((3000, 3000)), do_compression=True),
    "sizes that lie": points_file(points_of(0)).replace((66).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")),
    "pickle": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
}
HOSTILE["other name"] = points_file(points_of(0)).replace(b"pts", b"ptz")


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_landmark_files_are_one_sentence(kind):
    with pytest.raises(DataError) as caught:
        parse_landmarks(HOSTILE[kind])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_any_landmark_file_gives_points_or_one_sentence(compressed):
    whole = points_file(points_of(0), do_compression=compressed)
    for n in range(150):
        data = mutate(whole, random.Random(n))
        points = read_or_complain(lambda data=data: parse_landmarks(data))
        assert points is None or (points.shape == (132,) and points.dtype == np.float32 and np.isfinite(points).all())
