"""Rendered people: who they are, where an AU may act, and that every frame can be rendered on its own."""

from __future__ import annotations

import numpy as np
import pytest

from aupipe import assets
from aupipe.blazemesh import BlazeMesh
from aupipe.config import SyntheticConfig
from aupipe.synthetic.camera import studio
from aupipe.synthetic.head import load_head
from aupipe.synthetic.identity import TONES, draw_identity, name_subject
from aupipe.synthetic.mesh import HAIR, LEFT_EYE, RIGHT_EYE, SKIN
from aupipe.synthetic.motion import frame_rng
from aupipe.synthetic.render import Pose, prepare_actor, render_frame
from aupipe.synthetic.rig import AUS, RECIPES, activate, displace, region_mask
from aupipe.synthetic.scene import film, set_scene

SPEC = SyntheticConfig(subjects=2, sessions=1, seconds=2.0, fps=5.0, size=192, corruption=0.0)


@pytest.fixture(scope="module")
def head():
    assets.fetch()
    return load_head()


@pytest.fixture(scope="module")
def actor(head):
    return prepare_actor(SPEC.seed, 1)


def show(actor, *aus: int, height: int = 192, pose: Pose | None = None) -> np.ndarray:
    intensity = np.array([5.0 * (au in aus) for au in AUS], np.float32)
    camera = studio(height, np.array(actor.identity.cloth, np.float32))
    return render_frame(actor, camera, activate(intensity), intensity, pose or Pose(), frame_rng(0, 0, 0, 0))


def test_subjects_are_numbered_per_sex_in_bp4ds_proportion():
    names = [name_subject(n) for n in range(41)]
    assert len(set(names)) == 41
    assert sorted(n for n in names if n[0] == "F") == [f"F{n:03d}" for n in range(1, 24)]
    assert sorted(n for n in names if n[0] == "M") == [f"M{n:03d}" for n in range(1, 19)]


def test_people_differ_and_every_tone_is_drawn():
    people = [draw_identity(0, n) for n in range(120)]
    assert draw_identity(0, 5) == people[5]
    assert {person.tone for person in people} == set(TONES)
    assert min(np.mean([person.tone == tone for person in people]) for tone in TONES) > 0.1
    women = np.mean([p.femininity for p in people if p.sex == "F"])
    men = np.mean([p.femininity for p in people if p.sex == "M"])
    assert women > 0.7 > 0.3 > men


@pytest.mark.parametrize("au", RECIPES)
def test_an_au_moves_nothing_outside_its_region(head, au):
    moved = np.linalg.norm(displace(head, au), axis=1)
    assert moved.max() > 0.02  # decimetres: it can be seen
    assert moved[region_mask(au) == 0].max() == 0
    assert moved[np.isin(head.parts, (LEFT_EYE, RIGHT_EYE, HAIR))].max() == 0


@pytest.mark.parametrize(
    ("au", "still"), [(9, (0.6, 3.0)), (10, (-0.4, 3.0)), (1, (-4.0, -0.2)), (12, (-0.2, 3.0)), (24, (-0.9, 3.0))]
)
def test_face_units_do_not_leak_into_other_regions(head, au, still):
    y = head.face[:, 1]
    there = (y > still[0]) & (y < still[1]) & (head.parts == SKIN)
    assert np.abs(displace(head, au)[there]).max() == 0


@pytest.mark.parametrize("au", RECIPES)
def test_left_and_right_mirror_each_other(head, au):
    moved, place = displace(head, au), head.position_G3
    skin = np.flatnonzero((head.parts == SKIN) & (np.linalg.norm(moved, axis=1) > 0.01))
    mirrored = place[skin] * [-1, 1, 1]
    others = np.flatnonzero(head.parts == SKIN)
    nearest = others[((mirrored[:, None] - place[others][None]) ** 2).sum(2).argmin(1)]
    np.testing.assert_allclose(moved[nearest] * [-1, 1, 1], moved[skin], atol=0.012)


def test_pairs_that_share_muscles_do_not_add_up():
    def alone(au: int) -> np.ndarray:
        return activate(np.array([5.0 * (n == au) for n in AUS]))

    both = activate(np.array([5.0 * (n in (12, 15)) for n in AUS]))
    assert both.sum() < alone(12).sum() + alone(15).sum() - 0.5
    oblique = activate(np.array([5.0 * (n in (1, 4)) for n in AUS])) - alone(1) - alone(4)
    assert oblique.max() == 1
    rest = np.zeros(len(AUS))
    assert activate(rest).max() == 0
    squint = np.array([5.0 * (n == 7) for n in AUS])
    assert activate(squint, blink=1.0)[list(RECIPES).index(7)] == 0


def test_a_frame_alone_equals_the_frame_in_sequence(head, actor):
    scene = set_scene(SPEC, 1, 1)
    sequence = [film(actor, scene, n) for n in range(scene.frames)]
    fresh = prepare_actor(SPEC.seed, 1)
    for n in (scene.frames - 1, 3, 0):
        np.testing.assert_array_equal(film(fresh, scene, n), sequence[n])
    assert sequence[0].shape == (192, 144, 3)
    assert sequence[0].dtype == np.uint8
    assert np.abs(sequence[0].astype(int) - sequence[5]).mean() > 1


@pytest.mark.parametrize(
    ("au", "lower_face"), [(1, False), (4, False), (9, False), (12, True), (15, True), (25, True), (26, True)]
)
def test_an_au_changes_its_part_of_the_picture(actor, au, lower_face):
    neutral, moved = show(actor).astype(int), show(actor, au).astype(int)
    change = np.abs(moved - neutral).sum(2)
    rows = np.flatnonzero(change.max(1) > 60)
    middle = rows.mean() / len(change)
    assert len(rows) > 3
    assert (middle > 0.6) == lower_face


def test_turning_the_head_moves_the_face(actor):
    left, right = (show(actor, pose=Pose((yaw, 0.0, 0.0))) for yaw in (-0.4, 0.4))
    assert np.abs(left.astype(int) - right).mean() > 8


def test_the_size_changes_pixels_and_not_the_scene(actor):
    small, large = (set_scene(SyntheticConfig(subjects=1, sessions=1, seconds=1, fps=5, size=s), 1, 1) for s in (96, 192))
    np.testing.assert_array_equal(small.motion.intensity_NM, large.motion.intensity_NM)
    assert small.camera.light.gloss == large.camera.light.gloss
    assert small.camera.jpeg_quality == large.camera.jpeg_quality
    assert film(actor, small, 2).shape == (96, 72, 3)


def test_the_landmarker_finds_the_faces(head):
    landmarker, found, tried = BlazeMesh(), 0, 0
    spec = SyntheticConfig(subjects=4, sessions=1, seconds=2.0, fps=5.0, size=256, corruption=0.0)
    for subject in range(spec.subjects):
        actor, scene = prepare_actor(spec.seed, subject), set_scene(spec, subject, 1)
        for n in range(0, scene.frames, 3):
            face = landmarker.find_face(film(actor, scene, n))
            found, tried = found + (face is not None), tried + 1
    assert found >= tried - 1
