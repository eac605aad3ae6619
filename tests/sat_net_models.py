"""SAT-Nets and frames as tests make them."""

import torch
from conftest import STATS
from torch import nn

from aupipe.facs import AUSet
from aupipe.models import build_model
from aupipe.schema import LabelStats

AUS = AUSet((1, 4, 12))
STATISTICS = LabelStats.from_json(STATS)
VARIANTS = ("resnet", "t_net", "sa_net", "sat_net")
TEMPORAL, ATTENTIVE = ("t_net", "sat_net"), ("sa_net", "sat_net")


def build(variant="sat_net", aus=AUS, seed=0, **options):
    """A SAT-Net for a window of 3 frames whose norms have seen frames, so that its logits differ from frame to frame."""
    torch.manual_seed(seed)
    model = build_model("sat_net", {"variant": variant, "window": 3, **options}, aus, STATISTICS).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics are those of the last batch
    with torch.no_grad():
        maps = model.trunk.early(frames(12, side=64)[0])
        if model.fusion is not None:  # whatever its window: models that differ in it alone are to have the same norms
            fused = model.fusion(maps.unsqueeze(1))[0].flatten(0, 1)
            maps = maps + fused if model.config.fusion == "residual" else fused
        model.trunk.late(maps)
    for norm in norms:
        norm.momentum = 0.1
    return model


def frames(T, B=1, side=32, seed=1):
    return torch.randn(B, T, 3, side, side, generator=torch.Generator().manual_seed(seed))
