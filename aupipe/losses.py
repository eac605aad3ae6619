"""Losses as named terms that sum to the total. Everything is computed from logits, and masked labels add nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aupipe.config import LossConfig
from aupipe.models import AUOutput
from aupipe.schema import ConfigError, LabelStats, au_weights


def weighted_bce(
    logits: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Σ_j w_j · mean over the frames where AU j is coded of BCE (STRAL eq. 1; with all labels coded exactly that).

    Tensors (…, M), mask bool. `weights` (M,) default to 1/M; `pos_weight` (M,) multiplies the positives' term alone
    (ABAW eq. 3). An AU without a coded label in the batch contributes 0, so the loss is always finite.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=pos_weight, reduction="none")
    return _mean_where_coded(loss, mask, weights)


def weighted_asymmetric(
    logits: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """`weighted_bce` in which a negative counts by its own probability p: −[y log p + (1 − y) p log(1 − p)].

    Negatives that are settled stop pulling (ME-GraphAU's weighted asymmetric loss). The factor p takes no gradient, as in
    its authors' code. Their weights sum to M and are meaned over AUs, which is the sum with weights that sum to 1.
    """
    logits = logits.float()
    negative = logits.detach().sigmoid() * F.softplus(logits)
    loss = torch.where(labels > 0, F.softplus(-logits) * (1 if pos_weight is None else pos_weight), negative)
    return _mean_where_coded(loss, mask, weights)


def relation_error(logits_MM4: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the joint states 2a + b of pairs of AUs (a, b), an AU with itself too, where both are coded.

    Logits (…, M, M, 4), labels and mask (…, M). Meaned over all coded pairs, 0 without any: what ME-GraphAU's stage 2
    learns its edges by.
    """
    y = torch.where(mask, labels, 0).long()
    states = 2 * y[..., :, None] + y[..., None, :]
    coded = mask[..., :, None] & mask[..., None, :]
    error = F.cross_entropy(logits_MM4.float().flatten(0, -2), states.flatten(), reduction="none").view_as(coded)
    return torch.where(coded, error, 0).sum() / coded.sum().clamp(min=1)


def weighted_squared_error(predicted: Tensor, intensity: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Σ_j w_j · mean over the frames where AU j's intensity is coded of (predicted − intensity)².

    Tensors (…, M) in 0–5, `intensity` NaN where not coded; `weights` as in `weighted_bce`. Finite without a coded one.
    """
    mask = ~intensity.isnan()
    # NaN is replaced before and not after: a gradient of where(mask, NaN, 0) would be NaN.
    error = predicted.float() - torch.where(mask, intensity, 0)
    return _mean_where_coded(error.square(), mask, weights)


def _mean_where_coded(loss: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """(…, M) → the weighted sum over AUs of the mean over coded frames, 0 for an AU without any."""
    M = loss.shape[-1]
    loss_NM = torch.where(mask, loss, 0).reshape(-1, M)
    per_au = loss_NM.sum(0) / mask.reshape(-1, M).sum(0).clamp(min=1)
    return per_au.mean() if weights is None else (per_au * weights).sum()


def attention_sparsity(attention_BTMhw: Tensor) -> Tensor:
    """STRAL eq. 2, meaned over frames and AUs as in eq. 3: the L1 norm of maps in [0, 1], per place."""
    return attention_BTMhw.float().mean()


def loss_terms(
    output: AUOutput,
    labels: Tensor,
    mask: Tensor,
    config: LossConfig,
    weights: dict[str, Tensor],
    intensity: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of the total loss by name; their sum is what training minimises. `weights` from `label_weights`.

    `intensity` (B, T, M), NaN where not coded, is asked for by config.intensity. Where the output is of a clip's last frames
    alone, so is the loss. Raises ConfigError if what the config weighs is absent.
    """
    T = output.logits_BTM.shape[1]
    labels, mask, intensity = labels[:, -T:], mask[:, -T:], None if intensity is None else intensity[:, -T:]
    occurrence = {"bce": weighted_bce, "asymmetric": weighted_asymmetric}[config.kind]
    terms = {config.kind: occurrence(output.logits_BTM, labels, mask, **weights)}
    if config.attention_l1 and output.attention_BTMhw is not None:
        terms["attention_l1"] = config.attention_l1 * attention_sparsity(output.attention_BTMhw)  # STRAL eq. 3
    if config.auxiliary:
        if output.aux_logits_BTM is None:
            raise ConfigError("loss.auxiliary needs a model with auxiliary logits: sa_net, sat_net or stral; set it to 0")
        terms["auxiliary"] = config.auxiliary * weighted_bce(output.aux_logits_BTM, labels, mask, **weights)
    if config.intensity:
        if output.intensity_BTM is None or intensity is None:
            raise ConfigError("loss.intensity needs a model with an intensity head and clips with intensities; set it to 0")
        error = weighted_squared_error(output.intensity_BTM, intensity, weights=weights.get("weights"))
        terms["intensity"] = config.intensity * error
    if config.relations:
        if output.relation_logits_BTMM4 is None:
            raise ConfigError("loss.relations needs a model of pairs of AUs: me_graphau with stage: 2; set it to 0")
        terms["relations"] = config.relations * relation_error(output.relation_logits_BTMM4, labels, mask)
    return terms


def label_weights(config: LossConfig, stats: LabelStats, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The keyword arguments of `weighted_bce` that a weighting stands for. Raises DataError if no AU has a positive.

    inverse_rate: w_j ∝ 1/rate_j, sum 1 (STRAL eq. 1) · positive: N / (2 N⁺) on the positives (ABAW eq. 4).
    """
    if config.weighting == "none":
        return {}
    as_tensor = partial(torch.as_tensor, dtype=torch.float32, device=device)
    weights = au_weights(stats.rate_M)
    if config.weighting == "positive":
        rate = np.asarray(stats.rate_M, float)
        return {"pos_weight": as_tensor(np.divide(0.5, rate, out=np.ones_like(rate), where=weights > 0))}
    return {"weights": as_tensor(weights)}
