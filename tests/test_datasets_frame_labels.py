"""datasets/generic: tables with a row per frame, in every dialect, and every defect of such files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_recordings import (
    add_images,
    column,
    make_clip,  # noqa: F401 – a fixture
    make_folder,  # noqa: F401 – a fixture
    make_raw,  # noqa: F401 – a fixture
    read,
    values,
    write,
    write_video,
)

from aupipe.facs import AUSet
from aupipe.schema import DataError
from aupipe.video import Video, frame_times

TABLE = "media_id,frame,AU01_occ,AU12_int,valid\na,1,1,2.5,1\na,2,0,0,1\na,3,,,1\na,4,1,1.5,0\n"
AS_SAVED = {
    "crlf": lambda t: t.replace("\n", "\r\n").encode(),
    "cr": lambda t: t.replace("\n", "\r").encode(),
    "bom": lambda t: b"\xef\xbb\xbf" + t.encode(),
    "utf-16": lambda t: t.encode("utf-16"),
    "utf-16-be": lambda t: b"\xfe\xff" + t.encode("utf-16-be"),
    "cp1252": lambda t: (
        t.replace("valid", "valid,Kömmentar").replace(",1\n", ",1,ä\n").replace(",0\n", ",0,ö\n").encode("cp1252")
    ),
    "tab": lambda t: t.replace(",", "\t").encode(),
    "semicolon and decimal comma": lambda t: t.replace(",", ";").replace(".", ",").encode(),
    "quoted": lambda t: "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in t.splitlines()).encode(),
    "quoted decimal comma": lambda t: t.replace("2.5", '"2,5"').replace("1.5", '"1,5"').encode(),
    "spaces": lambda t: t.replace(",", " , ").encode(),
    "blank lines": lambda t: t.replace("\n", "\n\n").encode() + b"\n \n,,,,\n",
    "trailing commas": lambda t: t.replace("\n", ",\n").encode(),
    "sep": lambda t: b"sep=,\n" + t.encode(),
    "upper case": lambda t: t.replace("valid", "Valid").replace("frame", "Frame").replace("AU", "au").encode(),
    "numbers as floats": lambda t: t.replace(",1,", ",1.0,").replace(",0,", ",0.0,").replace("a,2,", "a,2.0,").encode(),
    "nan": lambda t: t.replace(",,,", ",NaN,NA,").encode(),
    "one more column": lambda t: "\n".join(f"x,{line}" for line in t.splitlines()).encode(),
}


@pytest.mark.parametrize("variant", AS_SAVED)
def test_table_as_others_save_it(raw, variant):
    write(raw / "labels.csv", AS_SAVED[variant](TABLE))
    table = read(raw, aus=AUSet((1, 12)), strict=True)
    assert values(table, "AU01_c") == [None, 1, 0, None, None, *[None] * 5]
    assert values(table, "AU12_r") == [None, 2.5, 0, None, None, *[None] * 5]


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("AU12_occ", "1", (1, None)),
        ("AU12_c,AU12_r", "0,2.0", (0, 2)),
        ("AU12_int", "0.5", (0, 0.5)),
        ("AU12_int", "C", (1, 3)),
        ("AU12_prob", "0.5", (1, None)),
        ("AU12_p", "0.49", (0, None)),
        ("AU12_p,AU12_c", "0.9,0", (0, None)),
        ("AU12", "1", (1, None)),
        ("AU 12", "0", (0, None)),
        ("AU12_L_int,AU12_R_int", "1,3", (1, 3)),
        ("AU12_L_occ,AU12_R_occ", "0,", (None, None)),
        ("AU12_L_occ,AU12_R_occ", "1,", (1, None)),
        ("AU12_L_int,AU12_R_int", "3,", (1, None)),
        ("AU12_L_occ,AU12_R_occ,AU12_occ", "1,1,0", (0, None)),
        ("Occ_au_12,Int_au_12", "1,4", (1, 4)),
    ],
)
def test_grammar_of_columns(raw, header, cells, expected):
    write(raw / "labels.csv", f"media_id,frame,{header}\na,3,{cells}\n")
    row = read(raw, aus=AUSet((12,)), strict=True).slice(3, 1).to_pylist()[0]
    assert (row["AU12_c"], row["AU12_r"]) == expected


def test_thresholds(raw):
    write(raw / "labels.csv", "media_id,frame,AU01_prob,AU12_int\na,0,0.6,1\na,1,0.8,2\n")
    table = read(raw, aus=AUSet((1, 12)), threshold=2, probability_threshold=0.7)
    assert values(table, "AU01_c")[:2] == values(table, "AU12_c")[:2] == [0, 1]
    assert values(table, "AU12_r")[:2] == [1, 2]


def test_labels_by_time_go_to_the_nearest_frame_of_the_real_stamps(raw):
    stamps = [0, 40, 80, 400, 440, 1000]  # milliseconds: a camera that slowed down
    write_video(raw / "videos/a.mp4", times=stamps)
    assert frame_times(raw / "videos/a.mp4") == pytest.approx(np.array(stamps) / 1000)
    write(raw / "labels.csv", "media_id,time_s,AU01_occ\na,0.041,1\na,0.41,1\na,0.395,0\na,00:00:01.0,1\na,7,1\n")
    table = read(raw, aus=AUSet((1,)))
    assert values(table, "frame") == list(range(6))
    assert values(table, "AU01_c") == [None, 1, None, 0, None, 1], "of two rows for frame 3 the nearer counts"


def test_times_of_a_folder_come_from_its_rate(folder):
    write(folder / "labels.csv", "media_id,time_s,AU01_occ\na,0.1,1\na,0.52,0\n")
    assert column(read(folder, aus=AUSet((1,)), strict=True), "AU01_c") == {**dict.fromkeys(range(5, 11)), 6: 1, 10: 0}
    write(folder / "media.csv", "media_id,path,kind,subject_id\na,pictures/a,frames,P1\n")
    with pytest.raises(DataError, match=r"labels\.csv speaks of seconds.*give its fps in the media table"):
        read(folder, aus=AUSet((1,)))


def test_packets_give_the_times_that_decoding_gives(tmp_path):
    for name, times in (("a.mp4", None), ("b.mkv", [0, 10, 50, 51, 300]), ("c.avi", None)):
        path = write_video(tmp_path / name, 12, times)
        assert frame_times(path) == pytest.approx([frame.time_s for frame in Video(path)], abs=1e-6)


def test_base_and_offset(raw, folder, caplog):
    write(raw / "labels.csv", "media_id,frame,AU01_occ\n" + "".join(f"a,{n},{n % 2}\n" for n in range(1, 11)))
    write(raw / "media.csv", "media_id,path,kind,subject_id,frame_base\na,videos/a.mp4,video,P1,1\n")
    right = read(raw, aus=AUSet((1,)), strict=True)
    assert values(right, "frame") == list(range(1, 11))
    assert values(right, "index") == list(range(10))
    write(raw / "media.csv", "media_id,path,kind,subject_id\na,videos/a.mp4,video,P1\n")
    assert read(raw, aus=AUSet((1,)), frame_base=1) == right
    wrong = read(raw, aus=AUSet((1,)))
    assert wrong.num_rows == 11
    assert "shifted by one; set frame_base" in caplog.text
    write(raw / "media.csv", "media_id,path,kind,subject_id,frame_offset\na,pictures/a,frames,P1,-1\n")
    table = read(raw, aus=AUSet((1,)))
    assert column(table, "source")[7] == "pictures/a/0006.jpg"


def test_labels_longer_or_shorter_than_the_recording(raw, caplog):
    write(raw / "labels.csv", "media_id,frame,AU01_occ\n" + "".join(f"a,{n},{n % 2}\n" for n in range(12)))
    table = read(raw, aus=AUSet((1,)), strict=True)
    assert table.num_rows == 12
    assert values(table, "source")[10:] == [None, None]
    write(raw / "labels.csv", "media_id,frame,AU01_occ\n" + "".join(f"a,{n},{n % 2}\n" for n in range(14)))
    assert read(raw, aus=AUSet((1,))).num_rows == 14
    assert "4 of 14 labelled frames have no image" in caplog.text
    with pytest.raises(DataError, match="4 of 14"):
        read(raw, aus=AUSet((1,)), strict=True)


def test_rows_twice_and_out_of_order(raw, caplog):
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,3,1\na,1,0\na,3,1\n")
    table = read(raw, aus=AUSet((1,)))
    assert values(table, "AU01_c")[:4] == [None, 0, None, 1]
    assert "1 rows out of order" in caplog.text
    assert "1 rows twice" in caplog.text
    with pytest.raises(DataError, match="out of order"):
        read(raw, aus=AUSet((1,)), strict=True)
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,3,1\na,1,0\na,3,0\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 4: 'a', frame 3 is labelled otherwise in line 2"):
        read(raw, aus=AUSet((1,)))


def test_two_faces(raw, caplog):
    rows = ["a,0,0,1", "a,0,1,0", "a,1,1,0", "a,2,1,1"]
    write(raw / "labels.csv", "media_id,frame,face_id,AU01_occ\n" + "\n".join(rows))
    assert values(read(raw, aus=AUSet((1,))), "AU01_c")[:3] == [0, 0, 1]
    assert "2 faces for 'a'; face '1' is taken" in caplog.text
    with pytest.raises(DataError, match="2 faces"):
        read(raw, aus=AUSet((1,)), strict=True)
    write(raw / "media.csv", "media_id,path,kind,subject_id,face_id\na,videos/a.mp4,video,P1,0\n")
    assert values(read(raw, aus=AUSet((1,)), strict=True), "AU01_c")[:3] == [1, None, None]


def test_two_coders(raw):
    write(raw / "labels.csv", "media_id,frame,coder,AU01_occ\na,0,ann,1\na,0,bob,0\n")
    with pytest.raises(DataError, match="labelled otherwise"):
        read(raw)
    assert values(read(raw, aus=AUSet((1,)), coder="bob"), "AU01_c")[0] == 0


def test_unknown_codes_are_declared(raw):
    write(raw / "labels.csv", "media_id,frame,AU01_occ,AU12_int\na,0,-1,999\na,1,-1.00,9\na,2,1,x\na,3,1,?\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 2: '-1' in AU01_occ is no occurrence.*option unknown_codes"):
        read(raw, aus=AUSet((1, 12)))
    table = read(raw, aus=AUSet((1, 12)), unknown_codes=[-1, 999, 9, "X"])
    assert values(table, "AU01_c")[:4] == [None, None, 1, 1]
    assert table["AU12_r"].null_count == 10


ROWS = "media_id,frame,AU01_occ,AU12_int\na,1,1,2\na,2,0,0\n"
FRAME_ERRORS = {
    "code 9": (ROWS.replace("a,2,0,", "a,2,9,"), "line 3: '9' in AU01_occ is no occurrence"),
    "9 in an intensity": (ROWS.replace("a,1,1,2", "a,1,1,9"), "line 2: '9' in AU12_int is no intensity"),
    "text": (ROWS.replace("a,1,1,2", "a,1,1,much"), "line 2: 'much' in AU12_int"),
    "infinite": (ROWS.replace("a,1,1,2", "a,1,1,inf"), "line 2: 'inf' in AU12_int"),
    "enormous": (ROWS.replace("a,1,", "a,10000000000,"), "line 2: '10000000000' is not a frame"),
    "negative": (ROWS.replace("a,1,", "a,-1,"), "line 2: '-1' is not a frame number"),
    "half a frame": (ROWS.replace("a,1,", "a,1.5,"), "line 2: '1.5' is not a frame number"),
    "no frame": (ROWS.replace("frame", "frames"), "line 1: there is no column frame or time_s"),
    "no AU": ("media_id,frame,smile\na,1,1\n", "line 1: no column of an AU.*is `preset`"),
    "short": (ROWS.replace("a,2,0,0", "a,2,0"), "line 3: 3 columns instead of 4"),
    "long": (ROWS.replace("a,2,0,0", "a,2,0,0,7"), "line 3: 5 columns instead of 4"),
    "open quote": (ROWS.replace("a,2", '"a,2'), "line 3"),
    "quotes over lines": (ROWS.replace("a,1,", '"a,1,').replace("a,2,", 'a",2,'), "line 2: a quotation mark is not closed"),
    "two columns": (ROWS.replace("AU12_int", "frame"), "line 1: two columns are called frame"),
    "valid": ("media_id,frame,AU01_occ,valid\na,1,1,perhaps\n", "line 2: 'perhaps' does not say"),
    "header only": ("media_id,frame,AU01_occ\n", "holds no labelled frame"),
    "empty": ("", "labels.csv is empty"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20, "labels.csv"),
}


@pytest.mark.parametrize("error", FRAME_ERRORS)
def test_malformed_table_names_file_and_line(raw, error):
    content, message = FRAME_ERRORS[error]
    write(raw / "labels.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        read(raw, aus=AUSet((1, 12)))
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_whatever_the_dialect_the_truth_comes_back(tmp_path_factory, data):
    """Random labels, written with a random separator, encoding, order and code for "not coded"; every other cell is null."""
    raw = tmp_path_factory.mktemp("dialect")
    add_images(raw / "a", range(8), digits=data.draw(st.integers(1, 5)))
    write(raw / "media.csv", "media_id,path,subject_id\na,a,P1\n")
    frames = data.draw(st.lists(st.integers(0, 7), unique=True, min_size=1))
    code, separator = data.draw(st.sampled_from(["", "9", "-1", "NaN"])), data.draw(st.sampled_from(",;\t"))
    truth = {
        f: (
            data.draw(st.sampled_from([0, 1, None])),
            data.draw(st.one_of(st.none(), st.integers(0, 20).map(lambda n: n / 4))),
        )
        for f in frames
    }
    names = data.draw(st.permutations(["media_id", "frame", "AU01_occ", "AU12_int", "Remark"]))
    point = "," if separator != "," and data.draw(st.booleans()) else "."
    rows = [names]
    for f, (present, level) in truth.items():
        cells = {"media_id": "a", "frame": f, "AU01_occ": present, "AU12_int": level, "Remark": "ä"}
        texts = (code if cells[n] is None else str(cells[n]) for n in names)
        rows.append([t.replace(".", point) for t in texts])
    text = data.draw(st.sampled_from(["\n", "\r\n", "\r"])).join(separator.join(row) for row in rows)
    write(raw / "labels.csv", text.encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))))
    table = read(raw, aus=AUSet((1, 12)), unknown_codes=[9, -1])
    assert values(table, "AU01_c") == [truth.get(n, (None, None))[0] for n in range(8)]
    assert values(table, "AU12_r") == [truth.get(n, (None, None))[1] for n in range(8)]
