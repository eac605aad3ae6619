"""Subject-exclusive folds, and the statistics of the train side's labels that models may know.

A fold is three lists of subjects, so no subject can be on two sides. `val` is a seeded share of the train side's subjects,
kept out of the label statistics too; the test side is touched once, by `evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, LabelStats, au_weights, label_arrays, read_json

if TYPE_CHECKING:
    from aupipe.datasets import Partition

__all__ = ["Fold", "au_weights", "label_stats", "load_folds", "make_folds", "pick_fold"]


@dataclass(frozen=True, slots=True)
class Fold:
    """Sorted subjects of each side, and the label statistics of `train` alone."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    stats: LabelStats

    def to_json(self) -> dict[str, Any]:
        sides = {"train": list(self.train), "val": list(self.val), "test": list(self.test)}
        return {"name": self.name, **sides, "stats": self.stats.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fold:
        train, val, test = (tuple(values[side]) for side in ("train", "val", "test"))
        return cls(values["name"], train, val, test, LabelStats.from_json(values["stats"]))


def make_folds(
    manifest: pa.Table,
    k: int = 3,
    published: Partition | None = None,
    seed: int = 0,
    *,
    val_fraction: float = 1 / 6,
) -> tuple[Fold, ...]:
    """Folds fold1 … foldk. With a published partition its parts are the test sides, in the order it states.

    Raises DataError if there are too few subjects, or if the partition does not hold exactly the manifest's subjects.
    """
    everyone = sorted(set(manifest["subject"].to_pylist()))
    parts = _draw_parts(everyone, k, seed) if published is None else _published_parts(everyone, published)
    aus = _coded_aus(manifest)
    labels, mask = label_arrays(manifest, aus)
    labels_NM = np.where(mask, labels, np.nan)
    subject_N = np.array(manifest["subject"].to_pylist())
    folds = []
    for number, test in enumerate(parts, 1):
        rest = [s for s in everyone if s not in test]
        rng = np.random.default_rng([seed, number])
        count = max(1, round(val_fraction * len(rest)))
        if count >= len(rest):
            raise DataError(f"fold{number} leaves {len(rest)} subjects to train on and to validate; the corpus is too small")
        val = sorted(rng.choice(rest, count, replace=False).tolist())
        train = [s for s in rest if s not in val]
        stats = label_stats(labels_NM[np.isin(subject_N, train)])
        folds.append(Fold(f"fold{number}", tuple(train), tuple(val), tuple(sorted(test)), stats))
    return tuple(folds)


def label_stats(labels_NM: NDArray[np.floating]) -> LabelStats:
    """Rates, correlations and counts of coded frames; NaN = not coded.

    Correlations are taken over the frames where both AUs are coded, and are NaN where one of them is constant
    (STRAL §III-B: Pearson correlation of the occurrence labels).
    """
    coded = ~np.isnan(labels_NM)
    n_M = coded.sum(0)
    values = np.where(coded, labels_NM, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate_M = values.sum(0) / n_M
        c = coded.astype(float)
        n = c.T @ c
        sum_jk = values.T @ c  # of AU j over the frames where AU k is coded as well
        square_jk = (values**2).T @ c
        covariance = (values.T @ values) / n - (sum_jk / n) * (sum_jk.T / n)
        variance_jk = square_jk / n - (sum_jk / n) ** 2
        pearson = covariance / np.sqrt(variance_jk * variance_jk.T)
    varies = variance_jk > 1e-12  # a constant column's variance is 0 up to rounding
    return LabelStats(rate_M, np.where(varies & varies.T, np.clip(pearson, -1, 1), np.nan), n_M)


def load_folds(path: Path) -> dict[str, Fold]:
    """The folds of `data/folds/<corpus>.json` by name."""
    return {v["name"]: Fold.from_json(v) for v in read_json(path, "folds")["folds"]}


def pick_fold(folds: dict[str, Fold], name: str) -> Fold:
    """Raises ConfigError for an unknown fold."""
    if name not in folds:
        raise ConfigError(f"unknown fold '{name}' in experiment.folds of params.yaml; known are {', '.join(folds)}")
    return folds[name]


def _draw_parts(subjects: list[str], k: int, seed: int) -> list[list[str]]:
    from sklearn.model_selection import KFold

    if len(subjects) < k:
        raise DataError(f"{len(subjects)} subjects do not make {k} folds; lower folds.k or give more subjects")
    splitter = KFold(k, shuffle=True, random_state=seed)
    return [[subjects[i] for i in test] for _, test in splitter.split(subjects)]


def _published_parts(everyone: list[str], published: Partition) -> list[list[str]]:
    parts = [sorted(part) for part in published.parts]
    stated = sorted(s for part in parts for s in part)
    if stated != everyone:
        missing = sorted(set(stated) - set(everyone))
        extra = sorted(set(everyone) - set(stated))
        raise DataError(
            f"the published partition and the corpus differ (missing subjects {missing}, unknown subjects {extra}); "
            "complete the corpus, or set folds.published: false to draw folds of your own"
        )
    return parts


def _coded_aus(manifest: pa.Table) -> AUSet:
    names = [c for c in manifest.column_names if c.startswith("AU") and c.endswith("_c")]
    return AUSet(tuple(int(name[2:4]) for name in names))
