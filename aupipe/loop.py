"""Training: batches in, numbers out. No Ray, no MLflow; the caller knows who carries batches and sums."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe import checkpoint
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, clip_batches, steps_per_epoch
from aupipe.config import PhaseConfig, Recipe
from aupipe.features import FeatureStore, feature_batches, fill_store, open_store
from aupipe.losses import label_weights, loss_terms
from aupipe.metrics import Counts, mean_over_aus
from aupipe.optimisers import make_optimiser, set_rate
from aupipe.pixels import read_frames
from aupipe.schema import Batch, DataError, LabelStats

logger = logging.getLogger(__name__)

Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that a training starts from, and after InitConfig, from which of its AUs each of ours does."""

    checkpoint: Path
    au_map: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is to be trained: the same on every worker. `on_epoch` is called by the writing worker with each record.

    `features` is the folder for what is computed once of a frozen part, `<directory>/features` if not named.
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
        T = probs.shape[1]  # the whole clip, or its last frames alone
        self.counts = self.counts + Counts.from_probs(probs, batch.labels_BTM[:, -T:], batch.mask_BTM[:, -T:])
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
    `threads` is how many of them torch computes with, its own choice if not named.
    """
    worker = worker or Worker()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(training.seed)
    model, history = _begin(training, worker)
    last, resumed_after = training.directory / "last", len(history)
    wrapped = worker.wrap(model)
    if training.recipe.compile:
        wrapped.compile()
    first = 0
    for phase in training.recipe.phases:
        optimiser = make_optimiser(phase.optimiser, model)
        if first < resumed_after < first + phase.epochs:
            checkpoint.load_optimiser(last, optimiser)
        store = _prepare_features(training, worker, model, phase) if resumed_after < first + phase.epochs else None
        for epoch in range(max(first, resumed_after), first + phase.epochs):
            history.append(Pass(training, worker, wrapped, phase, epoch, first, store).run(optimiser))
            if worker.rank == 0:
                _keep(training, model, optimiser, history)
                if training.on_epoch:
                    training.on_epoch(history[-1])
        first += phase.epochs
    return history


def _begin(training: Training, worker: Worker) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The model on its device, fresh, started from another training's or as far as this one was, and the records so far."""
    model = training.description.new_model().to(worker.device)
    last = training.directory / "last"
    if progress := checkpoint.load_progress(last):
        checkpoint.load_weights(last, model)
        logger.info("going on after epoch %d of %s", len(progress["history"]), training.directory)
        return model, progress["history"]
    if training.origin is not None:
        checkpoint.start_from(training.origin.checkpoint, model, training.description, training.origin.au_map)
    return model, []


def _prepare_features(training: Training, worker: Worker, model: nn.Module, phase: PhaseConfig) -> FeatureStore | None:
    """The features of all that a phase reads, if it keeps them; every worker computes a share and waits for the others."""
    if not phase.crops:
        return None
    root = training.features or training.directory / "features"
    store = open_store(root, model, training.recipe, phase.crops, training.shards)
    spec = ClipSpec.of(training.recipe, training.description.au_set, phase.batch)
    sides = ((training.train_plan, spec, phase.crops), (training.val_plan, spec, 1))
    fill_store(store, model, training.recipe, training.shards, sides, worker.device, worker.rank, worker.world)
    worker.reduce(np.zeros(1))
    return store


class Pass:
    """One epoch of a training on one worker: a pass over `train` with optimiser steps, then one over `val` without."""

    def __init__(
        self,
        training: Training,
        worker: Worker,
        model: nn.Module,
        phase: PhaseConfig,
        epoch: int,
        first: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        self.training, self.worker, self.phase, self.epoch, self.first = training, worker, phase, epoch, first
        self.model = model
        self.bare: nn.Module = getattr(model, "module", model)  # without the data-parallel wrapper
        self.stats = LabelStats.from_json(training.description.stats)
        self.weights = label_weights(training.recipe.loss, self.stats, worker.device)
        self.spec = ClipSpec.of(training.recipe, training.description.au_set, phase.batch)
        self.source = worker.batches if store is None else partial(feature_batches, store)
        # Of a part that stays as it is, the regulariser would be a constant.
        frozen = getattr(self.bare, "frozen", False)
        self.loss = replace(training.recipe.loss, attention_l1=0.0) if frozen else training.recipe.loss

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
            optimiser.zero_grad(set_to_none=True)
            terms, logits = self.differentiate(batch)
            optimiser.step()
            sums.add(terms, logits, batch)
        return sums

    def differentiate(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradients of a batch, micro-batch by micro-batch; return its loss terms and logits.

        A micro-batch counts by its clips, as a worker's share does: where labels are missing, an AU's mean is of its part.
        """
        B = len(batch.clip_B)
        size = self.training.recipe.micro_batch or B
        total: dict[str, Tensor] = {}
        logits = []
        for part in (batch.part(slice(first, first + size)) for first in range(0, B, size)):
            terms, part_logits = self.losses(self.model, part, train=True)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise self.explain(loss, part)
            share = len(part.clip_B) / B
            (loss * share).backward()
            total = {name: total.get(name, 0) + term.detach() * share for name, term in terms.items()}
            logits.append(part_logits.detach())
        return total, torch.cat(logits)

    @torch.no_grad()
    def validate(self) -> Sums:
        """Counts and loss on this worker's share of `val`; the regulariser is left out, it says nothing of the fit."""
        self.bare.eval()
        names = [self.training.recipe.loss.kind, *(["intensity"] if self.spec.intensity else [])]
        sums = Sums(Counts.zero(len(self.spec.aus)), terms=dict.fromkeys(names, 0.0))
        for batch in self.batches(self.training.val_plan, train=False):
            terms, logits = self.losses(self.bare, batch)
            sums.add({name: terms[name] for name in names}, logits, batch)
        return sums

    def batches(self, plan: pa.Table, **epoch: Any) -> Iterable[Batch]:
        worker = self.worker
        return self.source(plan, self.training.shards, self.spec, rank=worker.rank, world=worker.world, **epoch)

    def inputs(self, batch: Batch, *, train: bool) -> Tensor:
        """What the model reads of a batch: kept features, or frames."""
        if batch.features_BTMD is not None:
            return torch.from_numpy(batch.features_BTMD).to(self.worker.device)
        return read_frames(batch, self.bare, self.training.recipe.input, self.worker.device, train=train)

    def explain(self, loss: Tensor, batch: Batch) -> DataError:
        """Why a loss is not finite, in a sentence that names the clips at fault, where it is theirs."""
        finite_B = self.inputs(batch, train=True).isfinite().flatten(1).all(1).cpu().numpy()
        finite_B &= np.isfinite(np.where(batch.mask_BTM, batch.labels_BTM, 0)).all((1, 2))
        if not finite_B.all():
            clips = self.training.train_plan.take(pa.array(batch.clip_B[~finite_B]))
            names = ", ".join(f"{row['path']} from row {row['start']}" for row in clips.to_pylist())
            return DataError(
                f"not a number in faces or labels of clips of {names}; run `dvc repro shards` to make them anew"
            )
        clips = batch.clip_B.tolist()
        return DataError(f"the loss is {loss.item()} at clips {clips}; lower the recipe's learning rate")

    def losses(self, model: nn.Module, batch: Batch, *, train: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        device = self.worker.device
        inputs = self.inputs(batch, train=train)
        labels, mask = (torch.from_numpy(array).to(device) for array in (batch.labels_BTM, batch.mask_BTM))
        mixed = self.training.recipe.precision == "bf16"
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=mixed):
            output = model(inputs)
        intensity = None if batch.intensity_BTM is None else torch.from_numpy(batch.intensity_BTM).to(device)
        terms = loss_terms(output, labels, mask, self.loss, self.weights, intensity)
        return terms, output.logits_BTM


def sum_over_processes(sums: NDArray[np.float64], device: str = "cpu") -> NDArray[np.float64]:
    """Sum of an array over the processes of torch's default group; the array itself where there is none."""
    tensor = torch.as_tensor(sums, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


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
