"""Solving the label process's thresholds: simulate sessions without rendering, compare with the aims, move, repeat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.coordinates import Array
from aupipe.synthetic.margins import Margins
from aupipe.synthetic.motion import draw_expression, draw_speech, move_muscles
from aupipe.synthetic.rig import AUS

_CLOCK = 25.0
_RAREST = 2e-4  # rates below are not told apart: no simulation of this size could
_GAP = 0.06  # latent units between intensities, at least


@dataclass(frozen=True, slots=True)
class Sample:
    """What S sessions draw, whatever the thresholds: latent_TSM, rest_TS, opening_TS2, on a clock of 25 Hz."""

    latent_TSM: Array
    rest_TS: Array
    opening_TS2: Array


def draw_sample(margins: Margins, *, sessions: int, seconds: float = 6.0, seed: int = 1, per_subject: int = 2) -> Sample:
    """Sessions of people with habits of their own, `per_subject` each."""
    ticks, drawn = int(seconds * _CLOCK), []
    for n in range(sessions):
        who = (seed, *divmod(n, per_subject), ticks, _CLOCK)
        drawn.append((*draw_expression(*who, margins.rest), draw_speech(*who)[1]))
    return Sample(*(np.stack(parts, 1) for parts in zip(*drawn, strict=True)))


def simulate_levels(margins: Margins, sample: Sample) -> NDArray[np.float64]:
    """Shares (M, 6) of the frames at intensities 0–5, rounded down."""
    moved = move_muscles(sample.latent_TSM, sample.rest_TS, sample.opening_TS2, _CLOCK, margins)
    levels = np.floor(moved).astype(np.int8)
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
