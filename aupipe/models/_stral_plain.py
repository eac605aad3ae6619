"""STRAL's layers as its figures draw them: patch by patch, AU by AU, frame by frame, each with a module of its own.

Nothing is trained with these. They are what the fast layers must equal, and what `benchmarks/layers.py` times them against.
Every one is made from its fast counterpart, whose weights it copies.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.models._layers import RegionLayer
from aupipe.models._stral_attention import AttentionBranches, AttentionNetwork
from aupipe.models._stral_graph import GraphLayer


class PlainRegionLayer(nn.Module):
    """R^hm as in fig. 3a, with a BatchNorm and a convolution per patch."""

    def __init__(self, fast: RegionLayer) -> None:
        super().__init__()
        self.stem = copy_conv(fast.stem, 0, 1)
        self.branches = nn.ModuleList()
        for grid in (8, 4, 2):
            norm, conv = getattr(fast, f"norm_{grid}"), getattr(fast, f"conv_{grid}")
            patches = grid * grid
            blocks = (
                nn.Sequential(copy_norm(norm, p, patches), nn.ReLU(), copy_conv(conv, p, patches)) for p in range(patches)
            )
            self.branches.append(nn.ModuleList(blocks))
        self.norm = copy_norm(fast.norm, 0, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stem = branch = self.stem(x_NCHW)
        branches = []
        for grid, blocks in zip((8, 4, 2), self.branches, strict=True):
            patches = [patch for row in branch.chunk(grid, 2) for patch in row.chunk(grid, 3)]
            patches = [block(patch) for block, patch in zip(cast(nn.ModuleList, blocks), patches, strict=True)]
            branch = torch.cat([torch.cat(patches[i : i + grid], 3) for i in range(0, grid * grid, grid)], 2)
            branches.append(branch)
        return torch.relu(self.norm(stem + torch.cat(branches, 1)))


class PlainBranch(nn.Module):
    """The branch of AU `m` in fig. 2, with the mean taken after the last convolution: → features_ND, map (N, 1, h, w)."""

    def __init__(self, fast: AttentionBranches, m: int) -> None:
        super().__init__()
        M = fast.M
        layers: list[nn.Module] = []
        for conv, norm in zip(fast.pre, fast.pre_norms, strict=True):
            layers += [copy_conv(conv, m, M), copy_norm(norm, m, M), nn.ReLU()]
        self.pre = nn.Sequential(*layers)
        self.gate = None if fast.gate is None else copy_conv(fast.gate, m, M)
        self.map = None if fast.map is None else copy_conv(fast.map, m, M)
        self.map_norm = None if fast.map_norm is None else copy_norm(fast.map_norm, m, M)
        self.attention = copy_conv(fast.attention, m, M)
        self.weighted, self.norm = copy_conv(fast.weighted, m, M), copy_norm(fast.weighted_norm, m, M)
        self.feature = copy_conv(fast.feature, m, M)
        self.feature_norm = None if fast.feature_norm is None else copy_norm(fast.feature_norm, m, M)
        self.mask_after_relu = fast.mask_after_relu

    def forward(self, x_NDhw: Tensor) -> tuple[Tensor, Tensor]:
        x = x_NDhw
        for number in range(0, len(self.pre), 3):
            y = self.pre[number](x)
            if number == 3 and self.gate is not None:
                y = y * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
            x = torch.relu(self.pre[number + 1](y))
        y = x
        if self.map is not None and self.map_norm is not None:
            y = torch.tanh(self.map_norm(self.map(y)))
        attention = torch.sigmoid(self.attention(y))
        y = self.weighted(x)
        y = torch.relu(self.norm(y)) * attention if self.mask_after_relu else torch.relu(self.norm(y * attention))
        y = self.feature(y)
        if self.feature_norm is not None:
            y = torch.relu(self.feature_norm(y))
        return y.mean((2, 3)), attention


class PlainAttentionNetwork(nn.Module):
    """The attention stage of fig. 2: frames_NCHW → initial logits_NM, attention maps_NMhw."""

    def __init__(self, fast: AttentionNetwork) -> None:
        super().__init__()
        self.regions = nn.ModuleList([PlainRegionLayer(fast.region_1), PlainRegionLayer(fast.region_2)])
        self.branches = nn.ModuleList(PlainBranch(fast.branches, m) for m in range(fast.branches.M))
        self.heads = nn.ModuleList(
            nn.Linear(fast.heads.weight.shape[1], 1, dtype=fast.heads.weight.dtype) for _ in self.branches
        )
        for head, weight, bias in zip(self.heads, fast.heads.weight, fast.heads.bias, strict=True):
            head.load_state_dict({"weight": weight[None], "bias": bias[None]})

    def forward(self, frames_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = frames_NCHW
        for region in self.regions:
            x = F.max_pool2d(region(x), 2)
        features, maps = zip(*(branch(x) for branch in self.branches), strict=True)
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat(logits, 1), torch.cat(maps, 1)


class PlainGraphLayer(nn.Module):
    """G^st of eq. 7 and fig. 3b with three 1×1 convolutions and the sum over neighbours frame by frame: x_NDTM → same."""

    def __init__(self, fast: GraphLayer) -> None:
        super().__init__()
        D = fast.spatial.in_features
        self.spatial = nn.ModuleList(nn.Conv2d(D, D, 1, dtype=fast.spatial.weight.dtype) for _ in range(3))
        weights = zip(fast.spatial.weight.chunk(3), fast.spatial.bias.chunk(3), strict=True)
        for conv, (weight, bias) in zip(self.spatial, weights, strict=True):
            conv.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})
        self.edges = None if fast.edges is None else nn.Parameter(fast.edges.detach().clone())
        self.temporal = copy_conv(fast.temporal, 0, 1)
        self.norm_1 = None if fast.norm_1 is None else copy_norm(fast.norm_1, 0, 1)
        self.norm_2 = None if fast.norm_2 is None else copy_norm(fast.norm_2, 0, 1)
        self.transposed = fast.transposed

    def forward(self, x_NDTM: Tensor, partitions_3MM: Tensor) -> Tensor:
        y: Tensor | float = 0.0
        for q, conv in enumerate(self.spatial):
            edges = partitions_3MM[q] if self.edges is None else torch.tanh(self.edges[q]) * partitions_3MM[q]
            edges = edges if self.transposed else edges.T
            messages = conv(x_NDTM)
            y = y + torch.stack([messages[:, :, t] @ edges for t in range(messages.shape[2])], 2)
        if self.norm_1 is None or self.norm_2 is None:
            return self.temporal(y) + x_NDTM
        return torch.relu(self.norm_2(self.temporal(torch.relu(self.norm_1(y)))) + x_NDTM)


@torch.no_grad()
def copy_conv(fast: nn.Module, part: int, parts: int) -> nn.Conv2d:
    """The convolution that is the `part`-th of those that lie side by side in `fast`."""
    weight, bias = (getattr(fast, name).chunk(parts)[part] for name in ("weight", "bias"))
    kernel, padding = tuple(weight.shape[2:]), getattr(fast, "padding")  # noqa: B009
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding=padding, dtype=weight.dtype)  # type: ignore[arg-type]
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


@torch.no_grad()
def copy_norm(fast: nn.Module, part: int, parts: int) -> nn.BatchNorm2d:
    """The BatchNorm that is the `part`-th of those that lie side by side in `fast`, running statistics included."""
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: getattr(fast, name).chunk(parts)[part] for name in names}
    norm = nn.BatchNorm2d(len(state["weight"]), dtype=state["weight"].dtype)
    norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    return norm
