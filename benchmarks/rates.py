"""Base rates of simulated sessions of several lengths against the published ones, and how long movements last.

Run: python benchmarks/rates.py [sessions]
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from aupipe.synthetic.calibration import draw_sample, simulate
from aupipe.synthetic.margins import MARGINS, Margins
from aupipe.synthetic.rig import AUS

SECONDS = (4.0, 6.0, 10.0, 12.0)
SEED = 100  # of none of the sessions that the thresholds were solved with
CLOCK = 25.0


def main(sessions: int) -> None:
    for name, margins in MARGINS.items():
        print(f"{name}: rates in %, of {sessions} sessions each")
        aims = 100 * np.array([margins.aims[au] for au in AUS])
        present = [find_present(margins, sessions, seconds) for seconds in SECONDS]
        rates = 100 * np.array([values.mean((0, 1)) for values in present])
        print("seconds ", *(f"AU{au:02d} " for au in AUS), "  largest deviation")
        print("aim     ", *(f"{aim:5.1f}" for aim in aims))
        for seconds, row in zip(SECONDS, rates, strict=True):
            print(f"{seconds:7.0f} ", *(f"{rate:5.1f}" for rate in row), f"{np.abs(row - aims).max():8.1f}")
        lengths = [measure_bouts(present[-1][..., m]) for m in range(len(AUS))]
        for what, share in (("median s", 0.5), ("90 % s  ", 0.9)):
            print(what, *(f"{np.quantile(length, share):5.1f}" for length in lengths), "\n" if share > 0.5 else "")


def find_present(margins: Margins, sessions: int, seconds: float) -> NDArray[np.bool_]:
    """Where each AU occurs, (T, S, M), in sessions that share no person with those of another length."""
    sample = draw_sample(margins, sessions=sessions, seconds=seconds, seed=SEED + round(seconds))
    return simulate(margins, sample) >= margins.occurs_at


def measure_bouts(present_TS: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Seconds of every run of frames with the AU; those at a session's ends are cut short by it."""
    steps = np.diff(np.pad(present_TS.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    return (np.nonzero(steps == -1)[1] - np.nonzero(steps == 1)[1]) / CLOCK


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
