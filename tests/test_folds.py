"""folds.py: no subject on two sides, everyone tested once, and statistics of the train side alone."""

import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import AUS
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe import schema
from aupipe.datasets import Partition, get_dataset
from aupipe.folds import label_stats, load_folds, make_folds, pick_fold
from aupipe.schema import ConfigError, DataError


def make_manifest(subjects, frames=10, rng=None):
    """Frames of one session for each subject, with every third label not coded."""
    rng = rng or np.random.default_rng(0)
    labels = rng.integers(0, 2, (len(subjects) * frames, len(AUS)))
    columns = {
        "subject": np.repeat(subjects, frames).tolist(),
        "session": ["T1"] * len(labels),
        "frame": list(range(frames)) * len(subjects),
        "source": [None] * len(labels),
    }
    for j, name in enumerate(AUS.columns):
        columns[name] = pa.array(labels[:, j], pa.int8(), mask=(np.arange(len(labels)) + j) % 3 == 0)
    columns |= {name: [None] * len(labels) for name in AUS.intensity_columns}
    return pa.table(columns, schema=schema.manifest_schema(AUS))


SUBJECTS = [f"F{n:03d}" for n in range(1, 14)]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(6, 25), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_every_subject_is_on_one_side_and_tested_once(count, k, seed):
    everyone = [f"S{n}" for n in range(count)]
    folds = make_folds(make_manifest(everyone, 2), k, seed=seed)
    assert [fold.name for fold in folds] == [f"fold{n + 1}" for n in range(k)]
    for fold in folds:
        assert sorted([*fold.train, *fold.val, *fold.test]) == sorted(everyone)
        assert fold.train
        assert fold.val
    assert sorted(s for fold in folds for s in fold.test) == sorted(everyone)
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_validation_is_a_sixth_of_the_train_side():
    folds = make_folds(make_manifest([f"S{n}" for n in range(36)], 1), 3)
    assert [(len(f.train), len(f.val), len(f.test)) for f in folds] == [(20, 4, 12)] * 3
    halved = make_folds(make_manifest([f"S{n}" for n in range(36)], 1), 3, val_fraction=0.5)
    assert [len(f.val) for f in halved] == [12] * 3


def test_statistics_are_of_the_train_subjects_alone():
    manifest = make_manifest(SUBJECTS)
    for fold in make_folds(manifest):
        rows = [s in fold.train for s in manifest["subject"].to_pylist()]
        labels, mask = schema.label_arrays(manifest.filter(pa.array(rows)), AUS)
        np.testing.assert_array_equal(fold.stats.n_M, mask.sum(0))
        np.testing.assert_allclose(fold.stats.rate_M, labels.sum(0) / mask.sum(0))


def test_labels_of_val_and_test_do_not_reach_the_statistics():
    manifest = make_manifest(SUBJECTS)
    fold = make_folds(manifest)[0]
    other = make_manifest(SUBJECTS, rng=np.random.default_rng(1))
    train = np.isin(manifest["subject"].to_pylist(), fold.train)
    mixed = pa.table(
        {n: [a if t else b for a, b, t in zip(manifest[n].to_pylist(), other[n].to_pylist(), train, strict=True)]
         for n in manifest.column_names}, schema=manifest.schema,
    )  # fmt: skip
    assert mixed != manifest
    assert json.dumps(make_folds(mixed)[0].to_json()) == json.dumps(fold.to_json())


def test_folds_are_a_function_of_subjects_and_seed():
    manifest = make_manifest(SUBJECTS)
    sides = [
        [(f.train, f.val, f.test) for f in make_folds(m, seed=s)] for m, s in ((manifest, 1), (manifest, 1), (manifest, 2))
    ]
    assert sides[0] == sides[1]
    assert sides[0] != sides[2]
    backwards = manifest.take(pa.array(range(manifest.num_rows - 1, -1, -1)))
    assert [(f.train, f.val, f.test) for f in make_folds(backwards, seed=1)] == sides[0]


def test_published_parts_are_the_test_sides_in_their_order():
    published = Partition((frozenset(SUBJECTS[5:9]), frozenset(SUBJECTS[:5]), frozenset(SUBJECTS[9:])))
    folds = make_folds(make_manifest(SUBJECTS), k=7, published=published)
    assert [set(fold.test) for fold in folds] == [set(part) for part in published.parts]


def test_published_parts_of_bp4d_make_three_folds():
    published = get_dataset("bp4d").published
    folds = make_folds(make_manifest(sorted(s for part in published.parts for s in part), 3), published=published)
    assert [len(fold.test) for fold in folds] == [14, 14, 13]


@pytest.mark.parametrize(("corpus", "named"), [(SUBJECTS[1:], "F001"), ([*SUBJECTS, "F099"], "F099")])
def test_corpus_that_differs_from_the_published_partition_is_an_error(corpus, named):
    published = Partition((frozenset(SUBJECTS[:7]), frozenset(SUBJECTS[7:])))
    with pytest.raises(DataError, match=rf"{named}.*folds.published: false"):
        make_folds(make_manifest(corpus), published=published)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_subjects_are_an_error(count):
    with pytest.raises(DataError, match="subjects"):
        make_folds(make_manifest(SUBJECTS[:count]), k=2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 60), missing=st.floats(0, 0.7), rate=st.floats(0, 1))
def test_statistics_equal_numpys_over_the_pairs_that_are_coded(seed, rows, missing, rate):
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, 4)) < rate).astype(float)
    labels[rng.random(labels.shape) < missing] = np.nan
    stats = label_stats(labels)
    np.testing.assert_array_equal(stats.n_M, (~np.isnan(labels)).sum(0))
    for j in range(4):
        column = labels[~np.isnan(labels[:, j]), j]
        np.testing.assert_allclose(stats.rate_M[j], column.mean() if len(column) else np.nan)
        for k in range(4):
            both = labels[:, [j, k]][~np.isnan(labels[:, [j, k]]).any(1)]
            if len(both) == 0 or (np.ptp(both, 0) == 0).any():
                assert np.isnan(stats.pearson_MM[j, k]), "one of the two is constant"
            else:
                expected = np.corrcoef(both.T)[0, 1]
                np.testing.assert_allclose(stats.pearson_MM[j, k], expected, atol=1e-9)


def test_constant_au_has_no_correlation():
    labels = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0]], float)
    pearson = label_stats(labels).pearson_MM
    assert np.isnan(pearson[1]).all()
    assert np.isnan(pearson[:, 1]).all()
    np.testing.assert_allclose(pearson[[0, 2], [0, 2]], 1)
    np.testing.assert_allclose(pearson[0, 2], 0, atol=1e-12)


def test_folds_survive_their_file(tmp_path):
    folds = make_folds(make_manifest(SUBJECTS))
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"folds": [fold.to_json() for fold in folds]}, allow_nan=False))
    loaded = load_folds(path)
    assert list(loaded) == ["fold1", "fold2", "fold3"]
    for fold in folds:
        back = pick_fold(loaded, fold.name)
        assert (back.train, back.val, back.test) == (fold.train, fold.val, fold.test)
        np.testing.assert_array_equal(back.stats.pearson_MM, fold.stats.pearson_MM)
    with pytest.raises(ConfigError, match=r"fold9.*fold1, fold2, fold3"):
        pick_fold(loaded, "fold9")
    with pytest.raises(DataError, match="dvc repro folds"):
        load_folds(tmp_path / "absent.json")
