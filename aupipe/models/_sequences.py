"""Sequences of any length through any model: as they come, or at once in the memory of a chunk. No file of a paper.

What a model says of itself, and what is assumed of one that says nothing, a frame model:

- `past`, `future`: how many frames before and after a frame its logits depend on; None: all of them. 0 and 0.
- `features(frames_BTCHW)`: what it computes of each frame alone (B, T, …); its `forward` reads such features too, so that
  the costly part is done once per frame and no context twice. The frames themselves.
- `step(features, state) → (AUOutput, state)`: for a future of 0, the next frames with those before them in a state, None at
  the start. For a window it spares the outputs of the context, which are not asked for.
- `accumulate(features, state) → (accumulated, state)`, `read(accumulated) → AUOutput` and `context`: for what reads all of
  the past and yet some of the future. Accumulated is what depends on all frames so far, (B, T, …); of this `read` needs
  `context` frames before and `future` frames after a frame. A past of None and a future that is not needs these or `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aupipe.models import AUOutput

CHUNK = 64  # frames per forward pass


def is_temporal(model: nn.Module) -> bool:
    """Whether what a model makes of a frame depends on other frames."""
    return (_reach(model, "past"), _reach(model, "future")) != (0, 0)


def infer(model: nn.Module, frames: Tensor | Iterable[Tensor], chunk: int = CHUNK) -> AUOutput:
    """A whole sequence frames_BTCHW, or its consecutive parts, as in one forward pass; T ≥ 1 in all.

    Equal to `model(frames)` in eval mode up to rounding, without attention maps if the model's features give none.
    """
    stream = Stream(model, chunk)
    parts = [frames] if isinstance(frames, Tensor) else frames
    outputs = [stream.push(part) for part in parts] + [stream.close()]
    whole = _join([output for output in outputs if output is not None])
    if whole is None:
        raise ValueError("a sequence of no frames has no outputs")
    return whole


class Stream:
    """A sequence that grows: `push` its next frames and get the outputs that are final now, `close` it for the rest.

    One after the other they are what the model makes of the whole sequence in eval mode, however it was cut: a frame is read
    with exactly the frames that its logits depend on, fewer only at the ends of the sequence, where the whole has no more.
    Held in memory are `chunk` frames and the features of `past` + `future` more, or a state; of a model that reads the whole
    sequence (`future` None) the features of all of it. A closed stream may begin another sequence.

    `latency` is the number of frames by which outputs lag behind: 0 for causal models; None: they come when it is closed.
    Raises RuntimeError in training mode, where BatchNorm and dropout would depend on the cut, and TypeError for a model
    with all of the past, not all of the future, and no way to carry a state.
    """

    def __init__(self, model: nn.Module, chunk: int = CHUNK) -> None:
        if model.training:
            raise RuntimeError("sequences are for eval mode: in training, chunks would have statistics of their own")
        self.model, self.chunk = model, chunk
        self.past, self.latency = _reach(model, "past"), _reach(model, "future")
        alone = not is_temporal(model)  # then frames are as good as features, and give attention maps too
        self._features: Callable[[Tensor], Tensor] = (lambda x: x) if alone else getattr(model, "features", lambda x: x)
        steps = self.latency == 0 and not alone
        self._step: Callable[..., tuple[AUOutput, Any]] | None = getattr(model, "step", None) if steps else None
        self._accumulate: Callable[..., tuple[Tensor, Any]] | None = None
        self._outputs: Callable[[Tensor], AUOutput] = model
        if self.past is None and self.latency is not None and self._step is None:
            if not hasattr(model, "accumulate"):
                name = type(model).__module__
                raise TypeError(f"{name} depends on all of the past; it needs a `step` and a future of 0, or `accumulate`")
            self._accumulate, self._outputs, self.past = model.accumulate, model.read, model.context  # type: ignore[assignment]
        self._state: Any = None
        self._kept: Tensor | None = None  # features of the context, then of frames whose outputs are not out yet
        self._context = 0

    def push(self, frames_BTCHW: Tensor) -> AUOutput | None:
        """The outputs that these frames make final, the sequence's next ones in order; None if there is none."""
        parts = frames_BTCHW.split(self.chunk, 1) if frames_BTCHW.shape[1] else ()
        return _join([output for part in parts if (output := self._advance(part)) is not None])

    @torch.no_grad()
    def close(self) -> AUOutput | None:
        """The outputs of the frames that still waited for others to come; None if there is none."""
        output = self._read(0)
        self._state, self._kept, self._context = None, None, 0
        return output

    @torch.no_grad()
    def _advance(self, frames_BTCHW: Tensor) -> AUOutput | None:
        features = self._features(frames_BTCHW)
        if self._step is not None:
            output, self._state = self._step(features, self._state)
            return output
        if self._accumulate is not None:
            features, self._state = self._accumulate(features, self._state)
        self._kept = features if self._kept is None else torch.cat([self._kept, features], 1)
        return None if self.latency is None else self._read(self.latency)

    def _read(self, waiting: int) -> AUOutput | None:
        """The outputs of all kept frames but the last `waiting`; forgets those that no later frame needs."""
        if self._kept is None or (stop := self._kept.shape[1] - waiting) <= self._context:
            return None
        output = AUOutput._make(None if x is None else x[:, self._context : stop] for x in self._outputs(self._kept))
        first = max(0, stop - self.past) if self.past is not None else 0
        self._kept = self._kept[:, first:] if first < self._kept.shape[1] else None
        self._context = stop - first
        return output


def _reach(model: nn.Module, side: str) -> int | None:
    reach: int | None = getattr(model, side, 0)
    return reach


def _join(outputs: Sequence[AUOutput]) -> AUOutput | None:
    if len(outputs) < 2:
        return outputs[0] if outputs else None
    return AUOutput._make(None if parts[0] is None else torch.cat(parts, 1) for parts in zip(*outputs, strict=True))
