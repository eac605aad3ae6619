"""Training and prediction: batches in, numbers out. No Ray, no MLflow; the caller knows who carries batches and sums."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe import checkpoint, schema
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, clip_batches, steps_per_epoch
from aupipe.config import InputSpec, OptimiserConfig, PhaseConfig, Recipe
from aupipe.losses import label_weights, loss_terms
from aupipe.metrics import Counts, mean_over_aus
from aupipe.pixels import read_frames
from aupipe.schema import Batch, DataError, LabelStats
from aupipe.shards import read_window

logger = logging.getLogger(__name__)

RISE = 0.3  # share of a one-cycle phase in which the learning rate rises

Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is to be trained: the same on every worker. `on_epoch` is called by the writing worker with each record."""

    recipe: Recipe
    description: Description
    directory: Path
    shards: Path
    train_plan: pa.Table
    val_plan: pa.Table
    seed: int = 0
    on_epoch: Callable[[dict[str, Any]], None] | None = None


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


@dataclass(slots=True)
class Sums:
    """What a pass over batches adds up to, so that workers' passes can be added too."""

    counts: Counts
    terms: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    frames: int = 0

    def add(self, terms: dict[str, Tensor], logits_BTM: Tensor, batch: Batch) -> None:
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + term.item()
        probs = logits_BTM.detach().float().sigmoid().cpu().numpy()
        self.counts = self.counts + Counts.from_probs(probs, batch.labels_BTM, batch.mask_BTM)
        self.steps += 1
        self.frames += int(batch.real_BT.sum())

    def reduced(self, reduce: Reduce) -> Sums:
        """The sums over all workers. Every worker has at least a step, so all know the same terms in the same order."""
        names = list(self.terms)
        flat = np.concatenate([self.counts.to_array().ravel(), [self.terms[n] for n in names], [self.steps, self.frames]])
        flat = reduce(flat.astype(np.float64))
        counts = Counts.from_array(flat[: self.counts.to_array().size].reshape(4, -1))
        *terms, steps, frames = flat[self.counts.to_array().size :]
        return Sums(counts, dict(zip(names, terms, strict=True)), int(steps), int(frames))

    def figures(self) -> dict[str, float]:
        """Mean loss terms per step, their sum, and the mean F1 over AUs."""
        terms = {name: total / max(self.steps, 1) for name, total in self.terms.items()}
        return {"loss": sum(terms.values()), **terms, "f1": mean_over_aus(self.counts.f1())}


def fit(training: Training, worker: Worker | None = None, *, threads: int | None = None) -> list[dict[str, Any]]:
    """Run all phases; return the epochs' records. `<directory>/checkpoint` is the epoch with the best mean F1 on `val`.

    After every epoch `<directory>/last` holds what is needed to go on; a run that finds it there continues after it.
    """
    worker = worker or Worker()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(training.seed)
    model = training.description.new_model().to(worker.device)
    last = training.directory / "last"
    history: list[dict[str, Any]] = []
    if progress := checkpoint.load_progress(last):
        history = progress["history"]
        checkpoint.load_weights(last, model)
        logger.info("going on after epoch %d of %s", len(history), training.directory)
    resumed_after = len(history)
    wrapped = worker.wrap(model)
    first = 0
    for phase in training.recipe.phases:
        optimiser = make_optimiser(phase.optimiser, model)
        if first < resumed_after < first + phase.epochs:
            checkpoint.load_optimiser(last, optimiser)
        for epoch in range(max(first, resumed_after), first + phase.epochs):
            history.append(Pass(training, worker, wrapped, phase, epoch, first).run(optimiser))
            if worker.rank == 0:
                _keep(training, model, optimiser, history)
                if training.on_epoch:
                    training.on_epoch(history[-1])
        first += phase.epochs
    return history


class Pass:
    """One epoch of a training on one worker: a pass over `train` with optimiser steps, then one over `val` without."""

    def __init__(
        self, training: Training, worker: Worker, model: nn.Module, phase: PhaseConfig, epoch: int, first: int = 0
    ) -> None:
        self.training, self.worker, self.phase, self.epoch, self.first = training, worker, phase, epoch, first
        self.model = model
        self.bare: nn.Module = getattr(model, "module", model)  # without the data-parallel wrapper
        self.stats = LabelStats.from_json(training.description.stats)
        self.weights = label_weights(training.recipe.loss, self.stats, worker.device)
        self.spec = ClipSpec.of(training.recipe, training.description.au_set, phase.batch)

    def run(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Train, validate, sum over the workers; return the epoch's record, JSON-able."""
        started = time.monotonic()
        train = self.train(optimiser).reduced(self.worker.reduce)
        seconds = time.monotonic() - started
        val = self.validate().reduced(self.worker.reduce)
        record = {
            "epoch": self.epoch + 1,
            "phase": self.phase.name,
            "lr": optimiser.param_groups[0]["lr"],
            "train": train.figures(),
            "val": val.figures(),
            "val_f1": dict(zip(self.spec.aus.names, val.counts.f1().tolist(), strict=True)),
            "seconds": seconds,
            "frames_per_s": train.frames / seconds,
        }
        if self.worker.rank == 0:
            text = "epoch %d: loss %.4f, val loss %.4f, val F1 %.3f, %.0f frames/s"
            figures = record["train"]["loss"], record["val"]["loss"], record["val"]["f1"], record["frames_per_s"]
            logger.info(text, record["epoch"], *figures)
        return _without_nan(record)

    def train(self, optimiser: torch.optim.Optimizer) -> Sums:
        """One optimiser step per batch. Raises DataError if the loss is not finite, naming the clips."""
        self.model.train()
        sums, steps = Sums(Counts.zero(len(self.spec.aus))), steps_per_epoch(self.training.train_plan, self.spec.batch)
        for batch in self.batches(self.training.train_plan, train=True, seed=self.training.seed, epoch=self.epoch):
            set_rate(optimiser, self.phase, self.epoch - self.first + sums.steps / steps)
            terms, logits = self.losses(self.model, batch, train=True)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                clips = batch.clip_B.tolist()
                raise DataError(f"the loss is {loss.item()} at clips {clips}; lower the recipe's learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            sums.add(terms, logits, batch)
        return sums

    @torch.no_grad()
    def validate(self) -> Sums:
        """Counts and loss on this worker's share of `val`; the regulariser is left out, it says nothing of the fit."""
        self.bare.eval()
        sums = Sums(Counts.zero(len(self.spec.aus)), terms={"bce": 0.0})
        for batch in self.batches(self.training.val_plan, train=False):
            terms, logits = self.losses(self.bare, batch)
            sums.add({"bce": terms["bce"]}, logits, batch)
        return sums

    def batches(self, plan: pa.Table, **epoch: Any) -> Iterable[Batch]:
        worker = self.worker
        return worker.batches(plan, self.training.shards, self.spec, rank=worker.rank, world=worker.world, **epoch)

    def losses(self, model: nn.Module, batch: Batch, *, train: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        device = self.worker.device
        frames = read_frames(batch, self.bare, self.training.recipe.input, device, train=train)
        labels, mask = (torch.from_numpy(array).to(device) for array in (batch.labels_BTM, batch.mask_BTM))
        mixed = self.training.recipe.precision == "bf16"
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=mixed):
            output = model(frames)
        return loss_terms(output, labels, mask, self.training.recipe.loss, self.weights), output.logits_BTM


def sum_over_processes(sums: NDArray[np.float64], device: str = "cpu") -> NDArray[np.float64]:
    """Sum of an array over the processes of torch's default group; the array itself where there is none."""
    tensor = torch.as_tensor(sums, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def make_optimiser(config: OptimiserConfig, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[Batch], spec: InputSpec, device: str = "cpu"
) -> Iterator[tuple[Batch, NDArray]]:
    """Each batch with its probabilities (B, T, M), float32."""
    model.eval()
    for batch in batches:
        frames = read_frames(batch, model, spec, device, train=False)
        yield batch, model(frames).logits_BTM.float().sigmoid().cpu().numpy()


def predict_table(model: nn.Module, description: Description, plan: pa.Table, shards: Path, spec: ClipSpec) -> pa.Table:
    """One row per planned frame, in plan order, after schema.predictions_schema; no probability where no face was found."""
    aus = description.au_set
    paths, starts, counts = (plan[c].to_pylist() for c in ("path", "start", "frames"))
    columns = ["subject", "session", "frame", "status", *aus.columns]
    tables = []
    for batch, probs in predict(model, clip_batches(plan, shards, spec, train=False), description.input):
        for clip, probs_TM in zip(batch.clip_B.tolist(), probs, strict=True):
            table = read_window(shards / paths[clip], starts[clip], counts[clip], 1, columns)
            ok = np.array([status == schema.OK for status in table["status"].to_pylist()])
            for column, values in zip(aus.probability_columns, probs_TM[: counts[clip]].T, strict=True):
                table = table.append_column(column, pa.array(values, pa.float32(), mask=~ok))
            tables.append(table)
    return pa.concat_tables(tables).cast(schema.predictions_schema(aus))


def set_rate(optimiser: torch.optim.Optimizer, phase: PhaseConfig, epochs: float) -> None:
    """The learning rate after so many epochs of a phase."""
    config, part = phase.optimiser, epochs / phase.epochs
    if config.schedule == "step":
        rate = config.lr * config.decay ** (int(epochs) // config.decay_every)
    else:  # a twenty-fifth of the peak at first, nothing at the end, half waves of a cosine between
        rise = (1 - math.cos(math.pi * min(part / RISE, 1))) / 2
        fall = (1 + math.cos(math.pi * max(part - RISE, 0) / (1 - RISE))) / 2
        rate = config.lr * (0.04 + 0.96 * rise) * fall
    for group in optimiser.param_groups:
        group["lr"] = rate


def _keep(training: Training, model: nn.Module, optimiser: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    scores = [-1.0 if record["val"]["f1"] is None else record["val"]["f1"] for record in history]
    if scores[-1] >= max(scores):
        checkpoint.save_checkpoint(training.directory / "checkpoint", model, training.description)
    state = {"history": history}
    checkpoint.save_state(training.directory / "last", model, training.description, optimiser, state)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; an undefined figure is null."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value
