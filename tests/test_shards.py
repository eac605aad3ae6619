"""shards.py: a row for every frame, whatever becomes of it; a killed build goes on and ends in the same bytes."""

import errno
import logging
import pickle
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from shard_builds import (
    ALL,
    CORPUS,
    KINDS,
    inputs,
    make_raw,  # noqa: F401 – a fixture
    make_stub,  # noqa: F401 – a fixture
    run,
)
from test_blazemesh import draw_face, grey

from aupipe import faces, schema, shards
from aupipe.align import align
from aupipe.datasets import build_manifest, get_dataset
from aupipe.facs import AUSet
from aupipe.landmarks import load_landmarker
from aupipe.schema import DataError
from aupipe.shards import build, load_index

STATUS = {"face": "ok", "black": "no_face", "empty": "unreadable", "white": "bad_landmarks", "absent": "missing"}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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
