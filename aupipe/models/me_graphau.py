"""ME-GraphAU, "Learning Multi-dimensional Edge Feature-based AU Relation Graph for Facial Action Unit Recognition" (Luo et
al., IJCAI 2022), both of its stages, with a ResNet as its backbone; the numbers of its authors' published code.

Its output is a cosine in [0, 1], which is read as a probability without a sigmoid. Ours is the logit of that cosine, so that
the sigmoid, which every reader of logits applies, gives the cosine back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._resnet import ResNet
from aupipe.models._start import copy_weights
from aupipe.models._weights import load_pretrained
from aupipe.schema import ConfigError, LabelStats

NARROWER = 4  # nodes have a quarter of the backbone's channels
RELATIONS = 4  # states of a pair of AUs: neither, the second, the first, both
EDGE_LAYERS = 2
EPSILON = 1e-6  # cosines are clamped to this distance from 0 and 1: logits are within ±13.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`stage` 1 links each AU to its `neighbours` nearest by feature, 4 for BP4D and 3 for DISFA; stage 2 learns a feature
    for each directed pair of AUs and is started from stage 1. `loss.relations` supervises those pairs: 0.05 for BP4D.

    `weights` is a safetensors file of the backbone's ImageNet weights; without, it starts at random.
    """

    stage: int = 1
    depth: int = 50
    neighbours: int = 4
    weights: str | None = None
    relative: str = "none"  # and no other, see the message

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise ConfigError(f"ME-GraphAU has the stages 1 and 2, not {self.stage}")
        if self.relative != "none":
            raise ConfigError(
                "ME-GraphAU ends in a cosine of two vectors without a negative number, to which no signed difference from a "
                "mean can be added; leave out model.relative"
            )
        if self.neighbours < 1:
            raise ConfigError(f"an AU of ME-GraphAU needs at least one neighbour, not {self.neighbours}")

    @property
    def has_relations(self) -> bool:
        """Whether the model has relation logits, which only `loss.relations` teaches."""
        return self.stage == 2


class Model(nn.Module):
    """frames_BTCHW → AUOutput, each frame by itself, for any T; in stage 2 with relation logits of every pair of AUs."""

    MEAN, STD = ResNet.MEAN, ResNet.STD

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        M = len(aus)
        self.aus = aus
        trunk = ResNet(config.depth)
        load_pretrained(trunk, config.weights)
        D = trunk.channels // NARROWER
        self.extractor = nn.ModuleDict({"trunk": trunk, "places": LinearNorm(trunk.channels, D)})
        self.au_places = LinearNorm(D, D, copies=M)
        self.graph = NearestGraph(M, D, config.neighbours) if config.stage == 1 else EdgeGraph(M, D)
        self.centres = nn.Parameter(nn.init.xavier_uniform_(torch.empty(M, D)))

    def forward(self, frames_BTCHW: Tensor) -> AUOutput:
        B, T = frames_BTCHW.shape[:2]
        maps = self.extractor["trunk"](frames_BTCHW.flatten(0, 1))
        places_NPD = self.extractor["places"](maps.flatten(2).mT)
        au_places_NMPD = self.au_places(places_NPD).unflatten(2, (len(self.aus), -1)).transpose(1, 2)
        nodes_NMD, relations = self.graph(au_places_NMPD, places_NPD)
        logits = self._compare(nodes_NMD).unflatten(0, (B, T))
        return AUOutput(logits, relation_logits_BTMM4=None if relations is None else relations.unflatten(0, (B, T)))

    def _compare(self, nodes_NMD: Tensor) -> Tensor:
        """Logits of the cosine between each AU's node and its learned vector, neither of which is negative anywhere."""
        cosine = (F.normalize(nodes_NMD.float(), dim=-1) * F.normalize(self.centres.relu(), dim=-1)).sum(-1)
        return torch.logit(cosine.clamp(EPSILON, 1 - EPSILON))

    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take all but the graph from another ME-GraphAU trained for `aus`, as stage 2 starts from stage 1.

        `au_map` names for an AU of ours the one that it starts from; others start from themselves. Raises ConfigError if
        an AU has nothing to start from, DataError if the weights are of another network.
        """
        for name, part in (("extractor", self.extractor), ("au_places", self.au_places)):
            per_au = ("",) if name == "au_places" else ()
            copy_weights(part, weights, (self.aus, aus), au_map, prefix=f"{name}.", per_au=per_au)
        centres = nn.ParameterDict({"centres": self.centres})
        copy_weights(centres, weights, (self.aus, aus), au_map, prefix="", per_au=("centres",))


class LinearNorm(nn.Module):
    """Linear, BatchNorm over images and places, ReLU: (N, P, D_in) → (N, P, copies·D), of `copies` such layers at once."""

    def __init__(self, inputs: int, D: int, copies: int = 1) -> None:
        super().__init__()
        self.linear = _linear(inputs, copies * D, fan=D)
        self.norm = nn.BatchNorm1d(copies * D)

    def forward(self, x_NPD: Tensor) -> Tensor:
        return self.norm(self.linear(x_NPD).mT).relu_().mT


class NearestGraph(nn.Module):
    """Stage 1, facial graph generation and its update: (N, M, P, D) → nodes (N, M, D), and no relations.

    An AU's neighbours are the `neighbours` AUs, itself among them as a rule, whose features have the largest products with
    its own; more where two are equal. Nodes' features become ReLU(x + BN(U x + A V x)), A normalised by both degrees.
    """

    def __init__(self, M: int, D: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = min(neighbours, M)  # with fewer AUs all are neighbours
        self.own, self.others = _linear(D, D), _linear(D, D)
        self.norm = nn.BatchNorm1d(M)

    def forward(self, au_places_NMPD: Tensor, places_NPD: Tensor) -> tuple[Tensor, None]:
        x = au_places_NMPD.mean(2)
        return torch.relu(x + self.norm(self.adjacency(x).to(x.dtype) @ self.others(x) + self.own(x))), None

    @torch.no_grad()
    def adjacency(self, x_NMD: Tensor) -> Tensor:
        """(N, M, M): 1 / √(degree of the row · degree of the column) where the column is a neighbour of the row."""
        x_NMD = x_NMD.float()
        # Not as a matrix product, which mixed precision would round: near equals would all become neighbours.
        similarity = (x_NMD[:, :, None] * x_NMD[:, None]).sum(-1)
        threshold = similarity.topk(self.neighbours, dim=-1).values[..., -1:]
        linked = (similarity >= threshold).float()
        scale = linked.sum(-1).rsqrt()  # the number of an AU's own neighbours, for columns too, as published
        return linked * scale[:, :, None] * scale[:, None]


class EdgeGraph(nn.Module):
    """Stage 2: (N, M, P, D) and the whole face's (N, P, D) → nodes (N, M, D) and relation logits (N, M, M, 4).

    Each AU's places attend to the face's; then those of AU j to those of AU i, which makes the feature of the edge (i, j).
    """

    def __init__(self, M: int, D: int) -> None:
        super().__init__()
        self.to_face, self.to_other = CrossAttention(D), CrossAttention(D)
        self.project = _linear(D, D)
        self.norm = nn.BatchNorm2d(M * M)
        self.layers = nn.ModuleList(GatedLayer(M, D) for _ in range(EDGE_LAYERS))
        self.relations = nn.Linear(D, RELATIONS)
        nn.init.xavier_uniform_(self.relations.weight)

    def forward(self, au_places_NMPD: Tensor, places_NPD: Tensor) -> tuple[Tensor, Tensor]:
        nodes, edges = au_places_NMPD.mean(2), self.edges(au_places_NMPD, places_NPD)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges)
        return nodes, self.relations(edges)

    def edges(self, au_places_NMPD: Tensor, places_NPD: Tensor) -> Tensor:
        """(N, M, M, D), [:, i, j] of the places of j that attended to those of i."""
        M, P = au_places_NMPD.shape[1:3]
        seen = self.to_face(au_places_NMPD.flatten(1, 2), places_NPD)  # (N, M·P, D)
        query = self.to_other.query(seen)[:, None].expand(-1, M, -1, -1)  # of all j, for every i
        other = seen.unflatten(1, (M, P))
        # Attention's weights sum to 1, so its mean can be taken of projected values: M projections instead of M².
        value = self.project(self.to_other.value(other))
        attended = F.scaled_dot_product_attention(query, self.to_other.key(other), value)  # (N, M, M·P, D)
        return self.norm(attended.unflatten(2, (M, P)).flatten(1, 2)).mean(2).unflatten(1, (M, M))


class CrossAttention(nn.Module):
    """One head: queries of (…, P, D), keys of half the width and values of (…, R, D) → (…, P, D)."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.query, self.key, self.value = _linear(D, D // 2), _linear(D, D // 2), _linear(D, D)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(context), self.value(context))


class GatedLayer(nn.Module):
    """A layer of a gated graph network (Bresson and Laurent 2017) over all pairs: nodes (N, M, D), edges (N, M, M, D).

    Edge (i, j) gains ReLU(BN(A xᵢ + B xⱼ + E eᵢⱼ)); node i then ReLU(BN(U xᵢ + 1/M Σⱼ gᵢⱼ ∘ V xⱼ)), where g is the softmax
    over j of the edges' sigmoids: the published code has both, and the division too.
    """

    def __init__(self, M: int, D: int) -> None:
        super().__init__()
        self.end, self.start, self.edge, self.own, self.others = (_linear(D, D, bias=False) for _ in range(5))
        self.edge_norm = nn.BatchNorm1d(M * M)
        self.node_norm = nn.BatchNorm1d(M)

    def forward(self, x_NMD: Tensor, e_NMMD: Tensor) -> tuple[Tensor, Tensor]:
        M = x_NMD.shape[1]
        change = self.end(x_NMD)[:, :, None] + self.start(x_NMD)[:, None] + self.edge(e_NMMD)
        e_NMMD = e_NMMD + self.edge_norm(change.flatten(1, 2)).relu_().unflatten(1, (M, M))
        gates = e_NMMD.sigmoid().softmax(2)
        received = (gates * self.others(x_NMD)[:, None]).mean(2)
        return torch.relu(x_NMD + self.node_norm(self.own(x_NMD) + received)), e_NMMD


def _linear(inputs: int, outputs: int, *, fan: int | None = None, bias: bool = True) -> nn.Linear:
    """A linear layer whose weights have the published deviation √(2 / fan), `fan` being its outputs if not given."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (fan or outputs)))
    return layer
