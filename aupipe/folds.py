"""Subject-exclusive folds, and the statistics of the train side's labels that models may know.

A fold is three lists of subjects, so no subject can be on two sides. `val` is a seeded share of the train side's subjects,
kept out of the label statistics too; the test side is touched once, by `evaluate`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aupipe.facs import AUSet
from aupipe.schema import ConfigError, DataError, LabelStats, au_weights, label_arrays, read_json

if TYPE_CHECKING:
    from aupipe.datasets import Partition

__all__ = [
    "Fold", "au_weights", "check_sides", "label_stats", "leave_one_out", "load_folds", "make_folds", "pick_fold",
    "subject_groups",
]  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fold:
    """Sorted subjects of each side, and the label statistics of `train` alone; `aliases` are other names of the fold."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    stats: LabelStats
    aliases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        sides = {"train": list(self.train), "val": list(self.val), "test": list(self.test)}
        return {"name": self.name, "aliases": list(self.aliases), **sides, "stats": self.stats.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fold:
        train, val, test = (tuple(values[side]) for side in ("train", "val", "test"))
        stats = LabelStats.from_json(values["stats"])
        return cls(values["name"], train, val, test, stats, tuple(values.get("aliases", ())))


@dataclass(frozen=True, slots=True)
class _Sides:
    """What a division says of a fold, before a val side is drawn: `val` is empty unless the division has one of its own."""

    train: list[str]
    val: list[str]
    test: list[str]
    aliases: tuple[str, ...] = ()


def make_folds(
    manifest: pa.Table,
    k: int = 3,
    published: Partition | None = None,
    seed: int = 0,
    *,
    val_fraction: float = 1 / 6,
) -> tuple[Fold, ...]:
    """Folds fold1 … foldk. With a published partition its parts are the test sides, in the order it states.

    Without one, parts are drawn so that each has its share of every AU's positive frames and of all frames. An official
    split gives one fold, "official": its test side, or where that has no labels its val side, is tested on. Subjects of
    one group (the manifest's column) are always on one side. `val` is a seeded share of the train side's groups.

    Raises DataError if there are too few subjects, if a published partition does not hold exactly the manifest's subjects,
    or if a group is on two sides.
    """
    group_of = subject_groups(manifest)
    if published is not None and published.splits:
        divisions = [_official_sides(manifest, published.splits)]
    else:
        parts = _draw_parts(manifest, group_of, k, seed) if published is None else _published_parts(group_of, published)
        aliases = {} if published is None else published.aliases
        divisions = [
            _Sides([s for s in group_of if s not in part], [], part, tuple(a for a, n in aliases.items() if n == number))
            for number, part in enumerate(parts)
        ]
    folds = []
    for number, sides in enumerate(divisions, 1):
        rng = np.random.default_rng([seed, number])
        folds.append(_finish(f"fold{number}", sides, manifest, group_of, val_fraction, rng))
    return tuple(folds)


def leave_one_out(manifest: pa.Table, seed: int = 0, *, val_fraction: float = 1 / 6) -> tuple[Fold, ...]:
    """A fold for each part of the manifest, named after it, that is trained on the others and tested on all of this one.

    Whoever is tested on under another name, as one of the same group, is left out of the train side. Statistics are of the
    frames where an AU is coded. Raises DataError for fewer than two parts, or a part whose others show nobody else.
    """
    group_of, part_of = subject_groups(manifest), _parts_of(manifest)
    parts = sorted(set(part_of.values()))
    if len(parts) < 2:
        raise DataError(f"leave-one-out needs two parts or more, and the manifest's column `part` has {len(parts)}")
    folds = []
    for number, name in enumerate(parts, 1):
        test = [s for s in group_of if part_of.get(s) == name]
        tested = {group_of[s] for s in test}
        others = [s for s in group_of if part_of.get(s, name) != name]
        rest = [s for s in others if group_of[s] not in tested]
        if left_out := len(others) - len(rest):
            _log.info("%s: %d subjects of other parts are the same people and left out", name, left_out)
        rng = np.random.default_rng([seed, number])
        folds.append(_finish(name, _Sides(rest, [], test), manifest, group_of, val_fraction, rng))
    return tuple(folds)


def check_sides(fold: Fold, group_of: Mapping[str, str] | None = None) -> None:
    """Raises DataError, naming the offenders, if a subject or a group of subjects is on two sides of a fold."""
    where: dict[str, set[str]] = {}
    for side in ("train", "val", "test"):
        for subject in getattr(fold, side):
            where.setdefault((group_of or {}).get(subject, subject), set()).add(side)
    if offenders := sorted(who for who, sides in where.items() if len(sides) > 1):
        names = ", ".join(f"{who} ({' and '.join(sorted(where[who]))})" for who in offenders[:5])
        more = f" and {len(offenders) - 5} more" if len(offenders) > 5 else ""
        raise DataError(f"{fold.name} has people on two of its sides: {names}{more}; mend the partition or the groups")


def subject_groups(manifest: pa.Table) -> dict[str, str]:
    """Each subject, sorted → its group: the manifest's, by default the subject alone.

    Raises DataError for a subject in two groups.
    """
    pairs = manifest.group_by(["subject", "group"]).aggregate([])
    groups = pairs["group"].to_pylist()
    group_of: dict[str, str] = {}
    for subject, group in sorted(
        zip(pairs["subject"].to_pylist(), groups, strict=True), key=lambda pair: (pair[0], pair[1] or "")
    ):
        if group_of.setdefault(subject, group or subject) != (group or subject):
            raise DataError(f"subject '{subject}' is in two groups, '{group_of[subject]}' and '{group}'")
    return group_of


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
    """The fold of this name or alias. Raises ConfigError for an unknown one."""
    for fold in folds.values():
        if name == fold.name or name in fold.aliases:
            return fold
    known = [n for fold in folds.values() for n in (fold.name, *fold.aliases)]
    raise ConfigError(f"unknown fold '{name}' in experiment.folds of params.yaml; known are {', '.join(known)}")


def _finish(
    name: str, sides: _Sides, manifest: pa.Table, group_of: Mapping[str, str], fraction: float, rng: np.random.Generator
) -> Fold:
    """A fold with its val side drawn, if it has none, its train side's statistics taken and its sides checked."""
    val = sides.val or _draw_val(name, sides.train, group_of, fraction, rng)
    train = sorted(set(sides.train) - set(val))
    rows = manifest.filter(pc.is_in(manifest["subject"], pa.array(train, pa.string())))
    stats = label_stats(_nan_labels(rows))
    fold = Fold(name, tuple(train), tuple(sorted(val)), tuple(sorted(sides.test)), stats, sides.aliases)
    check_sides(fold, group_of)
    return fold


def _draw_val(
    name: str, train: list[str], group_of: Mapping[str, str], fraction: float, rng: np.random.Generator
) -> list[str]:
    """A share of the train side's groups, all subjects of each."""
    groups = sorted({group_of[s] for s in train})
    count = max(1, round(fraction * len(groups)))
    if count >= len(groups):
        raise DataError(f"{name} leaves {len(groups)} subjects to train on and to validate; the corpus is too small")
    chosen = set(rng.choice(groups, count, replace=False).tolist())
    return sorted(s for s in train if group_of[s] in chosen)


def _draw_parts(manifest: pa.Table, group_of: dict[str, str], k: int, seed: int) -> list[list[str]]:
    """k parts of whole groups, with like shares of every AU's positives and of the frames (stratified, seeded)."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = sorted(set(group_of.values()))
    number = {group: n for n, group in enumerate(groups)}
    if len(groups) < k:
        raise DataError(f"{len(groups)} subjects do not make {k} folds; lower folds.k or give more subjects")
    subjects, inverse = np.unique(manifest["subject"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    group_N = np.array([number[group_of[s]] for s in subjects.tolist()])[inverse]
    # A sample for every positive of every AU, one for every frame and one for every subject: the classes that the splitter
    # balances. A class of fewer samples than parts cannot be balanced.
    positive_NM = np.nan_to_num(_nan_labels(manifest)) > 0
    kinds = [np.flatnonzero(column) for column in positive_NM.T]
    first_of_subject = np.unique(inverse, return_index=True)[1]
    kinds = [rows for rows in kinds if len(rows) >= k] + [np.arange(len(group_N)), first_of_subject]
    rows = np.concatenate(kinds)
    kind = np.repeat(np.arange(len(kinds)), [len(r) for r in kinds])
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    parts = [{groups[g] for g in np.unique(group_N[rows][test])} for _, test in splitter.split(kind, kind, group_N[rows])]
    return [[s for s in group_of if group_of[s] in part] for part in parts]


def _published_parts(group_of: dict[str, str], published: Partition) -> list[list[str]]:
    parts = [sorted(part) for part in published.parts]
    stated, everyone = sorted(s for part in parts for s in part), list(group_of)
    if stated != everyone:
        missing = sorted(set(stated) - set(everyone))
        extra = sorted(set(everyone) - set(stated))
        twice = sorted(s for s, n in Counter(stated).items() if n > 1)
        raise DataError(
            f"the published partition and the corpus differ (missing subjects {missing}, unknown subjects {extra}, "
            f"subjects in two parts {twice}); complete the corpus, or set folds.published: false to draw folds of your own"
        )
    return parts


def _official_sides(manifest: pa.Table, splits: Mapping[str, frozenset[str]]) -> _Sides:
    labelled = _labelled_subjects(manifest)
    train, val, test = (sorted(labelled & splits.get(side, frozenset())) for side in ("train", "val", "test"))
    if not test:  # an official test side is often without labels; the val side is what papers report on
        val, test = [], val
    if not train or not test:
        raise DataError(
            f"the official split has {len(train)} labelled subjects to train on and {len(test)} to test on; "
            "complete the corpus, or set folds.published: false to draw folds of your own"
        )
    return _Sides(train, val, test, ("official",))


def _labelled_subjects(manifest: pa.Table) -> set[str]:
    labelled = ~np.isnan(_nan_labels(manifest)).all(1)
    return set(manifest.filter(pa.array(labelled))["subject"].to_pylist())


def _parts_of(manifest: pa.Table) -> dict[str, str]:
    """Subject → its part, of those who have one. Raises DataError for a subject in two."""
    pairs = manifest.group_by(["subject", "part"]).aggregate([]).drop_null()
    found: dict[str, str] = {}
    for subject, part in zip(pairs["subject"].to_pylist(), pairs["part"].to_pylist(), strict=True):
        if found.setdefault(subject, part) != part:
            raise DataError(f"subject '{subject}' is in two parts, '{found[subject]}' and '{part}'; give each subject one")
    return found


def _nan_labels(manifest: pa.Table) -> NDArray[np.float32]:
    """Occurrence (N, M), NaN where not coded."""
    labels, mask = label_arrays(manifest, _coded_aus(manifest))
    return np.where(mask, labels, np.float32(np.nan))


def _coded_aus(manifest: pa.Table) -> AUSet:
    names = [c for c in manifest.column_names if c.startswith("AU") and c.endswith("_c")]
    return AUSet(tuple(int(name[2:4]) for name in names))
