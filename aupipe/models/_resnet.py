"""ResNet trunks of 18, 34 and 50 layers (He et al. 2016) without a classifier, under torchvision's parameter names.

As in torchvision, and unlike the paper's table 1, it is the 3×3 convolution of a bottleneck that strides ("ResNet v1.5").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aupipe.models._weights import IMAGENET_MEAN, IMAGENET_STD, draw_kaiming
from aupipe.schema import ConfigError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """images (N, 3, H, W), ImageNet-normalised → map (N, channels, ⌈H/32⌉, ⌈W/32⌉).

    `early` ends after layer2 (⌈H/8⌉), `late` begins there. Raises ConfigError for another depth.
    """

    MEAN, STD = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ConfigError(f"a ResNet has a depth of {', '.join(map(str, BLOCKS))}, not {depth}")
        block = Bottleneck if depth == 50 else BasicBlock
        a, b, c, d = (width * block.expansion for width in (64, 128, 256, 512))
        self.stage_channels, self.channels = (a, b, c, d), d
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = BLOCKS[depth]
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, a, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, b, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, c, 512, blocks[3], stride=2)
        draw_kaiming(self)
        for layer in self.modules():
            if isinstance(layer, Bottleneck):  # begins as its shortcut; fifty layers at random learn far slower
                nn.init.zeros_(layer.bn3.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.late(self.early(x_NCHW))

    def early(self, x_NCHW: Tensor) -> Tensor:
        """images → map after layer2, (N, stage_channels[1], ⌈H/8⌉, ⌈W/8⌉)."""
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x_NCHW))))
        return self.layer2(self.layer1(x))

    def late(self, x_NChw: Tensor) -> Tensor:
        """map after layer2 → map after layer4."""
        return self.layer4(self.layer3(x_NChw))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the input, or its strided 1×1 projection where the shape changes."""

    RECOMPUTED = "forward"  # where activations are not to be kept (_recompute.py)
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        return torch.relu_(out + self._carry(x))

    def _carry(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class Bottleneck(BasicBlock):
    """1×1 to `width` channels, 3×3, 1×1 to four times as many, and the input or its projection."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = torch.relu_(self.bn2(self.conv2(out)))
        return torch.relu_(self.bn3(self.conv3(out)) + self._carry(x))


def _stage(block: type[BasicBlock], inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [block(width * block.expansion, width) for _ in range(blocks - 1)]
    return nn.Sequential(block(inputs, width, stride), *rest)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
