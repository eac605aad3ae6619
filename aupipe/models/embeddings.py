"""Frozen embeddings: a trunk that stays as it is, a small perceptron on its mean map, and smoothing in time.

No paper's model but the baseline that a new one has to beat: of all that a face shows, only what somebody else's features
already hold is read, and of time only that AUs last. The trunk is run once per frame, so its features can be kept.

Smoothing is a weighted mean of the logits of neighbouring frames, the weights learned for every AU, since a blink is shorter
than a smile. An exponential average would be as simple, but leans on the past alone, which costs half its length in delay,
and remembers all of it; a kernel's reach is exact. `causal` gives one that looks back only, without latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._backbones import POOLS, TRUNKS, Backbone, PlainBlocks, check_backbone
from aupipe.models._relative import Presence, Relative, Sums, check_relative, reach, split_presence
from aupipe.models._weights import fill_trunk
from aupipe.schema import ConfigError, LabelStats


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`backbone` is a ResNet (18, 34, 50), inception_v3, efficientnet_b0, or attention_cnn: the six blocks of that model,
    with its `pooling`. `weights` is a local file (docs/models.md): published ones, or the model.safetensors of a checkpoint
    whose model has such a trunk; `random` asks for random ones instead, of which an init of the recipe leaves nothing.

    `kernel` is how many frames are averaged, 1 for none.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    random: bool = False
    pooling: str = "3x3"
    width: int = 256  # of the perceptron's hidden layer
    dropout: float = 0.2  # before its last layer
    kernel: int = 9
    causal: bool = False
    relative: str = "none"  # what the last layer also reads a face against: clip or running (_relative.py)

    def __post_init__(self) -> None:
        check_relative(self.relative)
        check_backbone(self.backbone, self.weights, self.random, (*TRUNKS, "attention_cnn"))
        if self.pooling not in POOLS:
            raise ConfigError(f"unknown pooling '{self.pooling}'; known are {', '.join(POOLS)}")
        if self.kernel < 1 or (self.kernel % 2 == 0 and not self.causal):
            raise ConfigError(f"a temporal kernel must be odd, to have a middle frame; got {self.kernel}")
        if self.width < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("embeddings need a width of at least 1 and a dropout from 0 to below 1")


class Model(nn.Module):
    """frames_BTCHW, or features_BTD of `features`, → AUOutput for any T."""

    frozen = True  # the part that makes features
    starts_from_any = True  # model that has such a trunk

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        trunk = PlainBlocks.of(config.pooling) if config.backbone == "attention_cnn" else TRUNKS[config.backbone]()
        self.backbone = Backbone(trunk, config.weights, frozen=True)
        self.MEAN, self.STD = self.backbone.MEAN, self.backbone.STD
        # Embeddings of faces differ little beside what all have in common: each dimension by its own mean and deviation.
        self.norm = nn.BatchNorm1d(self.backbone.channels, affine=False)
        self.hidden = nn.Linear(self.backbone.channels, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, len(aus))
        self.smoothing = TemporalMean(len(aus), config.kernel, config.causal)
        self.relative = Relative.of(config, len(aus), config.width)
        self.context = self.smoothing.past
        self.past, self.future = reach(self.relative, self.smoothing.past, self.smoothing.future)

    @property
    def feature_part(self) -> nn.Module:
        """What makes `features`: they change with its weights and options and with nothing else."""
        return self.backbone if self.relative is None else nn.ModuleList([self.backbone, Presence()])

    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take the trunk that another model learned, for whatever AUs. Raises DataError if it has no such trunk."""
        fill_trunk(self.backbone.trunk, weights, "the weights to start from")

    def forward(self, frames_BTCHW: Tensor) -> AUOutput:
        return self.read(self.accumulate(frames_BTCHW if frames_BTCHW.ndim == 3 else self.features(frames_BTCHW))[0])

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """features_BTD: the trunk's map of each frame, averaged over its places; the same in every epoch. With `relative`
        one more says whether there is a face.
        """
        features_BTD = self.backbone(frames_BTCHW.flatten(0, 1)).mean((2, 3)).unflatten(0, frames_BTCHW.shape[:2])
        return features_BTD if self.relative is None else self.relative.presence(features_BTD, frames_BTCHW)

    def accumulate(self, features_BTD: Tensor, state: Sums | None = None) -> tuple[Tensor, Sums | None]:
        """The next frames' logits_BTM before smoothing, and the state to go on from; None at first."""
        present_BT = None
        if self.relative is not None:
            features_BTD, present_BT = split_presence(features_BTD)
        shape = features_BTD.shape[:2]
        hidden = torch.relu(self.hidden(self.norm(features_BTD.flatten(0, 1))))
        logits = self.head(self.dropout(hidden)).unflatten(0, shape)
        if self.relative is not None and present_BT is not None:
            difference, state = self.relative.difference(hidden.unflatten(0, shape), present_BT, state)
            logits = logits + self.relative.read(self.dropout(difference))[0]
        return logits, state

    def read(self, logits_BTM: Tensor) -> AUOutput:
        """Smoothed."""
        return AUOutput(self.smoothing(logits_BTM))


class TemporalMean(nn.Module):
    """(B, T, M) → the weighted mean over `kernel` frames around each, or up to each; at the ends, over those there are.

    Weights of an AU are the softmax of its parameters, so that they are positive and sum to 1: it can smooth and do no more.
    They begin equal.
    """

    def __init__(self, M: int, kernel: int, causal: bool = False) -> None:
        super().__init__()
        self.future = 0 if causal else kernel // 2
        self.past = kernel - 1 - self.future
        self.scores = nn.Parameter(torch.zeros(M, kernel))

    def forward(self, logits_BTM: Tensor) -> Tensor:
        T, weights_Mk = logits_BTM.shape[1], self.scores.softmax(1)
        there = F.pad(weights_Mk.new_ones(T), (self.past, self.future)).unfold(0, len(weights_Mk[0]), 1)  # (T, k)
        padded = F.pad(logits_BTM.float(), (0, 0, self.past, self.future))
        windows = padded.unfold(1, len(weights_Mk[0]), 1)  # (B, T, M, k)
        return (windows * weights_Mk).sum(-1) / (there @ weights_Mk.T)
