"""metrics.py against scikit-learn, and the conventions at the head of the file by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from aupipe.metrics import Counts, auc, evaluate, mean_over_aus, per_au

CLOSE = {"rtol": 0, "atol": 1e-9}


def draw_case(seed):
    """Masked predictions of 5 AUs with ties, some AUs rare or never coded."""
    rng = np.random.default_rng(seed)
    N = int(rng.integers(1, 80))
    probs = np.round(rng.random((N, 5)), int(rng.integers(1, 4)))
    labels = (rng.random((N, 5)) < rng.random(5) ** 2).astype(np.float32)
    mask = rng.random((N, 5)) < rng.choice([0, 0.3, 0.9, 1], 5)
    return probs, labels, mask


@pytest.mark.parametrize("block", range(4))
def test_figures_equal_scikit_learns(block):
    for seed in range(block * 60, block * 60 + 60):
        probs, labels, mask = draw_case(seed)
        counts, areas = Counts.from_probs(probs, labels, mask), auc(probs, labels, mask)
        for j in range(5):
            y, p = labels[mask[:, j], j], probs[mask[:, j], j]
            said = p >= 0.5
            assert counts.coded()[j] == len(y)
            assert counts.support()[j] == y.sum()
            if len(y):
                np.testing.assert_allclose(counts.accuracy()[j], sk.accuracy_score(y, said), **CLOSE)
            if y.any():
                expected = sk.precision_recall_fscore_support(y, said, average="binary", zero_division=0)
                figures = counts.precision()[j], counts.recall()[j], counts.f1()[j]
                np.testing.assert_allclose(figures, expected[:3], **CLOSE)
            if 0 < y.sum() < len(y):
                np.testing.assert_allclose(areas[j], sk.roc_auc_score(y, p), **CLOSE)
            else:
                assert np.isnan(areas[j])


@given(st.integers(0, 10**6), st.integers(0, 80))
@settings(max_examples=50, deadline=None)
def test_counts_of_parts_add_up_to_the_whole(seed, cut):
    probs, labels, mask = draw_case(seed)
    parts = [Counts.from_probs(probs[s], labels[s], mask[s]) for s in (slice(0, cut), slice(cut, None))]
    total = Counts.zero(5) + parts[0] + parts[1]
    np.testing.assert_array_equal(total.to_array(), Counts.from_probs(probs, labels, mask).to_array())
    back = Counts.from_array(total.to_array().astype(float))
    np.testing.assert_array_equal(back.to_array(), total.to_array())
    np.testing.assert_array_equal(back.coded(), mask.sum(0))


def test_f1_of_a_sum_is_not_the_mean_of_f1s():
    ones = np.ones((1, 1), bool)
    good = Counts.from_probs([[0.9]], [[1]], ones)
    bad = Counts.from_probs([[0.9]] * 3, [[0]] * 3, np.ones((3, 1), bool)) + Counts.from_probs([[0.1]], [[1]], ones)
    assert (good + bad).f1()[0] == pytest.approx(2 / (2 + 3 + 1))
    assert (good.f1()[0] + bad.f1()[0]) / 2 == 0.5


def test_clips_are_counted_like_their_frames():
    probs, labels, mask = (a[:60].reshape(3, -1, 5) for a in (np.resize(x, (60, 5)) for x in draw_case(3)))
    flat = Counts.from_probs(*(a.reshape(-1, 5) for a in (probs, labels, mask)))
    np.testing.assert_array_equal(Counts.from_probs(probs, labels, mask).to_array(), flat.to_array())
    np.testing.assert_array_equal(auc(probs, labels, mask), auc(*(a.reshape(-1, 5) for a in (probs, labels, mask))))


def test_half_is_positive_and_thresholds_may_differ_per_au():
    probs, labels, mask = np.full((1, 2), 0.5), np.ones((1, 2)), np.ones((1, 2), bool)
    np.testing.assert_array_equal(Counts.from_probs(probs, labels, mask).tp, [1, 1])
    np.testing.assert_array_equal(Counts.from_probs(probs, labels, mask, [0.4, 0.6]).tp, [1, 0])


def test_au_without_positives_has_no_figures_but_accuracy():
    counts = Counts.from_probs([[0.9, 0.1]] * 2, [[0, 0]] * 2, np.array([[True, False]] * 2))
    for figure in (counts.f1(), counts.precision(), counts.recall()):
        assert np.isnan(figure).all()
    np.testing.assert_array_equal(counts.accuracy(), [0, np.nan])
    figures = per_au(counts, np.array([np.nan, 0.5]))
    assert figures["f1"] == [None, None]
    assert figures["auc"] == [None, 0.5]
    assert figures["support"] == [0, 0]
    assert figures["coded"] == [2, 0]


def test_au_never_called_has_precision_and_f1_zero():
    counts = Counts.from_probs([[0.1]], [[1]], [[True]])
    assert [counts.precision()[0], counts.recall()[0], counts.f1()[0]] == [0, 0, 0]


def test_mean_leaves_out_what_has_no_value():
    assert mean_over_aus(np.array([0.2, np.nan, 0.4])) == pytest.approx(0.3)
    assert np.isnan(mean_over_aus(np.array([np.nan])))


def test_ties_count_one_half():
    assert auc([[0.5]] * 4, [[1], [0], [0], [1]], np.ones((4, 1), bool))[0] == 0.5
    assert auc([[0.1], [0.5], [0.5]], [[0], [0], [1]], np.ones((3, 1), bool))[0] == 0.75


def test_results_stand_beside_two_baselines():
    # AU 0: positives 3 of 4. AU 1: 1 of 2 coded. AU 2: coded, never positive. The last frame is not coded at all.
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    probs = np.array([[0.9, 0.8, 0.1], [0.6, 0.2, 0.1], [0.4, 0.9, 0.1], [0.7, 0.9, 0.1], [np.nan] * 3])
    result = evaluate(probs, labels, mask, [0.6, 0.4, np.nan])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["frames"] == 4
    assert result["aus_with_positives"] == 2
    np.testing.assert_allclose(result["per_au"]["f1"][:2], [2 * 2 / (4 + 1 + 1), 1])
    assert result["per_au"]["f1"][2] is None
    assert result["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["per_au"]["auc"] == [pytest.approx(1 / 3), 1, None]
    assert result["auc"] == pytest.approx(2 / 3)
    assert result["accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    everyone = result["all_positive"]
    assert everyone["per_au"]["f1"] == [pytest.approx(6 / 7), pytest.approx(2 / 3), None]
    assert everyone["per_au"]["accuracy"] == [0.75, 0.5, 0]
    assert everyone["f1"] == pytest.approx((6 / 7 + 2 / 3) / 2)
    prior = result["prior"]
    assert prior["per_au"]["f1"] == [pytest.approx(6 / 7), 0, None]
    assert prior["per_au"]["accuracy"] == [0.75, 0.5, 1]
    assert prior["accuracy"] == pytest.approx(0.75)


def test_nothing_to_evaluate_is_null_not_an_error():
    result = evaluate(np.full((2, 2), np.nan), np.zeros((2, 2)), np.zeros((2, 2), bool), [0.5, 0.5])
    assert (result["f1"], result["auc"], result["accuracy"], result["frames"]) == (None, None, None, 0)
    json.dumps(result, allow_nan=False)
