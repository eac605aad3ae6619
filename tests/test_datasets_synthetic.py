"""datasets/: what the generator writes in the layouts of DISFA and Aff-Wild2 comes back as it was made, whole or damaged."""

import builtins
import dataclasses
import functools

import numpy as np
import pytest
from raw_trees import TWELVE, read

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.datasets import get_dataset, survey
from aupipe.facs import AUSet
from aupipe.synthetic import affwild2_files, corpus, disfa_files
from aupipe.synthetic.camera import LANDSCAPE
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import set_scene
from aupipe.synthetic.truth import landmarks

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


def test_disfa_comes_back(tmp_path):
    render(tmp_path, "disfa", right_camera=True)
    table = read("disfa", tmp_path, aus=AUSet(TWELVE), camera="both")
    for au in set(TWELVE) - set(disfa_files.CODED_AUS):  # of which there are no files
        assert table[f"AU{au:02d}_c"].null_count == table[f"AU{au:02d}_r"].null_count == table.num_rows
    start = 0
    for subject in range(3):
        scene = set_scene(corpus.settle(SPEC, "disfa"), subject, 1, aspect=LANDSCAPE)
        occurrence, levels, _ = scene.labels()
        for camera in ("left", "right"):
            rows = table.slice(start, scene.frames)
            start += scene.frames
            assert set(rows["subject"].to_pylist()) == {f"SN{subject + 1:03d}"}
            assert set(rows["session"].to_pylist()) == {camera}
            assert rows["frame"].to_pylist() == list(range(1, scene.frames + 1))
            assert rows["index"].to_pylist() == list(range(scene.frames))
            assert rows["source"].null_count == 0
            coded = scene.frames - (subject == 2)  # the last person's labels lack a row
            tail = [None] * (scene.frames - coded)
            for au in set(disfa_files.CODED_AUS) & set(AUS):  # the others are by-products of these
                column = AUS.index(au)
                assert rows[f"AU{au:02d}_r"].to_pylist() == [*levels[:coded, column].tolist(), *tail]
                assert rows[f"AU{au:02d}_c"].to_pylist() == [*occurrence[:coded, column].tolist(), *tail]
    assert start == table.num_rows


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
    assert table["AU09_c"].null_count == table.num_rows
    spec = corpus.settle(dataclasses.replace(SPEC, sessions=2), "affwild2")
    names = {
        affwild2_files.name_video(spec, subject, session, 10.0): (subject, session)
        for subject in range(3)
        for session in (1, 2)
    }
    assert set(table["session"].to_pylist()) == set(names)
    uncoded = 0
    for name, (subject, session) in names.items():
        rows = of(table, "session", name)
        scene = set_scene(spec, subject, session)
        occurrence, unknown = scene.labels()[0], affwild2_files.leave_uncoded(scene)
        assert rows["frame"].to_pylist() == list(range(1, scene.frames + 1))
        assert [source is None for source in rows["source"].to_pylist()] == affwild2_files.lose_crops(scene).tolist()
        assert set(rows["subject"].to_pylist()) == {name.removesuffix("_left").removesuffix("_right")}
        assert set(rows["split"].to_pylist()) == {"val" if subject == 2 else "train"}
        for au in affwild2_files.CODED_AUS:
            truth = [None if gone else on for on, gone in zip(occurrence[:, AUS.index(au)].tolist(), unknown, strict=True)]
            assert rows[f"AU{au:02d}_c"].to_pylist() == truth
            assert rows[f"AU{au:02d}_r"].null_count == scene.frames
        uncoded += int(unknown.sum())
    assert 0 < uncoded < table.num_rows


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
