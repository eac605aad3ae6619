"""A network like ARL, "Facial Action Unit Detection Using Attention and Relation Learning" (Shao et al. 2019).

It is ARL's published network, whose attention network STRAL's is made from, without the conditional random field that
refines each attention map in five iterations: the map is the sigmoid of what there feeds the field. Hence the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from aupipe.facs import AUSet
from aupipe.models._relative import Relative, RelativeFrames, check_relative
from aupipe.models._start import copy_weights
from aupipe.models._stral_attention import AttentionNetwork
from aupipe.schema import ConfigError, LabelStats

PATCH = 16  # the second region layer cuts half the frame's side into 8 patches


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`branches` is how the AUs' branches are computed (auto, loop, grouped), not what."""

    c: int = 8  # features have 8c channels
    map_channels: int = 16  # of the convolution and tanh before an attention map
    init: str = "gaussian001"  # deviation 0.01 and no bias, as published; default: torch's
    branches: str = "auto"
    relative: str = "none"  # what an AU's last layer also reads its feature against: clip or running (_relative.py)

    def __post_init__(self) -> None:
        check_relative(self.relative)
        if min(self.c, self.map_channels) < 1:
            raise ConfigError("the network like ARL needs c ≥ 1 and map_channels ≥ 1")
        for key, known in (("init", ("gaussian001", "default")), ("branches", ("auto", "loop", "grouped"))):
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"unknown {key} '{value}' of the network like ARL; known are {', '.join(known)}")


class Model(RelativeFrames):
    """frames_BTCHW → AUOutput with the sigmoids' maps, h = H/4, each frame by itself, for any T.

    Raises ConfigError for frames whose sides are no multiples of 16.
    """

    MEAN = (0.5, 0.5, 0.5)  # pixels in −1 to 1, as published
    STD = (0.5, 0.5, 0.5)

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.aus = aus
        self.attention = AttentionNetwork(
            len(aus), config.c, channel_attention=True, map_channels=config.map_channels, mode=config.branches
        )
        if config.init == "gaussian001":
            self.attention.draw_gaussian()
        self.relative = Relative.of(config, len(aus), 8 * config.c)

    def describe(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        B, T, _, H, W = frames_BTCHW.shape
        if H % PATCH or W % PATCH or not H * W:
            raise ConfigError(
                f"the network like ARL reads frames whose sides are multiples of {PATCH}, not {H}×{W}; set the recipe's "
                "input.crop or input.resize"
            )
        features, maps = self.attention(frames_BTCHW.flatten(0, 1))
        return features.unflatten(0, (B, T)), maps.unflatten(0, (B, T))

    def judge(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.attention.heads(vectors), None

    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take the weights of another training of this network for `aus`, as ARL's for DISFA start from BP4D's.

        `au_map` names for an AU of ours the one that it starts from; others start from themselves. Raises ConfigError if
        an AU has nothing to start from, DataError if the weights are of another network.
        """
        copy_weights(self.attention, weights, (self.aus, aus), au_map, prefix="attention.", per_au=AttentionNetwork.PER_AU)
        if self.relative is not None:
            self.relative.start_from(weights, (self.aus, aus), au_map)
