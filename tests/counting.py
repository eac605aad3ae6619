"""Sizes of networks, as the tables of the papers and the tests count them."""

import torch
from torch.utils.flop_counter import FlopCounterMode


def count(module):
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def multiplications(network, *shape):
    """Multiply-adds of convolutions and matrix products for an input of this shape, without computing any."""
    with FlopCounterMode(display=False) as counter:
        network.to("meta")(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2
