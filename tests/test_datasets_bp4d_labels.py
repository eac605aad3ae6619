"""datasets/bp4d: label files as others save them, and as they are malformed."""

import shutil

import pytest
from bp4d_trees import (
    LEGACY_HEADER,
    add_images,
    add_labels,
    legacy_row,
    make_raw,  # noqa: F401 – a fixture
    manifest,
    tidy,
)
from raw_trees import SAVED_AS

from aupipe.datasets import build_manifest, get_dataset, read_lines, survey
from aupipe.datasets._tables import NULL, read_codes
from aupipe.facs import AUSet
from aupipe.schema import DataError

NAMED_AUS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28, *range(29, 40))


VARIANTS = SAVED_AS | {
    "blank lines": lambda text: text.replace("\n", "\n\n").encode() + b"\n \n,,,\n",
    "trailing commas": lambda text: text.replace("\n", ",,\n").encode(),
    "trailing comma in the header": lambda text: text.replace("\n", ",\n", 1).encode(),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_file_as_others_save_it(raw, variant):
    expected = manifest(raw)
    add_labels(raw, "AU_OCC/F001_T1.csv", VARIANTS[variant](tidy(raw)))
    assert manifest(raw, strict=True) == expected


def test_named_header_of_later_releases(raw, caplog):
    expected = manifest(raw)
    rows = [
        ",".join([str(f), *(str({1: 0, 6: 9 if f == 5 else 1, 12: f % 2}.get(n, 9)) for n in NAMED_AUS)])
        for f in range(3, 8)
    ]
    header = ",".join(map(str, (1, *NAMED_AUS)))  # the frame's column is called 1 as well
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([header, *rows]))
    assert manifest(raw, strict=True) == expected
    beyond = get_dataset("bp4d", AUSet((6, 26)))
    assert build_manifest(beyond, raw)["AU26_c"].null_count == 10
    assert "no column for AU26" in caplog.text
    with pytest.raises(DataError, match="AU26"):
        build_manifest(beyond, raw, strict=True)


def replace_line(text, number, line):
    lines = text.split("\n")
    lines[number - 1] = line
    return "\n".join(lines)


ERRORS = {
    "unknown code": (lambda t: replace_line(t, 4, legacy_row(5, AU6=2)), r"F001_T1\.csv, line 4: '2' .* codes 0, 1, 9"),
    "blank code": (lambda t: replace_line(t, 4, legacy_row(5, AU6="")), "line 4: ''"),
    "frame coded in two ways": (
        lambda t: replace_line(t, 4, legacy_row(4)),
        "line 4: frame 4 was coded otherwise in line 3",
    ),
    "no number": (lambda t: replace_line(t, 4, legacy_row("x5")), "line 4: 'x5'"),
    "negative": (lambda t: replace_line(t, 2, legacy_row(-3)), "line 2: '-3'"),
    "enormous": (lambda t: replace_line(t, 6, legacy_row(10**12)), "line 6"),
    "short row": (lambda t: replace_line(t, 5, "6,0,1"), "line 5: 3 columns instead of 100"),
    "long row": (lambda t: replace_line(t, 5, legacy_row(6) + ",1"), "line 5: 101 columns instead of 100"),
    "no header": (lambda t: t.partition("\n")[2], "line 1: expected the header"),
    "wrong header": (lambda t: t.replace(",17,", ",71,", 1), "line 1"),
    "header only": (lambda t: t.partition("\n")[0], "no labelled frame"),
    "empty": (lambda t: "", "F001_T1.csv"),
    "a picture": (lambda t: b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20, "F001_T1.csv"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_malformed_labels_name_file_and_line(raw, error):
    change, message = ERRORS[error]
    add_labels(raw, "AU_OCC/F001_T1.csv", change(tidy(raw)))
    with pytest.raises(DataError, match=message) as caught:
        manifest(raw, strict=True)
    assert "\n" not in str(caught.value)
    table, report = survey(get_dataset("bp4d"), raw)
    assert report["errors"] == [str(caught.value)]
    assert table["AU06_c"].null_count == table.num_rows == 10, "its images keep their rows; its intensities are another file"
    assert table["AU06_r"].null_count < 10
    shutil.rmtree(raw / "AUCoding/AU_INT")
    with pytest.raises(DataError, match=message):
        manifest(raw)


@pytest.mark.parametrize(
    "data", ["3,6\n", "3,-1\n", "3\n", "3,1,1\n", "4,1\n4,2\n", "frame,intensity\n3,1\n", "", "3,1.5\n"]
)
def test_malformed_intensities(raw, data):
    path = add_labels(raw, "AU_INT/AU06/F001_T1_AU06.csv", data)
    expected = manifest(raw)["AU06_c"]
    with pytest.raises(DataError, match=path.name):
        manifest(raw, strict=True)
    table, report = survey(get_dataset("bp4d"), raw)
    assert [path.name in error for error in report["errors"]] == [True]
    assert table["AU06_r"].null_count == table.num_rows
    assert table["AU06_c"] == expected


def test_frames_out_of_order_or_twice_are_put_in_order(raw, caplog):
    expected = manifest(raw)
    header, *rows = tidy(raw).splitlines()
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([header, rows[3], *rows[:3], rows[1], rows[4]]))
    assert manifest(raw) == expected
    assert "2 rows out of order, sorted; 1 rows twice with the same codes, kept once" in caplog.text
    with pytest.raises(DataError, match=r"F001_T1\.csv: 2 rows out of order"):
        manifest(raw, strict=True)


def test_codes_come_in_the_order_of_frames(tmp_path):
    lines = ["7,1,9", "3,0,1", "", "5,1,0,,", "3,0,1"]
    frames, values = read_codes(tmp_path / "a", lines, [2, 1], {"0": 0, "1": 1, "9": NULL}, width=3)
    assert frames.tolist() == [3, 5, 7]
    assert values.tolist() == [[1, 0], [0, 1], [NULL, 1]]


def test_no_malformed_file_ends_the_run_and_all_are_named(raw, caplog):
    for subject in ("F002", "F003"):
        add_images(raw, f"{subject}/T1", range(10))
        add_labels(raw, f"AU_OCC/{subject}_T1.csv", tidy(raw).replace("6,", "x,", 1) if subject == "F003" else "nothing")
    with pytest.raises(DataError, match=r"F002_T1\.csv.*and 1 more") as caught:
        manifest(raw, strict=True)
    assert "\n" not in str(caught.value)
    assert "F003_T1.csv, line 1" in caplog.text
    caplog.clear()
    _, report = survey(get_dataset("bp4d"), raw)
    assert [entry["rows"] for entry in report["sessions"]] == [10, 10, 10]
    assert [entry["labelled"] for entry in report["sessions"]] == [5, 0, 0]
    assert [name in error for name, error in zip(("F002_T1", "F003_T1"), report["errors"], strict=True)] == [True, True]
    assert all(error in entry["notes"] for error, entry in zip(report["errors"], report["sessions"][1:], strict=True))
    assert "2 label files are malformed" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: {"AU1": 0, "AU6": 1, "AU12": 0}, "same labels"),
        (lambda f: {}, "no frame is coded"),
    ],
)
def test_constant_or_uncoded_recording_is_a_suspect(raw, caplog, change, words):
    """AU 6 and 12 do not change, or everything is 9: likely the wrong file."""
    shutil.rmtree(raw / "AUCoding/AU_INT")
    rows = [legacy_row(f, **change(f)) for f in range(3, 8)]
    add_labels(raw, "AU_OCC/F001_T1.csv", "\n".join([LEGACY_HEADER, *rows]))
    _, report = survey(get_dataset("bp4d"), raw)
    assert any(words in note for note in report["sessions"][0]["notes"])
    assert f"1 sessions, F001/T1 among them: {'all coded' if change(0) else 'no frame'}" in caplog.text


def test_text_of_other_code_pages_is_read(tmp_path):
    for encoding in ("cp1252", "utf-16", "utf-8", "utf-8-sig"):
        (tmp_path / "a").write_bytes("Größe;1\r\n".encode(encoding))
        assert read_lines(tmp_path / "a") == ["Größe;1"]


def test_missing_intensity_file_is_null_and_not_zero(raw, caplog):
    (raw / "AUCoding/AU_INT/AU06/F001_T1_AU06.csv").unlink()
    assert manifest(raw)["AU06_r"].null_count == 10
    assert "F001_T1_AU06.csv is missing" in caplog.text
    with pytest.raises(DataError, match=r"F001_T1_AU06\.csv is missing"):
        manifest(raw, strict=True)
