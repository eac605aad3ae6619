"""datasets/affwild2: label files as others save them, malformed ones, and the multi-task file."""

import shutil

import pytest
from affwild2_trees import (
    HEADER,
    TREE,
    add_crops,
    add_labels,
    expected,
    lines,
    make_raw,  # noqa: F401 – a fixture
    manifest,
    of,
    row,
)
from raw_trees import SAVED_AS

from aupipe.facs import AU_SETS
from aupipe.schema import DataError

VARIANTS = SAVED_AS | {
    "blank lines at the end": lambda text: text.encode() + b"\n \n,,\n",
    "trailing commas": lambda text: text.replace("\n", ",\n").encode(),
    "trailing spaces": lambda text: text.replace("\n", "  \n").encode(),
    "space after the header": lambda text: text.replace("\n", " \n", 1).encode(),
    "padded names": lambda text: text.replace("AU1,AU2", "AU01,au02").encode(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_file_as_others_save_it(raw, variant, caplog):
    whole = manifest(raw)
    path = raw / TREE / "Train_Set/video1.txt"
    path.write_bytes(VARIANTS[variant](path.read_text()))
    assert manifest(raw, strict=True) == whole
    assert not caplog.records


ERRORS = {
    "blank line in the middle": (lambda t: lines(t, (4, ["", t.split("\n")[3]])), "line 4: a blank line"),
    "stray header": (lambda t: lines(t, (3, [HEADER, t.split("\n")[2]])), "line 3: 'AU1'"),
    "no header": (lambda t: lines(t, (1, None)), "line 1: expected a header"),
    "blank first line": (lambda t: "\n" + t, "line 1: expected a header"),
    "a name twice": (lambda t: t.replace("AU2,", "AU1,", 1), "line 1: expected a header"),
    "another name": (lambda t: t.replace("AU2,", "valence,", 1), "line 1: expected a header"),
    "unknown code": (lambda t: lines(t, (3, "2" + ",0" * 11)), r"line 3: '2' .* codes 0, 1, -1"),
    "minus five": (lambda t: lines(t, (3, "-5" + ",0" * 11)), "line 3: '-5'"),
    "blank code": (lambda t: lines(t, (3, "0,," + ",".join("0" * 10))), "line 3: ''"),
    "short row": (lambda t: lines(t, (3, "0,1")), "line 3: 2 AU columns instead of 12"),
    "long row": (lambda t: lines(t, (3, ",".join("0" * 13))), "line 3: 13 AU columns instead of 12"),
    "header only": (lambda t: HEADER + "\n", "no labelled frame"),
    "empty": (lambda t: "", "is empty"),
    "a picture": (lambda t: b"\xff\xd8\xff\xe0" + bytes(range(256)), "video1.txt"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_malformed_labels_name_file_and_line(raw, error):
    change, message = ERRORS[error]
    path = raw / TREE / "Train_Set/video1.txt"
    data = change(path.read_text())
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=message) as caught:
        manifest(raw)
    assert "video1.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_are_coded_in_part(raw, caplog):
    path = raw / TREE / "Train_Set/video1.txt"
    path.write_text(lines(path.read_text(), (3, "-1,1" + ",0" * 10)))
    table = manifest(raw)
    assert table["AU01_c"].to_pylist()[1] is None
    assert table["AU02_c"].to_pylist()[1] == 1
    assert "1 rows are −1 in some AUs" in caplog.text
    with pytest.raises(DataError, match="−1 in some AUs"):
        manifest(raw, strict=True)


MULTI_HEADER = f"image,valence,arousal,expression,{HEADER}"


def add_multi_task(raw, name="training_set_annotations.txt", rows=(), header=MULTI_HEADER):
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [header, *(f"{image},-5,-5,-1,{','.join(map(str, codes))}" for image, codes in rows)]
    path.write_text("".join(f"{line}\n" for line in text))
    return path


@pytest.fixture
def multi(raw):
    """video1 with rows for images 2, 3 and 5 of the train file, video2 with one of the validation file."""
    shutil.rmtree(raw / "6th ABAW Annotations")
    add_crops(raw, "video2")
    add_multi_task(raw, rows=[(f"video1/{n:05d}.jpg", row(n)) for n in (5, 2, 3)])
    add_multi_task(raw, "validation_set_annotations.txt", [("video2/00001.jpg", row(1))])
    return raw


@pytest.mark.parametrize("header", [MULTI_HEADER, MULTI_HEADER + " ", "image,valence,arousal,expression,aus"])
def test_multi_task_annotations(multi, header, caplog):
    path = multi / "training_set_annotations.txt"
    path.write_text(path.read_text().replace(MULTI_HEADER, header))
    table = manifest(multi, strict=True)
    first = of(table, "video1")
    assert first["frame"].to_pylist() == [1, 2, 3, 4, 5, 6]
    for k, column in enumerate(AU_SETS["affwild2"].columns):
        assert first[column].to_pylist() == [None, row(2)[k], None, None, row(5)[k], None]
    assert set(first["split"].to_pylist()) == {"train"}
    assert set(of(table, "video2")["split"].to_pylist()) == {"val"}
    assert manifest(multi, coded_only=True)["frame"].to_pylist() == [2, 3, 5, 1]
    assert not caplog.records


def test_multi_task_annotations_come_last(multi, caplog):
    add_labels(multi)
    table = manifest(multi)
    assert table["AU01_c"].to_pylist()[:6] == expected(0)
    assert "and not from training_set_annotations.txt" in caplog.text
    other = of(manifest(multi, annotations="training_set"), "video1")
    assert other["AU01_c"].to_pylist() == [None, row(2)[0], None, None, row(5)[0], None]


def test_a_second_pair_of_multi_task_files_is_not_mixed_in(multi, caplog):
    add_multi_task(multi, "training_set_annotations_22.txt", [("video1/00001.jpg", row(1))])
    assert of(manifest(multi), "video1")["AU01_c"].null_count == 4
    assert "training_set_annotations_22.txt" in caplog.text
    assert of(manifest(multi, annotations="_22"), "video1")["AU01_c"].to_pylist()[0] == row(1)[0]


def test_multi_task_rows_twice(multi, caplog):
    path = multi / "training_set_annotations.txt"
    once = path.read_text()
    path.write_text(once + once.split("\n")[1] + "\n")
    assert of(manifest(multi), "video1")["AU01_c"].null_count == 4
    assert "1 rows are there twice" in caplog.text
    path.write_text(once + "video1/00005.jpg,0,0,0," + ",".join("1" * 12) + "\n")
    with pytest.raises(DataError, match=r"line 5: video1/00005\.jpg was coded otherwise"):
        manifest(multi)


MULTI_ERRORS = {
    "no image": ("video1,0,0,0," + ",".join("0" * 12), "line 5: 'video1' is not an image"),
    "outside": ("../../etc/passwd,0,0,0," + ",".join("0" * 12), "line 5"),
    "code": ("video1/00006.jpg,0,0,0,7" + ",0" * 11, "line 5: '7'"),
    "short": ("video1/00006.jpg,0,0,0,1", "line 5: 1 AU columns instead of 12"),
}


@pytest.mark.parametrize("error", MULTI_ERRORS)
def test_malformed_multi_task_rows(multi, error):
    line, message = MULTI_ERRORS[error]
    path = multi / "training_set_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        manifest(multi)
    assert "training_set_annotations.txt" in str(caught.value)


def test_a_video_in_both_multi_task_files(multi):
    add_multi_task(multi, "validation_set_annotations.txt", [("video1/00001.jpg", row(1))])
    with pytest.raises(DataError, match="video1 is on both sides"):
        manifest(multi)
