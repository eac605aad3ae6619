"""Losses as named terms that sum to the total. Everything is computed from logits, and masked labels add nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aupipe.config import LossConfig
from aupipe.models import AUOutput
from aupipe.schema import LabelStats, au_weights


def weighted_bce(
    logits: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Σ_j w_j · mean over the frames where AU j is coded of BCE (STRAL eq. 1; with all labels coded exactly that).

    Tensors (…, M), mask bool. `weights` (M,) default to 1/M; `pos_weight` (M,) multiplies the positives' term alone
    (ABAW eq. 3). An AU without a coded label in the batch contributes 0, so the loss is always finite.
    """
    M = logits.shape[-1]
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=pos_weight, reduction="none")
    loss_NM = torch.where(mask, loss, 0).reshape(-1, M)
    per_au = loss_NM.sum(0) / mask.reshape(-1, M).sum(0).clamp(min=1)
    return per_au.mean() if weights is None else (per_au * weights).sum()


def attention_sparsity(attention_BTMhw: Tensor) -> Tensor:
    """STRAL eq. 2, meaned over frames and AUs as in eq. 3: the L1 norm of maps in [0, 1], per place."""
    return attention_BTMhw.float().mean()


def loss_terms(
    output: AUOutput, labels: Tensor, mask: Tensor, config: LossConfig, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The terms of the total loss by name; their sum is what training minimises. `weights` from `label_weights`."""
    terms = {"bce": weighted_bce(output.logits_BTM, labels, mask, **weights)}
    if config.attention_l1 and output.attention_BTMhw is not None:
        terms["attention_l1"] = config.attention_l1 * attention_sparsity(output.attention_BTMhw)  # STRAL eq. 3
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
