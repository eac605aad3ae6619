"""Layers that more than one network is built of. Plumbing: no file of a paper, so no entry of the registry."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aupipe.schema import ConfigError


class RegionLayer(nn.Module):
    """The hierarchical multi-scale region layer R^hm of JAA-Net and STRAL (STRAL fig. 3a): (N, C_in, H, W) → (N, C, H, W).

    A 3×3 convolution, then three branches, each on the one before it: cut into 8×8, 4×4 and 2×2 patches, every patch with
    its own BatchNorm, ReLU and 3×3 convolution whose zero padding stops at the patch. Their C/2, C/4 and C/4 channels are
    concatenated and added to the first convolution's output, then BatchNorm and ReLU.

    The patches of a branch lie in the channels, patch-major in row-major order and channel-minor, so that one BatchNorm and
    one grouped convolution serve all of them: the same sums as a loop over patches, in a sixteenth of the kernel launches.
    Raises ConfigError if `channels` is no multiple of 4 or H or W no multiple of 8.
    """

    RECOMPUTED = "unrectified"  # where activations are not to be kept (_recompute.py)

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ConfigError(f"a region layer needs a multiple of 4 as its channels, not {channels}")
        half, quarter = channels // 2, channels // 4
        self.stem = ContiguousConv2d(in_channels, channels, 3, padding=1)
        self.norm_8, self.conv_8 = _patch_layers(8, channels, half)
        self.norm_4, self.conv_4 = _patch_layers(4, half, quarter)
        self.norm_2, self.conv_2 = _patch_layers(2, quarter, quarter)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.unrectified(x_NCHW).relu_()

    def unrectified(self, x_NCHW: Tensor) -> Tensor:
        """The output without its last ReLU, for who pools it: the ReLU of the largest is the largest ReLU, and cheaper."""
        H, W = x_NCHW.shape[2:]
        if H % 8 or W % 8 or not H * W:
            raise ConfigError(f"a region layer cuts its input into 8×8 patches, so {H}×{W} will not do; give multiples of 8")
        stem = self.stem(x_NCHW)
        b8 = self.conv_8(self.norm_8(fold_patches(stem, 8)).relu_())
        b4 = self.conv_4(self.norm_4(merge_patches(b8, 8, 4)).relu_())
        b2 = self.conv_2(self.norm_2(merge_patches(b4, 4, 2)).relu_())
        branches = [merge_patches(branch, grid, 1) for branch, grid in ((b8, 8), (b4, 4), (b2, 2))]
        return self.norm(stem + torch.cat(branches, 1))


class ContiguousConv2d(nn.Conv2d):
    """A Conv2d that computes channels first even in a model laid out channels last.

    Cutting patches out of channels-last maps and convolving them so costs a training step on CPUs a third more.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self._conv_forward(x_NCHW.contiguous(), self.weight.contiguous(), self.bias)


def fold_patches(x_NCHW: Tensor, grid: int) -> Tensor:
    """(N, C, H, W) → (N, grid²·C, H/grid, W/grid): patches in row-major order, the channels of a patch side by side."""
    N, C, H, W = x_NCHW.shape
    patches = x_NCHW.reshape(N, C, grid, H // grid, grid, W // grid)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(N, grid * grid * C, H // grid, W // grid)


def merge_patches(x: Tensor, grid: int, to: int) -> Tensor:
    """Patches of a grid², as fold_patches lays them out → of a coarser `to`², which divides it; 1 is the whole map."""
    N, channels, h, w = x.shape
    r, C = grid // to, channels // grid**2
    patches = x.reshape(N, to, r, to, r, C, h, w)
    return patches.permute(0, 1, 3, 5, 2, 6, 4, 7).reshape(N, to * to * C, r * h, r * w)


def _patch_layers(grid: int, in_channels: int, channels: int) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    # A grouped convolution's default initialisation already counts the inputs of one group: those of one patch.
    patches = grid * grid
    conv = ContiguousConv2d(patches * in_channels, patches * channels, 3, padding=1, groups=patches)
    return nn.BatchNorm2d(patches * in_channels), conv


class PerAULinear(nn.Module):
    """A linear layer D → 1 for each AU, none of them shared: features (…, M, D) → logits (…, M), in single precision."""

    def __init__(self, M: int, D: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(M, D))
        self.bias = nn.Parameter(torch.empty(M))
        bound = 1 / math.sqrt(D)  # torch's own for a Linear of D inputs
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features_MD: Tensor) -> Tensor:
        return (features_MD * self.weight).sum(-1) + self.bias


def scale_intensity(score: Tensor) -> Tensor:
    """An intensity head's output, any number → 0 to 5, by 5 times the sigmoid, in single precision.

    Clamping a number to 0 … 5 would give an AU that is absent, as most are in most frames, no gradient once it is below 0.
    """
    return 5 * score.float().sigmoid()
