"""What a face does in a session: AU intensities over time, and what moves besides and is not coded.

The label process is a Gaussian copula. A latent signal per AU (a smooth process, a part that is constant in a session, a
habit of the person) is mixed by the AUs' correlations; what rises above the AU's threshold is a movement; the face rests
now and then; muscles follow quickly on the way up and slowly on the way down. All of it is stationary, so that base rates
do not depend on a session's length. It runs on a clock of at least 25 Hz and is then sampled, so that a session of
5 frames a second has the same faces as one of 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array
from aupipe.synthetic.distraction import HABITS, Distraction, blink, draw_distraction, hold_head, keep_shut, look
from aupipe.synthetic.identity import stream
from aupipe.synthetic.margins import MARGINS, Margins
from aupipe.synthetic.rig import AUS, UNCODED
from aupipe.synthetic.timing import WARM_UP, alternate, follow, smooth_noise

# No co-occurrence table of the real corpora is public, so these correlations of the latent signals are assumptions:
# pairs that FACS names as frequent are positive, antagonists negative. That whole faces rest adds to every pair, so
# pairs that exclude each other are more negative here than in the labels.
PAIRS = {
    (1, 2): 0.85, (1, 4): 0.15, (4, 7): 0.35, (4, 6): 0.2, (6, 7): 0.6, (6, 10): 0.5, (6, 12): 0.7, (10, 12): 0.6,
    (7, 10): 0.4, (7, 12): 0.4, (6, 14): 0.15, (7, 14): 0.15, (10, 14): 0.15, (12, 14): 0.15, (14, 17): 0.1, (15, 17): 0.5,
    (17, 23): 0.35, (17, 24): 0.5, (23, 24): 0.35, (15, 24): 0.3, (9, 17): 0.25, (24, 25): -0.6, (23, 25): -0.3,
    (25, 26): 0.6, (4, 12): -0.2, (9, 10): 0.4, (4, 9): 0.45, (7, 9): 0.35, (14, 25): -0.3, (12, 25): 0.3, (6, 25): 0.25,
    (17, 25): -0.4, (1, 25): 0.1, (2, 6): -0.4, (2, 7): -0.45, (1, 6): -0.3, (1, 7): -0.35, (2, 12): -0.2, (12, 15): -0.5,
    (12, 17): -0.45, (6, 17): -0.25, (6, 15): -0.25,
}  # fmt: skip
_CONSTANT = 0.2  # weight of a session's constant part; a larger one makes few sessions tell less, and hides the face at rest
_HABIT = 0.35
SMOOTH = 0.55  # seconds
ACTIVE = (3.0, 8.0)  # seconds between two rests
_CLOCK = 25.0
_FADE = 0.5  # seconds
# Concerns that draw their own random numbers.
EXPRESSION, DISTRACTION, _POSE, _CODING, CAMERA, CORRUPTION, ROWS, CROPS, POINTS, _LIDS = range(10)


@dataclass(frozen=True, slots=True)
class Motion:
    """A session of N frames. Intensities are 0–5 and true; `unknown` marks the cells that the coder could not see.

    uncoded_ND activations of UNCODED, −1–1 · blink_N 0–1, longer closing too · wink_N the left eye, or below 0 the right
    one · aside_NL of LATERAL: 1 the left side alone, −1 the right one · gaze_N2 right, up −1–1 · angles_N3 radians ·
    shift_N3 decimetres.
    """

    seconds_N: NDArray[np.float64]
    intensity_NM: Array
    unknown_NM: NDArray[np.bool_]
    uncoded_ND: Array
    blink_N: Array
    wink_N: Array
    aside_NL: Array
    gaze_N2: Array
    angles_N3: Array
    shift_N3: Array
    flicker_N: Array


@dataclass(frozen=True, slots=True)
class Manner:
    """A person's way of moving: habit_M adds to the latent signals, so that everybody has favourite AUs · `pace` of all
    movements, `vigour` of coded ones, 1 for the average · taste_E for what is not coded (distraction.HABITS).
    """

    habit_M: Array
    pace: float
    vigour: float
    taste_E: Array


def session_rng(seed: int, subject: int, session: int, concern: int) -> np.random.Generator:
    return np.random.default_rng([seed, subject, 2_000_000 + 10 * session + concern])


def frame_rng(seed: int, subject: int, session: int, frame: int) -> np.random.Generator:
    """A frame's own noise: it can be rendered alone."""
    return np.random.default_rng([seed, subject, session, frame])


def perform(seed: int, subject: int, session: int, frames: int, fps: float, margins: Margins = MARGINS["bp4d"]) -> Motion:
    """A session's motion: a function of its arguments alone, at any frame rate."""
    skip = int(np.ceil(_CLOCK / fps))
    rate, manner = fps * skip, draw_manner(seed, subject)
    warm = round(WARM_UP * rate)
    ticks = warm + frames * skip
    latent, rest = draw_expression(session_rng(seed, subject, session, EXPRESSION), manner, ticks, rate, margins.rest)
    rng = session_rng(seed, subject, session, DISTRACTION)
    other = draw_distraction(rng, manner.taste_E, ticks, rate)
    effort = strain(latent, rest, other.parting_N2, margins, manner.vigour)
    moved = follow(np.concatenate([effort, other.effort_NE], 1), rate, manner.pace)
    uncoded, wink, aside = _sort_out(moved[:, len(AUS) :], other)
    shut = follow(keep_shut(session_rng(seed, subject, session, _LIDS), ticks, rate)[:, None], rate)[:, 0]
    angles, shift = hold_head(session_rng(seed, subject, session, _POSE), ticks, rate)
    kept = slice(warm, None, skip)
    return Motion(
        np.arange(frames) / fps,
        settle(moved[:, : len(AUS)], other.opening_N2)[kept],
        _lose_sight(session_rng(seed, subject, session, _CODING), frames),
        uncoded[kept],
        np.maximum(blink(rng, ticks, rate), shut)[kept],
        wink[kept],
        aside[kept],
        look(rng, ticks, rate)[kept],
        angles[kept],
        shift[kept],
        (0.03 * smooth_noise(rng, ticks, 1, 0.3 * rate)[:, 0])[kept],
    )


def join_motions(motions: Sequence[Motion], fps: float) -> Motion:
    """One after the other, as one recording: each goes over from the last frame of the one before within half a second."""
    fade, parts = round(_FADE * fps), {f.name: [getattr(motion, f.name) for motion in motions] for f in fields(Motion)}
    for name in ("intensity_NM", "uncoded_ND", "aside_NL", "gaze_N2", "angles_N3", "shift_N3"):
        for n in range(1, len(motions)):
            part = parts[name][n].copy()
            weight = (np.arange(1, min(fade, len(part)) + 1, dtype=np.float32) / (fade + 1))[:, None]
            part[: len(weight)] = (1 - weight) * parts[name][n - 1][-1] + weight * part[: len(weight)]
            parts[name][n] = part
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    return Motion(**whole | {"seconds_N": np.arange(len(whole["blink_N"])) / fps})


@lru_cache(maxsize=256)
def draw_manner(seed: int, subject: int) -> Manner:
    """A function of the two numbers that name a person."""
    rng = stream(seed, subject, "habit")
    habit = (_HABIT * rng.standard_normal(len(AUS))).astype(np.float32)
    pace, vigour = (float(np.exp(rng.normal(0, spread))) for spread in (0.18, 0.12))
    taste = np.exp(rng.normal(-0.18, 0.6, len(HABITS))) * np.where(rng.random(len(HABITS)) < 0.5, -1, 1)
    return Manner(habit, pace, vigour, taste.astype(np.float32))


def draw_expression(
    rng: np.random.Generator, manner: Manner, ticks: int, rate: float, rest: tuple[float, float]
) -> tuple[Array, Array]:
    """A session's latent signals (ticks, M), about standard normal, and its rest (ticks,): 0 while the face is neutral,
    which lasts as many seconds as `rest` says.
    """
    latent = np.sqrt(1 - _CONSTANT**2) * smooth_noise(rng, ticks, len(AUS), SMOOTH * rate / manner.pace)
    latent += _CONSTANT * rng.standard_normal((1, len(AUS)))
    return latent @ mix_aus().T + manner.habit_M, (alternate(rng, ticks, rate, rest, ACTIVE) < 0).astype(np.float32)


def strain(latent: Array, rest: Array, parting: Array, margins: Margins, vigour: Array | float = 1.0) -> Array:
    """The effort of the AUs' muscles, 1 at full intensity and somewhat beyond: (ticks, M), or (ticks, S, M) of S sessions.

    `latent` is as large; `rest` (ticks,) or (ticks, S) is 0 where the face rests; `parting` (…, 2) is what other movements
    add to AU25 and AU26.
    """
    effort = (margins.drive(latent) * (rest[..., None] * vigour)).astype(np.float32)
    columns = [AUS.index(25), AUS.index(26)]
    effort[..., columns] = np.maximum(effort[..., columns], parting)
    return effort


def settle(moved: Array, opening: Array) -> Array:
    """Intensities in 0–5 (…, M) of muscles that have moved (…, M), and of talking, which opens AU25 and AU26 (…, 2)."""
    intensity = np.minimum(5 * moved, 5)
    column = {au: m for m, au in enumerate(AUS)}
    for k, au in enumerate((25, 26)):
        np.maximum(intensity[..., column[au]], opening[..., k], out=intensity[..., column[au]])
    pressed = np.clip(intensity[..., column[24]] / 3, 0, 1)  # pressed lips are not parted, and hold the jaw
    intensity[..., column[25]] *= 1 - pressed
    intensity[..., column[26]] *= 1 - 0.5 * pressed
    return intensity.astype(np.float32)


def _sort_out(moved_NE: Array, other: Distraction) -> tuple[Array, Array, Array]:
    """Activations of UNCODED (ticks, D), talking included, the wink (ticks,) and one-sidedness (ticks, L)."""
    signed, count = moved_NE * other.sign_E, len(UNCODED)
    uncoded = signed[:, :count].copy()
    for k, au in enumerate((18, 16)):
        column = uncoded[:, UNCODED.index(au)]
        np.maximum(column, other.talk_N2[:, k], out=column)
    return uncoded, signed[:, count], signed[:, count + 1 :]


@lru_cache(maxsize=1)
def mix_aus() -> Array:
    """The Cholesky factor (M, M) of the nearest correlation matrix to PAIRS."""
    column = {au: m for m, au in enumerate(AUS)}
    wanted = np.eye(len(AUS))
    for (a, b), r in PAIRS.items():
        wanted[column[a], column[b]] = wanted[column[b], column[a]] = r
    values, vectors = np.linalg.eigh(wanted)
    positive = (vectors * np.clip(values, 0.03, None)) @ vectors.T
    scale = np.sqrt(np.diag(positive))
    return np.linalg.cholesky(positive / np.outer(scale, scale)).astype(np.float32)


def _lose_sight(rng: np.random.Generator, frames: int) -> NDArray[np.bool_]:
    """About 1 % of the cells, in short runs of the upper or the lower face: a coder's 9."""
    unknown = np.zeros((frames, len(AUS)), bool)
    lost, upper, share, place = rng.random() < 0.3, rng.random() < 0.5, rng.uniform(0.03, 0.10), rng.random()
    if lost:
        length = max(1, round(share * frames))
        start = int(place * (frames - length + 1))
        unknown[start : start + length] = [(au in (1, 2, 4, 6, 7, 9)) == upper for au in AUS]
    return unknown
