"""Landmarks in the corpora's own files: as public readers expect them, exact but for the gaps, the same bytes every time."""

from __future__ import annotations

import builtins
import dataclasses
import struct
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.datasets import get_dataset
from aupipe.synthetic import corpus
from aupipe.synthetic.camera import LANDSCAPE, PORTRAIT
from aupipe.synthetic.landmark_files import (
    EMPTY,
    KEPT,
    LOST_SHARE,
    NOT_A_NUMBER,
    ZEROS,
    encode_points_66,
    lose_points,
    write_points_49,
)
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.scene import set_scene
from aupipe.synthetic.truth import landmarks

SPEC = SyntheticConfig(subjects=3, sessions=1, seconds=1.6, fps=5.0, size=96, uncoded=2, seed=11)
FATES = np.array([KEPT, EMPTY, NOT_A_NUMBER, ZEROS, KEPT], np.int8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    assets.fetch()
    roots = {layout: tmp_path_factory.mktemp("raw") / layout for layout in ("bp4d", "disfa", "affwild2")}
    return {name: (raw, corpus.render(SPEC, raw, layout=name, map=builtins.map)) for name, raw in roots.items()}


def make_points(count: int) -> np.ndarray:
    points = np.random.default_rng(0).uniform(20, 80, (len(FATES), count, 2))
    points[(FATES == EMPTY) | (FATES == NOT_A_NUMBER)] = np.nan
    points[FATES == ZEROS] = 0
    return points


def read_like_the_public(path: Path) -> list[np.ndarray]:
    """`fit/pred` dereferenced frame by frame and transposed, as readers of BP4D's features do it."""
    with h5py.File(path, "r") as file:
        return [file[reference[0]][()].T for reference in file["fit/pred"]]


def test_bp4ds_files_are_matlab_7_3_with_a_struct_array(tmp_path):
    path, points = tmp_path / "2DFeatures" / "F001_T1.mat", make_points(49)
    write_points_49(path, points, FATES)
    data = path.read_bytes()
    assert data.startswith(b"MATLAB 7.3 MAT-file")
    assert data[124:128] == b"\x00\x02IM"
    assert data[512:520] == b"\x89HDF\r\n\x1a\n"
    frames = read_like_the_public(path)
    assert [frame.shape for frame in frames] == [(49, 2), (2,), (49, 2), (49, 2), (49, 2)]
    for n in (0, 2, 3, 4):
        np.testing.assert_array_equal(frames[n], points[n])
    with h5py.File(path, "r") as file:
        empty = file[file["fit/pred"][1, 0]]
        assert (empty.attrs["MATLAB_empty"], empty.attrs["MATLAB_class"]) == (1, b"double")
        assert empty[()].tolist() == [0, 0]
        assert file["fit"].attrs["MATLAB_class"] == b"struct"
        assert file["fit/pred"].shape == (5, 1)


def test_the_same_landmarks_are_the_same_bytes(tmp_path):
    for name in "ab":
        write_points_49(tmp_path / name, make_points(49), FATES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    now = int(time.time())
    assert not any(struct.pack("<I", now - ago) in (tmp_path / "a").read_bytes() for ago in range(60))  # no time of writing
    first = encode_points_66(make_points(66)[0])
    assert first == encode_points_66(make_points(66)[0])
    assert first[:116].rstrip().endswith(b"Thu Jan  1 00:00:00 1970")


def test_bp4ds_landmarks_are_the_exact_ones_counted_from_1(made):
    raw, card = made["bp4d"]
    lost = 0
    for subject, name in enumerate(("M001", "F001", "M002")):
        scene, actor = set_scene(corpus.settle(SPEC, "bp4d"), subject, 1), prepare_actor(SPEC.seed, subject)
        frames = read_like_the_public(raw / f"2DFeatures/{name}_T1.mat")
        fate = lose_points(scene, "ibug49")
        assert len(frames) == scene.frames == 10
        for n in np.flatnonzero(fate == KEPT):
            np.testing.assert_allclose(frames[n] - 1, landmarks(actor, scene, int(n)), atol=1e-6)
        lost += int((fate != KEPT).sum())
    assert (card["counts"]["landmarks"], card["counts"]["landmarks_lost"]) == (30, lost)


def test_disfas_landmarks_are_the_exact_ones_counted_from_1(made):
    raw, card = made["disfa"]
    names = {
        0: [f"SN001/frame_lm/SN001_{n:04d}_lm.mat" for n in range(8)],
        1: [f"SN002/tmp_frame_lm/l{n + 1:05d}_lm.mat" for n in range(8)],
        2: [f"SN003/frame_lm/SN003_{n:04d}_lm.mat" for n in range(8)],
    }
    missing = []
    for subject, files in names.items():
        scene = set_scene(corpus.settle(SPEC, "disfa"), subject, 1, aspect=LANDSCAPE)
        actor, fate = prepare_actor(SPEC.seed, subject), lose_points(scene, "ibug66")
        for n, name in enumerate(files):
            path = raw / "Landmark_Points" / name
            if not path.exists():
                missing.append(name)
                continue
            points = loadmat(path)["pts"]
            assert points.shape == (66, 2)
            if fate[n] == KEPT:
                np.testing.assert_allclose(points - 1, landmarks(actor, scene, n, "ibug66"), atol=1e-6)
            else:
                assert np.isnan(points).all() if fate[n] == NOT_A_NUMBER else (points == 0).all()
    assert len(missing) == 1
    assert missing[0].startswith("SN002/")
    assert card["counts"]["landmarks"] == 23 == len(list((raw / "Landmark_Points").rglob("*.mat")))


def test_a_small_share_is_lost_in_short_runs_of_one_kind():
    scene = set_scene(SyntheticConfig(subjects=1, sessions=1, seconds=10, fps=25, size=64), 0, 1)
    for scheme, kinds in (("ibug49", {EMPTY, NOT_A_NUMBER, ZEROS}), ("ibug66", {NOT_A_NUMBER, ZEROS})):
        fates = np.stack([lose_points(dataclasses.replace(scene, subject=n), scheme) for n in range(300)])
        assert (fates != KEPT).mean() == pytest.approx(LOST_SHARE, rel=0.25)
        assert set(np.unique(fates).tolist()) == kinds | {KEPT}
        assert (np.diff(fates != KEPT, axis=1).sum() / 2) < (fates != KEPT).sum() / 3  # runs of more than three on average


@pytest.mark.parametrize(("layout", "scheme", "first"), [("bp4d", "ibug49", 0), ("disfa", "ibug66", 1)])
def test_our_own_readers_give_back_what_was_written(made, layout, scheme, first):
    """x and y interleaved from pixel 0, in the right frame, whatever a subject's files are called."""
    raw, card = made[layout]
    dataset, numbers = get_dataset(layout, options={"landmarks": True}), {"M001": 0, "F001": 1, "M002": 2}
    seen = 0
    for session in dataset.sessions(raw):
        subject = numbers.get(session.subject, int(session.subject[-3:]) - 1)
        settled, aspect = corpus.settle(SPEC, layout), PORTRAIT if layout == "bp4d" else LANDSCAPE
        scene, actor = set_scene(settled, subject, 1, aspect=aspect), prepare_actor(SPEC.seed, subject)
        fate, table = lose_points(scene, scheme), dataset.read_session(raw, session)
        for number, values in zip(table["frame"].to_pylist(), table["landmarks"].to_pylist(), strict=True):
            if values is not None and fate[number - first] == KEPT:
                exact = landmarks(actor, scene, number - first, scheme).ravel()
                np.testing.assert_allclose(values, exact, atol=1e-4)
                seen += 1
    assert seen == card["counts"]["landmarks"] - card["counts"]["landmarks_lost"] > 20


def test_affwild2_has_none_and_others_need_not(made, tmp_path):
    raw, card = made["affwild2"]
    assert not list(raw.rglob("*.mat"))
    assert "landmarks" not in card["counts"]
    for layout in ("bp4d", "disfa"):
        bare = dataclasses.replace(SPEC, subjects=1, landmarks=False)
        card = corpus.render(bare, tmp_path / layout, layout=layout, map=builtins.map)
        assert not list((tmp_path / layout).rglob("*.mat"))
        assert "landmarks" not in card["counts"]
