"""The EfficientNet-B0 trunk (Tan and Le 2019, table 1) up to its last map, under torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aupipe.models._weights import IMAGENET_MEAN, IMAGENET_STD, draw_kaiming

# Table 1, stages 2 to 8: expansion, kernel, stride of the first block, output channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
LARGEST_DROP = 0.2  # §5: a block's chance to be left out in training rises from 0 to this with depth


class EfficientNetB0(nn.Module):
    """images (N, 3, H, W), ImageNet-normalised → map (N, 1280, ⌈H/32⌉, ⌈W/32⌉)."""

    MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
    channels = 1280

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, 32, 3, stride=2)]
        inputs, number, blocks_in_all = 32, 0, sum(stage[-1] for stage in STAGES)
        for expansion, kernel, stride, outputs, count in STAGES:
            blocks = []
            for k in range(count):
                drop = LARGEST_DROP * number / blocks_in_all
                blocks.append(MBConv(inputs, outputs, expansion, kernel, 1 if k else stride, drop))
                inputs, number = outputs, number + 1
            layers.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*layers, _conv_norm(inputs, self.channels, 1))
        draw_kaiming(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.features(x_NCHW)


class MBConv(nn.Module):
    """1×1 to `expansion` times as many channels, depthwise convolution, squeeze and excitation, 1×1 back without SiLU.

    The input is added where the shape stays; in training, an image then skips the block with probability `drop`.
    """

    RECOMPUTED = "forward"  # where activations are not to be kept (_recompute.py)

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, drop: float) -> None:
        super().__init__()
        width = inputs * expansion
        self.block = nn.Sequential(
            *([_conv_norm(inputs, width, 1)] if expansion > 1 else []),
            _conv_norm(width, width, kernel, stride, groups=width),
            SqueezeExcitation(width, inputs // 4),
            _conv_norm(width, outputs, 1, rectified=False),
        )
        self.carries, self.drop = stride == 1 and inputs == outputs, drop

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if not self.carries:
            return out
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            out = out * kept / (1 - self.drop)
        return out + x


class SqueezeExcitation(nn.Module):
    """Each channel times a gate in 0 to 1 that two 1×1 convolutions read from the mean over the map."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(squeezed))


def _conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, rectified: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.SiLU(inplace=True)] if rectified else []))
