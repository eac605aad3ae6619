"""losses.py: ME-GraphAU's two terms, against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from aupipe.losses import loss_terms, relation_error, weighted_asymmetric, weighted_bce
from aupipe.models import AUOutput
from aupipe.recipes import LossConfig
from aupipe.schema import ConfigError

NINE = math.log(9)  # a logit of 9/10
LOGITS = torch.tensor([[[0.0, NINE], [-NINE, NINE]]])  # probabilities ½, 9/10, 1/10, 9/10
LABELS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
CODED = torch.ones(1, 2, 2, dtype=torch.bool)


def test_a_negative_counts_by_its_own_probability():
    # AU 1: −log ½ and −1/10·log 9/10; AU 2: −9/10·log 1/10 and −log 9/10
    first, second = -math.log(0.5) - 0.1 * math.log(0.9), -0.9 * math.log(0.1) - math.log(0.9)
    assert weighted_asymmetric(LOGITS, LABELS, CODED).item() == pytest.approx((first + second) / 4, rel=1e-6)
    weights = torch.tensor([0.75, 0.25])
    expected = (0.75 * first + 0.25 * second) / 2
    assert weighted_asymmetric(LOGITS, LABELS, CODED, weights=weights).item() == pytest.approx(expected, rel=1e-6)
    positive = torch.tensor([2.0, 5.0])
    expected = (-2 * math.log(0.5) - 0.1 * math.log(0.9) - 0.9 * math.log(0.1) - 5 * math.log(0.9)) / 4
    assert weighted_asymmetric(LOGITS, LABELS, CODED, pos_weight=positive).item() == pytest.approx(expected, rel=1e-6)


def test_weights_that_sum_to_the_number_of_aus_and_a_mean_are_the_published_form():
    published = torch.tensor([1.5, 0.5])
    p = LOGITS.sigmoid()
    by_au = published * (LABELS * p.log() + (1 - LABELS) * p * (1 - p).log())
    found = weighted_asymmetric(LOGITS, LABELS, CODED, weights=published / 2)
    assert found.item() == pytest.approx(-by_au.mean().item(), rel=1e-6)


def test_the_factor_takes_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    weighted_asymmetric(logits, LABELS, CODED).backward()
    # d(−log p)/dz = p − 1; p held fixed, d(−p log(1 − p))/dz = p·p; a quarter each
    expected = torch.tensor([[[-0.5, 0.81], [0.01, -0.1]]]) / 4
    torch.testing.assert_close(logits.grad, expected)


def test_uncoded_labels_change_neither_loss_nor_gradient():
    mask = torch.tensor([[[True, False], [True, False]]])
    results = []
    for filled in (LABELS, torch.where(mask, LABELS, 1 - LABELS)):
        logits = LOGITS.clone().requires_grad_()
        loss = weighted_asymmetric(logits, filled, mask)
        loss.backward()
        results.append((loss.detach(), logits.grad))
        assert not logits.grad[..., 1].any()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert weighted_asymmetric(LOGITS, LABELS, torch.zeros_like(mask)).item() == 0


def test_huge_logits_stay_finite():
    logits = (LOGITS * 1e6).requires_grad_()
    loss = weighted_asymmetric(logits, 1 - LABELS, CODED)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_relations_are_the_joint_states_of_coded_pairs():
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    # States 2a + b of the pairs (a, b), row by row
    states = [3, 2, 3, 1, 0, 1, 3, 2, 3]
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(1, 3, 3, 4)), dtype=torch.float32)
    p = torch.softmax(logits.double(), -1).view(9, 4).numpy()
    costs = [-math.log(p[pair, state]) for pair, state in enumerate(states)]
    assert relation_error(logits, labels, torch.ones(1, 3, dtype=torch.bool)).item() == pytest.approx(np.mean(costs))
    mask = torch.tensor([[True, False, True]])
    coded = [costs[pair] for pair in (0, 2, 6, 8)]
    assert relation_error(logits, labels, mask).item() == pytest.approx(np.mean(coded))
    uncoded = torch.where(mask, labels, torch.nan)
    assert relation_error(logits, uncoded, mask).item() == pytest.approx(np.mean(coded))
    assert relation_error(logits, labels, torch.zeros_like(mask)).item() == 0


def test_terms_are_named_by_the_kind_and_sum_with_the_relations():
    relations = torch.randn(1, 2, 2, 2, 4)
    output = AUOutput(LOGITS, relation_logits_BTMM4=relations)
    config = LossConfig(kind="asymmetric", relations=0.05)
    terms = loss_terms(output, LABELS, CODED, config, {})
    assert list(terms) == ["asymmetric", "relations"]
    assert terms["asymmetric"].item() == weighted_asymmetric(LOGITS, LABELS, CODED).item()
    assert terms["relations"].item() == pytest.approx(0.05 * relation_error(relations, LABELS, CODED).item())
    plain = loss_terms(output, LABELS, CODED, LossConfig(), {})
    assert {name: term.item() for name, term in plain.items()} == {"bce": weighted_bce(LOGITS, LABELS, CODED).item()}
    with pytest.raises(ConfigError, match=r"loss\.relations needs.*me_graphau with stage: 2"):
        loss_terms(AUOutput(LOGITS), LABELS, CODED, config, {})


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"kind": "focal"}, "unknown kind of loss 'focal'; known are bce, asymmetric"), ({"relations": -1.0}, "relations")],
)
def test_losses_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        LossConfig(**options)
