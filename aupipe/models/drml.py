"""DRML, "Deep Region and Multi-label Learning for Facial Action Unit Detection" (Zhao, Chu and Zhang, CVPR 2016).

The layout of the network definition that its authors published: a convolution, a region layer of 8×8 patches, four more
convolutions and three linear layers. It is not drawn so in the paper, whose figure has other sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models._layers import ContiguousConv2d, fold_patches, merge_patches
from aupipe.models._relative import Relative, RelativeFrames, check_relative
from aupipe.schema import ConfigError, LabelStats

GRID = 8  # patches on a side of the region layer
FIRST = 11  # the first convolution's kernel, which has no padding
REST = ((8, 1), (8, 1), (6, 2), (5, 1))  # kernels and strides of the later ones, which have none either
SMALLEST = 66  # pixels: the last map is then a single place


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`size` is the side of the frames in pixels, FIRST − 1 more than a multiple of GRID; the first linear layer's inputs
    follow from it.

    `init: caffe` are the published fillers, which suit pixels of the published range, −127.5 to 127.5, that `normalise:
    model` gives. With frames of deviation 1 (`normalise: grey` or `image`) take `he`, which keeps that deviation from layer
    to layer: there is no norm after the region layer, and under torch's own (`default`) little of it reaches the head.
    """

    size: int = 170
    filters: int = 32  # of the first convolution and the region layer
    later_filters: int = 16  # of the four after them
    hidden: tuple[int, ...] = (4096, 2048)  # linear layers before the last
    dropout: float = 0.5
    init: str = "caffe"
    relative: str = "none"  # what the last layer also reads a face against: clip or running (_relative.py)

    def __post_init__(self) -> None:
        check_relative(self.relative)
        if self.size < SMALLEST or self.size % GRID != (FIRST - 1) % GRID:
            raise ConfigError(
                f"DRML reads frames of {SMALLEST}, {SMALLEST + GRID}, {SMALLEST + 2 * GRID} … pixels, not {self.size}; "
                "set model.size and the recipe's input.crop or input.resize to one of them"
            )
        if min(self.filters, self.later_filters, *self.hidden) < 1 or not self.hidden:
            raise ConfigError("DRML needs at least one hidden layer, and positive filters and hidden widths")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"a dropout is a share from 0 to below 1, not {self.dropout}")
        if self.init not in ("caffe", "he", "default"):
            raise ConfigError(f"unknown init '{self.init}' of DRML; known are caffe, he, default")


class PatchLayer(nn.Module):
    """The region layer: x + a 3×3 convolution of its own for each of 8×8 patches, after BatchNorm without scale and shift
    and ReLU; then ReLU. Zero padding stops at the patch.

    The published BatchNorm takes the batch's statistics in testing too; ours takes running ones, so that a frame's result
    does not depend on the frames beside it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = GRID * GRID * channels
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.conv = ContiguousConv2d(inputs, inputs, 3, padding=1, groups=GRID * GRID)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        patches = self.conv(self.norm(fold_patches(x_NCHW, GRID)).relu_())
        return (x_NCHW + merge_patches(patches, GRID, 1)).relu_()


class Model(RelativeFrames):
    """frames_BTCHW of `size` pixels → AUOutput, each frame by itself, for any T. Raises ConfigError for another size."""

    MEAN = (0.5, 0.5, 0.5)  # pixels of 0 to 255 less their middle: the authors subtract their corpus's mean face
    STD = (1 / 255, 1 / 255, 1 / 255)

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.size = config.size
        self.first = nn.Conv2d(3, config.filters, FIRST)
        self.region = PatchLayer(config.filters)
        self.pool = nn.Sequential(nn.MaxPool2d(2), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))
        later: list[nn.Module] = []
        channels, side = config.filters, (config.size - FIRST + 1) // 2
        for kernel, stride in REST:
            later += [nn.Conv2d(channels, config.later_filters, kernel, stride), nn.ReLU(inplace=True)]
            channels, side = config.later_filters, (side - kernel) // stride + 1
        self.later = nn.Sequential(*later)
        hidden: list[nn.Module] = []
        width = channels * side * side
        for outputs in config.hidden:
            hidden += [nn.Linear(width, outputs), nn.ReLU(inplace=True), nn.Dropout(config.dropout)]
            width = outputs
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(width, len(aus))
        self.relative = Relative.of(config, len(aus), width)
        if config.init == "caffe":
            self._fill()
        elif config.init == "he":
            self._keep_deviation()

    def describe(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        B, T, _, H, W = frames_BTCHW.shape
        if (self.size, self.size) != (H, W):
            raise ConfigError(
                f"this DRML reads frames of {self.size}×{self.size} pixels, not {H}×{W}; set model.size to the recipe's "
                "input.crop or input.resize"
            )
        x = self.region(self.first(frames_BTCHW.flatten(0, 1)))
        # Contiguous, so that the order of the first linear layer's inputs is the same in every memory format.
        x = self.later(self.pool(x)).contiguous().flatten(1)
        return self.hidden(x).unflatten(0, (B, T)), None

    def judge(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.head(vectors), None

    @torch.no_grad()
    def _fill(self) -> None:
        """The published weight and bias fillers."""
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                hidden = isinstance(layer, nn.Linear) and layer is not self.head
                nn.init.normal_(layer.weight, std=0.005 if hidden else 0.01)
                assert layer.bias is not None
                nn.init.constant_(layer.bias, float(layer not in (self.first, self.head)))

    @torch.no_grad()
    def _keep_deviation(self) -> None:
        for layer in (*self.later, *self.hidden):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
