"""datasets/: what the generator writes in the layouts of three corpora comes back as it was made, whole or damaged."""

import builtins
import dataclasses
import functools
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_trees import TWELVE, read

from aupipe import assets, shards
from aupipe.config import SyntheticConfig
from aupipe.datasets import get_dataset, survey
from aupipe.facs import AUSet
from aupipe.folds import load_folds
from aupipe.synthetic import affwild2_files, bp4d_files, corpus, disfa_files
from aupipe.synthetic.camera import LANDSCAPE
from aupipe.synthetic.identity import name_subject
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import set_scene
from aupipe.synthetic.truth import landmarks

ROOT = Path(__file__).parents[1]
SPEC = SyntheticConfig(subjects=3, sessions=1, seconds=0.8, fps=10.0, size=128, seed=5)


@functools.cache
def one_actor(seed):
    return prepare_actor(seed, 0)


@pytest.fixture(autouse=True)
def one_face(monkeypatch):
    """Everybody has the first person's face: labels do not depend on it, and it is prepared once."""
    assets.fetch()
    monkeypatch.setattr(corpus, "prepare_actor", lambda seed, subject, rig: one_actor(seed))


def render(raw, layout, **changes):
    return corpus.render(dataclasses.replace(SPEC, **changes), raw, layout=layout, map=builtins.map)


def columns_of(aus, values, suffix):
    return {f"AU{au:02d}_{suffix}": int(value) for au, value in zip(aus, values, strict=True)}


def bp4d_truth(spec):
    """(subject, session) → frame → the cells that the generator coded."""
    for subject in range(spec.subjects):
        for session in range(1, spec.sessions + 1):
            scene = set_scene(spec, subject, session)
            occurrence, levels, unknown = scene.labels()
            frames = {}
            for n, (codes, scores, gone) in enumerate(zip(occurrence, levels, unknown, strict=True), scene.uncoded):
                kept = [m for m, lost in enumerate(np.broadcast_to(gone, len(AUS))) if not lost]
                scored = [m for m in kept if AUS[m] in bp4d_files.INTENSITY_AUS]
                frames[n] = columns_of([AUS[m] for m in kept], codes[kept], "c")
                frames[n] |= columns_of([AUS[m] for m in scored], scores[scored], "r")
            yield (name_subject(subject), f"T{session}"), frames


def disfa_truth(spec):
    """The same of both cameras; the last person's labels lack a row."""
    for subject in range(spec.subjects):
        scene = set_scene(spec, subject, 1, sessions=spec.sessions, aspect=LANDSCAPE)
        levels = disfa_files.read_levels(scene)[: scene.frames - (subject == spec.subjects - 1)]
        occurrence = scene.labels()[0]
        frames = {}
        for n, scores in enumerate(levels, 1):
            frames[n] = columns_of(disfa_files.CODED_AUS, scores, "r")
            frames[n] |= columns_of(disfa_files.CODED_AUS, scores >= 2, "c") | columns_of(AUS, occurrence[n - 1], "c")
        for camera in ("left", "right"):
            yield (f"SN{subject + 1:03d}", camera), frames


def affwild2_truth(spec):
    for subject in range(spec.subjects):
        for session in range(1, spec.sessions + 1):
            scene = set_scene(spec, subject, session)
            gone, frames = affwild2_files.leave_uncoded(scene), {}
            for n, codes in enumerate(scene.labels()[0]):
                frames[n + 1] = {} if gone[n] else columns_of(AUS, codes, "c")
            name = affwild2_files.name_video(spec, subject, session, 10.0)
            yield (name, name), frames


TRUTH = {"affwild2": affwild2_truth, "bp4d": bp4d_truth, "disfa": disfa_truth}
CODED = {"affwild2": affwild2_files.CODED_AUS, "bp4d": AUS, "disfa": disfa_files.CODED_AUS}


def check_labels(table, layout, spec, sessions=None):
    """Every cell of a manifest or of shards is what the generator coded, or null; returns how many are not null."""
    truth, coded = dict(TRUTH[layout](corpus.settle(spec, layout))), 0
    rows = table.select([c for c in table.column_names if c in ("subject", "session", "frame") or c.startswith("AU")])
    found = set()
    for row in rows.to_pylist():
        key = row.pop("subject"), row.pop("session")
        found.add(key)
        expected = truth[key].get(row.pop("frame"), {})
        assert row == {name: expected.get(name) if int(name[2:4]) in CODED[layout] else None for name in row}
        coded += sum(value is not None for value in row.values())
    assert found == (truth.keys() if sessions is None else {key for key in truth if key[1] in sessions})
    return coded


def test_disfa_comes_back(tmp_path):
    render(tmp_path, "disfa", right_camera=True)
    table = read("disfa", tmp_path, aus=AUSet(TWELVE), camera="both")
    for key, _ in disfa_truth(corpus.settle(SPEC, "disfa")):
        rows = of(of(table, "subject", key[0]), "session", key[1])
        assert rows["frame"].to_pylist() == list(range(1, rows.num_rows + 1))
        assert rows["index"].to_pylist() == list(range(rows.num_rows))
        assert rows["source"].null_count == 0
    assert check_labels(table, "disfa", SPEC) == 2 * 12 * (table.num_rows - 2)  # a row of the last person's, twice


def test_the_landmarks_of_disfa_come_back(tmp_path):
    render(tmp_path, "disfa", seconds=3.0, size=64)
    table = read("disfa", tmp_path, landmarks=True)
    spec, lost = corpus.settle(dataclasses.replace(SPEC, seconds=3.0, size=64), "disfa"), 0
    for subject in range(3):
        rows = of(table, "subject", f"SN{subject + 1:03d}")["landmarks"].to_pylist()
        scene = set_scene(spec, subject, 1, aspect=LANDSCAPE)
        for n, points in enumerate(rows):
            if points is None:
                lost += 1
            else:
                exact = landmarks(one_actor(SPEC.seed), scene, n, "ibug66")
                np.testing.assert_allclose(np.reshape(points, (66, 2)), exact, atol=1e-4)
    assert 1 <= lost < 30  # a file that is not there, and what the tracker lost
    assert read("disfa", tmp_path)["landmarks"].null_count == table.num_rows


def of(table, column, value):
    return table.filter([found == value for found in table[column].to_pylist()])


def test_affwild2_comes_back(tmp_path):
    render(tmp_path, "affwild2", sessions=2)
    table = read("affwild2", tmp_path, aus=AUSet((*affwild2_files.CODED_AUS, 9)))
    spec = corpus.settle(dataclasses.replace(SPEC, sessions=2), "affwild2")
    for subject in range(3):
        for session in (1, 2):
            rows = of(table, "session", affwild2_files.name_video(spec, subject, session, 10.0))
            scene = set_scene(spec, subject, session)
            assert rows["frame"].to_pylist() == list(range(1, scene.frames + 1))
            assert [source is None for source in rows["source"].to_pylist()] == affwild2_files.lose_crops(scene).tolist()
            assert set(rows["split"].to_pylist()) == {"val" if subject == 2 else "train"}
    assert 0 < check_labels(table, "affwild2", spec) < 12 * table.num_rows


@pytest.mark.parametrize("layout", ["bp4d", "disfa", "affwild2"])
def test_through_the_doors_labels_equal_the_truth(tmp_path, monkeypatch, layout):
    """Raw tree → inventory → manifest → shards → folds, as `dvc repro` runs them; every cell of the shards is compared."""
    changes = {"subjects": 6, "sessions": 2, "size": 64, "uncoded": 1}
    name = f"synthetic-{layout}"
    render(tmp_path / "raw" / name, layout, **changes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUPIPE_RAW", "raw")
    monkeypatch.setattr(shards, "map_processes", builtins.map)
    values = {"landmarks": "prealigned", "align": "[face112]", "folds.val_fraction": 0.5}
    common = ["--corpus", name, "--params", str(ROOT / "params.yaml")]
    common += [word for key, value in values.items() for word in ("--set", f"corpora.{name}.{key}={value}")]
    for door in ("inventory", "manifest", "shards", "folds"):
        monkeypatch.setattr(sys, "argv", [door, *common, *(["--local"] if door == "shards" else [])])
        importlib.import_module(f"pipelines.{door}").main()
    index = shards.load_index(tmp_path / "data/shards" / name)
    table = pa.concat_tables([pq.read_table(tmp_path / "data/shards" / name / e["path"]) for e in index["sessions"]])
    spec = dataclasses.replace(SPEC, **changes)
    cameras = {"left"} if layout == "disfa" else None
    assert check_labels(table, layout, spec, cameras) > table.num_rows
    manifest = pq.read_table(tmp_path / f"data/manifest/{name}.parquet")
    assert table.num_rows == manifest.num_rows
    report = json.loads((tmp_path / f"data/manifest/{name}.json").read_text())
    assert report["labelled"] == sum(any(v is not None for v in row.values()) for row in occurrences(manifest))
    folds = load_folds(tmp_path / f"data/folds/{name}.json")
    assert len(folds) == (1 if layout == "affwild2" else 3)
    for fold in folds.values():
        assert sorted([*fold.train, *fold.val, *fold.test]) == sorted(set(table["subject"].to_pylist()))
        rows = manifest.filter(pc.is_in(manifest["subject"], pa.array(fold.train)))
        values = [rows[c].drop_null().to_pylist() for c in rows.column_names if c.endswith("_c")]
        assert fold.stats.n_M.tolist() == [len(column) for column in values]
        np.testing.assert_allclose(fold.stats.rate_M, [np.mean(column) if column else np.nan for column in values])


def occurrences(table):
    return table.select([c for c in table.column_names if c.endswith("_c")]).to_pylist()


@pytest.mark.parametrize(("layout", "subjects", "sessions"), [("disfa", 20, 1), ("affwild2", 5, 5)])
def test_a_damaged_corpus_is_read_to_its_end(tmp_path, layout, subjects, sessions):
    changes = {"subjects": subjects, "sessions": sessions, "seconds": 0.8, "size": 64}
    render(tmp_path / "clean", layout, **changes)
    card = render(tmp_path / "hurt", layout, **changes, defects=4)
    name = "session" if layout == "affwild2" else "subject"
    reports = [survey(get_dataset(layout), tmp_path / raw)[1] for raw in ("clean", "hurt")]
    clean, hurt = ({entry[name]: entry for entry in report["sessions"]} for report in reports)
    assert clean.keys() == hurt.keys()
    spoilt = {defect[name]: defect["defect"] for defect in card["defects"]["injected"]}
    assert len(spoilt) > 8
    for who in hurt:
        check_damage(spoilt.get(who), clean[who], hurt[who], layout)


def check_damage(defect, clean, hurt, layout):
    """The counts of one session, whole and damaged. Damage that can be mended, or is to its images alone, changes none."""
    rows, labelled, images = ((clean[key], hurt[key]) for key in ("rows", "labelled", "images"))
    if defect == "missing image":
        assert (rows[1], labelled[1], images[1]) == (rows[0], labelled[0], images[0] - 1)
    elif defect == "truncated video":
        assert (rows[1], labelled[1]) == (rows[0], labelled[0])
        assert images[1] < images[0]
    elif defect in ("labels one longer", "labels much longer", "labels shorter"):
        more = {"labels one longer": 1, "labels much longer": 3, "labels shorter": 0}[defect]
        unseen = clean["missing"] if layout == "affwild2" else 1  # at its end; DISFA's last subject lacks a label row
        assert rows[1] - rows[0] in range(more - unseen, more + 1)
        assert images[1] == images[0]
    elif defect == "missing AU file":
        lost = sum(clean["intensities"]) - sum(hurt["intensities"])
        assert lost in (0, labelled[0])  # it may be one of the four AUs that are not read
    elif defect == "constant labels":
        assert (rows[1], images[1]) == (rows[0], images[0])
        assert any("the same labels" in n or "no frame is coded" in n for n in hurt["notes"])
    elif defect == "no labels":
        assert (labelled[1], images[1]) == (0, images[0])
        assert "no labels" in hurt["notes"]
    elif defect == "no media":
        assert (labelled[1], images[1]) == (labelled[0], 0)
        assert "no frames" in hurt["notes"]
    else:
        for key in ("rows", "labelled", "images", "missing", "coded", "positive", "intensities"):
            assert hurt[key] == clean[key], (defect, key)
