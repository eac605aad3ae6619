"""The attention CNN of the ABAW-2022 paper: six convolution blocks, spatial soft attention, one linear layer (§3.1).

Taken at its word the paper pools after all six blocks, 112 → 1, where a softmax over one place is 1 and the attention is
inert (`pooling: literal`). The default leaves out the last pool, as the network it cites for the attention does, which
keeps a 3×3 map; `7x7` leaves out the last two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.schema import ConfigError, LabelStats

FILTERS = (32, 64, 128, 128, 256, 256)  # §3.1
POOLS = {"literal": 6, "3x3": 5, "7x7": 4}  # how many of the six blocks end in a 2×2 max-pool; maps at 112 pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`attention: false` is the ablation "without attention": the plain mean over the same map."""

    pooling: str = "3x3"
    attention: bool = True
    width: int = 128  # of the attention's hidden layer; unstated in the paper, 128 in the work it cites

    def __post_init__(self) -> None:
        if self.pooling not in POOLS:
            raise ConfigError(f"unknown pooling '{self.pooling}'; known are {', '.join(POOLS)}")


class Model(nn.Module):
    """frames_BTCHW → AUOutput; the attention map is one for all AUs, repeated over M and scaled so that its largest is 1."""

    MEAN = (0.0, 0.0, 0.0)  # pixels in [0, 1], as in the work cited; the paper states no scaling
    STD = (1.0, 1.0, 1.0)

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 3
        for number, filters in enumerate(FILTERS):
            blocks += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters)]
            if number < POOLS[config.pooling]:
                blocks.append(nn.MaxPool2d(2))
            blocks.append(nn.ReLU(inplace=True))  # after the pool: the same values, rectified a quarter as often
            channels = filters
        self.extractor = nn.Sequential(*blocks)
        self.attention = SpatialAttention(channels, config.width) if config.attention else None
        self.head = nn.Linear(channels, len(aus))

    def forward(self, frames_BTCHW: Tensor) -> AUOutput:
        B, T = frames_BTCHW.shape[:2]
        features = self.extractor(frames_BTCHW.flatten(0, 1))  # (B·T, D, h, w)
        N, _, h, w = features.shape
        if self.attention is None:
            weights = features.new_full((N, h * w), 1 / (h * w))
        else:
            weights = self.attention(features)
        pooled = torch.einsum("np,ndp->nd", weights.to(features.dtype), features.flatten(2))
        logits = self.head(pooled).unflatten(0, (B, T))
        if self.attention is None:
            return AUOutput(logits)
        shown = (weights / weights.amax(1, keepdim=True)).view(B, T, 1, h, w)
        return AUOutput(logits, shown.expand(-1, -1, logits.shape[2], -1, -1))


class SpatialAttention(nn.Module):
    """Eq. 1: a score per place by FC → BN → ReLU → FC, softmax over the places; (N, D, h, w) → weights (N, h·w), sum 1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width)
        self.score = nn.Linear(width, 1)

    def forward(self, features_NDhw: Tensor) -> Tensor:
        places = features_NDhw.flatten(2).transpose(1, 2)  # (N, h·w, D)
        hidden = torch.relu(self.norm(self.hidden(places).flatten(0, 1)))
        return self.score(hidden).view(places.shape[:2]).float().softmax(1)
