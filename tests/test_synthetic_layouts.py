"""The layouts that the generator writes, read by hand: every label against the truth, every damage against its record."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.schema import ConfigError, DataError
from aupipe.synthetic import corpus
from aupipe.synthetic.affwild2_files import leave_uncoded, lose_crops
from aupipe.synthetic.camera import LANDSCAPE
from aupipe.synthetic.card import GENERATOR, card_markdown
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.rig import AUS, RECIPES
from aupipe.synthetic.scene import act, film, find_face_box, set_scene

LAYOUTS = ("bp4d", "disfa", "affwild2")
SPEC = SyntheticConfig(subjects=3, sessions=2, seconds=1.6, fps=5.0, size=96, uncoded=2, seed=11)
FRAMES = 8
DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
AFFWILD2_AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
ABAW = "Third ABAW Annotations/AU_Detection_Challenge"
VIDEOS = {  # name → subject, session, part
    "1-5-1280x720_left": (0, 1, "Train_Set"),
    "1-5-1280x720_right": (1, 1, "Train_Set"),
    "1-5-1280x720-2": (0, 2, "Train_Set"),
    "video2_2": (1, 2, "Train_Set"),
    "3-5-1920x1080": (2, 1, "Validation_Set"),
    "3-5-1920x1080-2": (2, 2, "Validation_Set"),
}


def hash_tree(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    assets.fetch()
    roots = {layout: tmp_path_factory.mktemp("raw") / layout for layout in LAYOUTS}
    return {name: (raw, corpus.render(SPEC, raw, layout=name, map=builtins.map)) for name, raw in roots.items()}


@pytest.fixture
def one_face(monkeypatch):
    """Everybody has the first person's face: labels do not depend on it, and it is prepared once."""
    assets.fetch()
    monkeypatch.setattr(corpus, "prepare_actor", lambda seed, subject, rig: _prepare(seed))


@functools.cache
def _prepare(seed: int):
    return prepare_actor(seed, 0)


def settled(layout: str) -> SyntheticConfig:
    return corpus.settle(SPEC, layout)


def read_video(path: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(SPEC.fps)
    return frames


def test_a_later_start_of_the_coded_span_has_images_and_no_labels(tmp_path, one_face):
    spec = dataclasses.replace(SPEC, subjects=1, sessions=1, uncoded=20)
    card = corpus.render(spec, tmp_path, map=builtins.map)
    rows = (tmp_path / "AUCoding/AU_OCC/M001_T1.csv").read_text().splitlines()[1:]
    assert [int(row.partition(",")[0]) for row in rows] == list(range(20, 28))
    assert card["counts"]["images"] == 28
    assert card["counts"]["frames"] == 8


def test_disfa_has_one_landscape_video_per_person(made):
    raw, card = made["disfa"]
    assert sorted(p.name for p in raw.iterdir()) == [".keys", "ActionUnit_Labels", "Landmark_Points", "Videos_LeftCamera"]
    videos = sorted((raw / "Videos_LeftCamera").iterdir())
    assert [path.name for path in videos] == [f"LeftVideoSN00{n}_comp.avi" for n in (1, 2, 3)]
    frames = read_video(videos[1])
    assert len(frames) == 2 * FRAMES
    assert frames[0].shape == (96, 128, 3)
    scene = set_scene(settled("disfa"), 1, 1, sessions=2, aspect=LANDSCAPE)
    actor = prepare_actor(SPEC.seed, 1)
    for n in (0, FRAMES, 2 * FRAMES - 1):
        assert cv2.PSNR(film(actor, scene, n), frames[n]) > 25
    assert card["counts"]["images"] == 6 * FRAMES


def test_every_label_of_disfa_is_the_truth(made):
    raw, card = made["disfa"]
    positive = Counter()
    for subject in range(3):
        scene = set_scene(settled("disfa"), subject, 1, sessions=2, aspect=LANDSCAPE)
        folder = raw / f"ActionUnit_Labels/SN00{subject + 1}"
        assert {p.name for p in folder.iterdir()} == {f"SN00{subject + 1}_au{au}.txt" for au in DISFA_AUS}
        rows = 2 * FRAMES - (subject == 2)  # the last person's labels are one row short
        for au in DISFA_AUS:
            lines = (folder / f"SN00{subject + 1}_au{au}.txt").read_text().splitlines()
            numbers, levels = zip(*(map(int, line.split(",")) for line in lines), strict=True)
            assert list(numbers) == list(range(1, rows + 1))
            if au in (5, 20):
                truth = [5 * act(scene, n)[0][list(RECIPES).index(au)] for n in range(rows)]
            else:
                truth = scene.motion.intensity_NM[:rows, AUS.index(au)]
            np.testing.assert_array_equal(levels, np.floor(truth))
            positive[au] += sum(level >= 2 for level in levels)
    assert {name: au["positive"] for name, au in card["aus"].items()} == {f"AU{au:02d}": positive[au] for au in DISFA_AUS}
    assert sum(positive.values()) > 5
    assert card["counts"]["frames"] == 6 * FRAMES - 1
    assert card["aus"]["AU20"]["coded"] == 6 * FRAMES - 1


def test_disfas_second_camera_sees_the_same_moments(tmp_path, one_face):
    spec = dataclasses.replace(SPEC, subjects=1, sessions=1, right_camera=True)
    corpus.render(spec, tmp_path, layout="disfa", map=builtins.map)
    left = read_video(tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.avi")
    right = read_video(tmp_path / "Video_RightCamera/RightVideoSN001_Comp.avi")
    assert len(left) == len(right) == FRAMES
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in zip(left, right, strict=True))


def test_affwild2_has_crops_of_112_pixels_numbered_from_one(made):
    raw, card = made["affwild2"]
    assert {p.name for p in (raw / "cropped_aligned").iterdir()} == set(VIDEOS)
    images = 0
    for name, (subject, session, _) in VIDEOS.items():
        scene = set_scene(settled("affwild2"), subject, session)
        expected = [f"{n + 1:05d}.jpg" for n in np.flatnonzero(~lose_crops(scene))]
        paths = sorted((raw / "cropped_aligned" / name).iterdir())
        assert [path.name for path in paths] == expected
        assert cv2.imread(str(paths[0])).shape == (112, 112, 3)
        images += len(paths)
    assert card["counts"]["images"] == images


def test_every_label_of_affwild2_is_the_truth(made):
    raw, card = made["affwild2"]
    uncoded = 0
    for name, (subject, session, part) in VIDEOS.items():
        scene = set_scene(settled("affwild2"), subject, session)
        header, *lines = (raw / ABAW / part / f"{name}.txt").read_text().splitlines()
        assert header == "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
        expected = (scene.motion.intensity_NM[:, [AUS.index(au) for au in AFFWILD2_AUS]] >= 1).astype(int)
        expected[leave_uncoded(scene)] = -1
        np.testing.assert_array_equal([list(map(int, line.split(","))) for line in lines], expected)
        uncoded += int((expected[:, 0] == -1).sum())
    assert 0 < uncoded < 6 * FRAMES
    assert card["aus"]["AU12"]["coded"] == 6 * FRAMES - uncoded
    assert len(list((raw / ABAW).rglob("*.txt"))) == len(VIDEOS)


def test_a_quarter_of_affwild2s_rows_are_not_coded_and_few_crops_are_missing():
    spec = corpus.settle(SyntheticConfig(subjects=1, sessions=1, seconds=4, fps=10, size=64), "affwild2")
    scene = set_scene(spec, 0, 1)
    scenes = [dataclasses.replace(scene, subject=n) for n in range(400)]
    uncoded = np.stack([leave_uncoded(scene) for scene in scenes])
    assert uncoded.mean() == pytest.approx(0.27, abs=0.03)
    assert np.diff(uncoded.astype(int), axis=1, prepend=0).clip(0).sum(1).max() <= 3  # stretches
    lost = np.stack([lose_crops(scene) for scene in scenes])
    assert 0.01 < lost.mean() < 0.03
    assert not lost.all(1).any()


def test_the_face_box_holds_the_face():
    assets.fetch()
    actor, scene = prepare_actor(SPEC.seed, 1), set_scene(settled("bp4d"), 1, 1)
    left, top, right, bottom = find_face_box(actor, scene, 3)
    height, width = scene.camera.size
    assert 0 < left < width / 2 < right < width
    assert 0 < top < height / 2 < bottom < height
    assert 0.4 * height < bottom - top < 0.7 * height


@pytest.mark.parametrize("layout", ["disfa", "affwild2"])
def test_two_processes_write_the_same_files_as_one(made, tmp_path, layout):
    assert corpus.render(SPEC, tmp_path / layout, layout=layout) == made[layout][1]
    assert hash_tree(tmp_path / layout) == hash_tree(made[layout][0])


@pytest.mark.parametrize(
    ("layout", "victim"),
    [
        ("disfa", "Videos_LeftCamera/LeftVideoSN002_comp.avi"),
        ("disfa", "ActionUnit_Labels/SN002/SN002_au12.txt"),
        ("disfa", "Landmark_Points/SN002/tmp_frame_lm/l00001_lm.mat"),
        ("affwild2", "cropped_aligned/video2_2/00002.jpg"),
        ("affwild2", f"{ABAW}/Train_Set/video2_2.txt"),
    ],
)
def test_a_damaged_recording_alone_is_made_again(made, tmp_path, layout, victim):
    raw, recorded = Path(shutil.copytree(made[layout][0], tmp_path / layout)), []

    def record(function, tasks):
        recorded.extend((task.subject, r.session) for task in tasks for r, _, _ in task.recordings)
        return builtins.map(function, tasks)

    before = hash_tree(raw)
    assert corpus.render(SPEC, raw, layout=layout, map=record) == made[layout][1]
    assert recorded == []
    (raw / victim).write_bytes(b"cut")
    corpus.render(SPEC, raw, layout=layout, map=record)
    assert recorded == [(1, 1 if layout == "disfa" else 2)]
    assert hash_tree(raw) == before


def test_another_layout_takes_the_place_of_the_first(tmp_path, one_face):
    spec = dataclasses.replace(SPEC, subjects=1, sessions=1)
    for layout in ("bp4d", "disfa", "affwild2"):
        corpus.render(spec, tmp_path, layout=layout, map=builtins.map)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".keys", "Third ABAW Annotations", "cropped_aligned"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_never_writes_where_other_data_lies(tmp_path, layout):
    (tmp_path / "Videos_LeftCamera").mkdir()
    with pytest.raises(DataError, match="the generator did not write"):
        corpus.render(SPEC, tmp_path, layout=layout, map=builtins.map)
    assert [p.name for p in tmp_path.iterdir()] == ["Videos_LeftCamera"]


def test_a_key_never_removes_what_lies_outside(tmp_path, one_face):
    raw, other = tmp_path / "raw", tmp_path / "other.txt"
    other.write_text("mine")
    spec = dataclasses.replace(SPEC, subjects=1, sessions=1)
    corpus.render(spec, raw, map=builtins.map)
    (raw / ".keys/F009").mkdir()
    (raw / ".keys/F009/T1").write_text(json.dumps({"paths": ["../other.txt", str(other)]}))
    corpus.render(spec, raw, map=builtins.map)
    assert other.read_text() == "mine"
    assert not (raw / ".keys/F009").exists()


def test_an_unknown_layout_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"'ck'; it writes affwild2, bp4d, disfa"):
        corpus.render(SPEC, tmp_path / "raw", layout="ck")


@pytest.mark.parametrize("values", [{"margins": "ck"}, {"corruption": 1.5}, {"defects": -1}, {"fps": 0.0}])
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError, match="synthetic corpus"):
        dataclasses.replace(SPEC, **values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_says_what_is_there(made, layout):
    raw, card = made[layout]
    assert json.loads(json.dumps(card)) == card
    assert card["layout"] == card["margins"]["name"] == layout
    assert card["params"]["fps"] == 5.0
    assert sum(card["counts"]["age"].values()) == sum(card["counts"]["sex"].values()) == 3
    assert any("assumed, not measured" in line for line in card["assumptions"])
    assert card["defects"] == {"seed": None, "injected": [], "left_out": [], "tree": []}
    assert 0 <= card["counts"]["glasses"] <= 3
    assumed = card["assumed"]
    assert assumed["correlation of latent signals"]["AU12 AU15"] < 0 < assumed["correlation of latent signals"]["AU06 AU12"]
    assert assumed["seconds"]["time constant of onset"] < assumed["seconds"]["time constant of offset"]
    assert {"AU20", "AU46", "one-sided AU12"} <= assumed["episodes a minute"].keys()
    assert card["generator"]["version"] == GENERATOR
    page = card_markdown({"corpus": f"synthetic-{layout}", **card})
    assert page.startswith(f"# synthetic-{layout}\n")
    for text in (
        card["generator"]["sha256"],
        card["assets"]["head.npz"]["sha256"],
        "lip corner puller",
        "CC0-1.0",
        "The people do not exist",
        "| episodes a minute | AU20 | 1.5 |",
        *card["assumptions"],
    ):
        assert text in page
    assert str(raw) not in page


def test_layouts_have_their_own_rates_and_frame_rate():
    bare = SyntheticConfig(subjects=1, sessions=1, seconds=1)
    assert [corpus.settle(bare, layout).fps for layout in LAYOUTS] == [25.0, 20.0, 30.0]
    assert [corpus.settle(bare, layout).margins for layout in LAYOUTS] == list(LAYOUTS)
    other = dataclasses.replace(bare, margins="disfa", fps=12.0)
    assert corpus.settle(other, "bp4d") == other


def test_sessions_are_ten_seconds_and_a_third_of_them_spoilt_unless_a_spec_says_otherwise():
    bare = SyntheticConfig(subjects=1, sessions=1)
    assert (bare.seconds, bare.corruption, bare.landmarks) == (10.0, 0.33, True)
    assert set_scene(corpus.settle(dataclasses.replace(bare, size=64, fps=5.0), "disfa"), 0, 1).frames == 50


def test_corruption_spoils_single_frames_and_no_label():
    assets.fetch()
    actor = _prepare(SPEC.seed)
    clean, spoilt = (set_scene(dataclasses.replace(SPEC, seconds=5.0, corruption=share), 0, 1) for share in (0.0, 1.0))
    np.testing.assert_array_equal(clean.labels()[1], spoilt.labels()[1])
    changed = [(film(actor, clean, n) != film(actor, spoilt, n)).any() for n in range(clean.frames)]
    assert 0.15 < np.mean(changed) < 0.6
    share = np.mean([set_scene(dataclasses.replace(SPEC, corruption=0.33), n, 1).corrupted for n in range(200)])
    assert 0.2 < share < 0.45
