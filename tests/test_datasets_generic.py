"""datasets/generic: the table of media, options, and the worked example of the page for users."""

import csv
import io
import re
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_recordings import (
    add_images,
    column,
    make_clip,  # noqa: F401 – a fixture
    make_folder,  # noqa: F401 – a fixture
    make_raw,  # noqa: F401 – a fixture
    read,
    values,
    write,
)

from aupipe.datasets import build_manifest, dataset_of
from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, manifest_schema


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
