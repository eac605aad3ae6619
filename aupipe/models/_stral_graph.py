"""STRAL's spatio-temporal relation learning (§3.3): the graph of AUs, and the convolutions over it and over time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from aupipe.models._layers import PerAULinear
from aupipe.schema import ConfigError, DataError


class RelationGraph(NamedTuple):
    """The spatial edges between AUs, by position in the AU set, and how eq. 4 to 6 weigh and partition them."""

    adjacency_MM: NDArray[np.bool_]  # A: an edge, or the AU itself
    normalised_MM: NDArray[np.float64]  # Ã = A Λ: every column sums to 1
    partitions_3MM: NDArray[np.float64]  # Ã_1 root, Ã_2 centripetal, Ã_3 centrifugal; they sum to Ã
    hops_M: NDArray[np.float64]  # d: distance to the gravity centre, inf where no path leads there
    centre: int  # the AU with most neighbours


def relation_graph(
    pearson_MM: ArrayLike, threshold: float = 0.15, *, centre: int | None = None, max_hop: int | None = None
) -> RelationGraph:
    """The graph of STRAL §3.3 from the correlations of AU labels on the train side; an undefined one (NaN) is no edge.

    Two AUs are neighbours iff r ≥ `threshold`. The gravity centre is the one with most neighbours, of several the first
    (the paper does not say), or the position `centre`. AUs that no path connects to it are all infinitely far away, which
    eq. 6 counts as equally far: their edges are centripetal both ways, and an isolated AU has only itself. `max_hop`
    takes longer distances for infinite too (ST-GCN's code does so past 1).

    Raises DataError if the correlations are no square matrix, ConfigError if `centre` is none of its positions.
    """
    pearson = np.asarray(pearson_MM, float)
    if pearson.ndim != 2 or pearson.shape[0] != pearson.shape[1] or not pearson.size:
        raise DataError(f"correlations of AUs are a square matrix, not {pearson.shape}; make the fold anew with `dvc repro`")
    M = len(pearson)
    with np.errstate(invalid="ignore"):
        upper = np.triu(pearson >= threshold, 1)  # NaN ≥ τ is false
    adjacency = upper | upper.T | np.eye(M, dtype=bool)
    normalised = adjacency / adjacency.sum(0)  # eq. 4 and 5; a sum is never 0, for every AU is linked to itself
    if centre is None:
        centre = int(adjacency.sum(0).argmax())
    if not 0 <= centre < M:
        raise ConfigError(f"a gravity centre at position {centre} is not among {M} AUs; give 0 to {M - 1}")
    hops = _hops(adjacency, centre)
    if max_hop is not None:
        hops[hops > max_hop] = np.inf
    root = np.eye(M, dtype=bool)
    centripetal = ~root & (hops[None, :] <= hops[:, None])  # eq. 6: at j, k with d_k ≤ d_j
    centrifugal = ~root & ~centripetal
    partitions = np.stack([np.where(part, normalised, 0.0) for part in (root, centripetal, centrifugal)])
    return RelationGraph(adjacency, normalised, partitions, hops, centre)


def _hops(adjacency_MM: NDArray[np.bool_], centre: int) -> NDArray[np.float64]:
    hops = np.full(len(adjacency_MM), np.inf)
    reached = np.zeros(len(adjacency_MM), bool)
    front = np.arange(len(adjacency_MM)) == centre
    for distance in range(len(adjacency_MM)):
        hops[front] = distance
        reached |= front
        front = adjacency_MM[front].any(0) & ~reached
    return hops


class GraphLayer(nn.Module):
    """A spatio-temporal graph convolution G^st (eq. 7, fig. 3b): (N, T, M, D) and partitions (3, M, M) → (N, T, M, D).

    Φ2(Σ_q Ȧ_q Φ1_q(F)) + F with Ȧ_q = tanh(W_q) ⊗ Ã_q, or Ã_q itself unless `adaptive`. Eq. 7 as printed (`literal`) has
    no non-linearity, so that eight layers make one affine map; `stgcn` has, as the layer that the paper cites, BatchNorm
    and ReLU before Φ2, BatchNorm after it, and ReLU after the sum. Eq. 6 and 7 together sum over the columns k of Ȧ
    (`row`: out_j = Σ_k Ȧ_jk f_k); ST-GCN's code sums over the rows (`stgcn`).
    """

    def __init__(
        self,
        M: int,
        D: int,
        temporal_kernel: int,
        *,
        adaptive: bool = True,
        activation: str = "stgcn",
        orientation: str = "row",
        edge_init: float = 1.0,
    ) -> None:
        super().__init__()
        self.transposed = orientation == "stgcn"
        self.edges = nn.Parameter(torch.full((3, M, M), edge_init)) if adaptive else None
        self.spatial = nn.Linear(D, 3 * D)  # Φ1_q, the three of them side by side
        self.temporal = nn.Conv2d(D, D, (temporal_kernel, 1), padding=((temporal_kernel - 1) // 2, 0))  # Φ2
        self.norm_1 = nn.BatchNorm2d(D) if activation == "stgcn" else None
        self.norm_2 = nn.BatchNorm2d(D) if activation == "stgcn" else None

    def forward(self, x_NTMD: Tensor, partitions_3MM: Tensor) -> Tensor:
        N, T, M, D = x_NTMD.shape
        edges = partitions_3MM if self.edges is None else self.edges.tanh() * partitions_3MM
        if self.transposed:
            edges = edges.mT
        messages = self.spatial(x_NTMD).reshape(N * T, M * 3, D)  # of (AU k, partition q)
        # One matrix product per frame over all neighbours and partitions. A plain `@` would copy the messages to make it one
        # in all. The result is read as (N, D, T, M), channels last in memory, which the convolution wants.
        edges_NMK = edges.permute(1, 2, 0).reshape(1, M, M * 3).expand(N * T, -1, -1)
        y = torch.bmm(edges_NMK, messages).view(N, T, M, D).permute(0, 3, 1, 2)
        if self.norm_1 is not None and self.norm_2 is not None:
            y = self.norm_2(self.temporal(self.norm_1(y).relu_()))
            return (y.permute(0, 2, 3, 1) + x_NTMD).relu_()
        return self.temporal(y).permute(0, 2, 3, 1) + x_NTMD


class GraphNetwork(nn.Module):
    """Stacked graph convolutions and a head per AU, shared over time (fig. 2): features_BTMD → logits_BTM.

    The partition matrices are a buffer, so they are kept with the weights: the graph belongs to the fold.
    """

    partitions_3MM: Tensor

    def __init__(self, graph: RelationGraph, D: int, layers: int, temporal_kernel: int, **options: object) -> None:
        super().__init__()
        M = len(graph.hops_M)
        self.register_buffer("partitions_3MM", torch.tensor(graph.partitions_3MM, dtype=torch.float32))
        self.layers = nn.ModuleList(GraphLayer(M, D, temporal_kernel, **options) for _ in range(layers))  # type: ignore[arg-type]
        self.heads = PerAULinear(M, D)
        self.halo = layers * ((temporal_kernel - 1) // 2)  # frames on each side that a frame's logits depend on

    def forward(self, features_BTMD: Tensor) -> Tensor:
        return self.heads(self.relate(features_BTMD))

    def relate(self, features_BTMD: Tensor) -> Tensor:
        """What the heads read: the features after all graph convolutions, of the same shape."""
        x = features_BTMD
        for layer in self.layers:
            x = layer(x, self.partitions_3MM)
        return x
