"""Weights and images that depend on nothing but a formula, so that two implementations of a network can be compared."""

import math

import torch


def waves(count, phase):
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + phase)


@torch.no_grad()
def fill(module, ignored=()):
    """Every weight of a trunk from a sine: convolutions of deviation 1/√inputs, norms near 1, biases near 0."""
    state = {k: v for k, v in module.state_dict().items() if v.is_floating_point() and not k.startswith(ignored)}
    for number, (name, tensor) in enumerate(sorted(state.items())):
        wave = waves(tensor.numel(), number).view(tensor.shape)
        if tensor.ndim > 1:
            tensor.copy_(wave * math.sqrt(2 / tensor[0].numel()))
        elif name.endswith("running_var"):
            tensor.copy_(0.4 + 0.2 * wave)
        else:
            tensor.copy_((name.endswith("weight") + 0.0) + 0.3 * wave)
    return module


def images(side):
    return waves(2 * 3 * side * side, 0.3).view(2, 3, side, side)
