"""A face read against itself: what it shows, less what it shows on average. No file of a paper, and none of them has it.

How a face is built hides a weak AU: brows that lie low are no frown. So a model with the option `relative` also reads how
the vector φ of a frame, which its heads are linear in, differs from a mean of φ over the sequence: W φ + b + V (φ − mean).
The difference is one of learned features; of pixels it would be one of light, pose and skin as well.

- `clip`: the mean over all frames of the sequence, in training the clip, in prediction the video or unbroken recording.
- `running`: the mean over the frames up to this one, all that a live picture has; the first frame's difference is 0.

V begins at 0. So a relative model begins as the plain one, with the same weights from the same seed, and may start from a
trained plain one; a linear layer has no symmetry that a random start would have to break.

A frame without a face shows nobody: it is left out of every mean, and its own difference is 0. It is known by a picture that
is the same all over, as zeros are after any normalisation. What is kept of frames, for later or for a stream, carries that
along, since features do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aupipe.facs import AUSet
from aupipe.models import AUOutput
from aupipe.models._layers import scale_intensity
from aupipe.models._start import copy_weights
from aupipe.schema import ConfigError

KINDS = ("none", "clip", "running")

Sums = tuple[Tensor, Tensor]  # of a sequence so far, in double precision: Σ φ (B, 1, …) and how many frames it is of


def check_relative(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"unknown relative '{kind}'; known are {', '.join(KINDS)}")


class Presence(nn.Module):
    """Features (B, T, D, …) of frames_BTCHW → (B, T, D + 1, …), of which the last is 1 where the frame shows something."""

    def forward(self, features: Tensor, frames_BTCHW: Tensor) -> Tensor:
        present_BT = (frames_BTCHW.amin((3, 4)) < frames_BTCHW.amax((3, 4))).any(2)
        mark = present_BT.to(features.dtype).view(*present_BT.shape, *[1] * (features.ndim - 2))
        return torch.cat([features, mark.expand(-1, -1, 1, *features.shape[3:])], 2)


def split_presence(marked: Tensor) -> tuple[Tensor, Tensor]:
    """What Presence joined: the features, and present_BT in zeros and ones."""
    return marked[:, :, :-1], marked[:, :, -1].flatten(2)[..., 0] if marked.ndim > 3 else marked[:, :, -1]


class Relative(nn.Module):
    """The difference of a frame's vectors (B, T, D), or (B, T, M, D) where every AU has its own, and V on it."""

    def __init__(self, kind: str, M: int, D: int, *, intensity: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.presence = Presence()
        self.weight = nn.Parameter(torch.zeros(M, D))
        self.intensity = nn.Parameter(torch.zeros(M, D)) if intensity else None

    @classmethod
    def of(cls, config: Any, M: int, D: int) -> Relative | None:
        """What a model's options `relative` and, if it has that, `intensity` ask for."""
        if config.relative == "none":
            return None
        return cls(config.relative, M, D, intensity=getattr(config, "intensity", False))

    def extra_repr(self) -> str:
        return self.kind

    def difference(self, vectors: Tensor, present_BT: Tensor, sums: Sums | None = None) -> tuple[Tensor, Sums]:
        """Of the next frames of a sequence, and the sums to go on from, `sums` being those of the frames before."""
        present = present_BT.view(*present_BT.shape, *[1] * (vectors.ndim - 2)).double()
        if self.kind == "clip":
            total, count = (vectors * present).sum(1, keepdim=True), present.sum(1, keepdim=True)
        else:
            total, count = (vectors * present).cumsum(1), present.cumsum(1)
        if sums is not None:
            total, count = total + sums[0], count + sums[1]
        difference = (vectors - total / count.clamp(min=1)) * present
        return difference.to(vectors.dtype), (total[:, -1:], count[:, -1:])

    def start_from(
        self, weights: Mapping[str, Tensor], aus: tuple[AUSet, AUSet], au_map: Mapping[int, int] | None = None
    ) -> None:
        """Take what the Relative of another model has, after copy_weights; what it lacks stays as it is."""
        for name, own in self.named_parameters():
            if f"relative.{name}" in weights:
                copy_weights(nn.ParameterDict({name: own}), weights, aus, au_map, prefix="relative.", per_au=("",))

    def read(self, difference: Tensor) -> tuple[Tensor, Tensor | None]:
        """V (φ − mean), (B, T, M), for logits, and where there is another V for scores of intensity, for those."""
        return _apply(self.weight, difference), None if self.intensity is None else _apply(self.intensity, difference)


def reach(relative: Relative | None, past: int | None, future: int) -> tuple[int | None, int | None]:
    """Frames before and after a frame that logits depend on, which without a mean would be `past` and `future`."""
    if relative is None:
        return past, future
    return None, None if relative.kind == "clip" else future


def _apply(weight_MD: Tensor, difference: Tensor) -> Tensor:
    return (difference * weight_MD).sum(-1) if difference.ndim == 4 else F.linear(difference, weight_MD)


class RelativeFrames(nn.Module):
    """A frame model that ends in heads on a vector per frame, or per AU and frame; and what `relative` makes of it.

    It has `relative`, None without the option, and implements `describe` and `judge`. With the option it is a temporal model
    in the terms of `_sequences.py`, whose features, D numbers a frame or M·D, are all that a whole video must be kept of.
    """

    relative: Relative | None

    def describe(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, T, D) or (B, T, M, D) of each frame alone, and attention maps, if the model has them."""
        raise NotImplementedError

    def judge(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the heads make of vectors: logits_BTM and, if there is a head for them, scores of intensity."""
        raise NotImplementedError

    @property
    def past(self) -> int | None:
        """Frames before a frame that its logits depend on: none, or all (None)."""
        return reach(self.relative, 0, 0)[0]

    @property
    def future(self) -> int | None:
        """Frames after it: none or, against the clip's mean, all (None)."""
        return reach(self.relative, 0, 0)[1]

    def forward(self, x: Tensor) -> AUOutput:
        """`x`: frames_BTCHW or, without attention maps in the output, their `features`, which have fewer dimensions."""
        vectors, maps = self.describe(x) if x.ndim == 5 else (x, None)
        if self.relative is not None and x.ndim == 5:
            vectors = self.relative.presence(vectors, x)
        return self.step(vectors)[0]._replace(attention_BTMhw=maps)

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """What is computed of each frame alone: its vectors and, if they are for a mean, whether it shows a face."""
        vectors = self.describe(frames_BTCHW)[0]
        return vectors if self.relative is None else self.relative.presence(vectors, frames_BTCHW)

    def step(self, features: Tensor, state: Sums | None = None) -> tuple[AUOutput, Sums | None]:
        """The outputs of the next frames of a sequence, and the state to go on from; None at first."""
        if self.relative is None:
            logits, scores = self.judge(features)
        else:
            vectors, present_BT = split_presence(features)
            difference, state = self.relative.difference(vectors, present_BT, state)
            logits, scores = add(self.judge(vectors), self.relative.read(difference))
        return AUOutput(logits, intensity_BTM=None if scores is None else scale_intensity(scores)), state


def add(plain: tuple[Tensor, Tensor | None], shift: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Logits and, if there are any, scores of intensity, each with its shift."""
    logits, scores = plain
    return logits + shift[0], None if scores is None or shift[1] is None else scores + shift[1]
