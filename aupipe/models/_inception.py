"""The Inception V3 trunk (Szegedy et al. 2016) up to its last map, under torchvision's parameter names.

Its auxiliary classifier, which the published weights hold too, is not built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from aupipe.models._weights import draw_kaiming
from aupipe.schema import ConfigError

SMALLEST = 75  # pixels: the last halving then still finds a 3×3 window

# A step of a branch: output channels, kernel (height, width), and a stride of 2 without padding for those that halve.
Step = tuple[int, int, int] | tuple[int, int, int, int]
Branch = tuple[str, tuple[Step, ...]]


class InceptionV3(nn.Module):
    """images (N, 3, H, W) in −1 to 1, sides of 75 pixels or more → map (N, 2048, h, w): 8×8 of 299 pixels, 2×2 of 112.

    Raises ConfigError for smaller images.
    """

    # The published weights come from TensorFlow and read −1 to 1: torchvision undoes ImageNet's normalisation before them.
    MEAN = STD = (0.5, 0.5, 0.5)
    channels = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), padded=True)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3))
        self.Mixed_5b = Mixed(192, _square_branches(32))
        self.Mixed_5c = Mixed(256, _square_branches(64))
        self.Mixed_5d = Mixed(288, _square_branches(64))
        self.Mixed_6a = Mixed(288, HALVING_6A, halves=True)
        self.Mixed_6b = Mixed(768, _long_branches(128))
        self.Mixed_6c = Mixed(768, _long_branches(160))
        self.Mixed_6d = Mixed(768, _long_branches(160))
        self.Mixed_6e = Mixed(768, _long_branches(192))
        self.Mixed_7a = Mixed(768, HALVING_7A, halves=True)
        self.Mixed_7b = Mixed(1280, FORKED)
        self.Mixed_7c = Mixed(2048, FORKED)
        draw_kaiming(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        H, W = x_NCHW.shape[2:]
        if min(H, W) < SMALLEST:
            raise ConfigError(
                f"Inception V3 reads faces of at least {SMALLEST} pixels, not {H}×{W}; set the recipe's input.crop"
            )
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))


class ConvNorm(nn.Module):
    """Convolution without bias → BatchNorm → ReLU; `padded` keeps the size of the map."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side on one input, their maps concatenated; the last is a pool, of largest values where it halves.

    A branch's step k is named `<branch>_<k>`, a lone one `<branch>`. A branch whose last two steps are 1×3 and 3×1 forks
    there: both read the step before, and are named …a and …b.
    """

    RECOMPUTED = "forward"  # where activations are not to be kept (_recompute.py)

    def __init__(self, inputs: int, branches: tuple[Branch, ...], halves: bool = False) -> None:
        super().__init__()
        self.halves = halves
        self.paths: list[tuple[tuple[str, ...], bool]] = []
        for branch, steps in branches:
            forks = steps[-2:] == FORK
            names = _step_names(branch, len(steps), forks)
            channels = inputs
            for name, (outputs, height, width, *stride) in zip(names, steps, strict=True):
                self.add_module(name, ConvNorm(channels, outputs, (height, width), *(stride or (1, True))))
                channels = outputs
            self.paths.append((names, forks))

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for names, forks in self.paths:
            steps = [self.get_submodule(name) for name in names]
            y = avg_pool2d(x, 3, 1, padding=1) if names == ("branch_pool",) else x
            for step in steps[:-2] if forks else steps:
                y = step(y)
            maps += [step(y) for step in steps[-2:]] if forks else [y]
        if self.halves:
            maps.append(max_pool2d(x, 3, 2))
        return torch.cat(maps, 1)


def _step_names(branch: str, steps: int, forks: bool) -> tuple[str, ...]:
    if steps == 1:
        return (branch,)
    numbers = [str(k + 1) for k in range(steps)]
    if forks:
        numbers[-2:] = [f"{steps - 1}a", f"{steps - 1}b"]
    return tuple(f"{branch}_{number}" for number in numbers)


def _square_branches(pooled: int) -> tuple[Branch, ...]:
    """Modules 5 of 35×35 maps: 1×1, 5×5, two 3×3, and `pooled` channels of an average."""
    return (
        ("branch1x1", ((64, 1, 1),)),
        ("branch5x5", ((48, 1, 1), (64, 5, 5))),
        ("branch3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3))),
        ("branch_pool", ((pooled, 1, 1),)),
    )


def _long_branches(c: int) -> tuple[Branch, ...]:
    """Modules 6 of 17×17 maps: a 7×7 taken apart into 1×7 and 7×1 over `c` channels, once and twice."""
    return (
        ("branch1x1", ((192, 1, 1),)),
        ("branch7x7", ((c, 1, 1), (c, 1, 7), (192, 7, 1))),
        ("branch7x7dbl", ((c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))),
        ("branch_pool", ((192, 1, 1),)),
    )


HALVING_6A: tuple[Branch, ...] = (
    ("branch3x3", ((384, 3, 3, 2),)),
    ("branch3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3, 2))),
)
HALVING_7A: tuple[Branch, ...] = (
    ("branch3x3", ((192, 1, 1), (320, 3, 3, 2))),
    ("branch7x7x3", ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))),
)
FORK: tuple[Step, ...] = ((384, 1, 3), (384, 3, 1))
FORKED: tuple[Branch, ...] = (
    ("branch1x1", ((320, 1, 1),)),
    ("branch3x3", ((384, 1, 1), *FORK)),
    ("branch3x3dbl", ((448, 1, 1), (384, 3, 3), *FORK)),
    ("branch_pool", ((192, 1, 1),)),
)
