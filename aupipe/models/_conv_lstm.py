"""ConvLSTM (Shi et al. 2015, eq. 3) without peepholes, time-major: over whole sequences, or over a window of each frame.

Peepholes are left out because their weights, one per place, would tie a network to one size of map. `PlainConvLSTM` is the
step-by-step form that the fast one must equal; nothing is trained with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aupipe.schema import ConfigError

State = tuple[Tensor, Tensor]  # h and c, (B, C, h, w); c in single precision, since it sums over any number of frames


class ConvLSTM(nn.Module):
    """One layer of C channels in and out with k×k convolutions, zero-padded:

    i, f, o = σ(W_x ∗ x + W_h ∗ h + b), g = tanh(…), c ← f·c + i·g, h ← o·tanh(c), from h = c = 0.

    The convolutions of the input are one over all frames, the four gates' are one, and the first step has no state to
    convolve. Weights start as those of one convolution of x and h together; biases at 0, the forget gate's at 1, so that
    at first it forgets little (Gers et al. 2000). Raises ConfigError for an even kernel.
    """

    RECOMPUTED = "forward"  # where activations are not to be kept (_recompute.py)

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"a ConvLSTM's kernel must be odd, to keep the map's size; got {kernel}")
        self.channels = channels
        self.of_input = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2)
        self.of_state = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2, bias=False)
        bound = 1 / math.sqrt(2 * channels * kernel * kernel)
        nn.init.uniform_(self.of_input.weight, -bound, bound)
        nn.init.uniform_(self.of_state.weight, -bound, bound)
        assert self.of_input.bias is not None
        nn.init.zeros_(self.of_input.bias)
        nn.init.ones_(self.of_input.bias.data[channels : 2 * channels])

    def forward(self, x_TBChw: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """h_TBChw of every frame after all before it, and the state to go on from; T ≥ 1."""
        T, B = x_TBChw.shape[:2]
        outputs = []
        # Split, not indexed: the backward pass of T indices would fill T tensors of the whole sequence with zeros.
        for gates in self.of_input(x_TBChw.flatten(0, 1)).split(B):
            h, c = state = self._step(gates, state)
            outputs.append(h)
        return torch.cat(outputs).unflatten(0, (T, B)), (h, c)

    def last_of_windows(self, x_TBChw: Tensor, length: int, count: int | None = None) -> Tensor:
        """For each of the last `count` frames (all T by default) the last h of a pass over the `length` frames that end in
        it, from an empty state: (count, B, C, h, w). Windows that begin before the sequence see its first frame repeated.

        All windows advance together, `length` steps in all. A frame costs one convolution of the input, which its windows
        share, and length − 1 of the state: not quite half of the 2·length of separate windows.
        """
        T, B = x_TBChw.shape[:2]
        count = T if count is None else count
        x_TBChw = x_TBChw[max(0, T - count - length + 1) :]
        gates = self.of_input(x_TBChw.flatten(0, 1))
        repeats = count + length - 1 - len(x_TBChw)
        gates = torch.cat([gates[:B]] * repeats + [gates])  # of frames before the sequence, too
        state: State | None = None
        for step in range(length):
            state = self._step(gates[step * B : (step + count) * B], state)
        assert state is not None
        return state[0].unflatten(0, (count, B))

    def _step(self, gates: Tensor, state: State | None) -> State:
        """The next state, from the input's share of the gates (N, 4C, h, w), in the order i, f, o, g."""
        if state is not None:
            gates = gates + self.of_state(state[0])
        i, f, o = gates[:, : 3 * self.channels].sigmoid().chunk(3, 1)
        wide = torch.promote_types(gates.dtype, torch.float32)
        c = (i * gates[:, 3 * self.channels :].tanh()).to(wide)
        if state is not None:
            c = torch.addcmul(c, f.to(wide), state[1])
        return o * c.tanh().to(o.dtype), c


class PlainConvLSTM(nn.Module):
    """A ConvLSTM as its equations are usually written: a step convolves x and h as one map, frame by frame and window by
    window. Takes a copy of the weights of a fast one.
    """

    def __init__(self, fast: ConvLSTM) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([fast.of_input.weight, fast.of_state.weight], 1).detach().clone())
        assert fast.of_input.bias is not None
        self.bias = nn.Parameter(fast.of_input.bias.detach().clone())

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """The state after one frame."""
        gates = F.conv2d(torch.cat([x, h], 1), self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        i, f, o, g = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x_TBChw: Tensor) -> Tensor:
        """h_TBChw of every frame after all before it."""
        h = c = torch.zeros_like(x_TBChw[0])
        outputs = []
        for x in x_TBChw:
            h, c = self.step(x, h, c)
            outputs.append(h)
        return torch.stack(outputs)

    def last_of_windows(self, x_TBChw: Tensor, length: int) -> Tensor:
        """Of every frame the last h of a pass over its own window."""
        indices = [[max(0, t - length + 1 + s) for s in range(length)] for t in range(len(x_TBChw))]
        return torch.stack([self(torch.stack([x_TBChw[i] for i in window]))[-1] for window in indices])
