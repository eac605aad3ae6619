"""shards.py: a row for every frame, whatever becomes of it; a killed build goes on and ends in the same bytes."""

import logging
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import StubLandmarker
from test_landmarks import draw_face, grey

from aupipe import schema, shards
from aupipe.align import align
from aupipe.config import Corpus
from aupipe.datasets import build_manifest, get_dataset, list_files
from aupipe.facs import AUSet
from aupipe.landmarks import load_landmarker
from aupipe.schema import DataError
from aupipe.shards import build, load_index

CORPUS = Corpus(layout="bp4d", aus=(1, 6, 12), align=("face112",), max_bad_fraction=0.5)
# Frames of F001/T1: 4 is not in the corpus at all; what the others are made of decides what becomes of them.
KINDS = {1: "face", 2: "black", 3: "face", 5: "face", 6: "empty", 7: "white", 8: "absent", 9: "face"}
STATUS = {"face": "ok", "black": "no_face", "empty": "unreadable", "white": "bad_landmarks", "absent": "missing"}


@pytest.fixture
def stub(monkeypatch):
    stub = StubLandmarker()
    monkeypatch.setattr(shards, "load_landmarker", lambda name: stub)
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
    for column in manifest.column_names:
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
    task = SimpleNamespace(raw=raw, corpus=CORPUS)
    assert shards._face_row("../secret.jpg", task) == {"status": "unreadable"}
    assert shards._face_row("Sequences/M001/T1/0001.jpg", task)["status"] == "ok"
