"""shards.py: a row for every frame, whatever becomes of it; a killed build goes on and ends in the same bytes."""

import errno
import logging
import pickle
import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import StubLandmarker
from test_blazemesh import draw_face, grey
from test_video import HEIGHT, WIDTH, write_video

from aupipe import faces, schema, shards
from aupipe.align import align, transform_points
from aupipe.config import Corpus
from aupipe.datasets import build_manifest, get_dataset, list_files
from aupipe.facs import AUSet
from aupipe.landmarks import load_landmarker
from aupipe.schema import DataError
from aupipe.shards import build, load_index
from aupipe.video import Video, read_frames

CORPUS = Corpus(layout="bp4d", aus=(1, 6, 12), align=("face112",), max_bad_fraction=0.5)
# Frames of F001/T1: 4 is not in the corpus at all; what the others are made of decides what becomes of them.
KINDS = {1: "face", 2: "black", 3: "face", 5: "face", 6: "empty", 7: "white", 8: "absent", 9: "face"}
STATUS = {"face": "ok", "black": "no_face", "empty": "unreadable", "white": "bad_landmarks", "absent": "missing"}


@pytest.fixture
def stub(monkeypatch):
    stub = StubLandmarker()
    monkeypatch.setattr(faces, "load_landmarker", lambda name: stub)
    return stub


@pytest.fixture
def raw(tmp_path):
    """A corpus in BP4D's layout: F001/T1 with the frames of KINDS, and M001/T1 and M002/T3 with five good frames each."""
    root = tmp_path / "bp4d"
    good = dict.fromkeys(range(5), "face")
    for subject, task, kinds in (("F001", "T1", KINDS), ("M001", "T1", good), ("M002", "T3", good)):
        write_session(root, subject, task, kinds)
    return root


def write_session(root, subject, task, kinds):
    folder = root / "Sequences" / subject / task
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(subject + task))
    for number, kind in kinds.items():
        level = {"black": 0, "white": 255}.get(kind)
        image = rng.integers(0, 256, (64, 64, 3), np.uint8) if level is None else np.full((64, 64, 3), level, np.uint8)
        if kind != "absent":
            (folder / f"{number:04d}.jpg").write_bytes(b"" if kind == "empty" else cv2.imencode(".jpg", image)[1].tobytes())
    labels = root / "AUCoding" / "AU_OCC" / f"{subject}_{task}.csv"
    labels.parent.mkdir(parents=True, exist_ok=True)
    # Columns AU 1, 6 and 12; frame 5 has no code for AU 6, frame 9 none at all.
    codes = {5: "1,9,0", 9: "9,9,9"}
    rows = [f"{n},{codes.get(n, f'{n % 2},1,0')}" for n in kinds]
    labels.write_text("\n".join(["0,1,6,12", *rows]) + "\n")


def inputs(raw):
    return build_manifest(get_dataset("bp4d", CORPUS.au_set), raw), list_files(raw)


class Counting:
    """A `map` in this process that notes which sessions were built, and dies after `limit` of them."""

    def __init__(self, limit=99):
        self.built, self.limit = [], limit

    def __call__(self, function, tasks):
        for task in tasks:
            if len(self.built) == self.limit:
                raise KeyboardInterrupt
            self.built.append("/".join(task.target.parts[-2:]))
            yield function(task)


def run(raw, out, corpus=CORPUS, manifest=None, limit=99):
    """Build, and return the sessions that were built anew."""
    table, inventory = inputs(raw)
    counting = Counting(limit)
    build(table if manifest is None else manifest, inventory, raw, out, corpus, map=counting)
    return counting.built


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


ALL = ["F001/T1", "M001/T1", "M002/T3"]


def test_every_row_of_the_manifest_has_its_row_and_status(stub, raw, tmp_path, caplog):
    manifest, inventory = inputs(raw)
    with caplog.at_level(logging.WARNING):
        index = build(manifest, inventory, raw, tmp_path / "out", CORPUS, map=map)
    tables = {e["path"]: pq.read_table(tmp_path / "out" / e["path"]) for e in index["sessions"]}
    both = pa.concat_tables(tables.values())
    for column in set(manifest.column_names) - {"landmarks"}:
        assert both[column].to_pylist() == manifest[column].to_pylist()
    table = tables["F001/T1.parquet"]
    assert table.schema == schema.shard_schema(CORPUS.au_set, ("face112",))
    assert dict(zip(table["frame"].to_pylist(), table["status"].to_pylist(), strict=True)) == {
        frame: STATUS[kind] for frame, kind in KINDS.items()
    }
    assert index["sessions"][0]["status"] == Counter(table["status"].to_pylist())
    assert "0006.jpg is empty" in caplog.text
    for column in ("face112", "face112_warp", "landmarks"):
        valid = [value is not None for value in table[column].to_pylist()]
        assert valid == [kind == "face" for kind in KINDS.values()]


def test_faces_are_aligned_as_a_predictor_would(stub, raw, tmp_path):
    run(raw, tmp_path / "out", replace(CORPUS, align=("face200", "face112")))
    row = pq.read_table(tmp_path / "out" / "F001" / "T1.parquet").to_pylist()[2]
    image = cv2.imread(str(raw / row["source"]))[:, :, ::-1]
    points = stub.find_face(image).landmarks
    np.testing.assert_array_equal(np.reshape(row["landmarks"], (49, 2)), points)
    assert row["confidence"] == 0.75
    for name, size in (("face200", 200), ("face112", 112)):
        expected = align(name, image, points)
        face = cv2.imdecode(np.frombuffer(row[name], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert face.shape == (size, size, 3)
        assert np.abs(face.astype(int) - expected.image).mean() < 6, "the same picture, but for JPEG at quality 95"
        np.testing.assert_allclose(np.reshape(row[f"{name}_warp"], (2, 3)), expected.warp, rtol=1e-5)


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


def test_drawn_face_is_found_in_a_corpus(tmp_path):
    folder = tmp_path / "bp4d" / "Sequences" / "F001" / "T1"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0001.jpg"), draw_face(grey(), 320, 250, 120)[:, :, ::-1])
    cv2.imwrite(str(folder / "0002.jpg"), grey())
    run(tmp_path / "bp4d", tmp_path / "out")
    assert pq.read_table(tmp_path / "out/F001/T1.parquet")["status"].to_pylist() == ["ok", "no_face"]
    fingerprint = load_landmarker("blazemesh").fingerprint
    assert load_index(tmp_path / "out")["landmarker"] == {"name": "blazemesh", "fingerprint": fingerprint}


def test_index_says_what_a_planner_needs(stub, raw, tmp_path):
    run(raw, tmp_path / "out")
    index = load_index(tmp_path / "out")
    assert index["aus"] == [1, 6, 12]
    assert index["align"] == ["face112"]
    assert [e["path"] for e in index["sessions"]] == [f"{name}.parquet" for name in ALL]
    first = index["sessions"][0]
    assert (first["subject"], first["session"], first["rows"]) == ("F001", "T1", 8)
    assert first["runs"] == [[0, 3], [3, 5]], "frame 4 is a gap"
    assert first["usable"] == [[0, 1], [2, 2]], "frames 1, 3 and 5: a face and a label; frame 9 has no label"


def test_image_that_went_after_the_manifest_is_missing(stub, raw, tmp_path):
    manifest, inventory = inputs(raw)
    (raw / "Sequences/M001/T1/0002.jpg").unlink()
    build(manifest, inventory, raw, tmp_path / "out", CORPUS, map=map)
    assert pq.read_table(tmp_path / "out/M001/T1.parquet")["status"].to_pylist() == ["ok", "ok", "missing", "ok", "ok"]


def test_second_build_makes_nothing_and_changes_nothing(stub, raw, tmp_path):
    assert run(raw, tmp_path / "out") == ALL
    before = contents(tmp_path / "out")
    assert run(raw, tmp_path / "out") == []
    assert contents(tmp_path / "out") == before


def test_killed_build_goes_on_to_the_same_bytes(stub, raw, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "killed", limit=1)
    assert sorted(contents(tmp_path / "killed")) == ["F001/T1.key", "F001/T1.parquet"], "finished sessions, and no index"
    with pytest.raises(DataError, match="dvc repro shards"):
        load_index(tmp_path / "killed")
    assert run(raw, tmp_path / "killed") == ALL[1:]
    run(raw, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_index_goes_before_the_first_shard_is_made_anew(stub, raw, tmp_path):
    run(raw, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "out", replace(CORPUS, jpeg_quality=50), limit=1)
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.unlink(), lambda p: p.write_text("")]
)
@pytest.mark.parametrize("suffix", ["parquet", "key"])
def test_damaged_session_is_made_anew(stub, raw, tmp_path, damage, suffix):
    run(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    damage(tmp_path / "out" / "M001" / f"T1.{suffix}")
    assert run(raw, tmp_path / "out") == ["M001/T1"]
    assert contents(tmp_path / "out") == before


def test_session_that_left_the_corpus_leaves_the_shards(stub, raw, tmp_path):
    run(raw, tmp_path / "out")
    note = tmp_path / "out" / "M001" / "note.txt"
    note.write_text("mine")
    manifest, _ = inputs(raw)
    rest = manifest.filter(pa.array([s != "M001" for s in manifest["subject"].to_pylist()]))
    assert run(raw, tmp_path / "out", manifest=rest) == []
    assert not (tmp_path / "out/M001/T1.parquet").exists()
    assert not (tmp_path / "out/M001/T1.key").exists()
    assert note.read_text() == "mine"
    assert [e["subject"] for e in load_index(tmp_path / "out")["sessions"]] == ["F001", "M002"]


def test_changed_file_or_label_remakes_its_session_alone(stub, raw, tmp_path):
    run(raw, tmp_path / "out")
    path = raw / "Sequences/M001/T1/0003.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert run(raw, tmp_path / "out") == ["M001/T1"]
    labels = raw / "AUCoding/AU_OCC/F001_T1.csv"
    labels.write_text(labels.read_text().replace("1,1,1,0", "1,9,1,0"))
    assert run(raw, tmp_path / "out") == ["F001/T1"]
    assert pq.read_table(tmp_path / "out/F001/T1.parquet")["AU01_c"][0].as_py() is None


@pytest.mark.parametrize("change", [{"jpeg_quality": 90}, {"align": ("face200",)}, {"aus": (1, 6)}])
def test_changed_parameter_remakes_every_session(stub, raw, tmp_path, change):
    run(raw, tmp_path / "out")
    corpus = replace(CORPUS, **change)
    manifest = build_manifest(get_dataset("bp4d", corpus.au_set), raw)
    assert run(raw, tmp_path / "out", corpus, manifest) == ALL
    table = pq.read_table(tmp_path / "out/M001/T1.parquet")
    assert table.schema == schema.shard_schema(AUSet.named(corpus.aus), corpus.align)


def test_changed_code_or_landmarker_remakes_every_session(stub, raw, tmp_path, monkeypatch):
    run(raw, tmp_path / "out")
    monkeypatch.setattr(stub, "fingerprint", "another")
    assert run(raw, tmp_path / "out") == ALL
    changed = tmp_path / "shards.py"
    changed.write_text("changed")
    monkeypatch.setattr(shards, "code", lambda *rooms: [changed])
    assert run(raw, tmp_path / "out") == ALL


def test_too_many_bad_frames_fail_the_build_and_keep_its_work(stub, raw, tmp_path):
    tight = replace(CORPUS, max_bad_fraction=3 / 18)
    with pytest.raises(DataError, match=r"4 of 18 frames.*1 no_face.*max_bad_fraction = 0\.16"):
        run(raw, tmp_path / "out", tight)
    assert not (tmp_path / "out" / "index.json").exists()
    assert run(raw, tmp_path / "out", replace(CORPUS, max_bad_fraction=4 / 18)) == []


def test_progress_counts_what_was_there_already(stub, raw, tmp_path):
    seen = []
    manifest, inventory = inputs(raw)
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "out", limit=1)
    build(manifest, inventory, raw, tmp_path / "out", CORPUS, map=map, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def rename(manifest, subject, session):
    columns = {"subject": [subject] * manifest.num_rows, "session": [session] * manifest.num_rows}
    return pa.table({n: columns.get(n, manifest[n]) for n in manifest.column_names}, schema=manifest.schema)


def test_a_task_takes_its_own_rows_alone_to_another_process(stub, raw, tmp_path):
    manifest, inventory = inputs(raw)
    sent = []

    def send(function, tasks):
        sent.extend((task, pickle.loads(pickle.dumps(task)), len(pickle.dumps(task))) for task in tasks)
        return map(function, tasks)

    build(manifest, inventory, raw, tmp_path / "out", CORPUS, map=send)
    for task, received, _ in sent:
        assert received.rows == received.manifest == task.rows
        assert (received.key, received.target, received.corpus) == (task.key, task.target, task.corpus)
        assert task.manifest is manifest
    large = pa.concat_tables([manifest, *[manifest.slice(len(KINDS))] * 500]).combine_chunks()
    first = replace(sent[0][0], manifest=large)
    assert len(pickle.dumps(first)) < 1.1 * sent[0][2]


@pytest.mark.parametrize(
    ("subject", "session"), [("../../evil", "T1"), ("..", "T1"), ("F001", ".."), ("/tmp", "T1"), ("", "T")]
)
def test_session_whose_name_leads_elsewhere_is_refused(stub, raw, tmp_path, subject, session):
    manifest = rename(inputs(raw)[0].slice(0, 2), subject, session)
    with pytest.raises(DataError, match="cannot name a file"):
        run(raw, tmp_path / "deep" / "out", manifest=manifest)
    assert not (tmp_path / "deep").exists()


def test_sessions_whose_names_differ_after_a_dot_are_two(stub, raw, tmp_path):
    manifest, _ = inputs(raw)
    two = pa.concat_tables([rename(manifest.slice(0, 2), "F001", name) for name in ("T1.5", "T1.6")])
    assert run(raw, tmp_path / "out", manifest=two) == ["F001/T1.5", "F001/T1.6"]
    for entry in load_index(tmp_path / "out")["sessions"]:
        assert pq.read_table(tmp_path / "out" / entry["path"])["session"].to_pylist() == [entry["session"]] * 2
    assert run(raw, tmp_path / "out", manifest=two) == []


def test_source_outside_the_raw_root_is_not_read(stub, raw, tmp_path):
    (tmp_path / "secret.jpg").write_bytes((raw / "Sequences/M001/T1/0001.jpg").read_bytes())
    manifest = inputs(raw)[0].filter(pc.field("subject") == "M001").slice(0, 3)
    sources = ["../secret.jpg", "Sequences/M001/T1/0001.jpg", "a.zip::../../secret.jpg"]
    manifest = manifest.set_column(manifest.column_names.index("source"), "source", pa.array(sources))
    run(raw, tmp_path / "out", manifest=manifest, corpus=replace(CORPUS, max_bad_fraction=1))
    assert pq.read_table(tmp_path / "out/M001/T1.parquet")["status"].to_pylist() == ["unreadable", "ok", "missing"]


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


def test_full_disk_is_one_sentence_and_leaves_nothing_half_written(stub, raw, tmp_path, monkeypatch):
    run(raw, tmp_path / "out", limit=99)
    (tmp_path / "out/M001/T1.key").unlink()
    real = pq.ParquetWriter.write_table

    def full(self, table, *args, **options):
        real(self, table, *args, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"cannot write .*M001/T1\.parquet: No space left on device"):
        run(raw, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.setattr(faces, "load_landmarker", lambda name: stub)
    assert run(raw, tmp_path / "out") == ["M001/T1"]
