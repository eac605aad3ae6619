"""Trunks that a model can be put on, by name: published architectures with published weights, and our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aupipe.models._efficientnet import EfficientNetB0
from aupipe.models._inception import InceptionV3
from aupipe.models._resnet import ResNet
from aupipe.models._weights import load_pretrained
from aupipe.schema import ConfigError

FILTERS = (32, 64, 128, 128, 256, 256)  # ABAW-2022 §3.1
POOLS = {"literal": 6, "3x3": 5, "7x7": 4}  # how many of the six blocks end in a 2×2 max-pool; maps at 112 pixels


class PlainBlocks(nn.Sequential):
    """The extractor of the ABAW-2022 attention CNN: pixels (N, 3, H, W) in 0 to 1 → map (N, 256, h, w)."""

    MEAN = (0.0, 0.0, 0.0)  # as in the work that the paper cites; it states no scaling of its own
    STD = (1.0, 1.0, 1.0)
    channels = FILTERS[-1]

    @classmethod
    def of(cls, pooling: str) -> PlainBlocks:
        """Six blocks of 3×3 convolution, BatchNorm, ReLU and, in as many as POOLS says, a max-pool."""
        blocks: list[nn.Module] = []
        channels = 3
        for number, filters in enumerate(FILTERS):
            blocks += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters)]
            if number < POOLS[pooling]:
                blocks.append(nn.MaxPool2d(2))
            blocks.append(nn.ReLU(inplace=True))  # after the pool: the same values, rectified a quarter as often
            channels = filters
        return cls(*blocks)


Trunk = ResNet | InceptionV3 | EfficientNetB0 | PlainBlocks
TRUNKS: dict[str, Callable[[], Trunk]] = {
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "inception_v3": InceptionV3,
    "efficientnet_b0": EfficientNetB0,
}


def check_backbone(name: str, weights: str | None, random: bool, known: tuple[str, ...]) -> None:
    """Raise ConfigError for a backbone that is unknown, or whose weights are neither given nor renounced, or both."""
    if name not in known:
        raise ConfigError(f"unknown backbone '{name}'; known are {', '.join(known)}")
    if weights is None and not random:
        raise ConfigError(
            f"the backbone {name} has no weights: name their file in model.weights, made with the converter snippet in "
            "docs/models.md, or set model.random to begin at random ones"
        )
    if weights is not None and random:
        raise ConfigError(f"the backbone {name} cannot begin at model.weights and at random; give one of the two")


class Backbone(nn.Module):
    """A trunk with its pretrained weights: images (N, 3, H, W), normalised by MEAN and STD → map (N, channels, h, w).

    Frozen, it stays in eval mode, so that BatchNorm's statistics stay as they are too; those of random weights are then
    what noise gives. Raises DataError if the file of
    weights is not what it should be.
    """

    def __init__(self, trunk: Trunk, weights: str | None, frozen: bool) -> None:
        super().__init__()
        self.MEAN, self.STD, self.channels = trunk.MEAN, trunk.STD, trunk.channels
        self.trunk, self.frozen = trunk, frozen
        load_pretrained(trunk, weights)
        if frozen and weights is None:
            _settle(trunk)
        trunk.requires_grad_(not frozen)
        self.train()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.trunk(x_NCHW)

    def train(self, mode: bool = True) -> Backbone:
        return super().train(mode and not self.frozen)


@torch.no_grad()
def _settle(trunk: Trunk) -> None:
    """Take BatchNorm's statistics from noise with the spectrum of pictures: the same power in every octave.

    Without, random weights that never train pass on next to nothing, 1e-13 of the input in EfficientNet-B0, or explode.
    """
    octaves = [torch.randn(16, 3, side, side) for side in (2, 4, 8, 16, 32, 64)]
    noise = sum(F.interpolate(octave, size=(112, 112), mode="bilinear") for octave in octaves)
    norms = [layer for layer in trunk.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    trunk.train()(noise / len(octaves) ** 0.5)
    for norm in norms:
        norm.momentum = 0.1
