"""The label process: BP4D's base rates, muscles' dynamics, any frame rate, rests, and a coder's blind spots."""

from __future__ import annotations

import numpy as np
import pytest

from aupipe.synthetic.motion import THRESHOLDS, _follow, calibrate, perform, simulate_rates
from aupipe.synthetic.rig import AUS

COLUMN = {au: m for m, au in enumerate(AUS)}
BP4D = {
    1: 21.14,
    2: 17.10,
    4: 20.26,
    6: 46.09,
    7: 54.90,
    10: 59.43,
    12: 56.20,
    14: 46.56,
    15: 16.94,
    17: 34.33,
    23: 16.54,
    24: 15.14,
}


@pytest.fixture(scope="module")
def sessions():
    return [perform(0, subject, session, 32, 5.0) for subject in range(150) for session in (1, 2)]


def test_base_rates_are_those_of_bp4d():
    rates = 100 * simulate_rates(sessions=1200, seed=5)
    for au, expected in BP4D.items():
        assert rates[COLUMN[au]] == pytest.approx(expected, abs=3.0), au
    assert 3 < rates[COLUMN[9]] < 9
    assert 30 < rates[COLUMN[25]] < 40


def test_calibration_finds_the_thresholds_of_other_rates():
    wanted = np.full(len(AUS), 0.3)
    thresholds = calibrate(wanted, sessions=150, rounds=4, seconds=4.0)
    rates = simulate_rates(sessions=150, seconds=4.0, thresholds=thresholds)
    np.testing.assert_allclose(rates, wanted, atol=0.03)
    assert not np.allclose(thresholds, list(THRESHOLDS.values()), atol=0.2)


def test_a_session_is_a_function_of_its_numbers():
    first, again, other = perform(3, 4, 1, 20, 25.0), perform(3, 4, 1, 20, 25.0), perform(3, 4, 2, 20, 25.0)
    np.testing.assert_array_equal(first.intensity_NM, again.intensity_NM)
    np.testing.assert_array_equal(first.angles_N3, again.angles_N3)
    assert not np.array_equal(first.intensity_NM, other.intensity_NM)


def test_five_frames_a_second_show_the_same_faces_as_twenty_five():
    slow, fast = perform(1, 2, 1, 30, 5.0), perform(1, 2, 1, 150, 25.0)
    np.testing.assert_allclose(slow.intensity_NM, fast.intensity_NM[::5], atol=1e-6)
    np.testing.assert_allclose(slow.angles_N3, fast.angles_N3[::5], atol=1e-6)
    np.testing.assert_allclose(slow.seconds_N, fast.seconds_N[::5])


@pytest.mark.parametrize("fps", [4.0, 12.5, 30.0, 60.0])
def test_any_frame_rate_gives_sound_motion(fps):
    motion = perform(0, 0, 1, 40, fps)
    for values, low, high in (
        (motion.intensity_NM, 0, 5),
        (motion.blink_N, 0, 1),
        (motion.gaze_N2, -1, 1),
        (motion.speech_N2, 0, 1),
    ):
        assert len(values) == 40
        assert np.isfinite(values).all()
        assert low <= values.min()
        assert values.max() <= high


def test_most_sessions_have_a_neutral_frame(sessions):
    neutral = [(session.intensity_NM < 1).all(1).any() for session in sessions]
    assert np.mean(neutral) > 0.6


def test_frequent_pairs_go_together_and_antagonists_do_not(sessions):
    occurrence = np.concatenate([session.intensity_NM >= 1 for session in sessions]).astype(float)
    phi = np.corrcoef(occurrence.T)
    assert phi[COLUMN[1], COLUMN[2]] > 0.4
    assert phi[COLUMN[6], COLUMN[12]] > 0.4
    assert phi[COLUMN[24], COLUMN[25]] < -0.1
    assert max(((s.intensity_NM[:, COLUMN[24]] > 3) & (s.intensity_NM[:, COLUMN[25]] > 0)).sum() for s in sessions) == 0


def test_muscles_rise_faster_than_they_fall():
    effort = np.zeros((100, 1), np.float32)
    effort[10:50] = 1
    moved = _follow(effort, 25.0)[:, 0]
    rise = np.argmax(moved > 0.8) - 10
    fall = np.argmax(moved[50:] < 0.2)
    assert 0 < rise < fall
    assert moved[9] == 0
    assert moved[49] > 0.99


def test_about_one_cell_in_a_hundred_is_unknown_in_short_runs(sessions):
    unknown = np.stack([session.unknown_NM for session in sessions])
    assert 0.004 < unknown.mean() < 0.02
    runs = np.abs(np.diff(unknown.astype(int), axis=1)).sum(1).max()
    assert runs <= 2


def test_eyes_blink_and_some_people_speak(sessions):
    blinks = np.mean([session.blink_N.max() > 0.3 for session in sessions])
    assert blinks > 0.5
    talking = np.mean([session.speech_N2.max() > 0.05 for session in sessions])
    assert 0.2 < talking < 0.5
