"""Frames per second of training the three systems, and the share of the time spent waiting for data.

Beside ours are two plain loops over decoded arrays, with the same network, loss, batch and precision: over inputs that were
cut, augmented and normalised beforehand, which is the most that a training can reach, and doing this at every step, as a
training must. Ours streams from shards or keeps decoded faces (`host`), in one process or with two workers of Ray.

Steady state: the median of the epochs after the first. Textures of 112 pixels, JPEG quality 95, are kept in the folder WORK.
Run: python benchmarks/train.py WORK [RECIPE …]     (attention_cnn-demo, stral-al-demo and sat_net-demo if none is named)
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from aupipe import loop, schema, trainer
from aupipe.checkpoint import Description
from aupipe.clips import ClipSpec, clip_batches, plan_clips
from aupipe.codec import encode_jpeg
from aupipe.config import Recipe, load_params
from aupipe.facs import AUSet
from aupipe.optimisers import make_optimiser
from aupipe.shards import INDEX, load_index

RECIPES = ("attention_cnn-demo", "stral-al-demo", "sat_net-demo")
SUBJECTS, LENGTH, FACE, SIZE = 12, 400, "face112", 112
FRAMES, EPOCHS = 3200, 3  # of an epoch; the first is not counted
AUS = AUSet.named("bp4d")


def main() -> None:
    work, names = Path(sys.argv[1]), sys.argv[2:] or RECIPES
    if not (work / INDEX).exists():
        write_shards(work)
    for name in names:
        recipe = load_params().recipe(name)
        recipe = replace(recipe, init=None, phases=(replace(recipe.phases[0], epochs=EPOCHS),))
        with tempfile.TemporaryDirectory() as scratch:
            training = describe(recipe, work, Path(scratch))
            ready, plain = plain_loop(training, prepared=True), plain_loop(training, prepared=False)
            print(f"{name}: {training.train_plan.num_rows} clips of {recipe.clip.frames} frames")
            print(f"  plain loop, inputs prepared beforehand {ready:6.0f} frames/s  {ready / plain:.2f}")
            print(f"  plain loop, decoded arrays             {plain:6.0f} frames/s  1.00")
            for workers in (0, 2):
                for level in ("stream", "host"):
                    rate, wait = ours(replace(training, level=level), workers)
                    way = f"ours, {f'{workers} workers of Ray' if workers else 'one process'}, {level}"
                    print(f"  {way:38s} {rate:6.0f} frames/s  {rate / plain:.2f}  {100 * wait:.1f} % waiting", flush=True)


def write_shards(folder: Path) -> None:
    """Sessions of textured faces with labels at random."""
    rng, sessions = np.random.default_rng(0), []
    columns = schema.shard_schema(AUS, (FACE,))
    for subject in (f"F{number:03d}" for number in range(SUBJECTS)):
        labels = rng.integers(0, 2, (LENGTH, len(AUS)))
        rows = []
        for frame in range(LENGTH):
            coarse = rng.integers(0, 256, (28, 28, 3)).astype(np.uint8)
            jpeg = encode_jpeg(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), 95)
            row = {"subject": subject, "session": "T1", "frame": frame, "source": "", "status": schema.OK}
            rows.append(row | {FACE: jpeg} | dict(zip(AUS.columns, labels[frame].tolist(), strict=True)))
        table = pa.table({n: [row.get(n) for row in rows] for n in columns.names}, schema=columns)
        schema.write_table(table, folder / subject / "T1.parquet", compression="none")
        entry = {"path": f"{subject}/T1.parquet", "subject": subject, "session": "T1", "rows": LENGTH}
        sessions.append(entry | {"status": {schema.OK: LENGTH}, "runs": [[0, LENGTH]], "usable": [[0, LENGTH]]})
    index = {"aus": list(AUS), "align": [FACE], "landmarker": {"name": "none", "fingerprint": "0"}, "sessions": sessions}
    schema.write_text(json.dumps(index), folder / INDEX)


def describe(recipe: Recipe, shards: Path, scratch: Path) -> loop.Training:
    index, M = load_index(shards), len(AUS)
    stats = {"rate": [0.5] * M, "pearson": np.eye(M).tolist(), "n": [1000] * M}
    description = Description(
        model=recipe.model, aus=tuple(index["aus"]), input=recipe.input, landmarker=index["landmarker"], stats=stats
    )
    spec = ClipSpec.of(recipe, AUS, recipe.phases[0].batch)
    subjects = [session["subject"] for session in index["sessions"]]
    train = plan_clips(shards, subjects[:-1], spec, train=True)
    rows = np.random.default_rng(0).permutation(train.num_rows)[: FRAMES // recipe.clip.frames]
    return loop.Training(
        recipe=recipe,
        description=description,
        directory=scratch / "run",
        shards=shards.resolve(),
        train_plan=train.take(np.sort(rows)),
        val_plan=plan_clips(shards, subjects[-1:], spec),
    )


def plain_loop(training: loop.Training, *, prepared: bool) -> float:
    """Frames per second of steps over batches that are decoded and, if `prepared`, cut, augmented and normalised already."""
    recipe = training.recipe
    model = training.description.new_model().train()
    step = loop.Pass(training, loop.Worker(), model, recipe.phases[0], 0)
    batches = list(clip_batches(training.train_plan, training.shards, step.spec, train=True))
    if prepared:
        inputs = {id(batch): step.inputs(batch, train=True) for batch in batches}
        step.inputs = lambda batch, *, train: inputs[id(batch)]  # type: ignore[method-assign]
    optimiser = make_optimiser(recipe.phases[0].optimiser, model)
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for batch in batches:
            optimiser.zero_grad(set_to_none=True)
            terms, _ = step.losses(model, batch, train=True)
            sum(terms.values()).backward()  # type: ignore[union-attr]
            optimiser.step()
        seconds.append(time.perf_counter() - started)
    return sum(batch.real_BT.size for batch in batches) / statistics.median(seconds[1:])


def ours(training: loop.Training, workers: int) -> tuple[float, float]:
    """Frames per second and the share spent waiting for data."""
    shutil.rmtree(training.directory, ignore_errors=True)
    history = trainer.train(training, workers) if workers else loop.fit(training)
    return tuple(statistics.median(r[name] for r in history[1:]) for name in ("frames_per_s", "wait"))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
