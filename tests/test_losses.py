"""losses.py equals the papers' formulas, and masked labels add nothing."""

import numpy as np
import pytest
import torch
from conftest import STATS

from aupipe.config import LossConfig
from aupipe.losses import attention_sparsity, label_weights, loss_terms, weighted_bce
from aupipe.models import AUOutput
from aupipe.schema import ConfigError, DataError, LabelStats

STATISTICS = LabelStats(np.array([0.5, 0.25, 0.1]), np.eye(3), np.array([100, 80, 50]))


@pytest.fixture
def case():
    """Logits, labels and mask (2, 3, 3) in float64."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 3, (2, 3, 3)), dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, 2, (2, 3, 3)), dtype=torch.float32)
    return logits, labels, torch.tensor(rng.random((2, 3, 3)) < 0.7)


def by_hand(logits, labels, mask, weights=(1 / 3, 1 / 3, 1 / 3), positive=(1, 1, 1)):
    """Σ_j w_j · mean over the coded frames of −[v_j y log p + (1 − y) log(1 − p)]"""
    total = 0.0
    z, y, m = (a.reshape(-1, 3).double().numpy() for a in (logits, labels, mask))
    p = 1 / (1 + np.exp(-z))
    for j in range(3):
        terms = -(positive[j] * y[:, j] * np.log(p[:, j]) + (1 - y[:, j]) * np.log(1 - p[:, j]))
        coded = m[:, j] > 0
        total += weights[j] * (terms[coded].mean() if coded.any() else 0)
    return total


def test_loss_is_the_weighted_mean_over_coded_frames(case):
    assert weighted_bce(*case).item() == pytest.approx(by_hand(*case), rel=1e-5)
    w, v = [0.5, 0.3, 0.2], [1.0, 2.0, 5.0]
    kwargs = {"weights": torch.tensor(w), "pos_weight": torch.tensor(v)}
    assert weighted_bce(*case, **kwargs).item() == pytest.approx(by_hand(*case, w, v), rel=1e-5)


def test_equal_weights_that_sum_to_one_are_the_plain_mean(case):
    plain = weighted_bce(*case)
    torch.testing.assert_close(weighted_bce(*case, weights=torch.full((3,), 1 / 3)), plain)
    everything = torch.ones_like(case[2])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*case[:2])
    torch.testing.assert_close(weighted_bce(*case[:2], everything), expected)


def test_masked_labels_change_neither_loss_nor_gradient(case):
    logits, labels, mask = case
    results = []
    for filled in (labels, torch.where(mask, labels, 1 - labels)):
        z = logits.clone().requires_grad_()
        loss = weighted_bce(z, filled, mask)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert (results[0][1][~mask] == 0).all()
    assert (results[0][1][mask] != 0).all()


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 0.3, 0.2])])
def test_au_without_a_coded_label_adds_nothing(case, weights):
    logits, labels, mask = case
    mask = mask.clone()
    mask[..., 1] = False
    z = logits.clone().requires_grad_()
    loss = weighted_bce(z, labels, mask, weights=weights)
    loss.backward()
    assert torch.isfinite(loss)
    assert (z.grad[..., 1] == 0).all()
    assert torch.isfinite(z.grad).all()
    nothing = weighted_bce(logits, labels, torch.zeros_like(mask), weights=weights)
    assert nothing.item() == 0


def test_huge_logits_stay_finite(case):
    assert torch.isfinite(weighted_bce(case[0] * 1e6, *case[1:]))


def test_attention_term_is_lambda_times_the_mean_of_all_maps(case):
    maps = torch.rand(2, 3, 3, 4, 4)
    output = AUOutput(case[0], maps)
    assert attention_sparsity(maps).item() == pytest.approx(maps.mean().item())
    terms = loss_terms(output, *case[1:], LossConfig(attention_l1=0.01), {})
    # STRAL eq. 2 and 3: λ / (m t) Σ_i Σ_j of the mean over places.
    m_t = 3 * 2 * 3
    assert terms["attention_l1"].item() == pytest.approx(0.01 * maps.mean((3, 4)).sum().item() / m_t, rel=1e-5)
    assert terms["bce"].item() == weighted_bce(*case).item()
    assert list(loss_terms(output, *case[1:], LossConfig(), {})) == ["bce"]
    assert list(loss_terms(AUOutput(case[0]), *case[1:], LossConfig(attention_l1=1.0), {})) == ["bce"]


def test_intensity_term_is_the_masked_squared_error(case):
    logits, labels, mask = case
    rng = np.random.default_rng(1)
    predicted = torch.tensor(rng.uniform(0, 5, (2, 3, 3)), dtype=torch.float32, requires_grad=True)
    intensity = torch.tensor(rng.integers(0, 6, (2, 3, 3)), dtype=torch.float32)
    intensity[rng.random((2, 3, 3)) < 0.3] = torch.nan
    intensity[..., 2] = torch.nan
    config, weights = LossConfig(intensity=0.2), {"weights": torch.tensor([0.5, 0.3, 0.2])}
    output = AUOutput(logits, intensity_BTM=predicted)
    terms = loss_terms(output, labels, mask, config, weights, intensity)
    errors = (predicted.detach() - intensity).square().flatten(0, 1).numpy()
    by_au = [np.nanmean(errors[:, j]) for j in (0, 1)]
    assert terms["intensity"].item() == pytest.approx(0.2 * (0.5 * by_au[0] + 0.3 * by_au[1]), rel=1e-5)
    assert terms["bce"].item() == weighted_bce(*case, **weights).item()
    sum(terms.values()).backward()
    assert torch.isfinite(predicted.grad).all()
    assert torch.equal(predicted.grad != 0, ~intensity.isnan())
    plain = loss_terms(output, labels, mask, config, {"pos_weight": torch.tensor([1.0, 2.0, 9.0])}, intensity)
    assert plain["intensity"].item() == pytest.approx(0.2 * sum(by_au) / 3, rel=1e-5)


def test_intensities_coded_nowhere_cost_nothing_and_absent_ones_are_an_error(case):
    output = AUOutput(case[0], intensity_BTM=torch.ones(2, 3, 3, requires_grad=True))
    uncoded = torch.full((2, 3, 3), torch.nan)
    terms = loss_terms(output, *case[1:], LossConfig(intensity=1.0), {}, uncoded)
    terms["intensity"].backward()
    assert terms["intensity"].item() == 0
    assert (output.intensity_BTM.grad == 0).all()
    assert "intensity" not in loss_terms(output, *case[1:], LossConfig(), {}, uncoded)
    for model, labels in ((AUOutput(case[0]), uncoded), (output, None)):
        with pytest.raises(ConfigError, match=r"loss\.intensity needs a model with an intensity head"):
            loss_terms(model, *case[1:], LossConfig(intensity=1.0), {}, labels)


def test_positive_weighting_is_frames_over_twice_the_positives():
    # ABAW eq. 4; rates are of coded frames, so N and N+ count valid labels only.
    weights = label_weights(LossConfig(weighting="positive"), STATISTICS)
    positives = STATISTICS.rate_M * STATISTICS.n_M
    np.testing.assert_allclose(weights["pos_weight"].numpy(), STATISTICS.n_M / (2 * positives), rtol=1e-6)
    assert list(weights) == ["pos_weight"]


def test_inverse_rate_weighting_is_strals():
    weights = label_weights(LossConfig(weighting="inverse_rate"), STATISTICS)
    np.testing.assert_allclose(weights["weights"].numpy(), [2 / 16, 4 / 16, 10 / 16], rtol=1e-6)
    assert weights["weights"].dtype == torch.float32
    assert label_weights(LossConfig(), STATISTICS) == {}


def test_au_without_positives_has_a_finite_weighting():
    stats = LabelStats(np.array([0.5, 0.0, np.nan]), np.eye(3), np.array([10, 10, 0]))
    assert label_weights(LossConfig(weighting="positive"), stats)["pos_weight"].tolist() == [1, 1, 1]
    assert label_weights(LossConfig(weighting="inverse_rate"), stats)["weights"].tolist() == [1, 0, 0]
    never = LabelStats(np.zeros(3), np.eye(3), np.array([10, 10, 10]))
    for weighting in ("positive", "inverse_rate"):
        with pytest.raises(DataError, match="no AU has a positive"):
            label_weights(LossConfig(weighting=weighting), never)


def test_statistics_of_a_checkpoint_give_the_weights():
    weights = label_weights(LossConfig(weighting="positive"), LabelStats.from_json(STATS))
    np.testing.assert_allclose(weights["pos_weight"].numpy(), [1.25] * 3)
