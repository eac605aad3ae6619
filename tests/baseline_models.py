"""Baseline networks as tests make them, and what is asked of each of them."""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from aupipe.facs import AU_SETS, AUSet
from aupipe.losses import label_weights, loss_terms
from aupipe.models import build_model
from aupipe.recipes import LossConfig
from aupipe.schema import LabelStats

AUS = AUSet((1, 2, 4, 12))


def statistics(M=4):
    return LabelStats(np.linspace(0.1, 0.5, M), np.eye(M), np.full(M, 100))


def build(name, aus=AUS, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, options, aus, statistics(len(aus)))


def frames(B=2, T=3, size=64, seed=1, dtype=torch.float32):
    return torch.randn(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sizes(name, corpus, side, **options):
    """The parameters of the full network, and its multiplications per frame of `side` pixels."""
    with torch.device("meta"):
        model = build(name, AU_SETS[corpus], **options).eval()
        with FlopCounterMode(display=False) as counter:
            output = model(torch.empty(1, 1, 3, side, side))
    assert output.logits_BTM.shape == (1, 1, len(AU_SETS[corpus]))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2


def assert_frames_are_independent(model, size):
    """Any T, each frame's logits its own, however the frames are cut into clips."""
    model.eval()
    shots = frames(2, 3, size)
    logits = model(shots).logits_BTM
    assert logits.shape == (2, 3, 4)
    assert logits.std() > 0
    singly = model(shots.reshape(6, 1, 3, size, size)).logits_BTM.view(2, 3, 4)
    torch.testing.assert_close(singly, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(shots[:, 1:2]).logits_BTM, logits[:, 1:2], rtol=1e-4, atol=1e-5)
    changed = shots.clone()
    changed[0, 0] = 0
    different = model(changed).logits_BTM
    assert not torch.allclose(different[0, 0], logits[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(different.flatten(0, 1)[1:], logits.flatten(0, 1)[1:], rtol=1e-4, atol=1e-5)


def assert_a_masked_au_is_left_out(model, size, **loss):
    """With each kind and weighting of loss: finite terms that sum, and finite gradients."""
    labels = torch.randint(0, 2, (2, 3, 4), generator=torch.Generator().manual_seed(2)).float()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[..., 2] = False
    for kind in ("bce", "asymmetric"):
        for weighting in ("none", "inverse_rate", "positive"):
            config = LossConfig(kind=kind, weighting=weighting, **loss)
            model.train().zero_grad()
            terms = loss_terms(model(frames(size=size)), labels, mask, config, label_weights(config, statistics()))
            assert next(iter(terms)) == kind
            total = sum(terms.values())
            total.backward()
            assert torch.isfinite(total)
            assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def unreached(model, size, loss=lambda output: (output.logits_BTM * torch.arange(1.0, 5)).square().sum()):
    """Names of parameters that a step in training would not move."""
    model.train()
    loss(model(frames(size=size))).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
