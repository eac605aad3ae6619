"""The label process: the real corpora's base rates at any length of a session, muscles' dynamics, any frame rate, rests,
people's manners, what moves and is not coded, and a coder's blind spots."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aupipe.synthetic.calibration import calibrate, draw_sample, simulate, simulate_levels, simulate_rates
from aupipe.synthetic.distraction import HABITS, draw_distraction
from aupipe.synthetic.margins import MARGINS
from aupipe.synthetic.motion import draw_manner, join_motions, perform
from aupipe.synthetic.rig import AUS, LATERAL, UNCODED
from aupipe.synthetic.timing import alternate, follow, scatter

COLUMN = {au: m for m, au in enumerate(AUS)}
SECONDS = (4.0, 6.0, 10.0, 12.0)
# Published rates in percent: BP4D and Aff-Wild2 occurrence, DISFA intensity of at least 2.
PUBLISHED = {
    "bp4d": {1: 21.14, 2: 17.10, 4: 20.26, 6: 46.09, 7: 54.90, 10: 59.43, 12: 56.20, 14: 46.56, 15: 16.94, 17: 34.33,
             23: 16.54, 24: 15.14},
    "disfa": {1: 4.97, 2: 4.31, 4: 15.24, 6: 7.89, 9: 4.18, 12: 12.88, 25: 27.71, 26: 8.82},
    "affwild2": {1: 18.11, 2: 8.46, 4: 19.69, 6: 29.62, 7: 40.01, 10: 37.06, 12: 25.92, 15: 2.38, 23: 2.88, 24: 4.84,
                 25: 68.32, 26: 10.41},
}  # fmt: skip
# Pairs that go together in spontaneous expression or exclude each other, of public prior-probability work.
TOGETHER = ((1, 2), (4, 7), (4, 9), (7, 9), (6, 12), (9, 17), (15, 17), (15, 24), (17, 24), (23, 24))
BLOCK = ((6, 7), (6, 10), (7, 10), (7, 12), (10, 12), (6, 14), (10, 14), (12, 14))  # BP4D's
PARTED = ((12, 25), (25, 26))  # DISFA's
APART = ((2, 6), (2, 7), (12, 15), (12, 17), (24, 25))


@pytest.fixture(scope="module")
def sessions():
    return [perform(0, subject, session, 50, 5.0) for subject in range(150) for session in (1, 2)]


@pytest.fixture(scope="module")
def samples():
    """What 2,500 sessions of each length draw; corpora differ by their rests."""
    return {
        (name, seconds): draw_sample(MARGINS[name], sessions=2500, seconds=seconds, seed=5)
        for name in ("bp4d", "disfa")
        for seconds in SECONDS
    }


def sample_of(samples, name, seconds):
    return samples["disfa" if name == "disfa" else "bp4d", seconds]


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("seconds", SECONDS)
def test_base_rates_are_the_published_ones_at_any_length(samples, name, seconds):
    assert MARGINS[name].rest == MARGINS["disfa" if name == "disfa" else "bp4d"].rest  # so that they share samples
    rates = 100 * simulate_rates(MARGINS[name], sample_of(samples, name, seconds))
    assert set(PUBLISHED[name]).isdisjoint(MARGINS[name].assumed)
    for au, expected in PUBLISHED[name].items():
        assert rates[COLUMN[au]] == pytest.approx(expected, abs=2.0), au
    for au in MARGINS[name].assumed:
        assert rates[COLUMN[au]] == pytest.approx(100 * MARGINS[name].aims[au], abs=2.0), au


def test_a_sample_is_what_sessions_do():
    margins = MARGINS["bp4d"]
    simulated = simulate(margins, draw_sample(margins, sessions=4, seconds=3.0, seed=8))
    for n in range(4):
        played = perform(8, *divmod(n, 2), 75, 25.0).intensity_NM
        np.testing.assert_allclose(simulated[:, n], played, atol=1e-4)


def test_intensities_are_spread_as_in_disfa(samples):
    margins = MARGINS["disfa"]
    levels = simulate_levels(margins, samples["disfa", 10.0])
    np.testing.assert_allclose(levels.sum(1), 1)
    np.testing.assert_allclose(100 * levels, 100 * np.array(margins.histogram_M6), atol=2.0)
    twelve = 100 * levels[COLUMN[12]]
    np.testing.assert_allclose(twelve, [76.46, 10.66, 5.25, 5.53, 1.97, 0.13], atol=2.0)


def test_a_third_of_disfas_frames_show_no_au(samples):
    coded = [COLUMN[au] for au in (1, 2, 4, 6, 9, 12, 15, 17, 25, 26)]
    none = (simulate(MARGINS["disfa"], samples["disfa", 10.0])[..., coded] < 1).all(2).mean()
    assert none == pytest.approx(48612 / 130814, abs=0.06)


@pytest.mark.parametrize("name", MARGINS)
def test_signs_of_co_occurrence_are_those_of_the_literature(samples, name):
    sample = sample_of(samples, name, 10.0)
    present = simulate(MARGINS[name], sample)[::5] >= MARGINS[name].occurs_at
    phi = np.corrcoef(present.reshape(-1, len(AUS)).T.astype(float))
    wanted = (*TOGETHER, *(BLOCK if name == "bp4d" else PARTED if name == "disfa" else ()))
    for a, b in wanted:
        assert phi[COLUMN[a], COLUMN[b]] > 0.04, (a, b)
    for a, b in APART:
        assert phi[COLUMN[a], COLUMN[b]] < -0.02, (a, b)
    assert phi[COLUMN[1], COLUMN[2]] > 0.4
    assert phi[COLUMN[6], COLUMN[12]] > 0.4


def runs_of(present_TS: np.ndarray) -> list[tuple[int, int, int]]:
    """(session, first, past the last) of every run that neither begins nor ends with its session."""
    steps = np.diff(np.pad(present_TS.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)[:, 1]
    return [(s, a, b) for (s, a), b in zip(starts, ends, strict=True) if a > 0 and b < len(present_TS)]


def test_movements_last_a_second_or_a_few(samples):
    present = simulate(MARGINS["bp4d"], samples["bp4d", 12.0]) >= 1
    for au in PUBLISHED["bp4d"]:
        seconds = np.array([b - a for _, a, b in runs_of(present[:, :400, COLUMN[au]])]) / 25
        assert 0.8 < np.median(seconds) < 2.5, au
        assert np.quantile(seconds, 0.95) < 8, au


@pytest.mark.parametrize("au", [1, 4, 12, 15])
def test_movements_rise_to_an_apex_faster_than_they_fall(samples, au):
    """Of single movements that pass intensity 2: between a tenth and nine tenths of the apex, before it and after it."""
    intensity = simulate(MARGINS["bp4d"], samples["bp4d", 12.0])[..., COLUMN[au]]
    onset, offset = [], []
    for s, a, b in runs_of(intensity[:, :800] > 0.05):
        course = intensity[a - 1 : b + 1, s]
        apex = int(course.argmax())
        if course[apex] > 2 and (np.diff(course[: apex + 1]) >= 0).all() and (np.diff(course[apex:]) <= 0).all():
            low, high = 0.1 * course[apex], 0.9 * course[apex]
            onset.append(int(((course[:apex] > low) & (course[:apex] < high)).sum()) / 25)
            offset.append(int(((course[apex:] > low) & (course[apex:] < high)).sum()) / 25)
    assert len(onset) > 50
    assert 0.1 < np.median(onset) < 0.8
    assert np.median(onset) < 0.9 * np.median(offset)
    assert np.median(offset) < 2.0


def test_muscles_start_gently_and_rise_three_times_as_fast_as_they_fall():
    effort = np.zeros((200, 1), np.float32)
    effort[10:100] = 1
    moved = follow(effort, 100.0)[:, 0]
    steps = np.diff(moved)
    assert moved[9] == 0
    assert moved[99] > 0.99
    assert steps[9] < 0.6 * steps.max()  # S-shaped: the fastest movement comes later
    rise = ((moved[:100] > 0.1) & (moved[:100] < 0.9)).sum()
    fall = ((moved[100:] > 0.1) & (moved[100:] < 0.9)).sum()
    assert fall == pytest.approx(3 * rise, rel=0.1)
    quick = follow(effort, 100.0, 2.0)[:, 0]
    assert ((quick[:100] > 0.1) & (quick[:100] < 0.9)).sum() == pytest.approx(rise / 2, rel=0.15)


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
    np.testing.assert_array_equal(joined.uncoded_ND[50:], second.uncoded_ND[10:])
    for name in ("intensity_NM", "angles_N3"):
        jump = np.abs(np.diff(getattr(joined, name), axis=0))[39:50].max()
        apart = np.abs(getattr(second, name)[0] - getattr(first, name)[-1]).max()
        assert jump <= max(0.35 * apart, 1.2 * np.abs(np.diff(getattr(second, name), axis=0)).max())


def test_a_session_is_a_function_of_its_numbers():
    first, again, other = perform(3, 4, 1, 20, 25.0), perform(3, 4, 1, 20, 25.0), perform(3, 4, 2, 20, 25.0)
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.intensity_NM, other.intensity_NM)


def test_five_frames_a_second_show_the_same_faces_as_twenty_five():
    slow, fast = perform(1, 2, 1, 50, 5.0), perform(1, 2, 1, 250, 25.0)
    for name in ("intensity_NM", "uncoded_ND", "aside_NL", "angles_N3", "wink_N", "blink_N", "seconds_N"):
        np.testing.assert_allclose(getattr(slow, name), getattr(fast, name)[::5], atol=1e-6)


@pytest.mark.parametrize("fps", [4.0, 12.5, 30.0, 60.0])
def test_any_frame_rate_gives_sound_motion(fps):
    motion = perform(0, 0, 1, 40, fps)
    for values, low, high in (
        (motion.intensity_NM, 0, 5),
        (motion.blink_N, 0, 1),
        (motion.wink_N, -1, 1),
        (motion.gaze_N2, -1, 1),
        (motion.uncoded_ND, -1, 1),
        (motion.aside_NL, -1, 1),
    ):
        assert len(values) == 40
        assert np.isfinite(values).all()
        assert low <= values.min()
        assert values.max() <= high


def test_nearly_all_sessions_of_ten_seconds_have_neutral_moments(samples):
    neutral = (simulate(MARGINS["bp4d"], samples["bp4d", 10.0]) < 1).all(2)
    assert neutral.any(0).mean() > 0.95
    assert np.mean(neutral.sum(0) >= 8) > 0.85  # a third of a second
    assert 0.08 < neutral.mean() < 0.2


def test_pressed_lips_are_closed(sessions):
    assert max(((s.intensity_NM[:, COLUMN[24]] > 3) & (s.intensity_NM[:, COLUMN[25]] > 0)).sum() for s in sessions) == 0


def test_people_differ_in_pace_vigour_and_favourites():
    manners = [draw_manner(0, subject) for subject in range(300)]
    for values, spread in (([m.pace for m in manners], 0.18), ([m.vigour for m in manners], 0.12)):
        assert np.log(values).std() == pytest.approx(spread, rel=0.15)
        assert np.log(values).mean() == pytest.approx(0, abs=0.03)
    taste = np.stack([m.taste_E for m in manners])
    assert taste.shape == (300, len(HABITS))
    assert np.abs(taste).mean() == pytest.approx(1, abs=0.1)
    assert (taste > 0).mean() == pytest.approx(0.5, abs=0.05)
    # A person's sessions are more alike than those of two people.
    rates = np.array([[(perform(0, n, s, 50, 5.0).intensity_NM >= 1).mean(0) for s in (1, 2, 3, 4)] for n in range(60)])
    assert rates.mean(1).std(0).mean() > 1.15 * rates.std(1).mean() / 2


def test_a_quick_person_moves_more_quickly():
    """Intensity changes more from tick to tick where the same draws are played at a higher pace."""
    effort = (np.sin(np.arange(600) / 15)[:, None] > 0.3).astype(np.float32)
    speed = [np.abs(np.diff(follow(effort, 25.0, pace), axis=0)).max() for pace in (0.7, 1.0, 1.5)]
    assert speed[0] < speed[1] < speed[2]


def test_spells_take_their_share_from_the_first_tick_on():
    rng = np.random.default_rng(0)
    inside = np.stack([alternate(rng, 300, 25.0, (1.0, 3.0), (2.0, 5.4)) for _ in range(3000)])
    share = 2 / (2 + 3.7)
    for ticks in (inside[:, :5], inside[:, 100:105], inside[:, -5:]):
        assert (ticks >= 0).mean() == pytest.approx(share, abs=0.03)
    assert inside.max() < 1
    assert (inside[inside >= 0] < 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_episodes_are_as_frequent_at_the_ends_as_in_the_middle():
    rng = np.random.default_rng(0)
    there = np.stack([scatter(rng, 250, 25.0, 0.1, (0.4, 1.6), (0.5, 0.9)) for _ in range(4000)])
    for ticks in (there[:, :5], there[:, 120:125], there[:, -5:]):
        assert (ticks > 0).mean() == pytest.approx(1 - np.exp(-0.1), abs=0.012)
    assert there[there > 0].min() >= 0.5
    assert there.max() <= 0.9


def test_everything_that_is_not_coded_happens_now_and_then(sessions):
    uncoded = np.concatenate([s.uncoded_ND for s in sessions])
    for au, column in zip(UNCODED, uncoded.T, strict=True):
        assert 0.002 < (np.abs(column) > 0.3).mean() < 0.12, au
        assert (column.min() < -0.3) == (au in (30, 34)), au
    wink, aside = np.concatenate([s.wink_N for s in sessions]), np.concatenate([s.aside_NL for s in sessions])
    assert 0.001 < (np.abs(wink) > 0.5).mean() < 0.03
    assert wink.min() < -0.5 < 0.5 < wink.max()
    for au, column in zip(LATERAL, aside.T, strict=True):
        assert 0.03 < (np.abs(column) > 0.3).mean() < 0.4, au
        assert column.min() < -0.4 < 0.4 < column.max(), au


def test_what_parts_the_lips_is_labelled_so():
    """A lowered lip, a funnel and a tongue show as AU25, a tongue as AU26 too, unless the lips are pressed."""
    for subject in range(60):
        motion = perform(2, subject, 1, 250, 25.0)
        free = motion.intensity_NM[:, COLUMN[24]] < 0.3
        for au in (16, 19, 22):
            strong = free & (motion.uncoded_ND[:, UNCODED.index(au)] > 0.6)
            assert (motion.intensity_NM[strong, COLUMN[25]] >= 1).all(), au
    rng = np.random.default_rng(1)
    taste = np.zeros(len(HABITS), np.float32)
    taste[UNCODED.index(19)] = 40
    other = draw_distraction(rng, taste, 500, 25.0)
    assert other.effort_NE[:, UNCODED.index(19)].max() > 0.5
    np.testing.assert_array_equal(other.parting_N2[:, 1] > 0, other.effort_NE[:, UNCODED.index(19)] > 0)


def test_no_distractor_is_labelled_as_another_coded_au():
    """AUs but 25 and 26 are the same whether or not somebody puffs, puckers and winks."""
    margins = MARGINS["bp4d"]
    sample = draw_sample(margins, sessions=30, seconds=6.0, seed=2)
    quiet = dataclasses.replace(sample, parting_TS2=0 * sample.parting_TS2, opening_TS2=0 * sample.opening_TS2)
    there, gone = simulate(margins, sample), simulate(margins, quiet)
    others = [COLUMN[au] for au in AUS if au not in (25, 26)]
    np.testing.assert_array_equal(there[..., others], gone[..., others])
    assert (there[..., COLUMN[25]] >= gone[..., COLUMN[25]]).all()
    assert (there[..., COLUMN[25]] > gone[..., COLUMN[25]]).any()


def test_about_one_cell_in_a_hundred_is_unknown_in_short_runs(sessions):
    unknown = np.stack([session.unknown_NM for session in sessions])
    assert 0.004 < unknown.mean() < 0.02
    runs = np.abs(np.diff(unknown.astype(int), axis=1)).sum(1).max()
    assert runs <= 2


def test_eyes_blink_and_some_people_speak(sessions):
    blinks = np.mean([session.blink_N.max() > 0.3 for session in sessions])
    assert blinks > 0.5
    # Closed for longer than any blink, three times a minute: of ten seconds, on average, more than one half and at most two.
    shut = [session.blink_N > 0.8 for session in sessions]
    kept = np.mean([(closed[:-2] & closed[1:-1] & closed[2:]).mean() for closed in shut])
    assert 0.05 < kept < 0.2
    talking = 0
    for subject in range(300):
        manner = draw_manner(0, subject)
        other = draw_distraction(np.random.default_rng(subject), manner.taste_E, 250, 25.0)
        talking += int(other.talk_N2.max() > 0.05)
        assert (other.talk_N2.max() > 0) == (other.opening_N2.max() > 0)
    assert 0.2 < talking / 300 < 0.45
