"""How often each AU occurs in the real corpora, and the thresholds at which the label process gives those rates.

Rates of AUs that a corpus does not code are assumptions. The thresholds were solved by `calibration.calibrate` with
4,000 sessions of 6 s, their rests, speech and pairs included; 4,000 other sessions then gave every rate within 1.3 points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aupipe.synthetic.coordinates import Array, floats
from aupipe.synthetic.rig import AUS

SPAN = 1.35  # latent units from threshold to full intensity, where a corpus's intensities are not published
_MOST = 5.5  # latent effort beyond full intensity, so that muscles which lag behind reach it


@dataclass(frozen=True, slots=True)
class Margins:
    """Rates that the label process is fitted to. An AU occurs from intensity `occurs_at` on.

    aims: share of frames per AU, of 0–1 · assumed: AUs whose aim is not the corpus's · knots_ML: latent values (M, L); with
    L = 1 where a movement begins, with L = 5 where it reaches intensities 1 to 5 · rest: least and greatest share of a
    session in which the face rests · histogram_M6: shares of the intensities 0–5, where they are published.
    """

    occurs_at: int
    aims: dict[int, float]
    assumed: tuple[int, ...]
    knots_ML: tuple[tuple[float, ...], ...]
    rest: tuple[float, float] = (0.14, 0.26)
    histogram_M6: tuple[tuple[float, ...], ...] | None = None

    def drive(self, latent: Array) -> Array:
        """The effort of the muscles, 1 at full intensity, from latent signals; both (…, M)."""
        knots = floats(self.knots_ML)
        if knots.shape[1] == 1:
            return np.clip((latent - knots[:, 0]) / SPAN, 0, 1)
        levels = floats([0, 1, 2, 3, 4, 5, _MOST]) / 5
        effort = np.empty_like(latent)
        for m, (first, *others) in enumerate(knots.tolist()):
            begin, end = first - max(0.15, others[0] - first), others[-1] + 0.2
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
            0.53, 0.704, 0.58, -0.269, -0.545, 1.357, -0.698, -0.591, -0.288, 0.708, 0.076, 0.718, 0.77, 0.156, 0.734
        ),
    ),
    "disfa": Margins(
        occurs_at=2,
        aims={au: round(sum(row[2:]), 4) for au, row in zip(AUS, _HISTOGRAM, strict=True)},
        assumed=tuple(au for au in AUS if au not in _DISFA),
        knots_ML=(
            (1.521, 1.628, 1.688, 2.164, 2.627),
            (1.66, 1.72, 1.78, 2.409, 2.806),
            (0.823, 0.883, 1.212, 1.625, 2.338),
            (0.934, 1.326, 1.782, 2.587, 3.178),
            (0.716, 1.019, 1.328, 2.007, 2.696),
            (1.651, 1.711, 1.791, 2.838, 3.239),
            (0.638, 0.964, 1.277, 1.96, 2.647),
            (0.542, 1.05, 1.295, 1.974, 3.142),
            (0.839, 1.122, 1.399, 2.068, 2.721),
            (1.514, 2.08, 2.326, 3.547, 3.619),
            (1.228, 1.599, 2.03, 3.247, 3.545),
            (1.565, 1.749, 1.955, 2.542, 3.058),
            (1.591, 1.765, 1.987, 2.585, 3.097),
            (0.345, 0.405, 0.84, 1.727, 2.813),
            (0.9, 1.332, 1.807, 2.872, 2.932),
        ),
        rest=(0.26, 0.42),
        histogram_M6=_HISTOGRAM,
    ),
    "affwild2": Margins(
        occurs_at=1,
        aims={au: _AFFWILD2[au] for au in AUS},
        assumed=(9, 14, 17),
        knots_ML=_column(
            0.654, 1.174, 0.604, 0.246, -0.095, 1.546, -0.01, 0.345, 0.337, 1.805, 0.614, 1.713, 1.445, -0.994, 1.332
        ),
    ),
}
