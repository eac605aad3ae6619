"""STRAL networks and frames as tests make them."""

import numpy as np
import torch

from aupipe.facs import AUSet
from aupipe.models import build_model
from aupipe.schema import LabelStats

AUS = AUSet((1, 2, 4, 12))
PEARSON = np.array([[1, 0.6, 0.2, 0.0], [0.6, 1, 0.0, -0.3], [0.2, 0.0, 1, 0.1], [0.0, -0.3, 0.1, 1]])


def statistics(pearson=PEARSON):
    M = len(pearson)
    return LabelStats(np.full(M, 0.3), np.asarray(pearson, float), np.full(M, 100))


def build(variant="stral", aus=AUS, stats=None, seed=0, **options):
    """A STRAL of feature width 8 for 16-pixel frames, with norms that have seen something."""
    torch.manual_seed(seed)
    model = build_model("stral", {"variant": variant, "c": 1, **options}, aus, stats or statistics())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def settle(model):
    """In eval mode, with the statistics of frames in its attention stage's norms: else all frames look the same to it."""
    model.freeze_attention(False)
    model.train()
    with torch.no_grad():
        for seed in range(20):
            model(frames(4, 5, seed=seed))
    model.freeze_attention()
    return model.eval()


def frames(B=2, T=5, H=16, W=16, seed=1, dtype=torch.float32):
    return torch.randn(B, T, 3, H, W, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def connect(M, *pairs):
    pearson = np.eye(M)
    for j, k in pairs:
        pearson[j, k] = pearson[k, j] = 0.5
    return pearson
