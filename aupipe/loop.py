"""Training: batches in, numbers out. No Ray, no MLflow; the caller knows who carries batches and sums."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aupipe import checkpoint
from aupipe.clips import ClipSpec, steps_per_epoch
from aupipe.config import PhaseConfig
from aupipe.features import FeatureStore, feature_batches, fill_store, open_store
from aupipe.keeper import Keeper, Watchdog, written_alone
from aupipe.losses import label_weights, loss_terms
from aupipe.metrics import Counts
from aupipe.models._recompute import recompute_blocks
from aupipe.optimisers import make_optimiser, set_rate
from aupipe.pixels import read_frames
from aupipe.progress import Progress, Speaker, Sums, Tally, Timers
from aupipe.resident import Level, open_level
from aupipe.schema import Batch, DataError, LabelStats
from aupipe.training import Origin, Training, Worker

__all__ = ["Origin", "Pass", "Sums", "Training", "Worker", "fit", "sum_over_processes", "synchronise_norms"]
logger = logging.getLogger(__name__)


def fit(training: Training, worker: Worker | None = None, *, threads: int | None = None) -> list[dict[str, Any]]:
    """Run all phases; return the epochs' records. `<directory>/checkpoint` is the epoch with the best mean F1 on `val`.

    `<directory>/last` holds what is needed to go on; a run that finds it there makes the steps that are left of it.
    `threads` is how many of them torch computes with, its own choice if not named. Without a `worker`, this process trains
    alone, on a GPU if it has one.
    """
    worker = worker or Worker(device="cuda" if torch.cuda.is_available() else "cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(training.seed)
    with contextlib.ExitStack() as stack:
        if worker.rank == 0:
            stack.enter_context(written_alone(training.directory))
        model = training.description.new_model().to(worker.device)
        keeper = stack.enter_context(Keeper(training, worker, model))
        worker = replace(worker, batches=stack.enter_context(_open_source(training, worker)))
        progress = keeper.load()
        if progress is None and training.origin is not None:
            checkpoint.start_from(training.origin.checkpoint, model, training.description, training.origin.au_map)
        if training.recipe.recompute:
            recompute_blocks(model)
        wrapped = worker.wrap(model)
        if training.recipe.compile:
            wrapped.compile()
        if worker.rank == 0:
            if training.on_start:
                training.on_start()
            if training.on_epoch and progress and progress.history and not progress.step:
                training.on_epoch(progress.history[-1])  # a kill may have come between keeping and telling
        keeper.draw_on()
        return _run_phases(training, worker, wrapped, progress or Progress(), keeper)


def _open_source(training: Training, worker: Worker) -> contextlib.AbstractContextManager[Level]:
    plans = training.train_plan, training.val_plan
    spec = ClipSpec.of(training.recipe, training.description.au_set, training.recipe.phases[0].batch)
    return open_level(training.level, worker.batches, training.shards, plans, spec, worker.device)  # type: ignore[arg-type]


def _run_phases(
    training: Training, worker: Worker, model: nn.Module, progress: Progress, keeper: Keeper
) -> list[dict[str, Any]]:
    phases, goes_on = training.recipe.phases, progress.epoch + progress.step > 0
    while progress.phase < len(phases):
        phase = phases[progress.phase]
        if not progress.is_over(phase):
            optimiser = make_optimiser(phase.optimiser, keeper.model)
            if goes_on:
                checkpoint.load_optimiser(keeper.last, optimiser)
            keeper.watchdog.rest()
            store = _prepare_features(training, worker, keeper.model, phase)
            keeper.watchdog.begin()
            while not progress.is_over(phase):
                one = Pass(training, worker, model, phase, progress.epoch, progress.first, store)
                progress.end_epoch(one.run(optimiser, progress, keeper))
                ends = progress.phase == len(phases) - 1 and progress.is_over(phase)
                keeper.save(optimiser, progress, best=progress.is_best(), must=ends)
                if worker.rank == 0 and training.on_epoch:
                    training.on_epoch(progress.history[-1])
                keeper.watchdog.beat()
        progress.phase, progress.first, goes_on = progress.phase + 1, progress.epoch, False
    return progress.history


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
        self.steps = steps_per_epoch(training.train_plan, phase.batch)
        self.speaker = Speaker(worker.device, self.steps, worker.world)
        # Of a part that stays as it is, the regulariser would be a constant.
        frozen = getattr(self.bare, "frozen", False)
        self.loss = replace(training.recipe.loss, attention_l1=0.0) if frozen else training.recipe.loss

    def run(self, optimiser: torch.optim.Optimizer, progress: Progress, keeper: Keeper) -> dict[str, Any]:
        """Train, validate, sum over the workers; return the epoch's record, JSON-able."""
        timers = Timers(progress.seconds)
        train = self.train(optimiser, progress, keeper, timers).reduced(self.worker.reduce)
        keeper.share_buffers()
        seconds, wait = sum(timers.seconds.values()), timers.share("wait")
        with timers.part("validate"):
            val = self.validate(keeper.watchdog).reduced(self.worker.reduce)
        record = {
            "epoch": self.epoch + 1,
            "phase": self.phase.name,
            "lr": optimiser.param_groups[0]["lr"],
            "train": train.figures(),
            "val": val.figures(),
            "val_f1": dict(zip(self.spec.aus.names, val.counts.f1().tolist(), strict=True)),
            "time": time.time(),
            "seconds": seconds,
            "frames_per_s": train.frames / seconds,
            "wait": wait,
            "timings": timers.seconds,
            **self.speaker.gpu(),
        }
        if self.worker.rank == 0:
            text = "epoch %d: loss %.4f, val loss %.4f, val F1 %.3f, %.0f frames/s, %.0f %% of the time waiting for data"
            figures = record["train"]["loss"], record["val"]["loss"], record["val"]["f1"], record["frames_per_s"]
            logger.info(text, record["epoch"], *figures, 100 * wait)
        return _without_nan(record)

    def train(self, optimiser: torch.optim.Optimizer, progress: Progress, keeper: Keeper, timers: Timers) -> Sums:
        """One optimiser step per batch, from `progress.step` on.

        Raises DataError if the loss is not finite, naming the clips.
        """
        self.model.train()
        sums = progress.sums = progress.sums or Sums(Counts.zero(len(self.spec.aus)))
        tally = Tally(sums, self.refuse)
        plan, place = self.training.train_plan, {"epoch": self.epoch, "start": progress.step}
        for batch in timers.each("wait", self.batches(plan, train=True, seed=self.training.seed, **place)):
            with timers.part("step"):
                set_rate(optimiser, self.phase, self.epoch - self.first + progress.step / self.steps)
                optimiser.zero_grad(set_to_none=True)
                terms, logits = self.differentiate(batch)
                optimiser.step()
                tally.add(terms, logits, batch)
            progress.step += 1
            keeper.watchdog.step()
            if keeper.is_due(progress.step):
                tally.flush()
                progress.seconds = timers.seconds
                with timers.part("save"):
                    keeper.save(optimiser, progress)
            if self.worker.rank == 0:
                self.speaker.look(self.epoch + 1, progress.step, sums, timers)
        with timers.part("step"):
            tally.flush()
        return sums

    def differentiate(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradients of a batch, micro-batch by micro-batch; return its loss terms and logits.

        A micro-batch counts by its clips, as a worker's share does: where labels are missing, an AU's mean is of its part.
        Workers exchange gradients with the last one.
        """
        B = len(batch.clip_B)
        size = self.training.recipe.micro_batch or B
        total: dict[str, Tensor] = {}
        logits = []
        for first in range(0, B, size):
            part = batch.part(slice(first, first + size))
            apart = getattr(self.model, "no_sync", None) if first + size < B else None
            with apart() if apart else contextlib.nullcontext():
                terms, part_logits = self.losses(self.model, part, train=True)
                share = len(part.clip_B) / B
                (torch.stack(list(terms.values())).sum() * share).backward()
            total = {name: total.get(name, 0) + term.detach() * share for name, term in terms.items()}
            logits.append(part_logits.detach())
        return total, torch.cat(logits)

    @torch.no_grad()
    def validate(self, watchdog: Watchdog) -> Sums:
        """Counts and loss on this worker's share of `val`; the regulariser is left out, it says nothing of the fit."""
        self.bare.eval()
        names = [self.training.recipe.loss.kind, *(["intensity"] if self.spec.intensity else [])]
        tally = Tally(Sums(Counts.zero(len(self.spec.aus)), terms=dict.fromkeys(names, 0.0)))
        for batch in self.batches(self.training.val_plan, train=False):
            terms, logits = self.losses(self.bare, batch)
            tally.add({name: terms[name] for name in names}, logits, batch)
            watchdog.beat()
        tally.flush()
        return tally.sums

    def batches(self, plan: pa.Table, **epoch: Any) -> Iterable[Batch]:
        worker = self.worker
        return self.source(plan, self.training.shards, self.spec, rank=worker.rank, world=worker.world, **epoch)

    def inputs(self, batch: Batch, *, train: bool) -> Tensor:
        """What the model reads of a batch: kept features, or frames."""
        if batch.features_BTMD is not None:
            return torch.from_numpy(batch.features_BTMD).to(self.worker.device)
        return read_frames(batch, self.bare, self.training.recipe.input, self.worker.device, train=train)

    def refuse(self, loss: float, batch: Batch) -> None:
        """Raise a DataError that says why a loss is not finite, and names the clips at fault, where it is theirs."""
        finite_B = self.inputs(batch, train=True).isfinite().flatten(1).all(1).cpu().numpy()
        finite_B &= np.isfinite(np.where(batch.mask_BTM, batch.labels_BTM, 0)).all((1, 2))
        if not finite_B.all():
            clips = self.training.train_plan.take(pa.array(batch.clip_B[~finite_B]))
            names = ", ".join(f"{row['path']} from row {row['start']}" for row in clips.to_pylist())
            raise DataError(f"not a number in faces or labels of clips of {names}; run `dvc repro shards` to make them anew")
        raise DataError(f"the loss is {loss} at clips {batch.clip_B.tolist()}; lower the recipe's learning rate")

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


def synchronise_norms(model: nn.Module) -> nn.Module:
    """On GPUs, batch normalisation over the clips of all workers; on CPUs, for which torch has none, the model as it is."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if next(model.parameters()).is_cuda else model


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; an undefined figure is null."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value
