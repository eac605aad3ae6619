"""The attention CNN of the ABAW-2022 paper: six convolution blocks, spatial soft attention, one linear layer (§3.1).

Taken at its word the paper pools after all six blocks, 112 → 1, where a softmax over one place is 1 and the attention is
inert (`pooling: literal`). The default leaves out the last pool, as the network it cites for the attention does, which
keeps a 3×3 map; `7x7` leaves out the last two.

In three rows of table 1 a network pretrained on ImageNet takes the place of the six blocks. Whether it learned along is not
said; F1 far below that of the six blocks suggests that it was frozen. Of the EfficientNets it is taken to be B0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models._backbones import POOLS, TRUNKS, Backbone, PlainBlocks, check_backbone
from aupipe.models._relative import Relative, RelativeFrames, check_relative
from aupipe.schema import ConfigError, LabelStats

EXTRACTORS = ("none", "resnet50", "inception_v3", "efficientnet_b0")  # table 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`attention: false` is the ablation "without attention": the plain mean over the same map.

    `pooling` is that of the paper's own extractor, `backbone` what takes its place. A backbone begins at `weights`, a local
    file (docs/models.md), or at random ones if `random` says so.
    """

    pooling: str = "3x3"
    attention: bool = True
    width: int = 128  # of the attention's hidden layer; unstated in the paper, 128 in the work it cites
    backbone: str = "none"
    weights: str | None = None
    random: bool = False
    frozen: bool = True  # of a backbone
    intensity: bool = False  # a second linear layer for intensities; none in the paper
    relative: str = "none"  # what the linear layer also reads a face against: the mean of the clip, or running; as above

    def __post_init__(self) -> None:
        check_relative(self.relative)
        if self.pooling not in POOLS:
            raise ConfigError(f"unknown pooling '{self.pooling}'; known are {', '.join(POOLS)}")
        if self.backbone != "none":
            check_backbone(self.backbone, self.weights, self.random, EXTRACTORS)
        elif self.weights is not None or self.random:
            raise ConfigError("model.weights and model.random are for a backbone; name one in model.backbone")


class Model(RelativeFrames):
    """frames_BTCHW → AUOutput; the attention map is one for all AUs, repeated over M and scaled so that its largest is 1.

    MEAN and STD are the extractor's. Raises DataError if the backbone's weights are not what they should be, ConfigError for
    faces smaller than it reads.
    """

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.extractor: PlainBlocks | Backbone
        if config.backbone == "none":
            self.extractor = PlainBlocks.of(config.pooling)
        else:
            self.extractor = Backbone(TRUNKS[config.backbone](), config.weights, config.frozen)
        self.MEAN, self.STD, channels = self.extractor.MEAN, self.extractor.STD, self.extractor.channels
        self.attention = SpatialAttention(channels, config.width) if config.attention else None
        self.head = nn.Linear(channels, len(aus))
        self.intensity = nn.Linear(channels, len(aus)) if config.intensity else None
        self.relative = Relative.of(config, len(aus), channels)

    def describe(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        B, T = frames_BTCHW.shape[:2]
        features = self.extractor(frames_BTCHW.flatten(0, 1))  # (B·T, D, h, w)
        N, _, h, w = features.shape
        if self.attention is None:
            weights = features.new_full((N, h * w), 1 / (h * w))
        else:
            weights = self.attention(features)
        pooled = torch.einsum("np,ndp->nd", weights.to(features.dtype), features.flatten(2)).unflatten(0, (B, T))
        if self.attention is None:
            return pooled, None
        shown = (weights / weights.amax(1, keepdim=True)).view(B, T, 1, h, w)
        return pooled, shown.expand(-1, -1, self.head.out_features, -1, -1)

    def judge(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.head(vectors), None if self.intensity is None else self.intensity(vectors)


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
