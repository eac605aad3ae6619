"""The label process: the real corpora's base rates, muscles' dynamics, any frame rate, rests, and a coder's blind spots."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aupipe.synthetic.calibration import calibrate, draw_sample, simulate_levels, simulate_rates
from aupipe.synthetic.margins import MARGINS
from aupipe.synthetic.motion import _follow, join_motions, perform
from aupipe.synthetic.rig import AUS

COLUMN = {au: m for m, au in enumerate(AUS)}
# Published rates in percent: BP4D and Aff-Wild2 occurrence, DISFA intensity of at least 2.
PUBLISHED = {
    "bp4d": {1: 21.14, 2: 17.10, 4: 20.26, 6: 46.09, 7: 54.90, 10: 59.43, 12: 56.20, 14: 46.56, 15: 16.94, 17: 34.33,
             23: 16.54, 24: 15.14},
    "disfa": {1: 4.97, 2: 4.31, 4: 15.24, 6: 7.89, 9: 4.18, 12: 12.88, 25: 27.71, 26: 8.82},
    "affwild2": {1: 18.11, 2: 8.46, 4: 19.69, 6: 29.62, 7: 40.01, 10: 37.06, 12: 25.92, 15: 2.38, 23: 2.88, 24: 4.84,
                 25: 68.32, 26: 10.41},
}  # fmt: skip


@pytest.fixture(scope="module")
def sessions():
    return [perform(0, subject, session, 32, 5.0) for subject in range(150) for session in (1, 2)]


@pytest.fixture(scope="module")
def samples():
    """What 2,500 sessions draw; the rests differ."""
    return {name: draw_sample(margins, sessions=2500, seed=5) for name, margins in MARGINS.items() if name != "affwild2"}


@pytest.mark.parametrize("name", MARGINS)
def test_base_rates_are_the_published_ones(samples, name):
    rates = 100 * simulate_rates(MARGINS[name], samples["disfa" if name == "disfa" else "bp4d"])
    assert set(PUBLISHED[name]).isdisjoint(MARGINS[name].assumed)
    for au, expected in PUBLISHED[name].items():
        assert rates[COLUMN[au]] == pytest.approx(expected, abs=2.0), au
    for au in MARGINS[name].assumed:
        assert rates[COLUMN[au]] == pytest.approx(100 * MARGINS[name].aims[au], abs=2.0), au


def test_intensities_are_spread_as_in_disfa(samples):
    margins = MARGINS["disfa"]
    levels = simulate_levels(margins, samples["disfa"])
    np.testing.assert_allclose(levels.sum(1), 1)
    np.testing.assert_allclose(100 * levels, 100 * np.array(margins.histogram_M6), atol=2.0)
    twelve = 100 * levels[COLUMN[12]]
    np.testing.assert_allclose(twelve, [76.46, 10.66, 5.25, 5.53, 1.97, 0.13], atol=2.0)


def test_a_third_of_disfas_frames_show_no_au():
    motions = [perform(0, subject, 1, 120, 20.0, MARGINS["disfa"]) for subject in range(300)]
    coded = [COLUMN[au] for au in (1, 2, 4, 6, 9, 12, 15, 17, 25, 26)]
    none = np.mean([(motion.intensity_NM[:, coded] < 1).all(1).mean() for motion in motions])
    assert none == pytest.approx(48612 / 130814, abs=0.06)


@pytest.mark.parametrize("name", ["affwild2", "disfa"])
def test_calibration_finds_the_thresholds_again(name):
    margins = MARGINS[name]
    levels = len(margins.knots_ML[0])
    start = dataclasses.replace(margins, knots_ML=tuple(tuple(0.5 + 0.3 * k for k in range(levels)) for _ in AUS))
    sample = draw_sample(margins, sessions=200, seconds=4.0, seed=3)
    found = calibrate(start, sample, rounds=5)
    np.testing.assert_allclose(simulate_rates(found, sample), list(margins.aims.values()), atol=0.02)
    assert all(list(row) == sorted(row) for row in found.knots_ML)


def test_joined_sessions_go_over_into_each_other():
    first, second = (perform(0, 0, session, 40, 20.0) for session in (1, 2))
    joined = join_motions([first, second], 20.0)
    assert len(joined.seconds_N) == 80
    np.testing.assert_allclose(np.diff(joined.seconds_N), 1 / 20)
    np.testing.assert_array_equal(joined.intensity_NM[:40], first.intensity_NM)
    np.testing.assert_array_equal(joined.intensity_NM[50:], second.intensity_NM[10:])
    for name in ("intensity_NM", "angles_N3"):
        jump = np.abs(np.diff(getattr(joined, name), axis=0))[39:50].max()
        apart = np.abs(getattr(second, name)[0] - getattr(first, name)[-1]).max()
        assert jump <= max(0.35 * apart, 1.2 * np.abs(np.diff(getattr(second, name), axis=0)).max())


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
