"""STRAL's attention learning (§3.2): region layers, then a branch per AU with an attention map of its own; and ARL's, from
which it descends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.models._layers import PerAULinear, RegionLayer


class AttentionNetwork(nn.Module):
    """frames_NCHW → features_NMD with D = 8c, and attention maps_NMhw with h = H/4; H and W are multiples of 16.

    `c` is the paper's structure parameter. `heads` makes the initial logits of the features.
    """

    PER_AU = ("branches.", "heads.")  # names of the parts in which the AUs lie side by side

    def __init__(self, M: int, c: int, **options: object) -> None:
        super().__init__()
        self.region_1 = RegionLayer(3, 4 * c)
        self.region_2 = RegionLayer(4 * c, 8 * c)
        self.branches = AttentionBranches(M, 8 * c, **options)  # type: ignore[arg-type]
        self.heads = PerAULinear(M, 8 * c)

    def forward(self, frames_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = pool_rectified(self.region_1.unrectified(frames_NCHW))
        return self.branches(pool_rectified(self.region_2.unrectified(x)))

    def draw_gaussian(self) -> None:
        """ARL's initial weights: convolutions and heads of deviation 0.01 without bias."""
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.01)


def pool_rectified(x_NCHW: Tensor) -> Tensor:
    """ReLU and a max-pool over 2×2 places, in the order that is cheaper; the result lies channels last."""
    return F.max_pool2d(_ChannelsLast.apply(x_NCHW), 2).relu_()  # type: ignore[no-untyped-call]


class _ChannelsLast(torch.autograd.Function):
    """Channels last on the way on, channels first on the way back: each layer meets the memory format that suits it.

    On CPUs pooling is twenty times faster channels last; the region layer's backward pass slows down by a fifth if its
    gradient comes in another format than its maps.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient_NCHW: Tensor) -> Tensor:
        return gradient_NCHW.contiguous()


class _Branch(NamedTuple):
    """The tensors of one branch, or of all side by side: (weight, bias) and (mean, variance, weight, bias)."""

    pre: list[tuple[Tensor, Tensor]]
    gate: list[tuple[Tensor, Tensor]]  # one, or none
    maps: list[tuple[Tensor, Tensor]]  # before the map, on request, and the map
    rest: list[tuple[Tensor, Tensor]]  # weighted, feature
    norms: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # in the order of use


class AttentionBranches(nn.Module):
    """A branch per AU on a shared map (N, D, h, w) → features_NMD and attention maps_NMhw in (0, 1).

    `pre_layers` times 3×3 convolution, BatchNorm and ReLU; a one-channel convolution and sigmoid make the map; a
    convolution, multiplied with the map before its BatchNorm and ReLU as in ARL's code (`mask_after_relu`: after them),
    and a last convolution without either (`feature_norm`: with both), meaned over places. The paper shows neither how
    deep a branch is nor where its norms are; the defaults are ARL's, whose structure it says to follow.

    What ARL has besides: `channel_attention`, by which a linear layer and sigmoid of the first layer's mean over places
    scale the second's channels before its BatchNorm; and `map_channels`, the width of a further convolution, BatchNorm and
    tanh that the map is made of.

    The tensors of all AUs lie side by side, AU-major. `mode` says how they are computed: `grouped`, one grouped convolution
    for all AUs, fewer launches on a GPU; `loop`, AU by AU, faster on CPUs; `auto`, by where the map lies. All the same sums.
    """

    RECOMPUTED = "_run"  # where activations are not to be kept (_recompute.py)

    def __init__(
        self,
        M: int,
        D: int,
        *,
        pre_layers: int = 3,
        mask_after_relu: bool = False,
        feature_norm: bool = False,
        channel_attention: bool = False,
        map_channels: int | None = None,
        mode: str = "auto",
    ) -> None:
        super().__init__()
        self.M, self.mode, self.mask_after_relu = M, mode, mask_after_relu

        def grouped(channels: int, inputs: int = D) -> nn.Conv2d:
            return nn.Conv2d(M * inputs, M * channels, 3, padding=1, groups=M)

        self.pre = nn.ModuleList([nn.Conv2d(D, M * D, 3, padding=1), *(grouped(D) for _ in range(pre_layers - 1))])
        self.pre_norms = nn.ModuleList(nn.BatchNorm2d(M * D) for _ in range(pre_layers))
        self.gate = nn.Conv2d(M * D, M * D, 1, groups=M) if channel_attention else None
        self.map = grouped(map_channels) if map_channels else None
        self.map_norm = nn.BatchNorm2d(M * map_channels) if map_channels else None
        self.attention = grouped(1, map_channels or D)
        self.weighted = grouped(D)
        self.weighted_norm = nn.BatchNorm2d(M * D)
        self.feature = grouped(D)
        self.feature_norm = nn.BatchNorm2d(M * D) if feature_norm else None

    def extra_repr(self) -> str:
        return f"mask_after_relu={self.mask_after_relu}"

    def forward(self, x_NDhw: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            for norm in self._norms():
                norm.num_batches_tracked.add_(1)  # type: ignore[operator]
        layers = ([*self.pre], [self.gate], [self.map, self.attention], [self.weighted, self.feature])
        convs = [[(layer.weight, layer.bias) for layer in kind if layer is not None] for kind in layers]
        norms = [(norm.running_mean, norm.running_var, norm.weight, norm.bias) for norm in self._norms()]
        everything = _Branch(*convs, norms=norms)  # type: ignore[arg-type, call-arg, misc]
        if self.mode == "grouped" or (self.mode == "auto" and x_NDhw.is_cuda):
            return self._run(x_NDhw, everything, self.M)
        # Views: a chunk of a running mean is updated in place, and gradients are gathered once per tensor.
        parts = [[list(zip(*(t.chunk(self.M) for t in ts), strict=True)) for ts in kind] for kind in everything]
        branches = [_Branch(*([layer[m] for layer in kind] for kind in parts)) for m in range(self.M)]
        features, maps = zip(*(self._run(x_NDhw, branch, 1) for branch in branches), strict=True)
        return torch.cat(features, 1), torch.cat(maps, 1)

    def _norms(self) -> list[nn.Module]:
        norms = (*self.pre_norms, self.map_norm, self.weighted_norm, self.feature_norm)
        return [norm for norm in norms if norm is not None]

    def _run(self, x: Tensor, branch: _Branch, groups: int) -> tuple[Tensor, Tensor]:
        """`groups` branches at once: → (N, groups, D), (N, groups, h, w)."""
        norms = iter(branch.norms)
        for number, conv in enumerate(branch.pre):
            y = _convolve(x, conv, groups if number else 1)
            if number == 1 and branch.gate:
                y = y * torch.sigmoid(F.conv2d(x.mean((2, 3), keepdim=True), *branch.gate[0], groups=groups))  # type: ignore[misc]
            x = self._norm(y, next(norms)).relu_()
        y, (*before, attention), (weighted, feature) = x, branch.maps, branch.rest
        for conv in before:
            y = self._norm(_convolve(y, conv, groups), next(norms)).tanh_()
        maps = torch.sigmoid(_convolve(y, attention, groups))
        y = _convolve(x, weighted, groups)
        if self.mask_after_relu:
            y = _mask(self._norm(y, next(norms)).relu_(), maps)
        else:
            y = self._norm(_mask(y, maps), next(norms)).relu_()
        if self.feature_norm is None:
            return mean_of_conv(y, *feature, groups), maps
        y = self._norm(_convolve(y, feature, groups), next(norms)).relu_()
        return y.mean((2, 3)).unflatten(1, (groups, -1)), maps

    def _norm(self, x: Tensor, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        mean, variance, weight, bias = tensors
        norm = self.weighted_norm
        return F.batch_norm(x, mean, variance, weight, bias, self.training, norm.momentum or 0.0, norm.eps)


def _convolve(x: Tensor, conv: tuple[Tensor, Tensor], groups: int) -> Tensor:
    return F.conv2d(x, *conv, padding=1, groups=groups)  # type: ignore[misc]


def _mask(y: Tensor, maps: Tensor) -> Tensor:
    """Multiply (N, groups·D, h, w) with each group's map (N, groups, h, w)."""
    groups = maps.shape[1]
    return (y.unflatten(1, (groups, -1)) * maps.unsqueeze(2)).flatten(1, 2) if groups > 1 else y * maps


def mean_of_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """The mean over places of a 3×3 convolution with zero padding 1: (N, groups·C, h, w) → (N, groups, C_out).

    Without a non-linearity between, the mean can be taken first: each of the nine taps sees the sum of the map less the
    row or column that it pushes over the edge. Nine sums instead of a convolution: a fifth of a branch's work.
    """
    h, w = x.shape[2:]
    taps = _tap_places(h, w, x)
    # No copy in either memory format: channels first (N, C, places) × (places, 9), channels last transposed.
    if x.is_contiguous():
        sums = x.flatten(2) @ taps.T
    else:
        sums = (taps @ x.permute(0, 2, 3, 1).flatten(1, 2)).mT
    sums = sums.reshape(x.shape[0], groups, -1) / (h * w)
    return torch.einsum("ngi,goi->ngo", sums, weight.reshape(groups, -1, weight[0].numel())) + bias.view(groups, -1)


def _tap_places(h: int, w: int, like: Tensor) -> Tensor:
    """(9, h·w) zeros and ones: the places that each tap of a 3×3 kernel reads, of all positions that it is put at."""
    row, column = like.new_ones(3, h), like.new_ones(3, w)
    row[0, -1] = row[2, 0] = column[0, -1] = column[2, 0] = 0
    return torch.einsum("ay,bx->abyx", row, column).reshape(9, h * w)
