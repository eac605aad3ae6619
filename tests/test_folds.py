"""folds.py: no subject on two sides, everyone tested once, and statistics of the train side alone."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import AUS
from hypothesis import given, settings
from hypothesis import strategies as st

from aupipe import schema
from aupipe.datasets import Partition, get_dataset, published_partition
from aupipe.folds import Fold, check_sides, label_stats, leave_one_out, load_folds, make_folds, pick_fold
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
    layout = schema.manifest_schema(AUS)
    return pa.table({name: columns.get(name, [None] * len(labels)) for name in layout.names}, schema=layout)


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
    assert all(fold.test for fold in folds)


def test_validation_is_a_sixth_of_the_train_side():
    manifest, thirds = (
        make_manifest([f"S{n}" for n in range(36)], 1),
        [frozenset(f"S{n}" for n in range(p, 36, 3)) for p in range(3)],
    )
    folds = make_folds(manifest, published=Partition(tuple(thirds)))
    assert [(len(f.train), len(f.val), len(f.test)) for f in folds] == [(20, 4, 12)] * 3
    halved = make_folds(manifest, published=Partition(tuple(thirds)), val_fraction=0.5)
    assert [len(f.val) for f in halved] == [12] * 3


def set_labels(manifest, column, values):
    return manifest.set_column(manifest.column_names.index(column), column, pa.array(values, pa.int8()))


@pytest.mark.parametrize("seed", range(8))
def test_drawn_parts_have_like_shares_of_every_au(seed):
    """AU 1 occurs in three people of eighteen, AU 4 in six others, AU 12 mostly in two who hold half of the frames."""
    people = [f"S{n:02d}" for n in range(18)]
    manifest = make_manifest(people, 30)
    who = np.repeat(np.arange(18), 30)
    manifest = set_labels(manifest, "AU01_c", (who < 3).astype(int))
    manifest = set_labels(manifest, "AU04_c", ((who >= 3) & (who < 9)).astype(int))
    for fold in make_folds(manifest, 3, seed=seed):
        numbers = {int(s[1:]) for s in fold.test}
        assert len(numbers & {0, 1, 2}) == 1
        assert len(numbers & set(range(3, 9))) == 2
        assert len(numbers) == 6


def set_column(manifest, column, of_subject):
    values = [of_subject.get(s) for s in manifest["subject"].to_pylist()]
    return manifest.set_column(manifest.column_names.index(column), column, pa.array(values, pa.string()))


@settings(max_examples=25, deadline=None)
@given(pairs=st.integers(4, 9), singles=st.integers(0, 5), k=st.integers(2, 3), seed=st.integers(0, 99))
def test_people_of_one_group_stay_together(pairs, singles, k, seed):
    groups = {f"video{n}_{side}": f"video{n}" for n in range(pairs) for side in ("left", "right")}
    people = [*groups, *(f"one{n}" for n in range(singles))]
    folds = make_folds(set_column(make_manifest(people, 3), "group", groups), k, seed=seed)
    for fold in folds:
        sides = [{groups.get(s, s) for s in side} for side in (fold.train, fold.val, fold.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == pairs + singles
    assert sorted(s for fold in folds for s in fold.test) == sorted(people)


def test_partition_that_parts_a_group_is_an_error():
    manifest = set_column(make_manifest(SUBJECTS), "group", {"F001": "twins", "F009": "twins"})
    with pytest.raises(DataError, match=r"people on two of its sides: twins \(test and train\)"):
        make_folds(manifest, published=Partition((frozenset(SUBJECTS[:7]), frozenset(SUBJECTS[7:]))))


def test_subject_in_two_parts_or_two_groups_is_an_error():
    twice = Partition((frozenset(SUBJECTS[:7]), frozenset(SUBJECTS[6:])))
    with pytest.raises(DataError, match=r"subjects in two parts \['F007'\]"):
        make_folds(make_manifest(SUBJECTS), published=twice)
    manifest = make_manifest(SUBJECTS)
    groups = pa.array(["a" if n % 2 else "b" for n in range(manifest.num_rows)])
    with pytest.raises(DataError, match="subject 'F001' is in two groups"):
        make_folds(manifest.set_column(manifest.column_names.index("group"), "group", groups))


def test_sides_that_share_people_are_refused_with_their_names():
    fold = make_folds(make_manifest(SUBJECTS))[0]
    check_sides(fold)
    leaking = replace(fold, train=(*fold.train, fold.test[0]))
    with pytest.raises(DataError, match=rf"fold1 has people on two of its sides: {fold.test[0]} \(test and train\)"):
        check_sides(leaking)


def test_other_communities_names_pick_the_same_fold():
    for layout in ("bp4d", "disfa"):
        published = get_dataset(layout).published
        folds = make_folds(make_manifest(sorted(s for part in published.parts for s in part), 2), published=published)
        saved = {f.name: Fold.from_json(json.loads(json.dumps(f.to_json()))) for f in folds}
        for third, (jaanet, megraphau) in enumerate([("2_3", 3), ("1_3", 2), ("1_2", 1)]):
            fold = pick_fold(saved, f"jaanet-combine_{jaanet}")
            assert fold is pick_fold(saved, f"megraphau-fold{megraphau}") is saved[f"fold{third + 1}"]
            assert set(fold.test) == set(published.parts[third])
            trained = [n for n in range(3) if str(n + 1) in jaanet]
            assert set(fold.train) | set(fold.val) == published.parts[trained[0]] | published.parts[trained[1]]
        with pytest.raises(ConfigError, match=r"fold4.*fold1, jaanet-combine_2_3, megraphau-fold3"):
            pick_fold(saved, "megraphau-fold4")


def test_official_split_is_one_fold():
    splits = {s: ("train", "train", "train", "val", "test")[n % 5] for n, s in enumerate(SUBJECTS)}
    manifest = set_column(make_manifest(SUBJECTS), "split", splits)
    partition = published_partition(get_dataset("affwild2"), manifest)
    (fold,) = make_folds(manifest, published=partition)
    assert (fold.name, fold.aliases) == ("fold1", ("official",))
    for side in ("train", "val", "test"):
        assert list(getattr(fold, side)) == [s for s in SUBJECTS if splits[s] == side]
    unreleased = [None if splits[s] == "test" else 1 for s in manifest["subject"].to_pylist()]
    for column in AUS.columns:
        manifest = set_labels(manifest, column, unreleased)
    (fold,) = make_folds(manifest, published=partition)
    assert list(fold.test) == [s for s in SUBJECTS if splits[s] == "val"], "labels of the test side were never released"
    assert sorted(fold.train + fold.val) == [s for s in SUBJECTS if splits[s] == "train"]
    assert len(fold.val) == 2


def test_parts_that_came_with_the_data_are_the_test_sides():
    manifest = set_column(make_manifest(SUBJECTS), "part", {s: "b" if n < 4 else "a" for n, s in enumerate(SUBJECTS)})
    folds = make_folds(manifest, published=published_partition(get_dataset("generic"), manifest))
    assert [list(f.test) for f in folds] == [SUBJECTS[4:], SUBJECTS[:4]]
    assert pick_fold({f.name: f for f in folds}, "part-b").test == tuple(SUBJECTS[:4])
    assert published_partition(get_dataset("generic"), make_manifest(SUBJECTS)) is None
    mixed = manifest.set_column(manifest.column_names.index("part"), "part", pa.array(["a", "b"] * (manifest.num_rows // 2)))
    with pytest.raises(DataError, match="subject 'F001' has two values of part, a and b"):
        published_partition(get_dataset("generic"), mixed)


def test_leaving_out_a_corpus_leaves_out_its_people_elsewhere():
    disfa, plus = [f"SN{n:03d}" for n in range(1, 13)], [f"SN{n:03d}" for n in (1, 3, 4)]
    corpora = {"bp4d": SUBJECTS, "disfa": disfa, "plus": plus}
    manifest = make_manifest([f"{name}:{subject}" for name, subjects in corpora.items() for subject in subjects])
    part_of = {s: s.partition(":")[0] for s in manifest["subject"].to_pylist()}
    manifest = set_column(manifest, "part", part_of)
    manifest = set_column(manifest, "group", {s: s.replace("plus", "disfa") for s in part_of})
    is_bp4d = pa.array([part_of[s] == "bp4d" for s in manifest["subject"].to_pylist()])
    uncoded = pc.if_else(is_bp4d, pa.scalar(None, pa.int8()), manifest["AU12_c"])
    manifest = manifest.set_column(manifest.column_names.index("AU12_c"), "AU12_c", uncoded)
    folds = {f.name: f for f in leave_one_out(manifest, seed=1)}
    assert sorted(folds) == ["bp4d", "disfa", "plus"]
    for name, subjects in (("bp4d", SUBJECTS), ("disfa", disfa), ("plus", plus)):
        assert list(folds[name].test) == [f"{name}:{s}" for s in subjects]
    others = {name: set(fold.train) | set(fold.val) for name, fold in folds.items()}
    assert others["plus"] == {f"bp4d:{s}" for s in SUBJECTS} | {f"disfa:{s}" for s in set(disfa) - set(plus)}
    assert others["disfa"] == {f"bp4d:{s}" for s in SUBJECTS}, "everyone of plus is in disfa"
    for fold in folds.values():
        whole = {("disfa" if s[:5] in ("disfa", "plus:") else "bp4d") + s[s.index(":") :] for s in fold.train}
        assert not whole & {("disfa" if s[:5] in ("disfa", "plus:") else "bp4d") + s[s.index(":") :] for s in fold.val}
    assert folds["disfa"].stats.n_M[2] == 0, "BP4D here does not code AU 12"
    assert folds["bp4d"].stats.n_M[2] > 0
    for fold in folds.values():
        check_sides(fold, dict(zip(manifest["subject"].to_pylist(), manifest["group"].to_pylist(), strict=True)))
    with pytest.raises(DataError, match="two parts"):
        leave_one_out(manifest.filter(is_bp4d))
    with pytest.raises(DataError, match="leaves 0 subjects"):
        leave_one_out(manifest.filter(pc.invert(is_bp4d)))


def test_statistics_are_of_the_train_subjects_alone():
    manifest = make_manifest(SUBJECTS)
    for fold in make_folds(manifest):
        rows = [s in fold.train for s in manifest["subject"].to_pylist()]
        labels, mask = schema.label_arrays(manifest.filter(pa.array(rows)), AUS)
        np.testing.assert_array_equal(fold.stats.n_M, mask.sum(0))
        np.testing.assert_allclose(fold.stats.rate_M, labels.sum(0) / mask.sum(0))


def test_labels_of_val_and_test_do_not_reach_the_statistics():
    manifest, halves = make_manifest(SUBJECTS), Partition((frozenset(SUBJECTS[:6]), frozenset(SUBJECTS[6:])))
    fold = make_folds(manifest, published=halves)[0]
    other = make_manifest(SUBJECTS, rng=np.random.default_rng(1))
    train = np.isin(manifest["subject"].to_pylist(), fold.train)
    mixed = pa.table(
        {n: [a if t else b for a, b, t in zip(manifest[n].to_pylist(), other[n].to_pylist(), train, strict=True)]
         for n in manifest.column_names}, schema=manifest.schema,
    )  # fmt: skip
    assert mixed != manifest
    assert json.dumps(make_folds(mixed, published=halves)[0].to_json()) == json.dumps(fold.to_json())


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
