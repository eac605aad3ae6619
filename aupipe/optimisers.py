"""Optimisers of a phase and the learning rate at each of its steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from aupipe.config import OptimiserConfig, PhaseConfig

RISE = 0.3  # share of a one-cycle phase in which the learning rate rises


def make_optimiser(config: OptimiserConfig, model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser over all parameters that learn; SGD's momentum is Nesterov's."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


def set_rate(optimiser: torch.optim.Optimizer, phase: PhaseConfig, epochs: float) -> None:
    """The learning rate after so many epochs of a phase."""
    config, part = phase.optimiser, epochs / phase.epochs
    if config.schedule == "step":
        rate = config.lr * config.decay ** (int(epochs) // config.decay_every)
    elif config.schedule == "cosine":
        rate = config.lr * (1 + math.cos(math.pi * part)) / 2
    else:  # a twenty-fifth of the peak at first, nothing at the end, half waves of a cosine between
        rise = (1 - math.cos(math.pi * min(part / RISE, 1))) / 2
        fall = (1 + math.cos(math.pi * max(part - RISE, 0) / (1 - RISE))) / 2
        rate = config.lr * (0.04 + 0.96 * rise) * fall
    for group in optimiser.param_groups:
        group["lr"] = rate
