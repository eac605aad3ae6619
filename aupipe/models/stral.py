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
from aupipe.models._layers import apply_in_chunks
from aupipe.models._stral_attention import AttentionNetwork
from aupipe.models._stral_graph import GraphNetwork
from aupipe.models._stral_graph import RelationGraph as RelationGraph
from aupipe.models._stral_graph import relation_graph as relation_graph
from aupipe.schema import ConfigError, DataError, LabelStats

logger = logging.getLogger(__name__)

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
    `new_heads: false` starts the graph's heads from those of the attention stage.
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

    def __post_init__(self) -> None:
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
            _draw_gaussian(self.attention)
        self.relations = _make_graph(config, aus, stats) if config.variant in ("gsf", "gsa", "stral") else None
        self.frozen = False
        self.freeze_attention(self.relations is not None and not config.finetune)

    @property
    def halo(self) -> int:
        """Frames on each side of a frame that its logits depend on."""
        return 0 if self.relations is None else self.relations.halo

    def forward(self, frames_BTCHW: Tensor) -> AUOutput:
        if frames_BTCHW.ndim == 4:
            return self._read(frames_BTCHW, None)
        return self._read(*self._attend(frames_BTCHW))

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """features_BTMD, D = 8c: all that relation learning reads of the frames, so they can be computed once and kept."""
        return self._attend(frames_BTCHW)[0]

    def infer(self, frames_BTCHW: Tensor, chunk: int = 48) -> Tensor:
        """logits_BTM of sequences of any length, equal to those of `forward` in eval mode, in the memory of a chunk."""
        if self.training:
            raise RuntimeError("infer is for eval mode: in training, chunks would have statistics of their own")
        features = apply_in_chunks(self.features, frames_BTCHW, chunk)
        return apply_in_chunks(lambda part: self(part).logits_BTM, features, chunk, self.halo)

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

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take the attention stage of another STRAL of any variant, trained for `aus`.

        `au_map` names for an AU of ours the one whose branch it starts from; others start from themselves. §4.1 starts
        DISFA from BP4D by {9: 10, 25: 23, 26: 24}. Raises ConfigError if an AU has no branch to start from, DataError if
        the weights are of another network.
        """
        origin = [(au_map or {}).get(au, au) for au in self.aus]
        if missing := [au for au, of in zip(self.aus, origin, strict=True) if of not in aus.numbers]:
            known = ", ".join(map(str, aus))
            raise ConfigError(f"AU{missing[0]:02d} has no branch to start from among AUs {known}; name one in init.au_map")
        rows = torch.tensor([aus.index(of) for of in origin])
        for name, own in self.attention.state_dict().items():
            given = weights.get(f"attention.{name}")
            if given is not None and name.startswith(("branches.", "heads.")) and given.ndim and len(given) % len(aus) == 0:
                given = given.unflatten(0, (len(aus), -1))[rows.to(given.device)].flatten(0, 1)
            if given is None or given.shape != own.shape:
                raise DataError(
                    f"the weights to start from are of another network: attention.{name} is absent or of another size"
                )
            own.copy_(given)
        if self.relations is not None and not self.config.new_heads:
            self.relations.heads.load_state_dict(self.attention.heads.state_dict())

    def _attend(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        B, T, _, H, W = frames_BTCHW.shape
        if H % PATCH or W % PATCH or not H * W:
            raise ConfigError(
                f"STRAL reads frames whose sides are multiples of {PATCH}, not {H}×{W}; set the recipe's input.crop"
            )
        with torch.no_grad() if self.frozen else nullcontext():
            features, maps = self.attention(frames_BTCHW.flatten(0, 1))
        return features.unflatten(0, (B, T)), maps.unflatten(0, (B, T))

    def _read(self, features_BTMD: Tensor, maps_BTMhw: Tensor | None) -> AUOutput:
        initial = self.attention.heads(features_BTMD)
        if self.relations is None:
            return AUOutput(initial, maps_BTMhw)
        return AUOutput(self.relations(features_BTMD), maps_BTMhw, initial)


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


def _draw_gaussian(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.01)
