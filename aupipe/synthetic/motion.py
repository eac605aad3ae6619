"""What a face does in a session: AU intensities over time, and what moves besides and is not coded.

The label process is a Gaussian copula. A latent signal per AU (a smooth process, a part that is constant in a session, a
habit of the person) is mixed by the AUs' correlations; what rises above the AU's threshold is a movement; muscles
follow quickly on the way up and slowly on the way down. Everything runs on a clock of at least 25 Hz and is then
sampled, so that a session of 5 frames a second has the same faces as one of 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.identity import stream
from aupipe.synthetic.margins import MARGINS, Margins
from aupipe.synthetic.rig import AUS

# No co-occurrence table of the real corpora is public, so these correlations of the latent signals are assumptions:
# pairs that FACS names as frequent are positive, antagonists negative.
_PAIRS = {
    (1, 2): 0.85, (1, 4): 0.15, (4, 7): 0.35, (6, 7): 0.45, (6, 10): 0.55, (6, 12): 0.85, (10, 12): 0.6, (7, 10): 0.4,
    (7, 12): 0.4, (12, 14): 0.15, (14, 17): 0.1, (15, 17): 0.5, (17, 23): 0.35, (17, 24): 0.5, (23, 24): 0.3,
    (24, 25): -0.6, (23, 25): -0.3, (25, 26): 0.6, (12, 15): -0.3, (4, 12): -0.2, (9, 10): 0.4, (4, 9): 0.4,
    (7, 9): 0.3, (14, 25): -0.3, (12, 25): 0.3, (6, 25): 0.25, (17, 25): -0.4, (1, 25): 0.1,
}  # fmt: skip
_CONSTANT = 0.45  # weight of a session's constant part; a larger one makes few sessions tell less
_HABIT = 0.35
_SMOOTH, _ONSET, _OFFSET = 0.45, 0.10, 0.30  # seconds
_CLOCK = 25.0
_FADE = 0.5  # seconds
_EXPRESSION, _DISTRACTION, _POSE, _CODING, CAMERA, CORRUPTION, ROWS, CROPS = range(
    8
)  # concerns that draw their own random numbers


@dataclass(frozen=True, slots=True)
class Motion:
    """A session of N frames. Intensities are 0–5 and true; `unknown` marks the cells that the coder could not see.

    blink_N 0–1 · gaze_N2 right, up −1–1 · speech_N2 AU18, AU16 activations · angles_N3 radians · shift_N3 decimetres.
    """

    seconds_N: NDArray[np.float64]
    intensity_NM: Array
    unknown_NM: NDArray[np.bool_]
    blink_N: Array
    gaze_N2: Array
    speech_N2: Array
    angles_N3: Array
    shift_N3: Array
    flicker_N: Array


def session_rng(seed: int, subject: int, session: int, concern: int) -> np.random.Generator:
    return np.random.default_rng([seed, subject, 2_000_000 + 10 * session + concern])


def frame_rng(seed: int, subject: int, session: int, frame: int) -> np.random.Generator:
    """A frame's own noise: it can be rendered alone."""
    return np.random.default_rng([seed, subject, session, frame])


def perform(seed: int, subject: int, session: int, frames: int, fps: float, margins: Margins = MARGINS["bp4d"]) -> Motion:
    """A session's motion: a function of its arguments alone, at any frame rate."""
    skip = int(np.ceil(_CLOCK / fps))
    rate, ticks = fps * skip, frames * skip
    speech, opening, rng = draw_speech(seed, subject, session, ticks, rate)
    latent, rest = draw_expression(seed, subject, session, ticks, rate, margins.rest)
    intensity = move_muscles(latent, rest, opening, rate, margins)
    angles, shift = _hold_head(session_rng(seed, subject, session, _POSE), ticks, rate)
    return Motion(
        np.arange(frames) / fps,
        intensity[::skip],
        _lose_sight(session_rng(seed, subject, session, _CODING), frames),
        _blink(rng, ticks, rate)[::skip],
        _look(rng, ticks, rate)[::skip],
        speech[::skip],
        angles[::skip],
        shift[::skip],
        (0.03 * _smooth_noise(rng, ticks, 1, 0.3 * rate)[:, 0])[::skip],
    )


def join_motions(motions: Sequence[Motion], fps: float) -> Motion:
    """One after the other, as one recording: each goes over from the last frame of the one before within half a second."""
    fade, parts = round(_FADE * fps), {f.name: [getattr(motion, f.name) for motion in motions] for f in fields(Motion)}
    for name in ("intensity_NM", "gaze_N2", "speech_N2", "angles_N3", "shift_N3"):
        for n in range(1, len(motions)):
            part = parts[name][n].copy()
            weight = (np.arange(1, min(fade, len(part)) + 1, dtype=np.float32) / (fade + 1))[:, None]
            part[: len(weight)] = (1 - weight) * parts[name][n - 1][-1] + weight * part[: len(weight)]
            parts[name][n] = part
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    return Motion(**whole | {"seconds_N": np.arange(len(whole["blink_N"])) / fps})


def draw_latent(rng: np.random.Generator, habit: Array, ticks: int, rate: float) -> Array:
    """Latent signals (ticks, M), about standard normal, at `rate` ticks a second."""
    latent = np.sqrt(1 - _CONSTANT**2) * _smooth_noise(rng, ticks, len(AUS), _SMOOTH * rate)
    latent += _CONSTANT * rng.standard_normal((1, len(AUS)))
    return latent @ _mixing().T + habit


def move_muscles(latent: Array, rest: Array, opening: Array, rate: float, margins: Margins) -> Array:
    """Intensities in 0–5, (ticks, M), or (ticks, S, M) of S sessions at once.

    `latent` is as large; `rest` (ticks,) or (ticks, S) is 0 where the face rests; `opening` (ticks, 2) or (ticks, S, 2) is
    what speech adds to AU25 and AU26.
    """
    intensity = np.minimum(5 * _follow(margins.drive(latent) * rest[..., None], rate), 5)
    column = {au: m for m, au in enumerate(AUS)}
    for k, au in enumerate((25, 26)):
        np.maximum(intensity[..., column[au]], opening[..., k], out=intensity[..., column[au]])
    pressed = np.clip(intensity[..., column[24]] / 3, 0, 1)  # pressed lips are not parted, and hold the jaw
    intensity[..., column[25]] *= 1 - pressed
    intensity[..., column[26]] *= 1 - 0.5 * pressed
    return intensity.astype(np.float32)


def draw_expression(
    seed: int, subject: int, session: int, ticks: int, rate: float, rest: tuple[float, float]
) -> tuple[Array, Array]:
    """A session's latent signals (ticks, M) and its rest (ticks,), which lasts a share of it between the two of `rest`."""
    rng = session_rng(seed, subject, session, _EXPRESSION)
    latent = draw_latent(rng, _habit(seed, subject), ticks, rate)
    return latent, _rest(rng, ticks, rest)


def draw_speech(seed: int, subject: int, session: int, ticks: int, rate: float) -> tuple[Array, Array, np.random.Generator]:
    """Talking: its lip shapes (ticks, 2), its opening (ticks, 2), and the generator, for further distractions."""
    rng = session_rng(seed, subject, session, _DISTRACTION)
    return *_speak(rng, ticks, rate), rng


def _habit(seed: int, subject: int) -> Array:
    return (_HABIT * stream(seed, subject, "habit").standard_normal(len(AUS))).astype(np.float32)


@lru_cache(maxsize=1)
def _mixing() -> Array:
    """The Cholesky factor of the nearest correlation matrix to _PAIRS."""
    column = {au: m for m, au in enumerate(AUS)}
    wanted = np.eye(len(AUS))
    for (a, b), r in _PAIRS.items():
        wanted[column[a], column[b]] = wanted[column[b], column[a]] = r
    values, vectors = np.linalg.eigh(wanted)
    positive = (vectors * np.clip(values, 0.03, None)) @ vectors.T
    scale = np.sqrt(np.diag(positive))
    return np.linalg.cholesky(positive / np.outer(scale, scale)).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, ticks: int, channels: int, width: float) -> Array:
    """Gaussian processes (ticks, channels) of unit variance, smooth over `width` ticks."""
    reach = int(3 * width) + 1
    kernel = cv2.getGaussianKernel(2 * reach + 1, width).astype(np.float32)
    noise = rng.standard_normal((ticks + 2 * reach, channels), dtype=np.float32)
    smooth = cv2.sepFilter2D(noise, -1, np.ones(1, np.float32), kernel)[reach : reach + ticks]
    return smooth / np.float32(np.sqrt((kernel**2).sum()))


def _rest(rng: np.random.Generator, ticks: int, shares: tuple[float, float]) -> Array:
    """1, and 0 while the face rests (the neutral reference): once in most sessions, at the beginning in half of them."""
    effort = np.ones(ticks, np.float32)
    rests, at_start, share, place = rng.random() < 0.85, rng.random() < 0.5, rng.uniform(*shares), rng.random()
    if rests:
        length = int(share * ticks)
        start = 0 if at_start else int(place * (ticks - length))
        effort[start : start + length] = 0
    return effort


def _follow(effort: Array, rate: float) -> Array:
    """Muscles approach the effort exponentially, three times as fast on the way up."""
    rise, fall = (np.float32(1 - np.exp(-1 / (tau * rate))) for tau in (_ONSET, _OFFSET))
    current, moved = effort[0].copy(), np.empty_like(effort)
    for tick, aim in enumerate(effort):
        step = aim - current
        current = current + np.where(step > 0, rise, fall) * step
        moved[tick] = current
    return moved


def _speak(rng: np.random.Generator, ticks: int, rate: float) -> tuple[Array, Array]:
    """Talking in a third of the sessions: uncoded lip shapes (ticks, 2), and what it adds to AU25 and AU26 (ticks, 2)."""
    shapes, opening = np.zeros((ticks, 2), np.float32), np.zeros((ticks, 2), np.float32)
    talks, start, length = rng.random() < 0.35, rng.random(), rng.uniform(1.0, 3.0)
    syllables = np.abs(_smooth_noise(rng, ticks, 4, 0.09 * rate))
    if talks:
        count = min(ticks, int(length * rate))
        first = int(start * (ticks - count))
        here = slice(first, first + count)
        swell = np.float32(np.abs(np.sin(np.linspace(0, np.pi, count)))[:, None] ** 0.3)
        shapes[here] = np.clip(syllables[here, 2:] * swell * floats([0.5, 0.3]), 0, 1)
        opening[here] = np.clip(syllables[here, :2] * swell * floats([3.0, 1.6]), 0, 5)
    return shapes, opening


def _blink(rng: np.random.Generator, ticks: int, rate: float) -> Array:
    closed = np.zeros(ticks, np.float32)
    time, moment = np.arange(ticks) / rate, rng.uniform(0.2, 2.4)
    while moment < ticks / rate:
        np.maximum(closed, np.interp(time - moment, [-0.16, -0.04, 0, 0.04, 0.28], [0, 1, 1, 0.9, 0]), out=closed)
        moment += rng.exponential(3.2) + 0.6
    return closed


def _look(rng: np.random.Generator, ticks: int, rate: float) -> Array:
    """Gaze jumps about twice a second, mostly near the camera."""
    length = max(1, int(0.48 * rate))
    targets = np.clip(rng.normal(0, 0.3, (ticks // length + 1, 2)), -0.9, 0.9)
    return np.repeat(targets, length, 0)[:ticks].astype(np.float32)


def _hold_head(rng: np.random.Generator, ticks: int, rate: float) -> tuple[Array, Array]:
    angles = _smooth_noise(rng, ticks, 3, 1.2 * rate) * floats([0.14, 0.08, 0.06])
    angles += rng.standard_normal(3) * floats([0.20, 0.09, 0.05])
    shift = _smooth_noise(rng, ticks, 3, 1.5 * rate) * floats([0.05, 0.03, 0.15])
    shift += rng.standard_normal(3) * floats([0.05, 0.04, 0.35])
    return np.clip(angles, -0.6, 0.6).astype(np.float32), np.clip(shift, -0.9, 0.9).astype(np.float32)


def _lose_sight(rng: np.random.Generator, frames: int) -> NDArray[np.bool_]:
    """About 1 % of the cells, in short runs of the upper or the lower face: a coder's 9."""
    unknown = np.zeros((frames, len(AUS)), bool)
    lost, upper, share, place = rng.random() < 0.3, rng.random() < 0.5, rng.uniform(0.03, 0.10), rng.random()
    if lost:
        length = max(1, round(share * frames))
        start = int(place * (frames - length + 1))
        unknown[start : start + length] = [(au in (1, 2, 4, 6, 7, 9)) == upper for au in AUS]
    return unknown
