"""datasets/generic: one's own recordings, with labels as people and programs write them; and every defect of such files."""

import csv
import io
import random
import re
import unicodedata
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe.datasets import build_manifest, dataset_of, get_dataset
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, manifest_schema
from aupipe.video import Video, frame_times

AUS = AUSet((1, 4, 12))


def write_video(path, count=10, times=None, rate=25):
    """`count` small frames, at `rate` or at `times` in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.codec_context.max_b_frames = 2
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for n in range(count if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 + 20 * (n % 10), np.uint8), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[n], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def add_images(folder, numbers, digits=4):
    for n in numbers:
        write(folder / f"{n:0{digits}d}.jpg", b"")


def read(raw, *, aus=AUS, strict=False, **options):
    return build_manifest(get_dataset("generic", aus, options), raw, strict=strict)


def column(table, name, by="frame"):
    return dict(zip(table[by].to_pylist(), table[name].to_pylist(), strict=True))


def values(table, name):
    return table[name].to_pylist()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten frames at 25 frames per second."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4").read_bytes()


@pytest.fixture
def raw(tmp_path, clip):
    """One video of ten frames, `a`, of subject P1; its labels are for the test to write."""
    write(tmp_path / "videos/a.mp4", clip)
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id\na,videos/a.mp4,video,P1\n")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """One folder of six images, 5 to 10, of subject P1, taken ten times a second."""
    add_images(tmp_path / "pictures/a", range(5, 11))
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id,fps\na,pictures/a,frames,P1,10\n")
    return tmp_path


# --- the table of media -----------------------------------------------------------------------------------------------


def test_video_gives_a_row_per_frame_with_its_position(raw):
    write(raw / "labels.csv", "media_id,frame,AU01_occ,AU12_int\na,2,1,3.5\na,3,0,0\n")
    table = read(raw, aus=AUSet((1, 12)), strict=True)
    assert table.schema == manifest_schema(AUSet((1, 12)))
    assert values(table, "frame") == values(table, "index") == list(range(10))
    assert set(values(table, "source")) == {"videos/a.mp4"}
    assert set(values(table, "subject")) == {"P1"}
    assert set(values(table, "session")) == {"a"}
    assert column(table, "AU01_c") == {**dict.fromkeys(range(10)), 2: 1, 3: 0}
    assert column(table, "AU12_r") == {**dict.fromkeys(range(10)), 2: 3.5, 3: 0.0}
    assert column(table, "AU12_c") == {**dict.fromkeys(range(10)), 2: 1, 3: 0}
    assert table["AU01_r"].null_count == 10


def test_folder_of_images_is_indexed_by_number(folder):
    (folder / "pictures/a/0007.jpg").rename(folder / "pictures/a/07.jpg")
    write(folder / "labels.csv", "media_id,frame,AU01_occ,AU04_occ,AU12_occ\na,7,1,0,1\na,12,0,0,0\n")
    table = read(folder)
    assert values(table, "frame") == [5, 6, 7, 8, 9, 10, 12]
    assert table["index"].null_count == 7
    assert column(table, "source")[7] == "pictures/a/07.jpg"
    assert column(table, "source")[12] is None
    assert column(table, "AU01_c") == {**dict.fromkeys(range(5, 11)), 7: 1, 12: 0}


def test_images_of_one_subject_and_session_are_one_recording(tmp_path):
    rows = ["i1,x/1.png,image,P1,", "i2,x/2.png,image,P1,", "i3,x/3.png,image,P2,", "i4,x/gone.png,image,P1,"]
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id,session\n" + "\n".join(rows))
    for n in (1, 2, 3):
        write(tmp_path / f"x/{n}.png", b"")
    write(tmp_path / "labels.csv", "media_id,AU01_occ,AU04_occ,AU12_occ\ni2,1,0,0\ni1,0,1,0\ni4,0,0,1\n")
    table = read(tmp_path)
    assert values(table, "subject") == ["P1", "P1", "P1", "P2"]
    assert values(table, "source") == ["x/1.png", "x/2.png", None, "x/3.png"]
    assert values(table, "frame") == [0, 1, 2, 0]
    assert values(table, "AU01_c") == [0, 1, 0, None]
    assert values(table, "AU12_c") == [0, 0, 1, None]


def test_columns_that_go_on_into_the_manifest(tmp_path):
    for name in "ab":
        add_images(tmp_path / name, range(2))
    write(
        tmp_path / "media.csv",
        "media_id,path,kind,subject_id,session,group_id,split,part,sex\na,a,frames,P1,day1,G,train,2,f\nb,b,,P2,,,,,m\n",
    )
    write(tmp_path / "labels.csv", "media_id,frame,AU01_c,AU04_c,AU12_c\na,0,1,1,1\nb,1,0,0,0\n")
    rows = read(tmp_path, strict=True).to_pylist()
    assert [rows[0][c] for c in ("subject", "session", "group", "split", "part")] == ["P1", "day1", "G", "train", "2"]
    assert [rows[2][c] for c in ("subject", "session", "group", "split", "part")] == ["P2", "b", None, None, None]


def test_media_table_as_parquet(raw):
    (raw / "media.csv").unlink()
    pq.write_table(pa.table({"media_id": ["a"], "path": ["videos/a.mp4"], "subject_id": [7]}), raw / "media.parquet")
    pq.write_table(
        pa.table({"media_id": ["a", "a"], "frame": [1, 2], "AU01_occ": [True, None], "AU12_int": [None, 2.5]}),
        raw / "labels.parquet",
    )
    table = read(raw, labels="labels.parquet", aus=AUSet((1, 12)))
    assert set(values(table, "subject")) == {"7"}
    assert values(table, "AU01_c")[:3] == [None, 1, None]
    assert values(table, "AU12_r")[:3] == [None, None, 2.5]
    pq.write_table(pa.table({"media_id": ["a"], "frame": [1], "AU01_occ": [2]}), raw / "labels.parquet")
    with pytest.raises(DataError, match=r"labels\.parquet, row 1: '2' in AU01_occ is no occurrence"):
        read(raw, labels="labels.parquet")


def test_media_inside_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for n in (10, 9):
            file.writestr(f"s/{n}.png", b"")
    write(tmp_path / "media.csv", "media_id,path,kind,subject_id\na,all.zip::s,frames,P1\n")
    write(tmp_path / "labels.csv", "media_id,frame,AU01_occ\na,9,1\n")
    table = read(tmp_path, aus=AUSet((1,)))
    assert values(table, "source") == ["all.zip::s/9.png", "all.zip::s/10.png"]
    assert values(table, "AU01_c") == [1, None]


def test_paths_that_differ_in_form_only(tmp_path):
    add_images(tmp_path / unicodedata.normalize("NFD", "Bär") / "Eins", [1])
    path = unicodedata.normalize("NFC", "bär") + "\\eins"
    write(tmp_path / "sub/media.csv", f"media_id,path,kind,subject_id\na,..\\{path},frames,P1\n")
    write(tmp_path / "labels.csv", "media_id,frame,AU01_occ\na,1,1\n")
    table = read(tmp_path, aus=AUSet((1,)), media="sub/media.csv")
    assert (tmp_path / values(table, "source")[0]).exists()


MEDIA_ERRORS = {
    "no subject": ("media_id,path,kind\na,videos/a.mp4,video\n", r"media\.csv, line 1: .*subject_id.*both sides of a fold"),
    "no path": ("media_id,subject_id\na,P1\n", "line 1: .*no column path"),
    "empty subject": ("media_id,path,subject_id\na,videos/a.mp4,\n", r"media\.csv, line 2: subject_id is empty"),
    "leads out": ("media_id,path,subject_id\na,../../etc/passwd,P1\n", r"line 2: the path .* leads out of"),
    "absolute": ("media_id,path,subject_id\na,/etc/passwd,P1\n", "line 2: the path .* leads out of"),
    "kind": ("media_id,path,kind,subject_id\na,videos/a.mp4,film,P1\n", "line 2: the kind 'film' is none of video"),
    "split": ("media_id,path,subject_id,split\na,videos/a.mp4,P1,dev\n", "line 2: the split 'dev'"),
    "fps": ("media_id,path,subject_id,fps\na,videos/a.mp4,P1,0\n", "line 2: fps is '0'"),
    "base": ("media_id,path,subject_id,frame_base\na,videos/a.mp4,P1,2\n", "line 2: frame_base is '2' instead of 0 or 1"),
    "coded aus": ("media_id,path,subject_id,coded_aus\na,videos/a.mp4,P1,smile\n", "line 2: coded_aus is 'smile'"),
    "coded span": (
        "media_id,path,subject_id,coded_from_s,coded_to_s\na,videos/a.mp4,P1,3,1\n", "line 2: coded_to_s lies before"
    ),
    "twice": (
        "media_id,path,subject_id\na,videos/a.mp4,P1\na,videos/b.mp4,P1\n", "line 3: the media_id 'a' stands for something"
    ),
    "one session": (
        "media_id,path,subject_id,session\na,videos/a.mp4,P1,s\nb,videos/b.mp4,P1,s\n", "line 3: 'P1' has a session 's'"
    ),
    "slash": ("media_id,path,subject_id\na,videos/a.mp4,P/1\n", "line 2: the subject_id 'P/1' cannot name a file"),
    "short row": ("media_id,path,subject_id\na,videos/a.mp4\n", "line 2: 2 columns instead of 3"),
    "no rows": ("media_id,path,subject_id\n", "lists no recording"),
    "empty": ("", "media.csv is empty"),
}  # fmt: skip


@pytest.mark.parametrize("error", MEDIA_ERRORS)
def test_malformed_media_table_names_file_and_line(raw, error):
    content, message = MEDIA_ERRORS[error]
    write(raw / "media.csv", content)
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,1,1\n")
    with pytest.raises(DataError, match=message) as caught:
        read(raw)
    assert "\n" not in str(caught.value)


def test_oddities_of_the_media_table(raw, caplog):
    write(raw / "labels.csv", "media_id,frame,AU01_occ,AU04_occ,AU12_occ\na,1,1,0,0\n")
    for rows, message in {
        "a,videos/a.mp4,P1\na,videos/a.mp4,P1\n": "'a' is listed twice",
        "a,videos/a.mp4,P1\nb,videos/a.mp4,P2\n": "'b' is the same file as 'a'",
        "a,videos/a.mp4,P1\nb,videos/b.mp4,p1\n": "'P1' and 'p1' one person",
        "a,videos/a.mp4,P1\nb,videos/b.mp4,P2\n": r"1 recordings \(b\) of the media table are not there",
    }.items():
        write(raw / "media.csv", "media_id,path,subject_id\n" + rows)
        assert values(read(raw), "AU01_c")[1] == 1
        assert re.search(message, caplog.text)
        with pytest.raises(DataError, match=message):
            read(raw, strict=True)


def test_labels_without_media_and_media_without_labels_are_both_reported(raw, clip, caplog):
    write(raw / "videos/b.mp4", clip)
    write(raw / "media.csv", "media_id,path,subject_id\na,videos/a.mp4,P1\nb,videos/b.mp4,P2\n")
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,1,1\nc,1,1\n")
    table = read(raw, aus=AUSet((1,)))
    assert table.num_rows == 20
    assert table["AU01_c"].null_count == 19
    assert "1 recordings (b) have no labels" in caplog.text
    assert "labels of 1 recordings ('c')" in caplog.text
    caplog.clear()
    for name in "ac":
        write(raw / f"labels/{name}.csv", "frame,AU01_occ\n1,1\n")
    table = read(raw, aus=AUSet((1,)), labels="labels/{media_id}.csv")
    assert table["AU01_c"].null_count == 19
    assert "1 recordings (b) have no labels" in caplog.text
    assert "labels of 1 recordings (c.csv)" in caplog.text
    with pytest.raises(DataError, match="have no labels"):
        read(raw, labels="labels/{media_id}.csv", strict=True)


def test_missing_recording_keeps_its_labels(raw):
    (raw / "videos/a.mp4").unlink()
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,4,1\na,5,0\n")
    table = read(raw, aus=AUSet((1,)))
    assert column(table, "AU01_c") == {4: 1, 5: 0}
    assert table["source"].null_count == 2


def test_what_is_no_video_is_reported_and_keeps_its_labels(raw, caplog):
    write(raw / "videos/a.mp4", b"no video")
    write(raw / "labels.csv", "media_id,frame,AU01_occ\na,4,1\n")
    assert column(read(raw, aus=AUSet((1,))), "AU01_c") == {4: 1}
    assert "a.mp4 is not a video" in caplog.text


def test_without_a_table_folders_name_the_subjects(tmp_path, clip):
    for place in ("day/Ann/x.mp4", "day/Bob/x.mp4"):
        write(tmp_path / place, clip)
        write((tmp_path / place).with_suffix(".csv"), f"frame,AU01_occ\n1,{int('Bob' in place)}\n")
    table = read(tmp_path, aus=AUSet((1,)), strict=True)
    assert values(table, "subject") == ["Ann"] * 10 + ["Bob"] * 10
    assert set(values(table, "session")) == {"x"}
    assert values(table, "AU01_c")[1] == 0
    assert values(table, "AU01_c")[11] == 1
    write(tmp_path / "y.mp4", clip)
    with pytest.raises(DataError, match=r"y\.mp4 lies in no folder named after its subject.*media\.csv"):
        read(tmp_path)


def test_label_file_that_is_not_there(raw):
    with pytest.raises(DataError, match=r"no label file .*labels\.csv; .*option labels"):
        read(raw)
    with pytest.raises(DataError, match="leads out"):
        read(raw, labels="../labels.csv")


def test_rows_of_several_recordings_need_their_names(raw, clip):
    write(raw / "videos/b.mp4", clip)
    write(raw / "labels.csv", "frame,AU01_occ,AU04_occ,AU12_occ\n1,1,0,0\n")
    assert values(read(raw, strict=True), "AU01_c")[1] == 1, "one recording needs no name"
    write(raw / "media.csv", "media_id,path,subject_id\na,videos/a.mp4,P1\nb,videos/b.mp4,P2\n")
    with pytest.raises(DataError, match=r"does not say whose rows are whose; add a column media_id"):
        read(raw)
    write(raw / "labels.csv", "media_id,frame,AU01_occ\nvideos/a.mp4,1,1\nB.mp4,1,1\nb.mp4,1,0\na,2,1\n")
    with pytest.raises(DataError, match="names the recording 'a' in two ways"):
        read(raw)
    write(raw / "labels/b.csv", "media_id,frame,AU01_occ\na,1,1\n")
    write(raw / "labels/a.csv", "media_id,frame,AU01_occ\nsomething else,1,1\n")
    table = read(raw, labels="labels/{media_id}.csv", aus=AUSet((1,)))
    assert values(table, "AU01_c")[1] == 1
    assert table["AU01_c"].null_count == 19
    with pytest.raises(DataError, match=r"b\.csv holds no label of 'b'"):
        read(raw, labels="labels/{media_id}.csv", strict=True, aus=AUSet((1,)))


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presets": "frame"}, "no option 'presets'; known are media, labels, preset"),
        ({"preset": "openfaec"}, "unknown preset 'openfaec'; known are frame, openface"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": "two"}, "threshold"),
        ({"probability_threshold": 50}, "probability_threshold"),
        ({"frame_base": 2}, "frame_base"),
        ({"labels": 3}, "labels"),
        ({"coded_aus": ["smile"]}, "coded_aus"),
        ({"unknown_codes": {"a": 1}}, "unknown_codes"),
        ({"labels": "{medium}.csv"}, r"labels.*\{media_id\}"),
    ],
)
def test_wrong_options(raw, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(raw, **options)
    assert "\n" not in str(caught.value)


def test_landmarks_come_with_two_presets_only():
    from aupipe.config import Corpus

    corpus = {"layout": "generic", "aus": (1, 12), "landmarks": "supplied"}
    assert dataset_of(Corpus(**corpus, options={"preset": "openface"})).landmark_scheme == "ibug68"
    with pytest.raises(ConfigError, match="no landmarks come with"):
        dataset_of(Corpus(**corpus, options={"preset": "frame"}))


# --- tables with a row per frame --------------------------------------------------------------------------------------

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


# --- tools ------------------------------------------------------------------------------------------------------------


def openface(rows, points=False):
    """As OpenFace 2 writes it, a space after each comma. rows: frame, face, success, AU01_c, AU12_r, AU12_c."""
    names = ["frame", "face_id", "timestamp", "confidence", "success", "gaze_0_x"]
    names += [f"{axis}_{k}" for axis in "xy" for k in range(68)] if points else []
    names += ["AU12_r", "AU01_c", "AU12_c", "AU28_c", "AU45_c"]
    lines = [", ".join(names)]
    for frame, face, success, au1, r12, au12 in rows:
        cells = [frame, face, f"{(frame - 1) / 25:.3f}", 0.98 * success, success, 0.1]
        cells += [f"{frame + k / 100 + 100 * (axis == 'y'):.2f}" for axis in "xy" for k in range(68)] if points else []
        lines.append(", ".join(map(str, [*cells, f"{r12:.2f}", f"{au1:.2f}", f"{au12:.2f}", "0.00", "0.00"])))
    return "\n".join(lines) + "\n"


def test_openface(raw):
    write(raw / "labels/a.csv", openface([(1, 0, 1, 1, 0.3, 0), (2, 0, 0, 0, 0, 0), (3, 0, 1, 0, 2.34, 1)]))
    table = read(raw, preset="openface", labels="labels/{media_id}.csv")
    assert values(table, "frame") == list(range(1, 11))
    assert values(table, "index") == list(range(10))
    assert values(table, "AU01_c")[:4] == [1, None, 0, None], "success = 0 is not absence"
    assert values(table, "AU12_c")[:4] == [0, None, 1, None]
    assert values(table, "AU12_r")[:4] == pytest.approx([0.3, None, 2.34, None])
    assert table["AU04_c"].null_count == 10
    assert table["landmarks"].null_count == 10


def test_openface_landmarks_and_faces(raw):
    rows = [(1, 0, 1, 1, 1, 1), (1, 1, 1, 0, 0, 0), (2, 0, 1, 0, 0, 0), (3, 0, 0, 0, 0, 0)]
    write(raw / "labels/a.csv", openface(rows, points=True))
    table = read(raw, preset="openface", labels="labels/{media_id}.csv", landmarks=True)
    assert values(table, "AU01_c")[:3] == [1, 0, None]
    points = values(table, "landmarks")
    assert np.reshape(points[1], (68, 2))[3] == pytest.approx([2.03, 102.03])
    assert points[2] is None
    assert points[9] is None


def test_openface_on_a_folder_of_images_counts_them(folder):
    write(folder / "labels/a.csv", openface([(1, 0, 1, 1, 0, 0), (6, 0, 1, 0, 5, 1)]))
    table = read(folder, preset="openface", labels="labels/{media_id}.csv")
    assert values(table, "frame") == [1, 2, 3, 4, 5, 6]
    assert values(table, "source")[0] == "pictures/a/0005.jpg"
    assert values(table, "AU12_r") == [0, None, None, None, None, 5]


def test_openface_image_mode(tmp_path):
    write(tmp_path / "media.csv", "media_id,path,subject_id\ni,i.png,P1\n")
    write(tmp_path / "i.png", b"")
    write(tmp_path / "i.csv", "face, confidence, AU01_r, AU01_c\n0, 0.98, 2.00, 1.00\n")
    assert values(read(tmp_path, preset="openface", labels="{stem}.csv"), "AU01_r") == [2]


def test_pyfeat(raw, caplog):
    lines = [
        ",frame,FaceRectX,FaceScore,AU01,AU04,AU12,Identity,input,approx_time",
        "0,0,10.0,0.99,0.2,0.8,0.5,Person_0,/home/me/a.mp4,00:00",
        "1,1,10.0,0.99,0.9,0.1,0.4,Person_0,/home/me/a.mp4,00:00",
        "2,1,90.0,0.99,0.1,0.1,0.1,Person_1,/home/me/a.mp4,00:00",
        "3,2,,,,,,Person_0,/home/me/a.mp4,00:00",
    ]
    write(raw / "labels.csv", "\n".join(lines))
    table = read(raw, preset="pyfeat")
    assert values(table, "frame") == list(range(10))
    assert values(table, "AU01_c")[:4] == [0, 1, None, None]
    assert values(table, "AU12_c")[:4] == [1, 0, None, None]
    assert table["AU12_r"].null_count == 10
    assert "2 faces" in caplog.text
    write(raw / "labels.csv", "\n".join([*lines[:3], lines[2], *lines[4:]]))  # issue: frames that come twice
    assert values(read(raw, preset="pyfeat"), "AU01_c")[:4] == [0, 1, None, None]
    write(raw / "labels.csv", "\n".join(lines).replace("0.2,0.8", "0.2,1.8"))
    with pytest.raises(DataError, match=r"labels\.csv, line 2: '1\.8' in AU04 is no probability"):
        read(raw, preset="pyfeat")


def test_libreface_times_are_not_believed(raw):
    lines = ["frame_idx,frame_time_in_ms,pitch,au_1,au_12,au_1_intensity,au_12_intensity,facial_expression"]
    lines += [f"{n},{n / 25},0.1,{n % 2},1,{n / 2},0.25,Happiness" for n in range(10)]  # seconds, whatever the name says
    write(raw / "labels.csv", "\n".join(lines))
    table = read(raw, preset="libreface", aus=AUSet((1, 12)), strict=True)
    assert values(table, "AU01_c") == [n % 2 for n in range(10)]
    assert values(table, "AU01_r") == [n / 2 for n in range(10)]
    assert values(table, "AU12_r") == [0.25] * 10
    assert values(table, "AU12_c") == [1] * 10


def test_libreface_training_list(tmp_path):
    write(tmp_path / "media.csv", "media_id,path,subject_id\n1,x/1.png,P1\n2,x/2.png,P1\n")
    for n in (1, 2):
        write(tmp_path / f"x/{n}.png", b"")
    write(tmp_path / "labels.csv", "image_path,au1,au12\nx/1.png,1,0\nx/2.png,0,1\n")
    assert values(read(tmp_path, preset="libreface", aus=AUSet((1, 12)), strict=True), "AU01_c") == [1, 0]


PREAMBLE = "Video analysis detailed log\nFace Model:\tGeneral\nStart time:\t1-2-2020 10:00:00\n"
PREAMBLE += "Filename:\tC:\\a.mp4\nFrame rate:\t25\n\n"


def facereader(cells):
    names = ["Video Time", "Neutral", "Action Unit 01 - Inner Brow Raiser", "Action Unit 12 - Lip Corner Puller"]
    names += ["Action Unit 12 - Lip Corner Puller - Left", "Action Unit 04 - Brow Lowerer - Left"]
    names += ["Action Unit 04 - Brow Lowerer - Right", ""]
    rows = [[f"00:00:{n / 25:06.3f}", "0.5", *row, ""] for n, row in enumerate(cells)]
    return PREAMBLE + "\n".join("\t".join(row) for row in [names, *rows])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_facereader(raw, encoding):
    lost = ["FIT_FAILED"] * 5
    text = facereader(
        [
            ["A", "NotActive", "C", "B", "NotActive"],
            lost,
            ["NotActive", "E", "C", "NotActive", "NotActive"],
            ["FIND_FAILED"] * 5,
        ]
    )
    write(raw / "labels/a.txt", text.encode(encoding))
    table = read(raw, preset="facereader", labels="labels/{media_id}.txt", strict=True)
    assert values(table, "frame") == list(range(10))
    assert values(table, "AU01_r")[:4] == [1, None, 0, None]
    assert values(table, "AU12_r")[:4] == [0, None, 5, None], "the whole face before its sides"
    assert values(table, "AU12_c")[:4] == [0, None, 1, None]
    assert values(table, "AU04_r")[:4] == [2, None, 0, None]
    assert values(table, "AU04_c")[:4] == [1, None, 0, None]


def test_facereader_with_numbers(raw):
    write(raw / "a.txt", facereader([["0.7", "0", "0", "0.6", "0"], ["FIT_FAILED"] * 5, ["0,3", "1", "1", "0", "0"]]))
    table = read(raw, preset="facereader", labels="a.txt")
    assert values(table, "AU01_c")[:3] == [1, None, 0]
    assert values(table, "AU04_c")[:3] == [1, None, 0]
    assert table["AU01_r"].null_count == 10
    write(raw / "a.txt", facereader([["0.7", "0", "0", "LOST", "0"]]))
    with pytest.raises(DataError, match=r"a\.txt, line 8: 'LOST' in Action Unit 04 - Brow Lowerer - Left"):
        read(raw, preset="facereader", labels="a.txt")
    write(raw / "a.txt", PREAMBLE)
    with pytest.raises(DataError, match="no header line"):
        read(raw, preset="facereader", labels="a.txt")


def test_round_trip_of_our_own_predictions(raw, aus):
    from aupipe.predictor import write_csv

    seen = np.array([True, True, False, True, True, True, False, True, True, True])
    columns = {
        "frame": pa.array(range(1, 11), pa.int64()),
        "face_id": pa.array([0] * 10, pa.int32()),
        "timestamp": pa.array([n / 25 for n in range(10)]),
        "confidence": pa.array([0.9] * 10),
        "success": pa.array(seen.astype(np.int8)),
        "status": pa.array(["ok" if s else "no_face" for s in seen]),
    }
    truth = np.random.default_rng(0).random((10, len(aus)))
    for k, (p, c) in enumerate(zip(aus.probability_columns, aus.columns, strict=True)):
        columns[p] = pa.array(truth[:, k], pa.float32(), mask=~seen)
        columns[c] = pa.array((truth[:, k] >= 0.5).astype(np.int8), mask=~seen)
    write_csv([pa.table(columns)], raw / "predictions/a.csv")
    table = read(raw, aus=aus, preset="openface", labels="predictions/{media_id}.csv", strict=True)
    for k, c in enumerate(aus.columns):
        assert values(table, c) == [int(t >= 0.5) if s else None for t, s in zip(truth[:, k], seen, strict=True)]
    assert values(table, "frame") == columns["frame"].to_pylist()
    again = read(raw, aus=aus, preset="frame", frame_base=1, labels="predictions/{media_id}.csv", strict=True)
    assert again == table


# --- events -----------------------------------------------------------------------------------------------------------

SPAN = "media_id,path,kind,subject_id,coded_aus,coded_from_s,coded_to_s\na,videos/a.mp4,video,P1,{},{},{}\n"


def test_events_in_a_coded_span(raw):
    """Frames of 40 ms, coded from 0.08 s to 0.36 s, which are frames 2 to 8; AU 4 is not coded."""
    write(raw / "media.csv", SPAN.format("1+12", 0.08, 0.36))
    rows = "a,AU12,0.16,0.28,0.2,C,L\na,1,0.24,0.24,,,\n"
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s,apex_s,intensity,side\n" + rows)
    table = read(raw, preset="interval", strict=True)
    no = None
    assert values(table, "AU12_c") == [no, no, 0, 0, 1, 1, 1, 0, 0, no]
    assert values(table, "AU12_r") == [no, no, 0, 0, 3, 3, 3, 0, 0, no]
    assert values(table, "AU01_c") == [no, no, 0, 0, 0, 0, 1, 0, 0, no], "an event at one moment is in one frame"
    assert values(table, "AU01_r") == [no, no, 0, 0, 0, 0, no, 0, 0, no], "present, but not scored"
    assert table["AU04_c"].null_count == 10


def test_rounded_bounds_do_not_move_an_event(raw):
    write_video(raw / "videos/a.mp4", 30, rate=30)
    bounds = [(first, last) for first in range(28) for last in range(first + 1, 30)]
    write(raw / "media.csv", SPAN.format("1", "", ""))
    for first, last in random.Random(0).sample(bounds, 12):
        write(raw / "labels.csv", f"media_id,au,onset_s,offset_s\na,1,{first / 30:.3f},{last / 30:.3f}\n")
        assert values(read(raw, preset="interval", strict=True), "AU01_c") == [int(first <= n < last) for n in range(30)]


def test_without_coded_aus_absence_is_not_known(raw, caplog):
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,12,0.1,0.2\n")
    table = read(raw, preset="interval")
    assert values(table, "AU12_c").count(1) == 3
    assert values(table, "AU12_c").count(0) == 0
    assert "only presences are known" in caplog.text
    with pytest.raises(DataError, match="only presences are known"):
        read(raw, preset="interval", strict=True)
    assert values(read(raw, preset="interval", coded_aus=[12], strict=True), "AU12_c").count(0) == 7


def test_overlapping_events_merge_by_the_larger(raw):
    write(raw / "media.csv", SPAN.format("1+12", "", ""))
    rows = ["a,12,0,0.20,2", "a,12,0.12,0.28,4", "a,12,0.16,0.20,", "a,12L,0.32,0.36,1"]
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s,intensity\n" + "\n".join(rows))
    table = read(raw, preset="interval", threshold=2)
    assert values(table, "AU12_r") == [2, 2, 2, 4, 4, 4, 4, 0, 1, 0]
    assert values(table, "AU12_c") == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "an intensity of 1 is below the threshold"


def test_events_beyond_the_end_are_clipped(raw, caplog):
    write(raw / "media.csv", SPAN.format("1", "", ""))
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.2,0.41\n")
    expected = [0] * 5 + [1] * 5
    assert values(read(raw, preset="interval", strict=True), "AU01_c") == expected, "less than a frame is no oddity"
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.2,7\na,1,8,9\n")
    assert values(read(raw, preset="interval"), "AU01_c") == expected
    assert "2 events reach beyond the end of 'a'; clipped" in caplog.text
    with pytest.raises(DataError, match="reach beyond the end"):
        read(raw, preset="interval", strict=True)


def test_events_outside_the_coded_span(raw, caplog):
    write(raw / "media.csv", SPAN.format("1", "0.2", ""))
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.1,0.3\n")
    assert values(read(raw, preset="interval"), "AU01_c") == [None] * 5 + [1, 1, 0, 0, 0]
    assert "outside the coded span" in caplog.text


def test_coded_recording_without_an_event(raw, clip):
    write(raw / "videos/b.mp4", clip)
    write(raw / "media.csv", "media_id,path,subject_id,coded_aus\na,videos/a.mp4,P1,1\nb,videos/b.mp4,P2,1\n")
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0,1\n")
    table = read(raw, preset="interval", aus=AUSet((1,)))
    assert values(table, "AU01_c")[10:] == [0] * 10, "it says itself that it was coded"
    write(raw / "media.csv", "media_id,path,subject_id\na,videos/a.mp4,P1\nb,videos/b.mp4,P2\n")
    table = read(raw, preset="interval", aus=AUSet((1,)), coded_aus=[1])
    assert values(table, "AU01_c")[10:] == [None] * 10, "nobody says that it was coded"
    for name in "ab":
        write(raw / f"l/{name}.csv", "au,onset_s,offset_s\n" + "1,0,0.2\n" * (name == "a"))
    table = read(raw, preset="interval", aus=AUSet((1,)), coded_aus=[1], labels="l/{media_id}.csv", strict=True)
    assert values(table, "AU01_c") == [1] * 5 + [0] * 15, "it has a file, and that is empty"


def test_events_in_frame_numbers_include_both_ends(folder):
    write(folder / "labels.csv", "media_id,aus,OnsetFrame,OffsetFrame\na,4+L12C,6,8\n")
    table = read(folder, preset="facs_strings", coded_aus=[1, 4, 12], strict=True)
    assert column(table, "AU12_r") == {5: 0, 6: 3, 7: 3, 8: 3, 9: 0, 10: 0}
    assert column(table, "AU04_c") == {5: 0, 6: 1, 7: 1, 8: 1, 9: 0, 10: 0}
    assert column(table, "AU01_c") == dict.fromkeys(range(5, 11), 0)


EVENTS = "media_id,au,onset_s,offset_s,intensity,side\na,12,0.1,0.2,2,L\na,1,0.1,0.2,,\n"
EVENT_ERRORS = {
    "backwards": (EVENTS.replace("a,1,0.1", "a,1,0.3"), "line 3: the offset 0.2 lies before the onset 0.3"),
    "no AU": (EVENTS.replace("a,1,", "a,smile,"), "line 3: 'smile' is no AU"),
    "not coded": (EVENTS.replace("a,1,", "a,4,"), "line 3: AU 4 is coded here, but not among the coded_aus"),
    "intensity": (EVENTS.replace(",2,L", ",7,L"), "line 2: '7' is no intensity of AU 12"),
    "side": (EVENTS.replace(",2,L", ",2,up"), "line 2: 'up' is no side"),
    "onset": (EVENTS.replace("a,1,0.1", "a,1,soon"), "line 3: 'soon' is not a time"),
    "negative": (EVENTS.replace("a,1,0.1", "a,1,-1"), "line 3: '-1' is not a time"),
    "no onset": (EVENTS.replace("onset_s", "start"), "line 1: there are no columns onset_s and offset_s"),
    "no au": (EVENTS.replace(",au,", ",unit,"), "line 1: there is no column au"),
}


@pytest.mark.parametrize("error", EVENT_ERRORS)
def test_malformed_events_name_file_and_line(raw, error):
    content, message = EVENT_ERRORS[error]
    write(raw / "labels.csv", content)
    with pytest.raises(DataError, match=rf"labels\.csv, {message}"):
        read(raw, preset="interval", coded_aus=[1, 12])


ELAN_NAMES = ["Tier", "Participant", "Begin Time - hh:mm:ss.ms", "Begin Time - ss.msec", "End Time - hh:mm:ss.ms"]
ELAN_NAMES += ["End Time - ss.msec", "Duration - hh:mm:ss.ms", "Duration - ss.msec", "Annotation"]


def elan(*annotations, names=True):
    rows = [ELAN_NAMES] if names else []
    for tier, begin, end, value in annotations:
        clocks = [f"00:00:{begin:06.3f}", f"{begin}", f"00:00:{end:06.3f}", f"{end}", "00:00:00.100", "0.1"]
        rows.append([tier, "", *clocks, value])
    return "\n".join("\t".join(row) for row in rows) + "\n"


@pytest.mark.parametrize("names", [True, False])
def test_elan(raw, caplog, names):
    text = elan(("AU12", 0.08, 0.2, "C"), ("1L", 0.0, 0.08, ""), ("Speech", 0, 0.4, 'he said "6"'), names=names)
    write(raw / "a.txt", text)
    table = read(raw, preset="elan", labels="a.txt", coded_aus=[1, 12])
    assert values(table, "AU12_r") == [0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    assert values(table, "AU01_c") == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert "the tiers Speech hold no FACS codes" in caplog.text


def test_elan_values_as_facs_strings(raw):
    write(raw / "a.txt", elan(("FACS", 0.0, 0.2, "4+12C"), ("FACS", 0.2, 0.4, "1?+12")).replace("\t\t", "\tp\t"))
    table = read(raw, preset="elan", labels="a.txt", coded_aus=[1, 4, 12], strict=True)
    assert values(table, "AU01_c") == [0] * 5 + [None] * 5
    assert values(table, "AU04_c") == [1] * 5 + [0] * 5
    assert values(table, "AU12_r") == [3] * 5 + [None] * 5
    write(raw / "a.txt", elan(("codes", 0.0, 0.2, "4+12C")))
    assert values(read(raw, preset="elan", labels="a.txt", tiers=["Codes"]), "AU12_c")[:6] == [1] * 5 + [None]
    with pytest.raises(DataError, match=r"a\.txt has no tier of an AU among 'codes'.*option tiers"):
        read(raw, preset="elan", labels="a.txt")
    write(raw / "a.txt", elan(("AU12", 0.0, 0.2, "wide")))
    with pytest.raises(DataError, match=r"a\.txt, line 2: 'wide' is no intensity of AU 12"):
        read(raw, preset="elan", labels="a.txt")
    assert values(read(raw, preset="elan", labels="a.txt", unknown_codes=["wide"], coded_aus=[12]), "AU12_c")[:6] == [
        None
    ] * 5 + [0]


def test_elan_that_cannot_be_read(raw):
    write(raw / "a.txt", "AU12\t0.1\t0.2\tC\n")
    with pytest.raises(DataError, match=r"a\.txt has no begin and end times as hh:mm:ss\.ms"):
        read(raw, preset="elan", labels="a.txt")
    write(raw / "a.txt", elan(("AU12", 0.0, 0.2, "C")).replace("00:00:00.000", "noon"))
    with pytest.raises(DataError, match=r"a\.txt, line 2: 'noon' is not a time"):
        read(raw, preset="elan", labels="a.txt")


def test_datavyu(raw):
    write(raw / "long.csv", "file,column,onset,offset,ordinal,code01\na.opf,AU12,80,200,1,3\na.opf,AU1,0,80,1,x\n")
    expected = [0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    table = read(raw, preset="datavyu", labels="long.csv", coded_aus=[1, 12], strict=True)
    assert values(table, "AU12_r") == expected
    assert values(table, "AU01_c") == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    names = "AU12.ordinal,AU12.onset,AU12.offset,AU12.intensity,AU1.ordinal,AU1.onset,AU1.offset,AU1.code01"
    write(raw / "wide.csv", f"{names}\n1,80,200,3,1,0,40,\n,,,,2,40,80,x\n")
    assert read(raw, preset="datavyu", labels="wide.csv", coded_aus=[1, 12], strict=True) == table
    write(raw / "long.csv", "file,column,onset,offset,ordinal,code01\na.opf,AU12,80,20,1,3\n")
    with pytest.raises(DataError, match=r"long\.csv, line 2: the offset 0\.02 lies before the onset 0\.08"):
        read(raw, preset="datavyu", labels="long.csv")


# --- FACS strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "au1", "au4", "au12"),
    [
        ("1+12", (1, None), (0, 0), (1, None)),
        ("1, L12C", (1, None), (0, 0), (1, 3)),
        ("AU1 AU12e", (1, None), (0, 0), (1, 5)),
        ("12AL+12BR", (0, 0), (0, 0), (1, 2)),
        ("1+12?", (1, None), (0, 0), (None, None)),
        ("1+?", (1, None), (None, None), (None, None)),
        ("04D;T23", (0, 0), (1, 4), (0, 0)),
        ("null", (0, 0), (0, 0), (0, 0)),
        ("0", (0, 0), (0, 0), (0, 0)),
        ("", (None, None), (None, None), (None, None)),
        ("?", (None, None), (None, None), (None, None)),
        ("61+1", (1, None), (0, 0), (0, 0)),
        ("1+72", (1, None), (0, 0), (None, None)),
        ("12+72", (0, 0), (0, 0), (1, None)),
        ("73", (None, None), (None, None), (None, None)),
        ("99x", None, None, None),
        ("1++x", None, None, None),
        ("112", None, None, None),
        ("12F", None, None, None),
        ("0+12", None, None, None),
        ("smile", None, None, None),
    ],
)
def test_facs_strings(raw, text, au1, au4, au12):
    write(raw / "labels.csv", f'media_id,frame,facs\na,2,"{text}"\na,3,12A\n')
    if au1 is None:
        with pytest.raises(DataError, match=rf"labels\.csv, line 2: {re.escape(repr(text))} is no FACS code"):
            read(raw, preset="facs_strings", coded_aus=[1, 4, 12])
        return
    row = read(raw, preset="facs_strings", coded_aus=[1, 4, 12], strict=True).slice(2, 1).to_pylist()[0]
    assert [(row[f"AU{n}_c"], row[f"AU{n}_r"]) for n in ("01", "04", "12")] == [au1, au4, au12]
    row = read(raw, preset="facs_strings").slice(2, 1).to_pylist()[0]
    assert [row[f"AU{n}_c"] for n in ("01", "04", "12")] == [1 if c == 1 else None for c, _ in (au1, au4, au12)]


def test_list_of_images_and_facs_strings(tmp_path):
    write(tmp_path / "media.csv", "media_id,path,subject_id\n1,x/0001.jpg,P1\n2,x/0002.jpg,P2\n")
    for n in (1, 2):
        write(tmp_path / f"x/000{n}.jpg", b"")
    write(tmp_path / "label.txt", "0001.jpg 1+2+L4B\n0002.jpg null\n")
    table = read(tmp_path, preset="facs_strings", labels="label.txt", coded_aus=[1, 4, 12], strict=True)
    assert values(table, "AU04_r") == [2, 0]
    assert values(table, "AU12_c") == [0, 0]
    write(tmp_path / "label.txt", "0001.jpg happy\n")
    with pytest.raises(DataError, match=r"label\.txt, line 1: there is no column facs"):
        read(tmp_path, preset="facs_strings", labels="label.txt")


# --- anything at all --------------------------------------------------------------------------------------------------


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


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40), st.sampled_from([None, 1, 2, 5])), max_size=6),
    span=st.tuples(st.integers(0, 40), st.integers(41, 100)),
)
def test_events_are_what_a_plain_loop_makes_of_them(tmp_path_factory, events, span):
    """Times in hundredths of a second on eight images, ten a second; no event is too short to hold a frame's middle."""
    raw = tmp_path_factory.mktemp("events")
    add_images(raw / "a", range(8))
    first, last = (n / 100 for n in span)
    write(
        raw / "media.csv", f"media_id,path,subject_id,fps,coded_aus,coded_from_s,coded_to_s\na,a,P1,10,12,{first},{last}\n"
    )
    events = [(start, start + length + 10, level) for start, length, level in events]
    rows = [f"a,12,{start / 100},{stop / 100},{'' if level is None else level}" for start, stop, level in events]
    write(raw / "labels.csv", "\n".join(["media_id,au,onset_s,offset_s,intensity", *rows]))
    table = read(raw, aus=AUSet((12,)), preset="interval", threshold=2)
    scored = any(level is not None for *_, level in events)
    for n in range(8):
        middle = 10 * n + 5
        here = [level for start, stop, level in events if start <= middle < stop]
        levels = [level for level in here if level is not None]
        inside = span[0] <= middle < span[1]
        present = any(level is None or level >= 2 for level in here)
        assert values(table, "AU12_c")[n] == (int(present) if inside else None)
        expected = max(levels) if levels else 0 if scored and not here else None
        assert values(table, "AU12_r")[n] == (expected if inside else None)


# --- the page for users -----------------------------------------------------------------------------------------------


def test_worked_example_of_the_page(tmp_path, clip):
    """docs/data.md shows these three files and what comes of them."""
    page = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    section = page[page.index("## Your own videos") :]
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
    media, labels, options, expected = (text for kind, text in blocks if kind in ("csv", "yaml"))
    write(tmp_path / "media.csv", media)
    write(tmp_path / "labels.csv", labels)
    for row in csv.DictReader(io.StringIO(media)):
        if row["kind"] == "video":
            write(tmp_path / row["path"], clip)
        else:
            add_images(tmp_path / row["path"], range(1, 4))
    import yaml

    from aupipe.config import Corpus, build

    corpus = build(Corpus, yaml.safe_load(options)["my-videos"], "docs/data.md")
    table = build_manifest(dataset_of(corpus), tmp_path, strict=True)
    found = {(r["subject"], r["session"], r["frame"]): r for r in table.to_pylist()}
    shown = list(csv.DictReader(io.StringIO(expected)))
    assert len(shown) >= 5
    for row in shown:
        real = found[row["subject"], row["session"], int(row["frame"])]
        for name, cell in row.items():
            if name not in ("subject", "session", "frame"):
                value = real[name]
                assert ("" if value is None else f"{value:g}" if isinstance(value, float) else str(value)) == cell, (
                    name,
                    row,
                )
