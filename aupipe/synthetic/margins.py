"""How often each AU occurs in the real corpora, and the thresholds at which the label process gives those rates.

Rates of AUs that a corpus does not code are assumptions. The thresholds were solved by `calibration.calibrate` with 7,000
sessions of 10 s, rests, talking and pairs included; `python benchmarks/rates.py` compares other sessions with the aims.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.rig import AUS

SPAN = 1.35  # latent units from threshold to full intensity, where a corpus's intensities are not published
_MOST = 6.0  # effort beyond full intensity, so that muscles which lag behind, and people of little vigour, reach it


@dataclass(frozen=True, slots=True)
class Margins:
    """Rates that the label process is fitted to. An AU occurs from intensity `occurs_at` on.

    aims: share of frames per AU, of 0–1 · assumed: AUs whose aim is not the corpus's · knots_ML: latent values (M, L); with
    L = 1 where a movement begins, with L = 5 where it reaches intensities 1 to 5 · rest: least and greatest length of a
    rest in seconds · histogram_M6: shares of the intensities 0–5, where they are published.
    """

    occurs_at: int
    aims: dict[int, float]
    assumed: tuple[int, ...]
    knots_ML: tuple[tuple[float, ...], ...]
    rest: tuple[float, float] = (0.9, 1.9)
    histogram_M6: tuple[tuple[float, ...], ...] | None = None

    def drive(self, latent: Array) -> Array:
        """The effort of the muscles, 1 at full intensity and somewhat beyond, from latent signals; both (…, M)."""
        knots = floats(self.knots_ML)
        if knots.shape[1] == 1:
            return np.clip((latent - knots[:, 0]) / SPAN, 0, _MOST / 5)
        levels = floats([0, 1, 2, 3, 4, 5, _MOST]) / 5
        effort = np.empty_like(latent)
        for m, (first, *others) in enumerate(knots.tolist()):
            begin, end = first - max(0.15, others[0] - first), others[-1] + 0.4
            effort[..., m] = np.interp(latent[..., m], [begin, first, *others, end], levels)
        return effort


# Published positives of BP4D's 146,847 frames; AUs 9, 25 and 26, which it does not code, follow DISFA.
_BP4D = (0.211, 0.171, 0.203, 0.461, 0.549, 0.06, 0.594, 0.562, 0.466, 0.169, 0.343, 0.165, 0.151, 0.35, 0.19)

# Frames of DISFA's 130,814 (left camera) at the intensities 0 to 5.
_DISFA = {
    1: (122036, 2272, 1749, 2809, 1393, 555),
    2: (123450, 1720, 934, 3505, 836, 369),
    4: (106220, 4661, 7636, 6586, 4328, 1383),
    6: (111330, 9157, 5986, 3599, 601, 141),
    9: (123682, 1659, 2035, 3045, 316, 77),
    12: (100020, 13943, 6869, 7233, 2577, 172),
    15: (122952, 5180, 1618, 1017, 47, 0),
    17: (117884, 6342, 4184, 2281, 112, 11),
    25: (84762, 9805, 13935, 15693, 5580, 1039),
    26: (105838, 13443, 7473, 3529, 314, 217),
}

# Positives of the 103,316 labelled frames of Aff-Wild2's 2022 training set. Assumed: 9 as in DISFA; 14 and 17 at BP4D's
# rate times the median ratio of the ten AUs that both code.
_AFFWILD2 = {
    1: 0.1811, 2: 0.0846, 4: 0.1969, 6: 0.2962, 7: 0.4001, 10: 0.3706, 12: 0.2592, 15: 0.0238, 23: 0.0288, 24: 0.0484,
    25: 0.6832, 26: 0.1041, 9: 0.042, 14: 0.26, 17: 0.19,
}  # fmt: skip


def _spread_disfa() -> tuple[tuple[float, ...], ...]:
    """Shares (M, 6) of DISFA's intensities. Of AUs that it does not code: BP4D's rate times the median ratio of the seven
    that both code, at intensities as those of the coded ones together.
    """
    counts = np.array([_DISFA[au] for au in AUS if au in _DISFA], float)
    pooled = counts.sum(0) / counts.sum()
    both = [au for au in _DISFA if au not in (9, 25, 26)]
    ratio = float(np.median([_share(_DISFA[au]) / _BP4D[AUS.index(au)] for au in both]))
    rows = []
    for m, au in enumerate(AUS):
        scale = 1.0 if au in _DISFA else ratio * _BP4D[m] / float(pooled[2:].sum())
        row = np.array(_DISFA[au], float) / sum(_DISFA[au]) if au in _DISFA else scale * pooled
        rows.append((1 - float(row[1:].sum()), *(float(v) for v in row[1:])))
    return tuple(rows)


def _share(counts: tuple[int, ...]) -> float:
    return sum(counts[2:]) / sum(counts)


def _column(*thresholds: float) -> tuple[tuple[float, ...], ...]:
    return tuple((threshold,) for threshold in thresholds)


_HISTOGRAM = _spread_disfa()

MARGINS = {
    "bp4d": Margins(
        occurs_at=1,
        aims=dict(zip(AUS, _BP4D, strict=True)),
        assumed=(9, 25, 26),
        knots_ML=_column(
            0.535, 0.697, 0.565, -0.283, -0.558, 1.335, -0.699, -0.609, -0.3, 0.697, 0.065, 0.723, 0.773, 0.237, 0.803
        ),
    ),
    "disfa": Margins(
        occurs_at=2,
        aims={au: round(sum(row[2:]), 4) for au, row in zip(AUS, _HISTOGRAM, strict=True)},
        assumed=tuple(au for au in AUS if au not in _DISFA),
        knots_ML=(
            (1.425, 1.558, 1.618, 2.145, 2.815),
            (1.556, 1.63, 1.69, 2.491, 2.807),
            (0.69, 0.75, 1.131, 1.527, 2.606),
            (0.824, 1.259, 1.668, 2.769, 3.204),
            (0.599, 0.947, 1.219, 2.067, 2.831),
            (1.561, 1.621, 1.681, 3.284, 3.344),
            (0.532, 0.885, 1.161, 2.033, 2.884),
            (0.401, 0.97, 1.151, 1.991, 4.377),
            (0.759, 1.076, 1.325, 2.157, 2.991),
            (1.456, 2.103, 2.25, 4.841, 4.901),
            (1.137, 1.534, 1.908, 3.995, 4.055),
            (1.484, 1.708, 1.9, 2.558, 3.411),
            (1.521, 1.727, 1.907, 2.597, 3.41),
            (0.286, 0.346, 0.65, 1.835, 3.683),
            (0.874, 1.286, 1.731, 3.093, 3.153),
        ),
        rest=(2.0, 5.2),
        histogram_M6=_HISTOGRAM,
    ),
    "affwild2": Margins(
        occurs_at=1,
        aims={au: _AFFWILD2[au] for au in AUS},
        assumed=(9, 14, 17),
        knots_ML=_column(
            0.655, 1.165, 0.59, 0.223, -0.101, 1.519, -0.013, 0.338, 0.356, 1.83, 0.603, 1.746, 1.454, -0.932, 1.483
        ),
    ),
}
