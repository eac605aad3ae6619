"""How activations move a face: one side alone, winks, movements that are not coded, and asymmetry in every rig."""

from __future__ import annotations

import numpy as np
import pytest

from aupipe import assets
from aupipe.synthetic.head import load_head
from aupipe.synthetic.identity import draw_identity
from aupipe.synthetic.mesh import SKIN
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.rig import (
    AUS,
    EXPRESSION_UNITS,
    FACE_UNITS,
    LATERAL,
    MIXED,
    RECIPES,
    SIDEWAYS,
    UNCODED,
    activate,
    build_rig,
    displace,
    region_mask,
    weigh_folds,
)

NONE = np.zeros(len(AUS), np.float32)


@pytest.fixture(scope="module")
def head():
    assets.fetch()
    return load_head()


@pytest.fixture(scope="module")
def actor(head):
    return prepare_actor(0, 1)


def express(*aus: int, level: float = 5.0) -> np.ndarray:
    return np.array([level * (au in aus) for au in AUS], np.float32)


def alone(au: int, strength: float = 1.0) -> np.ndarray:
    return np.array([strength * (n == au) for n in UNCODED], np.float32)


def lopsided(au: int, side: float) -> np.ndarray:
    return np.array([side * (n == au) for n in LATERAL], np.float32)


def lengths(rig, activation) -> np.ndarray:
    """How far each render vertex moves (R,), in decimetres."""
    return np.linalg.norm((activation @ rig.basis).reshape(2, -1, 3)[0], axis=1)


def sides(head) -> tuple[np.ndarray, np.ndarray]:
    """The skin's render vertices on the left and on the right, off the middle."""
    x, skin = head.face[head.geometry_R, 0], head.part_R == SKIN
    return skin & (x > 0.42), skin & (x < -0.42)


@pytest.mark.parametrize("au", LATERAL)
def test_an_au_can_act_on_one_side_alone(head, actor, au):
    left, right = sides(head)
    both = lengths(actor.rig, activate(express(au)))
    for side, here, there in ((1.0, left, right), (-1.0, right, left)):
        moved = lengths(actor.rig, activate(express(au), aside=lopsided(au, side)))
        np.testing.assert_allclose(moved[here], both[here], atol=2e-4)  # the strong side keeps its intensity
        assert moved[there].max() < 2e-4
        assert both[there].max() > 0.02
    half = lengths(actor.rig, activate(express(au), aside=lopsided(au, 0.5)))
    np.testing.assert_allclose(half[right], both[right] / 2, atol=2e-4)


def test_one_sidedness_without_movement_is_nothing():
    assert np.abs(activate(NONE, aside=np.ones(len(LATERAL)))).max() == 0


def test_a_wink_closes_one_eye_as_a_blink_closes_both(head, actor):
    left, right = sides(head)
    shut = lengths(actor.rig, activate(NONE, blink=1.0))
    for wink, here, there in ((1.0, left, right), (-1.0, right, left)):
        moved = lengths(actor.rig, activate(NONE, wink=wink))
        np.testing.assert_allclose(moved[here], shut[here], atol=2e-4)
        assert moved[there].max() < 2e-4
    np.testing.assert_allclose(activate(NONE, blink=1.0, wink=1.0), activate(NONE, blink=1.0), atol=1e-6)


def test_a_wink_hides_the_tightened_lids_of_its_eye_alone(actor):
    squint, column = express(7), [list(RECIPES).index(au) for au in (7, 45)]
    winking, plain = activate(squint, wink=1.0), activate(squint)
    assert winking[column[0]] == pytest.approx(plain[column[0]] / 2)
    assert winking[column[1]] == pytest.approx(0.5)
    assert activate(squint, blink=1.0)[column[0]] == 0


@pytest.mark.parametrize("au", UNCODED)
@pytest.mark.parametrize("rig", [FACE_UNITS, EXPRESSION_UNITS])
def test_uncoded_movements_are_seen_and_stay_in_their_region(head, au, rig):
    moved = np.linalg.norm(displace(head, au, rig=rig), axis=1)
    assert moved.max() > 0.03
    assert moved[region_mask(au) == 0].max() == 0
    assert set(UNCODED).isdisjoint(AUS)


def test_uncoded_movements_reach_the_rig(actor):
    for au in UNCODED:
        intensity = express(25, level=4.0) if au == 19 else NONE  # a tongue needs open lips
        without, with_it = activate(intensity), activate(intensity, uncoded=alone(au))
        assert lengths(actor.rig, with_it - without).max() > 0.03, au


def test_jaws_go_both_ways_and_cheeks_are_puffed_or_sucked(head, actor):
    left, right = (activate(NONE, uncoded=alone(30, sign)) @ actor.rig.basis for sign in (1.0, -1.0))
    np.testing.assert_allclose(left, -right, atol=1e-5)
    chin = np.flatnonzero((np.abs(head.face[head.geometry_R, 0]) < 0.2) & (head.face[head.geometry_R, 1] < -2.6))
    assert left.reshape(2, -1, 3)[0, chin, 0].max() > 0.02
    assert left.reshape(2, -1, 3)[0, chin, 0].min() > -1e-3
    cheek = np.argmax(lengths(actor.rig, activate(NONE, uncoded=alone(34))))
    puffed, sucked = (activate(NONE, uncoded=alone(34, s)) @ actor.rig.basis for s in (1.0, -1.0))
    assert puffed.reshape(2, -1, 3)[0, cheek] @ sucked.reshape(2, -1, 3)[0, cheek] < 0
    assert tuple(SIDEWAYS) == (30,)


def test_lips_that_are_pressed_or_open_hold_back_what_they_must():
    def strength(au: int, *aus: int) -> float:
        activation = activate(express(*aus), uncoded=alone(au))
        return float(activation[list(RECIPES).index(au)])

    for au in (16, 19, 22):
        assert strength(au, 24) == 0
        assert strength(au, 25) == 1
    for au in (28, 34):
        assert strength(au, 25) == 0
        assert strength(au, 24) == 1
    assert strength(19) == 0
    assert activate(NONE, uncoded=alone(5), blink=1.0)[list(RECIPES).index(5)] == 0
    assert strength(5) == 1


def measure_asymmetry(head, rig, au) -> float:
    left, right = sides(head)
    moved = lengths(rig, activate(express(au)))
    one, other = float((moved[left] ** 2).sum()), float((moved[right] ** 2).sum())
    return (one - other) / (one + other)


@pytest.mark.parametrize("au", [10, 12, 15])
def test_mouths_are_as_asymmetric_in_the_second_rig_as_in_the_first(head, au):
    spread = {
        name: np.std(
            [measure_asymmetry(head, build_rig(head, draw_identity(0, n), head.position_G3, name), au) for n in range(8)]
        )
        for name in (FACE_UNITS, EXPRESSION_UNITS)
    }
    assert spread[FACE_UNITS] > 0.04
    assert 0.4 < spread[EXPRESSION_UNITS] / spread[FACE_UNITS] < 2.5


def test_gains_are_those_of_the_person_in_every_rig(head):
    rigs = [build_rig(head, draw_identity(0, 2), head.position_G3, name) for name in (FACE_UNITS, EXPRESSION_UNITS, MIXED)]
    assert rigs[0].gain == rigs[1].gain == rigs[2].gain
    assert rigs[0].gain[45] == 1
    assert np.std([rigs[0].gain[au] for au in AUS]) > 0.05


@pytest.mark.parametrize("au", LATERAL)
def test_skin_folds_on_the_side_that_moves(actor, au):
    intensity = express(au, level=4.0)
    assert weigh_folds(intensity, activate(intensity))[au] == pytest.approx(0.8)
    for side, expected in ((1.0, (0, 0.8)), (-0.5, (0.8, 0.4))):  # on the right, and on the left
        strength = weigh_folds(intensity, activate(intensity, aside=lopsided(au, side)))
        assert strength[au] == pytest.approx(expected, abs=1e-6)
        relief = actor.skin.folds.raise_relief(strength) - actor.skin.folds.rest
        whole = actor.skin.folds.raise_relief({au: 0.8}) - actor.skin.folds.rest
        (_, _, start, end), _ = actor.skin.folds.maps[au]
        middle = (start + end) // 2 - actor.skin.folds.bounds[2]
        for half, share in ((np.s_[:, :middle], expected[0]), (np.s_[:, middle:], expected[1])):
            np.testing.assert_allclose(relief[half], whole[half] * share / 0.8, atol=1e-5)
            assert np.abs(whole[half]).max() > 0.05


def test_folds_of_other_aus_know_no_sides():
    intensity = express(6, 25, level=3.0)
    strength = weigh_folds(intensity, activate(intensity, aside=np.ones(len(LATERAL))))
    assert strength == {n: pytest.approx(0.6 if n in (6, 25) else 0.0) for n in AUS}
