"""CNN-LSTM, after "Learning Spatial and Temporal Cues for Multi-label Facial Action Unit Detection" (Chu, De la Torre and
Cohn, FG 2017): the row CNN-LSTM of SAT-Net's table 1.

Published, as its abstract says: a CNN reads each frame; a stack of LSTMs reads the CNN's features over time; the outputs of
both go through a fusion network, which predicts the AUs of every frame. What of the rest we could not verify, we chose: the
CNN is AlexNet in the layout that a co-author published for comparison beside DRML; the depth and widths of the stack and of
the fusion are our own. A ResNet in AlexNet's place is an option.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._relative import Relative, Sums, check_relative, reach, split_presence
from aupipe.models._resnet import ResNet
from aupipe.models._weights import IMAGENET_MEAN, IMAGENET_STD, load_pretrained
from aupipe.schema import ConfigError, LabelStats

RESNETS = {"resnet18": 18, "resnet34": 34, "resnet50": 50}
SMALLEST = 67  # pixels that AlexNet needs

Memory = tuple[Tensor, Tensor]  # hidden and cell of each layer, (layers, B, cells)
State = tuple[Memory, Sums | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`trunk`: alexnet, resnet18, resnet34 or resnet50. `layers` of `cells` are the LSTMs', `fusion` the width of the layer
    that reads both the CNN and the LSTMs. `weights` is a safetensors file of a ResNet's ImageNet weights.
    """

    trunk: str = "alexnet"
    layers: int = 2
    cells: int = 256
    fusion: int = 256
    dropout: float = 0.5  # of AlexNet's linear layers
    weights: str | None = None
    relative: str = "none"  # what the last layer also reads a face against: clip or running (_relative.py)

    def __post_init__(self) -> None:
        check_relative(self.relative)
        if self.trunk != "alexnet" and self.trunk not in RESNETS:
            raise ConfigError(f"unknown trunk '{self.trunk}' of CNN-LSTM; known are alexnet, {', '.join(RESNETS)}")
        if min(self.layers, self.cells, self.fusion) < 1:
            raise ConfigError("CNN-LSTM needs at least one layer, one cell and a fusion of width 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"a dropout is a share from 0 to below 1, not {self.dropout}")
        if self.weights is not None and self.trunk == "alexnet":
            raise ConfigError("no published weights have this AlexNet's layout; set model.weights to none, or another trunk")


class Model(nn.Module):
    """frames_BTCHW, or features_BTD of `features`, told apart by their dimensions, → AUOutput for any T ≥ 1.

    Causal: a frame's logits depend on it and on all before it; only `relative: clip` compares it with later ones, too.
    """

    MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
    past = None

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.trunk: AlexNet | ResNetMean
        if config.trunk == "alexnet":
            self.trunk = AlexNet(config.dropout)
        else:
            self.trunk = ResNetMean(RESNETS[config.trunk])
            load_pretrained(self.trunk.trunk, config.weights)
        D = self.trunk.channels
        self.lstm = nn.LSTM(D, config.cells, config.layers, batch_first=True)
        self.fusion = nn.Sequential(nn.Linear(D + config.cells, config.fusion), nn.ReLU(inplace=True))
        self.head = nn.Linear(config.fusion, len(aus))
        self.relative = Relative.of(config, len(aus), config.fusion)
        self.future = reach(self.relative, None, 0)[1]

    def forward(self, x: Tensor) -> AUOutput:
        return self.step(x if x.ndim == 3 else self.features(x))[0]

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """features_BTD of each frame by itself, with `relative` one more that says whether there is a face.

        Raises ConfigError for frames that are too small.
        """
        features_BTD = self.trunk(frames_BTCHW.flatten(0, 1)).unflatten(0, frames_BTCHW.shape[:2])
        return features_BTD if self.relative is None else self.relative.presence(features_BTD, frames_BTCHW)

    def step(self, features_BTD: Tensor, state: State | None = None) -> tuple[AUOutput, State]:
        """The next frames of sequences, and the state after them; `state` is that after the frames before, None at first."""
        memory, sums = state or (None, None)
        present_BT = None
        if self.relative is not None:
            features_BTD, present_BT = split_presence(features_BTD)
        sequence, memory = self.lstm(features_BTD, memory)
        fused = self.fusion(torch.cat([features_BTD, sequence], -1))
        logits = self.head(fused)
        if self.relative is not None and present_BT is not None:
            difference, sums = self.relative.difference(fused, present_BT, sums)
            logits = logits + self.relative.read(difference)[0]
        return AUOutput(logits), (memory, sums)


class ResNetMean(nn.Module):
    """images → (N, channels), a ResNet's last map meaned over places."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.trunk = ResNet(depth)
        self.channels = self.trunk.channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.trunk(x_NCHW).mean((2, 3))


class AlexNet(nn.Module):
    """images of 227 pixels → (N, 4096), AlexNet in its original two groups up to its second linear layer.

    Images of other sizes, from 67 pixels on, are pooled to the 6×6 places that the first linear layer reads.
    """

    channels = 4096

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            *_pooled(norm=True),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            *_pooled(norm=True),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            *_pooled(norm=False),
            nn.AdaptiveAvgPool2d(6),
        )
        layers = ((256 * 36, self.channels), (self.channels, self.channels))
        hidden = [(nn.Linear(*sizes), nn.ReLU(inplace=True), nn.Dropout(dropout)) for sizes in layers]
        self.hidden = nn.Sequential(*(layer for block in hidden for layer in block))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if min(x_NCHW.shape[2:]) < SMALLEST:
            H, W = x_NCHW.shape[2:]
            raise ConfigError(
                f"AlexNet reads frames from {SMALLEST} pixels on, not {H}×{W}; set the recipe's input.crop or input.resize, "
                "or model.trunk: resnet18"
            )
        return self.hidden(self.maps(x_NCHW).flatten(1))


def _pooled(*, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    return [*layers, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)] if norm else layers
