"""What a face does besides its coded AUs: talking, closed eyes, winks, glances, AUs that few code, one-sidedness.

How often these happen is assumed: no counts are public. What shows as a coded AU is labelled as that AU: talking, a lowered
lip, a funnel and a tongue part the lips, so they open AU25 and AU26; a smile of one half of the mouth is AU12.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.rig import LATERAL, UNCODED
from aupipe.synthetic.timing import Span, alternate, scatter, smooth_noise


@dataclass(frozen=True, slots=True)
class Habit:
    """Episodes: how many a second, for how many seconds, how strong (full is 1), and the chance of the other direction."""

    per_second: float
    stay: Span
    peak: Span
    reversed: float = 0.0


_HABITS = {
    5: Habit(0.018, (0.3, 1.2), (0.4, 1.0)),
    16: Habit(0.015, (0.3, 1.0), (0.4, 0.9)),
    18: Habit(0.020, (0.4, 1.5), (0.4, 1.0)),
    19: Habit(0.010, (0.3, 0.8), (0.5, 1.0)),
    20: Habit(0.025, (0.4, 1.5), (0.3, 1.0)),
    22: Habit(0.012, (0.3, 1.0), (0.4, 1.0)),
    28: Habit(0.018, (0.4, 1.8), (0.5, 1.0)),
    30: Habit(0.015, (0.4, 1.5), (0.4, 1.0), 0.5),
    34: Habit(0.015, (0.4, 1.5), (0.4, 1.0), 0.4),
    46: Habit(0.012, (0.15, 0.6), (0.9, 1.0), 0.25),
}
# Spells in which an AU is stronger on one side; the peak is the share that the weak side loses. Mostly the favourite side.
_LOPSIDED = {au: Habit(often, (1.5, 5.0), (0.5, 1.0), 0.25) for au, often in ((2, 0.04), (10, 0.04), (12, 0.03), (14, 0.08))}
HABITS = (*(_HABITS[au] for au in (*UNCODED, 46)), *(_LOPSIDED[au] for au in LATERAL))
_SHUT = Habit(0.05, (0.6, 4.0), (0.85, 1.0))  # AU43: people smile, frown and think with closed eyes too
_PARTS = {16: (0.6, 0.0), 19: (0.7, 0.45), 22: (0.5, 0.0)}  # effort of AU25 and AU26 that comes with full strength
TALKERS = 0.35  # of the sessions
_TALK, _SILENCE = (1.0, 3.0), (2.0, 5.4)  # seconds, in those


def list_rates() -> dict[str, float]:
    """How often a minute each of HABITS begins, on average over people; and the share of the sessions with talk."""
    names = (*(f"AU{au:02d}" for au in (*UNCODED, 46)), *(f"one-sided AU{au:02d}" for au in LATERAL))
    rates = {name: round(60 * habit.per_second, 2) for name, habit in zip(names, HABITS, strict=True)}
    return rates | {"AU43": round(60 * _SHUT.per_second, 2), "share of sessions with talk": TALKERS}


@dataclass(frozen=True, slots=True)
class Distraction:
    """effort_NE of HABITS: UNCODED, the wink, LATERAL; times sign_E once the muscles have followed · parting_N2 what of it
    is effort of AU25 and AU26 · talk_N2 lip shapes AU18 and AU16, 0–1 · opening_N2 AU25 and AU26 of talking, 0–5.
    """

    effort_NE: Array
    sign_E: Array
    parting_N2: Array
    talk_N2: Array
    opening_N2: Array


def draw_distraction(rng: np.random.Generator, taste_E: Array, ticks: int, rate: float) -> Distraction:
    """One session's, of a person with a taste of their own for each of HABITS: negative to the other side, twice as often
    as usual at ±2.
    """
    drawn, sign = [], np.empty(len(HABITS), np.float32)
    for e, (habit, taste) in enumerate(zip(HABITS, taste_E.tolist(), strict=True)):
        drawn.append(scatter(rng, ticks, rate, habit.per_second * abs(taste), habit.stay, habit.peak))
        is_other = rng.random() < habit.reversed
        sign[e] = (np.sign(taste) if habit.reversed else 1.0) * (-1 if is_other else 1)
    effort = np.stack(drawn, 1)
    parting = np.zeros((ticks, 2), np.float32)
    for au, parts in _PARTS.items():
        np.maximum(parting, effort[:, [UNCODED.index(au)]] * floats(parts), out=parting)
    return Distraction(effort, sign, parting, *_speak(rng, ticks, rate))


def _speak(rng: np.random.Generator, ticks: int, rate: float) -> tuple[Array, Array]:
    """Talking in a third of the sessions: uncoded lip shapes (ticks, 2), and what it adds to AU25 and AU26 (ticks, 2)."""
    talks, along = rng.random() < TALKERS, alternate(rng, ticks, rate, _TALK, _SILENCE)
    if not talks:
        return np.zeros((ticks, 2), np.float32), np.zeros((ticks, 2), np.float32)
    parted, dropped, pursed = (np.abs(smooth_noise(rng, ticks, 3, 0.09 * rate)) * _swell(along)).T
    shapes = np.stack([0.5 * pursed, 0.3 * parted], 1)  # the lower lip goes down as the lips part
    return np.minimum(shapes, 1), np.minimum(np.stack([3.0 * parted, 1.6 * dropped], 1), 5)


def _swell(along: Array) -> Array:
    """How lively talk is, (ticks, 1), at its beginning, middle and end; 0 between."""
    return np.where(along < 0, 0, np.sin(np.pi * np.clip(along, 0, 1)) ** 0.3)[:, None].astype(np.float32)


def blink(rng: np.random.Generator, ticks: int, rate: float) -> Array:
    """How far the eyes are closed (ticks,): for a third of a second, every four seconds on average."""
    closed = np.zeros(ticks, np.float32)
    time, moment = np.arange(ticks) / rate, rng.uniform(0.2, 2.4)
    while moment < ticks / rate:
        np.maximum(closed, np.interp(time - moment, [-0.16, -0.04, 0, 0.04, 0.28], [0, 1, 1, 0.9, 0]), out=closed)
        moment += rng.exponential(3.2) + 0.6
    return closed


def keep_shut(rng: np.random.Generator, ticks: int, rate: float) -> Array:
    """How far the eyes are kept closed (ticks,), longer than a blink does."""
    return scatter(rng, ticks, rate, _SHUT.per_second, _SHUT.stay, _SHUT.peak)


def look(rng: np.random.Generator, ticks: int, rate: float) -> Array:
    """Gaze right and up (ticks, 2), −1–1: it jumps about twice a second, mostly near the camera."""
    length = max(1, int(0.48 * rate))
    targets = np.clip(rng.normal(0, 0.3, (ticks // length + 1, 2)), -0.9, 0.9)
    return np.repeat(targets, length, 0)[:ticks].astype(np.float32)


def hold_head(rng: np.random.Generator, ticks: int, rate: float) -> tuple[Array, Array]:
    """Yaw, pitch and roll (ticks, 3) in radians, and the head's shift (ticks, 3) in decimetres."""
    angles = smooth_noise(rng, ticks, 3, 1.2 * rate) * floats([0.14, 0.08, 0.06])
    angles += rng.standard_normal(3) * floats([0.20, 0.09, 0.05])
    shift = smooth_noise(rng, ticks, 3, 1.5 * rate) * floats([0.05, 0.03, 0.15])
    shift += rng.standard_normal(3) * floats([0.05, 0.04, 0.35])
    return np.clip(angles, -0.6, 0.6).astype(np.float32), np.clip(shift, -0.9, 0.9).astype(np.float32)
