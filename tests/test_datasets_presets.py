"""datasets/generic: what other programs export, and our own predictions."""

import numpy as np
import pyarrow as pa
import pytest
from own_recordings import (
    make_clip,  # noqa: F401 – a fixture
    make_folder,  # noqa: F401 – a fixture
    make_raw,  # noqa: F401 – a fixture
    read,
    values,
    write,
)

from aupipe.facs import AUSet
from aupipe.schema import DataError


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
