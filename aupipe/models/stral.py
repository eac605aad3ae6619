"""STRAL, "Spatio-Temporal Relation and Attention Learning for Facial Action Unit Detection" (Shao et al. 2020).

Two stages. Attention learning (§3.2) reads single frames and makes a feature and an attention map per AU; relation learning
(§3.3) reads the features of a sequence over a graph of the AUs that are correlated on the train side. The second is trained
on the first, which stays as it is. The paper leaves much unsaid, and no code of its authors is public: every reading is an
option of `Config`, and where the paper gives no hint, the default is the code of ARL, or of ST-GCN, that it builds on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._layers import PerAULinear, scale_intensity
from aupipe.models._relative import Presence, Relative, Sums, add, check_relative, reach, split_presence
from aupipe.models._start import copy_weights
from aupipe.models._stral_attention import AttentionNetwork
from aupipe.models._stral_graph import GraphNetwork
from aupipe.models._stral_graph import RelationGraph as RelationGraph
from aupipe.models._stral_graph import relation_graph as relation_graph
from aupipe.schema import ConfigError, DataError, LabelStats

logger = logging.getLogger(__name__)

RELATIONAL = ("gsf", "gsa", "stral")  # variants that have a graph
PATCH = 16  # the second region layer cuts half the frame's side into 8 patches
KNOWN = {
    "variant": ("al", "al_r", "gsf", "gsa", "stral"),
    "activation": ("stgcn", "literal"),
    "orientation": ("row", "stgcn"),
    "branches": ("auto", "loop", "grouped"),
    "init": ("default", "gaussian001"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`variant` is the column of tables 3 and 4: al and al_r are the attention stage alone and differ in the recipe's loss
    only (attention_l1 0 or 1e-4); gsf has fixed edge weights, gsa learned ones, both without time; stral has all.

    `temporal_kernel` is that of stral. `finetune` trains the attention stage along with the graph. `max_hop` and `centre`
    (an AU's number) overrule what relation_graph finds; `branches` is how the AUs' branches are computed, not what.
    `new_heads: false` starts the graph's heads from those of the attention stage. `intensity` adds a head per AU that reads
    what its last one reads.
    """

    variant: str = "stral"
    c: int = 8  # §4.1: features have 8c channels
    pre_layers: int = 3  # convolutions of a branch before its attention; unstated, 3 in ARL
    mask_after_relu: bool = False  # the map multiplies a convolution before its BatchNorm and ReLU, as in ARL
    feature_norm: bool = False  # a branch's last convolution has neither, as in ARL
    graph_layers: int = 8  # fig. 2
    temporal_kernel: int = 5  # §4.1: t^k
    threshold: float = 0.15  # §4.1: τ
    activation: str = "stgcn"  # literal: eq. 7 as printed, which has none
    orientation: str = "row"  # eq. 6 and 7; stgcn: the sum of ST-GCN's code
    edge_init: float = 1.0  # of the learned edge weights, before tanh; unstated, 1 in ST-GCN
    centre: int | None = None
    max_hop: int | None = None
    new_heads: bool = True
    finetune: bool = False
    init: str = "default"  # torch's; gaussian001: deviation 0.01 and no bias in the attention stage, as in ARL
    branches: str = "auto"
    intensity: bool = False  # none in the paper
    relative: str = "none"  # what the heads also read: attention features against their mean, clip or running

    def __post_init__(self) -> None:
        check_relative(self.relative)
        for key, known in KNOWN.items():
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"unknown {key} '{value}' of STRAL; known are {', '.join(known)}")
        if self.temporal_kernel < 1 or self.temporal_kernel % 2 == 0:
            raise ConfigError(f"a temporal kernel must be odd, to have a middle frame; got {self.temporal_kernel}")
        if not 1 <= self.pre_layers <= 3:
            raise ConfigError(f"a branch of STRAL has 1 to 3 pre_layers, not {self.pre_layers}")
        if min(self.c, self.graph_layers) < 1:
            raise ConfigError("STRAL needs c ≥ 1 and graph_layers ≥ 1")
        if not self.edge_init:
            raise ConfigError("an edge_init of 0 would cut every edge and never learn: tanh(0) = 0; give another")

    @property
    def needs_init(self) -> bool:
        """Whether the attention stage stays as it is, so that another run must have trained it."""
        return self.variant in RELATIONAL and not self.finetune


class Model(nn.Module):
    """frames_BTCHW, or features_BTMD of `features`, → AUOutput, for any T; H and W multiples of 16.

    Attention maps are the sigmoid's, h = H/4; from features there are none. With a graph, the auxiliary logits are the
    attention stage's own. Raises DataError if the statistics are of other AUs or without a positive,
    ConfigError for frames of another size.
    """

    MEAN = (0.5, 0.5, 0.5)  # pixels in −1 to 1, as in ARL and JAA-Net
    STD = (0.5, 0.5, 0.5)

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.config, self.aus, M = config, aus, len(aus)
        if np.shape(stats.pearson_MM) != (M, M):
            known = len(stats.pearson_MM)
            raise DataError(
                f"the label statistics are of {known} AUs, the model's are {M}; make the fold anew with `dvc repro`"
            )
        if not np.any(np.asarray(stats.rate_M) > 0):
            raise DataError("no AU has a positive on the train side, so STRAL cannot learn; check the labels and the fold")
        self.attention = AttentionNetwork(
            M,
            config.c,
            pre_layers=config.pre_layers,
            mask_after_relu=config.mask_after_relu,
            feature_norm=config.feature_norm,
            mode=config.branches,
        )
        if config.init == "gaussian001":
            self.attention.draw_gaussian()
        self.relations = _make_graph(config, aus, stats) if config.variant in RELATIONAL else None
        self.intensity = PerAULinear(M, 8 * config.c) if config.intensity else None
        self.relative = Relative.of(config, M, 8 * config.c)
        self.frozen = False
        self.freeze_attention(config.needs_init)

    @property
    def feature_part(self) -> nn.Module:
        """What makes `features`: they change with its weights and options and with nothing else."""
        return self.attention if self.relative is None else nn.ModuleList([self.attention, Presence()])

    @property
    def context(self) -> int:
        """Half the reach of the graph's convolutions over time: frames on either side of a frame."""
        return 0 if self.relations is None else self.relations.halo

    @property
    def past(self) -> int | None:
        """Frames before a frame that its logits depend on: `context`, or all (None) for `relative`."""
        return reach(self.relative, self.context, self.context)[0]

    @property
    def future(self) -> int | None:
        """Frames after it: as many, since the kernels are centred; all (None) for the clip's mean."""
        return reach(self.relative, self.context, self.context)[1]

    def forward(self, frames_BTCHW: Tensor) -> AUOutput:
        if frames_BTCHW.ndim == 4:
            return self.read(self.accumulate(frames_BTCHW)[0])
        features, maps = self._attend(frames_BTCHW)
        return self.read(self.accumulate(features)[0])._replace(attention_BTMhw=maps)

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """features_BTMD, D = 8c: all that relation learning reads of the frames, so they can be computed once and kept.

        With `relative` there is a row beside the M AUs', of ones where the frame has a face and zeros elsewhere.
        """
        return self._attend(frames_BTCHW)[0]

    def accumulate(self, features_BTMD: Tensor, state: Sums | None = None) -> tuple[Tensor, Sums | None]:
        """The next frames' features_BTMD, with `relative` (B, T, 2M, D), the differences from their mean beside them; and
        the state to go on from, None at first.

        Of the attention stage's features, not of the graph's: they are of a frame alone, so that their mean knows no ends
        of sequences and is one sum to carry, and kept features serve it.
        """
        if self.relative is None:
            return features_BTMD, None
        features_BTMD, present_BT = split_presence(features_BTMD)
        difference, state = self.relative.difference(features_BTMD, present_BT, state)
        return torch.cat([features_BTMD, difference], 2), state

    def read(self, accumulated: Tensor) -> AUOutput:
        """Of what `accumulate` gives, without attention maps."""
        features_BTMD = accumulated[:, :, : len(self.aus)]
        initial = self.attention.heads(features_BTMD)
        related = features_BTMD if self.relations is None else self.relations.relate(features_BTMD)
        read: tuple[Tensor, Tensor | None] = (
            initial if self.relations is None else self.relations.heads(related),
            None if self.intensity is None else self.intensity(related),
        )
        if self.relative is not None:
            read = add(read, self.relative.read(accumulated[:, :, len(self.aus) :]))
        logits, scores = read
        return AUOutput(
            logits,
            aux_logits_BTM=None if self.relations is None else initial,
            intensity_BTM=None if scores is None else scale_intensity(scores),
        )

    def freeze_attention(self, frozen: bool = True) -> None:
        """Keep the attention stage as it is, BatchNorm's statistics included, or let it learn."""
        self.frozen = frozen
        self.attention.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        if self.frozen:
            self.attention.eval()
        return self

    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take the attention stage of another STRAL of any variant, trained for `aus`.

        `au_map` names for an AU of ours the one whose branch it starts from; others start from themselves. §4.1 starts
        DISFA from BP4D by {9: 10, 25: 23, 26: 24}. Raises ConfigError if an AU has no branch to start from, DataError if
        the weights are of another network.
        """
        copy_weights(self.attention, weights, (self.aus, aus), au_map, prefix="attention.", per_au=AttentionNetwork.PER_AU)
        if self.relations is not None and not self.config.new_heads:
            self.relations.heads.load_state_dict(self.attention.heads.state_dict())
        if self.relative is not None and (self.relations is None or not self.config.new_heads):
            self.relative.start_from(weights, (self.aus, aus), au_map)

    def _attend(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        B, T, _, H, W = frames_BTCHW.shape
        if H % PATCH or W % PATCH or not H * W:
            raise ConfigError(
                f"STRAL reads frames whose sides are multiples of {PATCH}, not {H}×{W}; set the recipe's input.crop"
            )
        with torch.no_grad() if self.frozen else nullcontext():
            features, maps = self.attention(frames_BTCHW.flatten(0, 1))
        features = features.unflatten(0, (B, T))
        if self.relative is not None:
            features = self.relative.presence(features, frames_BTCHW)
        return features, maps.unflatten(0, (B, T))


def _make_graph(config: Config, aus: AUSet, stats: LabelStats) -> GraphNetwork:
    if config.centre is not None and config.centre not in aus.numbers:
        raise ConfigError(f"the gravity centre AU{config.centre:02d} is not among AUs {', '.join(map(str, aus))}")
    centre = None if config.centre is None else aus.index(config.centre)
    graph = relation_graph(stats.pearson_MM, config.threshold, centre=centre, max_hop=config.max_hop)
    if undefined := [name for name, row in zip(aus.names, stats.pearson_MM, strict=True) if np.isnan(row).all()]:
        names = ", ".join(undefined)
        logger.warning("%s: no positive or no negative on the train side, so no edge in STRAL's relation graph", names)
    return GraphNetwork(
        graph,
        8 * config.c,
        config.graph_layers,
        config.temporal_kernel if config.variant == "stral" else 1,
        adaptive=config.variant != "gsf",
        activation=config.activation,
        orientation=config.orientation,
        edge_init=config.edge_init,
    )
