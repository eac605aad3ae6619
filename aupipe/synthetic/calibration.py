"""Solving the label process's thresholds: simulate sessions without rendering, compare with the aims, move, repeat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.distraction import draw_distraction
from aupipe.synthetic.margins import Margins
from aupipe.synthetic.motion import DISTRACTION, EXPRESSION, draw_expression, draw_manner, session_rng, settle, strain
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.timing import WARM_UP, follow

_CLOCK = 25.0
_RAREST = 2e-4  # rates below are not told apart: no simulation of this size could
_GAP = 0.06  # latent units between intensities, at least


@dataclass(frozen=True, slots=True)
class Sample:
    """What S sessions draw, whatever the thresholds, on a clock of 25 Hz, T ticks of which the first WARM_UP seconds are
    not looked at: latent_TSM, rest_TS, parting_TS2, opening_TS2; the pace and vigour of their people, (S, 1).
    """

    latent_TSM: Array
    rest_TS: Array
    parting_TS2: Array
    opening_TS2: Array
    pace_S1: Array
    vigour_S1: Array


def draw_sample(margins: Margins, *, sessions: int, seconds: float = 10.0, seed: int = 1, per_subject: int = 2) -> Sample:
    """Sessions of people with manners of their own, `per_subject` each: what `motion.perform` would draw for them."""
    ticks, drawn, people = int((WARM_UP + seconds) * _CLOCK), [], []
    for n in range(sessions):
        subject, session = divmod(n, per_subject)
        manner = draw_manner(seed, subject)
        rng = session_rng(seed, subject, session, EXPRESSION)
        latent, rest = draw_expression(rng, manner, ticks, _CLOCK, margins.rest)
        other = draw_distraction(session_rng(seed, subject, session, DISTRACTION), manner.taste_E, ticks, _CLOCK)
        drawn.append((latent, rest, other.parting_N2, other.opening_N2))
        people.append((manner.pace, manner.vigour))
    pace, vigour = floats(people).T
    latent_TSM, rest_TS, parting_TS2, opening_TS2 = (np.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return Sample(latent_TSM, rest_TS, parting_TS2, opening_TS2, pace[:, None], vigour[:, None])


def simulate(margins: Margins, sample: Sample) -> Array:
    """Intensities 0–5 (T, S, M), without the warm-up."""
    effort = strain(sample.latent_TSM, sample.rest_TS, sample.parting_TS2, margins, sample.vigour_S1)
    return settle(follow(effort, _CLOCK, sample.pace_S1), sample.opening_TS2)[round(WARM_UP * _CLOCK) :]


def simulate_levels(margins: Margins, sample: Sample) -> NDArray[np.float64]:
    """Shares (M, 6) of the frames at intensities 0–5, rounded down."""
    levels = np.floor(simulate(margins, sample)).astype(np.int8)
    return np.stack([(levels == level).mean((0, 1)) for level in range(6)], 1)


def simulate_rates(margins: Margins, sample: Sample) -> NDArray[np.float64]:
    """Occurrence rates (M,)."""
    return simulate_levels(margins, sample)[:, margins.occurs_at :].sum(1)


def calibrate(margins: Margins, sample: Sample, *, rounds: int = 8) -> Margins:
    """The same margins with knots at which the sample reaches the aims; their histogram, where there is one.

    Each round moves a knot by the difference of the two rates' normal quantiles.
    """
    aims = np.array([[margins.aims[au]] for au in AUS])
    levels = [margins.occurs_at]
    if margins.histogram_M6 is not None:
        levels = [1, 2, 3, 4, 5]
        aims = np.array(margins.histogram_M6)[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    for _ in range(rounds):
        reached = simulate_levels(margins, sample)[:, ::-1].cumsum(1)[:, ::-1][:, levels]
        knots = np.array(margins.knots_ML) + _quantile(reached) - _quantile(aims)
        for k in range(1, knots.shape[1]):
            knots[:, k] = np.maximum(knots[:, k], knots[:, k - 1] + _GAP)
        margins = replace(margins, knots_ML=tuple(tuple(row) for row in np.round(knots, 3).tolist()))
    return margins


def _quantile(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    normal = NormalDist()
    return np.vectorize(lambda rate: normal.inv_cdf(float(np.clip(rate, _RAREST, 1 - _RAREST))))(rates)
