"""Small temporal models of every kind, as tests make them: three AUs, frames of any size."""

import torch
from torch import nn
from torch.nn import functional as F

from aupipe.models import AUOutput

M = 3


class Window(nn.Module):
    """Reads `past` frames before and `future` after a frame, zeros beyond the ends of what it is given."""

    MEAN = (0.2, 0.3, 0.4)  # so that zeros are not what a black face is
    STD = (0.5, 0.4, 0.3)

    def __init__(self, past, future, seed=0):
        super().__init__()
        self.past, self.future, self.reach = past, future, (past, future)
        generator = torch.Generator().manual_seed(seed)
        self.kernel_MMt = nn.Parameter(torch.randn(M, M, past + 1 + future, generator=generator))
        self.featured, self.longest = 0, 0

    def features(self, frames_BTCHW):
        self.featured += frames_BTCHW.shape[1]
        self.longest = max(self.longest, frames_BTCHW.shape[1])
        thirds = frames_BTCHW.mean(2).tensor_split(M, 2)  # a row of them brightens with its AU in the shared shards
        return torch.stack([third.mean((2, 3)) + third.square().mean((2, 3)) for third in thirds], -1)

    def forward(self, x):
        features = self.features(x) if x.ndim == 5 else x
        return AUOutput(F.conv1d(F.pad(features.mT, self.reach), self.kernel_MMt).mT)


class Recurrent(Window):
    """Reads all frames before a frame, through a state."""

    def __init__(self, seed=0):
        super().__init__(0, 0, seed)
        torch.manual_seed(seed)
        self.past, self.memory = None, nn.GRU(M, M, batch_first=True)

    def step(self, features_BTM, state=None):
        output, state = self.memory(features_BTM, state)
        return AUOutput(output * 3, aux_logits_BTM=features_BTM), state

    def forward(self, x):
        return self.step(self.features(x) if x.ndim == 5 else x)[0]


class Whole(Window):
    """Reads a frame against the mean of its whole sequence."""

    def __init__(self, seed=0):
        super().__init__(0, 0, seed)
        self.past = self.future = None

    def forward(self, x):
        features = self.features(x) if x.ndim == 5 else x
        return AUOutput((features - features.mean(1, keepdim=True)) * 9)


KINDS = {
    "causal": lambda: Window(4, 0),
    "two-sided": lambda: Window(2, 5),
    "ahead": lambda: Window(0, 3),
    "recurrent": Recurrent,
    "whole": Whole,
}
