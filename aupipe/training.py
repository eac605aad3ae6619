"""What is to be trained, and who trains: plain values that travel to every worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from aupipe.checkpoint import Description
from aupipe.clips import clip_batches
from aupipe.config import Recipe
from aupipe.progress import Reduce
from aupipe.schema import Batch


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that a training starts from, and after InitConfig, from which of its AUs each of ours does."""

    checkpoint: Path
    au_map: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is to be trained: the same on every worker. The writing worker calls `on_start` once, and `on_epoch` with each
    record when the epoch's state is kept, with the last one again if it goes on from there.

    `features` is the folder for what is computed once of a frozen part, `<directory>/features` if not named. No number
    depends on these: `level` says where batches come from (resident.LEVELS); the state is saved every `save_steps` steps of
    an epoch, or if that is 0 about every `save_seconds`, and after every epoch; a worker that makes no step for
    `step_seconds` ends itself.
    """

    recipe: Recipe
    description: Description
    directory: Path
    shards: Path
    train_plan: pa.Table
    val_plan: pa.Table
    seed: int = 0
    origin: Origin | None = None
    features: Path | None = None
    on_start: Callable[[], None] | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    level: str = "auto"
    save_steps: int = 0
    save_seconds: float = 60.0
    step_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """Who trains: one of `world` processes. The default is the only one, on this machine, without a cluster.

    `batches` has the signature of clips.clip_batches; `reduce` sums an array over all workers; `wrap` makes the model
    data-parallel. Rank 0 writes.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    batches: Callable[..., Iterable[Batch]] = clip_batches
    reduce: Reduce = lambda sums: sums
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
