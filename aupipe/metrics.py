"""Per-AU figures from addable counts. The conventions, which every table in this project follows:

- Occurrence is decided at p ≥ threshold, 0.5 unless said otherwise. Frames whose label is masked are left out.
- F1 is the binary F1 of the positive class over frames. It is computed once, from counts summed over batches, workers and
  sessions; F1 values are never averaged over any of these.
- An AU without a positive label in the evaluated frames has F1, precision, recall and AUC NaN (null in files), not 0; the
  mean over AUs leaves it out and its support shows why.
- AUC is exact, from ranks of gathered predictions; ties count one half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """True/false positives/negatives per AU; counts of disjoint frames add up."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]

    @classmethod
    def zero(cls, aus: int) -> Counts:
        return cls(*(np.zeros(aus, np.int64) for _ in range(4)))

    @classmethod
    def from_probs(cls, probs: ArrayLike, labels: ArrayLike, mask: ArrayLike, threshold: float | ArrayLike = 0.5) -> Counts:
        """Arrays (…, M); `mask` says where a label is coded; `threshold` one for all or one per AU."""
        p, y, m = np.asarray(probs), np.asarray(labels) > 0.5, np.asarray(mask, bool)
        axes = tuple(range(p.ndim - 1))
        said = p >= np.asarray(threshold)
        return cls(*((a & b & m).sum(axes) for a, b in ((said, y), (said, ~y), (~said, y), (~said, ~y))))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def to_array(self) -> NDArray[np.int64]:
        """(4, M), so that workers can sum them in one reduction."""
        return np.stack([self.tp, self.fp, self.fn, self.tn])

    @classmethod
    def from_array(cls, counts_4M: ArrayLike) -> Counts:
        return cls(*np.asarray(counts_4M).astype(np.int64))

    def support(self) -> NDArray[np.int64]:
        """Positive frames per AU."""
        return self.tp + self.fn

    def coded(self) -> NDArray[np.int64]:
        """Frames in which the AU was coded at all."""
        return self.tp + self.fp + self.fn + self.tn

    def f1(self) -> NDArray[np.float64]:
        return _where_positive(self.support(), 2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def precision(self) -> NDArray[np.float64]:
        """0 where nothing was called positive although there were positives."""
        return _where_positive(self.support(), self.tp, np.maximum(self.tp + self.fp, 1))

    def recall(self) -> NDArray[np.float64]:
        return _where_positive(self.support(), self.tp, self.support())

    def accuracy(self) -> NDArray[np.float64]:
        return _where_positive(self.coded(), self.tp + self.tn, self.coded())


def _where_positive(condition: NDArray, numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    out = np.full(len(condition), np.nan)
    return np.divide(numerator, denominator, out=out, where=condition > 0)


def auc(probs: ArrayLike, labels: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve per AU, (…, M) → (M,); NaN where only one class is coded."""
    p, y, m = np.asarray(probs), np.asarray(labels) > 0.5, np.asarray(mask, bool)
    M = p.shape[-1]
    p, y, m = p.reshape(-1, M), y.reshape(-1, M), m.reshape(-1, M)
    return np.array([_auc(p[m[:, j], j], y[m[:, j], j]) for j in range(M)])


def _auc(p: NDArray, y: NDArray[np.bool_]) -> float:
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of tied values, from 1
    return float((rank[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_over_aus(values_M: NDArray[np.float64]) -> float:
    """Mean over the AUs that have a value; NaN if none has."""
    return float(np.nanmean(values_M)) if np.isfinite(values_M).any() else float("nan")


def per_au(counts: Counts, auc_M: NDArray[np.float64] | None = None) -> dict[str, list[Any]]:
    """The figures of a table, JSON-able: NaN becomes null."""
    figures = {
        "f1": counts.f1(),
        "accuracy": counts.accuracy(),
        "precision": counts.precision(),
        "recall": counts.recall(),
        "support": counts.support(),
        "coded": counts.coded(),
    }
    if auc_M is not None:
        figures["auc"] = auc_M
    return {name: [_or_none(v) for v in values.tolist()] for name, values in figures.items()}


def _or_none(value: float) -> float | None:
    return None if value != value else value


def evaluate(probs: ArrayLike, labels: ArrayLike, mask: ArrayLike, train_rate_M: ArrayLike) -> dict[str, Any]:
    """Everything a results table shows of one test side, beside two baselines that know no image; JSON-able.

    Arrays (N, M). `all_positive` calls every frame positive; `prior` calls an AU positive everywhere if its rate on the
    train side is at least one half, and never otherwise. Both give every frame the same score, hence AUC one half.
    """
    p = np.asarray(probs)
    systems = {
        "model": p,
        "all_positive": np.ones_like(p),
        "prior": np.broadcast_to(np.nan_to_num(np.asarray(train_rate_M, float)), p.shape),
    }
    counts = {name: Counts.from_probs(values, labels, mask) for name, values in systems.items()}
    areas = auc(p, labels, mask)
    result: dict[str, Any] = {
        "f1": _or_none(mean_over_aus(counts["model"].f1())),
        "auc": _or_none(mean_over_aus(areas)),
        "accuracy": _or_none(mean_over_aus(counts["model"].accuracy())),
        "frames": int(np.asarray(mask, bool).any(1).sum()),
        "aus_with_positives": int((counts["model"].support() > 0).sum()),
        "per_au": per_au(counts["model"], areas),
    }
    for name in ("all_positive", "prior"):
        figures = per_au(counts[name])
        result[name] = {
            "f1": _or_none(mean_over_aus(counts[name].f1())),
            "accuracy": _or_none(mean_over_aus(counts[name].accuracy())),
            "per_au": {key: figures[key] for key in ("f1", "accuracy")},
        }
    return result
