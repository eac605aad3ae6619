"""SAT-Net, "Self-Attention and Temporal Fusion for Facial Action Unit Detection" (Li, Zhang and Yin, ICPR 2020), and its
ablations ResNet, T-Net and SA-Net. Our reading: the paper's poster and abstract are all that it is made from.

Stated: a ResNet; the maps of its second residual block go frame by frame through a ConvLSTM, which fuses the past into the
map of the last frame, where learning goes on (many-to-one); a head that learns maps and attention masks per AU at once,
their product being pooled. Not stated: depth, window, input, pre-training, loss. What is chosen is an option of `Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._conv_lstm import ConvLSTM, State
from aupipe.models._layers import scale_intensity
from aupipe.models._relative import Relative, Sums, check_relative, reach, split_presence
from aupipe.models._resnet import ResNet
from aupipe.models._start import copy_weights
from aupipe.models._weights import load_pretrained
from aupipe.schema import ConfigError, LabelStats

Carried = Tensor | State | None  # of frames so far: the last ones' maps (time first), the ConvLSTM's state, or nothing
SMALLEST = 32  # pixels on a side: what the trunk shrinks to a single place
ATTENTIVE, TEMPORAL = ("sa_net", "sat_net"), ("t_net", "sat_net")
KNOWN = {
    "variant": ("resnet", "t_net", "sa_net", "sat_net"),
    "fusion": ("replace", "residual"),
    "mode": ("window", "stateful"),
    "targets": ("all", "last"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`variant` is the column of the tables: t_net has the ConvLSTM, sa_net the masks, sat_net both, resnet neither.

    `fusion`: what goes on for the ConvLSTM's output h and the frame's own map x: h (replace), or x + h (residual; spares
    pretrained layers a change from rectified maps to values in −1 to 1).
    `mode`: every frame's logits from a pass over its own last `window` frames, the first one of the sequence repeated
    before it begins (window), in training and prediction alike; or from one pass over all frames so far (stateful), which
    is another function: train with the mode that you predict with.
    `targets`: in training a clip's every frame is a target through its own window (all), at the cost of `window` steps of
    the ConvLSTM, layer3 and layer4 per frame; or its last alone (last), as in the paper, at that cost per clip. Then the
    output is of that one frame, (B, 1, M), to be compared with the clip's last labels. Only for variants with a ConvLSTM;
    outside training the output is always of every frame.
    `intensity` adds a head under the same masks.
    `weights`: a safetensors file of ImageNet weights for the trunk (docs/models.md), None for random ones.
    """

    variant: str = "sat_net"
    depth: int = 18  # "least training parameters" holds for 18 only: with 34 layers it has more than JAA-Net
    window: int = 8  # frames
    fusion: str = "replace"  # "fused into the feature map of the last frame"
    mode: str = "window"
    targets: str = "all"
    kernel: int = 3  # of the ConvLSTM
    intensity: bool = False
    weights: str | None = None
    relative: str = "none"  # what the head also reads the mean of the last map against: clip or running (_relative.py)

    def __post_init__(self) -> None:
        for key, known in KNOWN.items():
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"unknown {key} '{value}' of SAT-Net; known are {', '.join(known)}")
        if self.window < 1:
            raise ConfigError(f"a window of SAT-Net has at least 1 frame, not {self.window}; set model.window")
        check_relative(self.relative)
        if self.relative != "none" and self.targets == "last" and self.variant in TEMPORAL:
            raise ConfigError(
                "with targets: last SAT-Net computes one frame of a clip, which has no others to be read against; set "
                "model.targets: all, or leave out model.relative"
            )


class Model(nn.Module):
    """frames_BTCHW of at least 32×32 pixels, or maps (B, T, D, h, w) of `features`, told apart by their channels, three or
    more → AUOutput, for any T ≥ 1.

    Attention maps, of sa_net and sat_net, are the sigmoid's, at the size of the last map (h = ⌈H/32⌉). Auxiliary logits are
    those of the masks' means, for who wants a loss on them (`loss.auxiliary`); in our reading masks learn from the labels
    through the product alone. Raises ConfigError for frames of another shape.
    """

    MEAN, STD = ResNet.MEAN, ResNet.STD

    def __init__(self, config: Config, aus: AUSet, stats: LabelStats) -> None:
        super().__init__()
        self.config, self.aus = config, aus
        self.trunk = ResNet(config.depth)
        load_pretrained(self.trunk, config.weights)
        self.fusion: ConvLSTM | None = None
        if config.variant in TEMPORAL:
            self.fusion = ConvLSTM(self.trunk.stage_channels[1], config.kernel)
        self.head = Head(self.trunk.channels, len(aus), masks=config.variant in ATTENTIVE, intensity=config.intensity)
        self.relative = Relative.of(config, len(aus), self.trunk.channels)
        past = 0 if self.fusion is None else config.window - 1 if config.mode == "window" else None
        # Frames before and after a frame that its logits depend on; None: all.
        self.past, self.future = reach(self.relative, past, 0)

    def forward(self, x: Tensor) -> AUOutput:
        maps_BTDhw = x if self._is_features(x) else self.features(x)
        alone = self.training and self.config.targets == "last" and self.fusion is not None
        return self._read(maps_BTDhw, 1 if alone else maps_BTDhw.shape[1], None)[0]

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """The maps after the trunk's second block (layer2), (B, T, 128, ⌈H/8⌉, ⌈W/8⌉), 512 channels with 50 layers: all
        that is computed of a frame by itself, and once. With `relative` one map more says whether there is a face.
        """
        B, T, C, H, W = frames_BTCHW.shape
        if C != 3 or min(H, W) < SMALLEST or not B * T:
            raise ConfigError(
                f"SAT-Net reads one or more frames of 3×{SMALLEST}×{SMALLEST} or larger, not {T} of {C}×{H}×{W}; "
                "set the recipe's input.crop or input.resize"
            )
        maps = self.trunk.early(frames_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        return maps if self.relative is None else self.relative.presence(maps, frames_BTCHW)

    def step(
        self, features: Tensor, state: tuple[Carried, Sums | None] | None = None
    ) -> tuple[AUOutput, tuple[Carried, Sums | None]]:
        """The outputs of the next frames of a sequence, from their `features`, and the state to go on from; None at first.

        As `forward` of the whole sequence in eval mode, without computing a frame twice. The state is the ConvLSTM's own,
        or the maps of the last window − 1 frames; and for `relative` the running sums.
        """
        return self._read(features, features.shape[1], state)

    def start_from(self, weights: Mapping[str, Tensor], aus: AUSet, au_map: Mapping[int, int] | None = None) -> None:
        """Take what another SAT-Net of this depth has, of any variant, trained for `aus`: trunk, head and, where both have
        them, masks and ConvLSTM. What it lacks stays as it is: a ResNet's or SA-Net's weights are the start of T-Net or
        SAT-Net.

        `au_map` names for an AU of ours the one whose row of the head it starts from; others start from themselves.
        Raises ConfigError if an AU has none to start from, DataError if the weights are of another network.
        """
        parts: tuple[tuple[str, nn.Module | None, tuple[str, ...]], ...] = (
            ("trunk.", self.trunk, ()),
            ("head.features.", self.head.features, ("",)),
            ("head.masks.", self.head.masks, ("",)),
            ("head.intensity.", self.head.intensity, ("",)),
            ("fusion.", self.fusion, ()),
        )
        for prefix, part, per_au in parts:
            shared = any(name.startswith(prefix) for name in weights) or prefix in ("trunk.", "head.features.")
            if part is not None and shared:
                copy_weights(part, weights, (self.aus, aus), au_map, prefix=prefix, per_au=per_au)
        if self.relative is not None:
            self.relative.start_from(weights, (self.aus, aus), au_map)

    def _read(
        self, maps_BTDhw: Tensor, count: int, state: tuple[Carried, Sums | None] | None
    ) -> tuple[AUOutput, tuple[Carried, Sums | None]]:
        """The outputs of the last `count` of the given frames, and the state after them."""
        carried, sums = state or (None, None)
        present_BT = None
        if self.relative is not None:
            maps_BTDhw, present_BT = split_presence(maps_BTDhw)
        fused_BTDhw = maps_BTDhw
        if self.fusion is not None:
            fused_TBDhw, carried = self._fuse(self.fusion, maps_BTDhw.transpose(0, 1), count, carried)
            fused_BTDhw = fused_TBDhw.transpose(0, 1)
            if self.config.fusion == "residual":
                fused_BTDhw = maps_BTDhw[:, -count:] + fused_BTDhw
        shape = fused_BTDhw.shape[:2]
        last_NDhw, shift = self.trunk.late(fused_BTDhw.flatten(0, 1)), None
        if self.relative is not None and present_BT is not None:
            difference, sums = self.relative.difference(last_NDhw.mean((2, 3)).unflatten(0, shape), present_BT, sums)
            shift = self.relative.read(difference.flatten(0, 1))
        read = self.head(last_NDhw, shift)
        return AUOutput._make(None if part is None else part.unflatten(0, shape) for part in read), (carried, sums)

    def _fuse(self, fusion: ConvLSTM, maps_TBDhw: Tensor, count: int, state: Carried) -> tuple[Tensor, Carried]:
        """The ConvLSTM's outputs for the last `count` frames, and what it needs of all frames so far."""
        if self.config.mode == "stateful":
            assert not isinstance(state, Tensor)
            fused, state = fusion(maps_TBDhw, state)
            return fused[-count:], state
        assert state is None or isinstance(state, Tensor)
        seen = maps_TBDhw if state is None else torch.cat([state, maps_TBDhw])
        fused = fusion.last_of_windows(seen, self.config.window, count)
        return fused, seen[max(0, len(seen) - self.config.window + 1) :]

    def _is_features(self, x: Tensor) -> bool:
        return x.ndim == 5 and x.shape[2] == self.trunk.stage_channels[1] + (self.relative is not None)


class Head(nn.Module):
    """map (N, D, h, w) → logits (N, M): the mean over the places of a map per AU, by a 1×1 convolution, times its mask,
    the sigmoid of another one.

    Without masks it is the mean and a linear layer, in the same weights. Masking the D channels of the map by AU, and then
    the mean and a linear layer per AU, are the same sums, too: the poster's drawing allows either.
    """

    def __init__(self, channels: int, M: int, *, masks: bool, intensity: bool) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, M, 1)
        self.masks = nn.Conv2d(channels, M, 1) if masks else None
        self.intensity = nn.Conv2d(channels, M, 1) if intensity else None

    def forward(self, x_NDhw: Tensor, shift: tuple[Tensor, Tensor | None] | None = None) -> AUOutput:
        """AUOutput without the axis of time; auxiliary logits where there are masks: those of the masks' means.

        `shift` is added to the logits and, if there are any, the intensities' scores; to the auxiliary logits it is not.
        """
        moved, graded = shift or (None, None)
        if self.masks is None:
            x_NDhw = x_NDhw.mean((2, 3), keepdim=True)  # before the convolution, whose mean it is: cheaper
            return AUOutput(self._pool(self.features, x_NDhw, None, moved), intensity_BTM=self._rate(x_NDhw, None, graded))
        scores = self.masks(x_NDhw).float()
        masks = scores.sigmoid()
        # log of the mean of σ less log of the mean of 1 − σ: finite where the mean itself is rounded to 0 or 1
        means = F.logsigmoid(scores).logsumexp((2, 3)) - F.logsigmoid(-scores).logsumexp((2, 3))
        return AUOutput(self._pool(self.features, x_NDhw, masks, moved), masks, means, self._rate(x_NDhw, masks, graded))

    def _pool(self, conv: nn.Conv2d, x_NDhw: Tensor, masks_NMhw: Tensor | None, shift_NM: Tensor | None) -> Tensor:
        maps = conv(x_NDhw).float()
        means = (maps if masks_NMhw is None else maps * masks_NMhw).mean((2, 3))
        return means if shift_NM is None else means + shift_NM

    def _rate(self, x_NDhw: Tensor, masks_NMhw: Tensor | None, shift_NM: Tensor | None) -> Tensor | None:
        if self.intensity is None:
            return None
        return scale_intensity(self._pool(self.intensity, x_NDhw, masks_NMhw, shift_NM))
