"""Activation checkpointing: what blocks of a model compute is not kept for the backward pass but computed again in it.

It costs a second forward pass of those blocks and changes no number: random draws are repeated, and BatchNorm counts its
batch once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Norm = nn.modules.batchnorm._BatchNorm


def recompute_blocks(model: nn.Module) -> list[str]:
    """Let every block of a model forget what it computes; return their names, none if the model has no such blocks.

    A block is a module whose class says in RECOMPUTED which method is to be run twice. Parameters keep their names.
    Evaluation keeps nothing anyway and stays as it is.
    """
    blocks = {name: part for name, part in model.named_modules() if hasattr(part, "RECOMPUTED")}
    for block in blocks.values():
        method = getattr(block, block.RECOMPUTED)  # type: ignore[arg-type]
        setattr(block, block.RECOMPUTED, partial(_run, block, method))  # type: ignore[arg-type]
    return list(blocks)


def _run(block: nn.Module, method: Callable[..., Any], *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return method(*inputs)
    return checkpoint(method, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Of the forward pass and of its repetition."""
    return contextlib.nullcontext(), _counted_already(block)


@contextlib.contextmanager
def _counted_already(block: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are: the batch is in them."""
    norms = [part for part in block.modules() if isinstance(part, Norm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked, int(norm.num_batches_tracked or 0)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, batches in kept:
            norm.momentum = momentum
            if counter is not None:
                counter.fill_(batches)
