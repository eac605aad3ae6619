"""shards.py: frames out of videos, zips and large images; faces supplied, found and prealigned."""

import tracemalloc
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import StubLandmarker
from shard_builds import (
    ALL,
    CORPUS,
    inputs,
    make_raw,  # noqa: F401 – a fixture
    make_stub,  # noqa: F401 – a fixture
    run,
)
from test_blazemesh import draw_face, grey
from test_video import HEIGHT, WIDTH, write_video

from aupipe import faces, schema
from aupipe.align import align, transform_points
from aupipe.datasets import list_files
from aupipe.shards import build, load_index
from aupipe.video import Video, read_frames


def test_shard_of_large_jpegs_speaks_of_source_pixels(tmp_path):
    """The decoder hands out half the size, and nothing of that is left in landmarks and warp."""
    folder = tmp_path / "bp4d" / "Sequences" / "F001" / "T1"
    folder.mkdir(parents=True)
    large = draw_face(grey(1280, 1040), 500, 620, 360)
    cv2.imwrite(str(folder / "0001.jpg"), large[:, :, ::-1])
    run(tmp_path / "bp4d", tmp_path / "out", replace(CORPUS, align=("face200",)))
    row = pq.read_table(tmp_path / "out/F001/T1.parquet").to_pylist()[0]
    points, warp = np.reshape(row["landmarks"], (49, 2)), np.reshape(row["face200_warp"], (2, 3))
    np.testing.assert_allclose((points[31] + points[37]) / 2, [500, 620 + 0.5 * 360], atol=30)
    np.testing.assert_allclose(warp, align("face200", large, points).warp, rtol=1e-5, atol=1e-3)
    face = cv2.imdecode(np.frombuffer(row["face200"], np.uint8), cv2.IMREAD_COLOR_RGB)
    expected = align("face200", large, points).image
    assert np.abs(face.astype(int) - expected).mean() < 3
    assert np.abs(np.roll(face, 2, 0).astype(int) - expected).mean() > 1.5 * np.abs(face.astype(int) - expected).mean()


def test_landmarker_of_ones_own_makes_the_shards(raw, tmp_path, monkeypatch):
    (tmp_path / "own_faces.py").write_text(
        "from conftest import StubLandmarker\nfrom aupipe.landmarks import Landmarker\n\n"
        "class Own(StubLandmarker, Landmarker):\n    name, fingerprint = 'own', '7'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run(raw, tmp_path / "out", replace(CORPUS, landmarks="own_faces:Own"))
    table = pq.read_table(tmp_path / "out/M001/T1.parquet")
    assert table["landmarker"].to_pylist() == ["own"] * 5
    assert table["confidence"].to_pylist() == [0.75] * 5
    assert load_index(tmp_path / "out")["landmarker"] == {"name": "own_faces:Own", "fingerprint": "7"}


def write_rows(count, source, indices=None, landmarks=None, **labels):
    """A manifest of F001/T1 with `count` frames out of one source, or out of the sources given."""
    columns = {
        "subject": ["F001"] * count,
        "session": ["T1"] * count,
        "frame": list(range(count)),
        "source": [source] * count if isinstance(source, str) else source,
        "index": indices,
        "landmarks": landmarks,
        "AU01_c": [1] * count,
    } | labels
    layout = schema.manifest_schema(CORPUS.au_set)
    return pa.table({name: columns.get(name) or [None] * count for name in layout.names}, schema=layout)


def build_rows(manifest, root, out, corpus=CORPUS):
    """The one shard of a manifest."""
    index = build(manifest, list_files(root), root, out, replace(corpus, max_bad_fraction=1), map=map)
    return pq.read_table(out / index["sessions"][0]["path"]), index


@pytest.fixture
def video(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    return write_video(root / "a.avi", 150, codec="mpeg4")


def test_frames_come_out_of_a_video(stub, video, tmp_path):
    table, _ = build_rows(write_rows(148, "a.avi", list(range(2, 150))), video.parent, tmp_path / "out")
    assert set(table["status"].to_pylist()) == {"ok"}
    assert table["index"].to_pylist() == list(range(2, 150))
    np.testing.assert_allclose(np.diff(table["time_s"].to_numpy()), 1 / 25, atol=1e-3)
    for row in table.take([0, 70, 147]).to_pylist():
        image = list(read_frames(video))[row["index"]].image
        expected = align("face112", image, stub.find_face(image).landmarks).image
        face = cv2.imdecode(np.frombuffer(row["face112"], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(face.astype(int) - expected).mean() < 3


def test_video_is_decoded_once_and_never_held_as_a_whole(stub, tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw/a.avi", 600, codec="mpeg4")
    passes = []
    whole = Video.__iter__
    monkeypatch.setattr(Video, "__iter__", lambda self: passes.append(1) or whole(self))
    manifest, inventory = write_rows(600, "a.avi", list(range(600))), list_files(tmp_path / "raw")
    tracemalloc.start()
    build(manifest, inventory, tmp_path / "raw", tmp_path / "out", CORPUS, map=map)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(passes) == 1
    assert peak < 600 * HEIGHT * WIDTH * 3 / 4, "the frames of the video are 22 MB"
    file = pq.ParquetFile(tmp_path / "out/F001/T1.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [64] * 9 + [24]


def test_truncated_video_keeps_its_decoded_part(stub, video, tmp_path):
    (video.parent / "a.avi").write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    table, index = build_rows(write_rows(150, "a.avi", list(range(150))), video.parent, tmp_path / "out")
    status = table["status"].to_pylist()
    kept = status.index("missing")
    assert 50 < kept < 130
    assert set(status[kept:]) == {"missing"}
    assert "ok" in status
    assert set(status[: kept - 2]) == {"ok"}
    assert table["AU01_c"].null_count == 0, "labels are kept"
    assert index["sessions"][0]["rows"] == 150


def test_members_of_a_zip_are_read_in_place(stub, raw, tmp_path):
    whole, _ = inputs(raw)
    with zipfile.ZipFile(raw / "M001.zip", "w") as archive:
        for image in sorted((raw / "Sequences/M001").rglob("*.jpg"), reverse=True):
            archive.write(image, f"T1/{image.name}")
    sources = [f"M001.zip::T1/{n:04d}.jpg" for n in range(5)]
    rows = whole.filter(pc.field("subject") == "M001")
    zipped = rows.set_column(rows.column_names.index("source"), "source", pa.array(sources))
    run(raw, tmp_path / "out", manifest=rows)
    run(raw, tmp_path / "zipped", manifest=zipped)
    plain, packed = (pq.read_table(tmp_path / f / "M001/T1.parquet") for f in ("out", "zipped"))
    assert plain.drop_columns("source") == packed.drop_columns("source")
    assert run(raw, tmp_path / "zipped", manifest=zipped) == []
    (raw / "M001.zip").write_bytes((raw / "M001.zip").read_bytes() + b"\0")
    assert run(raw, tmp_path / "zipped", manifest=zipped) == ["M001/T1"], "another zip, another shard"


def some_points(scheme_size, shift=0.0):
    """Plausible points of a 64-pixel image in a scheme of 49, 66 or 68, whose inner 49 are always the same."""
    inner = StubLandmarker().find_face(np.full((64, 64, 3), 99, np.uint8)).landmarks.astype(float) + shift
    if scheme_size == 49:
        return inner.ravel().tolist()
    jaw = np.column_stack([np.linspace(5, 60, 17), np.linspace(20, 60, 17)])
    both = np.concatenate([jaw, inner])
    return (both if scheme_size == 66 else np.insert(both, [60, 63], 30.0, axis=0)).ravel().tolist()


@pytest.mark.parametrize("size", [49, 66, 68])
def test_supplied_landmarks_are_used_and_those_that_cannot_be_are_found(stub, raw, tmp_path, size):
    good = some_points(size, 1.5)
    nan, corner, zero = (list(good) for _ in range(3))
    nan[7] = float("nan")
    corner[:4] = [-1.0] * 4  # zeros, once the origin is moved
    zero[:] = [0.0] * len(zero)
    far = (np.array(good) + 500).tolist()
    heap = [30.0] * len(good)
    points = [good, None, nan, corner, zero, far, heap, good[:10]]
    sources = [f"Sequences/M001/T1/{n % 5:04d}.jpg" for n in range(7)] + ["Sequences/F001/T1/0001.jpg"]
    table, index = build_rows(
        write_rows(8, sources, landmarks=points), raw, tmp_path / "out", replace(CORPUS, landmarks="supplied")
    )
    assert table["landmarker"].to_pylist() == ["supplied"] + ["blazemesh"] * 7
    assert table["confidence"].to_pylist() == [None] + [0.75] * 7
    assert set(table["status"].to_pylist()) == {"ok"}
    np.testing.assert_allclose(table["landmarks"][0].as_py(), some_points(49, 1.5), atol=1e-4)
    assert index["landmarker"] == {"name": "supplied", "fingerprint": "0"}
    moved = transform_points(
        np.reshape(table["landmarks"][0].as_py(), (49, 2)), np.reshape(table["face112_warp"][0].as_py(), (2, 3))
    )
    image = cv2.imread(str(raw / sources[0]))[:, :, ::-1]
    np.testing.assert_allclose(
        moved, align("face112", image, np.reshape(some_points(49, 1.5), (49, 2))).landmarks, atol=1e-2
    )


def test_landmarks_that_came_with_the_corpus_are_not_used_unasked(stub, raw, tmp_path):
    manifest = write_rows(1, "Sequences/M001/T1/0000.jpg", landmarks=[some_points(49, 1.5)])
    table, _ = build_rows(manifest, raw, tmp_path / "out")
    assert table["landmarker"].to_pylist() == ["blazemesh"]


def test_where_the_landmarks_come_from_is_part_of_a_sessions_key(stub, raw, tmp_path):
    assert run(raw, tmp_path / "out") == ALL
    assert run(raw, tmp_path / "out", replace(CORPUS, landmarks="supplied")) == ALL


def test_prealigned_faces_are_brought_to_size_and_nothing_else(monkeypatch, raw, tmp_path):
    monkeypatch.setattr(faces, "load_landmarker", lambda name: pytest.fail("no landmarker is needed"))
    corpus = replace(CORPUS, landmarks="prealigned", align=("face112", "face200"))
    table, _ = build_rows(write_rows(1, "Sequences/M001/T1/0000.jpg"), raw, tmp_path / "out", corpus)
    row = table.to_pylist()[0]
    assert (row["status"], row["landmarker"], row["landmarks"], row["confidence"]) == ("ok", "prealigned", None, None)
    image = cv2.imread(str(raw / "Sequences/M001/T1/0000.jpg"))[:, :, ::-1]
    for name, size in (("face112", 112), ("face200", 200)):
        face = cv2.imdecode(np.frombuffer(row[name], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert face.shape == (size, size, 3)
        expected = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        assert np.abs(face.astype(int) - expected)[2:-2, 2:-2].mean() < 6
        corners = transform_points([[-0.5, -0.5], [63.5, 63.5]], np.reshape(row[f"{name}_warp"], (2, 3)))
        np.testing.assert_allclose(corners, [[-0.5, -0.5], [size - 0.5, size - 0.5]], atol=1e-4)


class Crowd(StubLandmarker):
    """One person in the first frame, two from then on, of whom the first found is the wrong one."""

    frames = 0

    def find_faces(self, image):
        self.frames += 1
        face = self.find_face(image)
        stranger = replace(face, box=face.box + 100, landmarks=face.landmarks + 100)
        return [face] if self.frames == 1 else [stranger, face]


def test_two_faces_are_counted_and_the_session_stays_with_one(raw, tmp_path, monkeypatch, caplog):
    crowd = Crowd()
    monkeypatch.setattr(faces, "load_landmarker", lambda name: crowd)
    with caplog.at_level("WARNING"):
        table, index = build_rows(write_rows(5, [f"Sequences/M001/T1/{n:04d}.jpg" for n in range(5)]), raw, tmp_path / "out")
    assert table["n_faces"].to_pylist() == [1, 2, 2, 2, 2]
    assert table["status"].to_pylist() == ["ok"] * 5
    assert len({tuple(points) for points in table["landmarks"].to_pylist()}) == 1
    assert index["sessions"][0]["crowded"] == 4
    assert "1 sessions have frames with several faces (F001/T1), in 4 frames" in caplog.text


def test_faces_are_counted_where_somebody_looked(stub, raw, tmp_path):
    """A face; nobody; landmarks in one place; an image that is empty; none; and supplied points, for which nobody looks."""
    sources = [f"Sequences/F001/T1/{n:04d}.jpg" for n in (1, 2, 7, 6, 8, 1)]
    table, _ = build_rows(
        write_rows(6, sources, landmarks=[None] * 5 + [some_points(66, 0)]),
        raw,
        tmp_path / "out",
        replace(CORPUS, landmarks="supplied"),
    )
    assert table["n_faces"].to_pylist() == [1, 0, 1, None, None, None]
    points = np.reshape(table["landmarks"][0].as_py(), (49, 2))
    extent = max(points[:, 0].max() - points[:, 0].min(), points[:, 1].max() - points[:, 1].min())
    np.testing.assert_allclose(
        table["face_px"].to_pylist()[:1] + table["face_px"].to_pylist()[5:], [extent, extent], rtol=1e-5
    )
    assert table["face_px"].to_pylist()[1:5] == [None] * 4


def test_size_of_a_face_is_in_pixels_of_the_source(tmp_path):
    """Also where the decoder hands out half the size."""
    folder = tmp_path / "bp4d" / "Sequences" / "F001" / "T1"
    folder.mkdir(parents=True)
    for number, size in ((1, 360), (2, 180)):
        cv2.imwrite(str(folder / f"000{number}.jpg"), draw_face(grey(1280, 1040), 500, 620, size)[:, :, ::-1])
    run(tmp_path / "bp4d", tmp_path / "out")
    large, small = pq.read_table(tmp_path / "out/F001/T1.parquet")["face_px"].to_pylist()
    assert 360 < large < 720
    assert 1.8 < large / small < 2.2


@pytest.mark.parametrize("kind", ["black", "reflect"])
def test_border_of_a_face_is_an_alignment_of_its_own(stub, raw, tmp_path, kind):
    align_names = ("face112", f"face112-{kind}")
    table, index = build_rows(
        write_rows(1, "Sequences/M001/T1/0000.jpg"), raw, tmp_path / "out", replace(CORPUS, align=align_names)
    )
    assert index["align"] == list(align_names)
    plain, other = (cv2.imdecode(np.frombuffer(table[n][0].as_py(), np.uint8), cv2.IMREAD_COLOR) for n in align_names)
    assert table["face112_warp"].to_pylist() == table[f"face112-{kind}_warp"].to_pylist()
    assert np.abs(plain[0].astype(int) - 128).mean() < 4
    if kind == "black":
        assert other[0].mean() < 4
    else:
        assert other[0].std() > 20
