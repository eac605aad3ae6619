"""Frames per second of training the demo's recipe: a plain loop over decoded arrays, our loop in one process, and Ray.

The plain loop is what a script with everything in memory would do, with the same network, batch and precision. Needs the
demo's shards and folds (`make demo`). Usage: python benchmarks/train.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aupipe import loop, trainer
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.config import Recipe, load_params
from aupipe.facs import AUSet
from aupipe.folds import load_folds
from aupipe.losses import weighted_bce
from aupipe.pixels import read_frames
from aupipe.shards import load_index

CORPUS, RECIPE, EPOCHS = "synthetic-bp4d", "attention_cnn-demo", 3


def main() -> None:
    recipe = load_params().recipe(RECIPE)
    recipe = replace(recipe, phases=(replace(recipe.phases[0], epochs=EPOCHS),))
    with tempfile.TemporaryDirectory() as scratch:
        training = describe(recipe, Path(scratch))
        plain = plain_loop(training)
        ours = [r["frames_per_s"] for r in loop.fit(replace(training, directory=Path(scratch) / "local"))]
        over_ray = [r["frames_per_s"] for r in trainer.train(replace(training, directory=Path(scratch) / "ray"))]
    print(f"frames/s in epoch 2 and later, {training.train_plan.num_rows} clips of {recipe.clip.frames} frames")
    print(f"  plain loop over decoded arrays   {plain:6.0f}   1.00")
    for name, rates in (("ours, one process (--local)", ours), ("ours, Ray, two workers", over_ray)):
        rate = float(np.mean(rates[1:]))
        print(f"  {name:32s} {rate:6.0f}   {rate / plain:.2f}")


def describe(recipe: Recipe, scratch: Path) -> loop.Training:
    shards = Path("data/shards") / CORPUS
    index = load_index(shards)
    fold = load_folds(Path(f"data/folds/{CORPUS}.json"))["fold1"]
    description = Description(
        model=recipe.model,
        aus=tuple(index["aus"]),
        input=recipe.input,
        landmarker=index["landmarker"],
        stats=fold.stats.to_json(),
    )
    spec = ClipSpec.of(recipe, AUSet(description.aus), recipe.phases[0].batch)
    return loop.Training(
        recipe=recipe,
        description=description,
        directory=scratch,
        shards=shards.resolve(),
        train_plan=plan_clips(shards, fold.train, spec, train=True),
        val_plan=plan_clips(shards, fold.val, spec),
    )


def plain_loop(training: loop.Training) -> float:
    """Everything decoded and cropped beforehand; only the steps are timed."""
    recipe = training.recipe
    spec = ClipSpec.of(recipe, training.description.au_set, recipe.phases[0].batch)
    model = training.description.new_model().train()
    batches = clip_batches(training.train_plan, training.shards, spec, train=True)
    data = []
    for batch in batches:
        labels, mask = map(torch.from_numpy, (batch.labels_BTM, batch.mask_BTM))
        data.append((read_frames(batch, model, recipe.input, "cpu", train=True), labels, mask))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(2):
        started = time.perf_counter()
        for frames, labels, mask in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                output = model(frames)
            loss = weighted_bce(output.logits_BTM, labels, mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch:
            return sum(frames.shape[0] * frames.shape[1] for frames, _, _ in data) / (time.perf_counter() - started)
    raise AssertionError


if __name__ == "__main__":
    main()
