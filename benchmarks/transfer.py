"""Does a detector trained on rendered people read real ones? AUC and balanced accuracy on a video with known stretches.

Thresholds are those with the best balanced accuracy on the run's own synthetic `val` subjects; the video chooses nothing.
Intervals are 95 % over a bootstrap of blocks of 24 frames. Stretches are AU:on/off, frames from 0, both ends included:

    python benchmarks/transfer.py VIDEO runs/synthetic-bp4d/attention_cnn-demo/fold1 12:255-275,292-460/0-20 4:28-58/240-440
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe import inference, metrics
from aupipe.checkpoint import load_checkpoint
from aupipe.clips import ClipSpec, plan_clips
from aupipe.predictor import AUPredictor
from aupipe.schema import label_arrays

BLOCK, DRAWS = 24, 2000


def main(video: str, run: str, *stretches: str) -> None:
    checkpoint = Path(run) / "checkpoint"
    predictor = AUPredictor.load(checkpoint)
    thresholds = choose_thresholds(checkpoint)
    table = predictor.predict(video)
    print(f"{video}: {table.num_rows} frames, {sum(table['success'].to_pylist())} with a face")
    print("AU    AUC   95 % interval   balanced accuracy at 0.5   at the threshold of val")
    for text in stretches:
        au, frames = text.split(":")
        on, off = (mark(part, table.num_rows) for part in frames.split("/"))
        probs = table[f"AU{int(au):02d}_p"].fill_null(0).to_numpy()
        threshold = thresholds[predictor.aus.index(int(au))]
        low, high = interval(probs, on, off)
        fixed, chosen = (balanced_accuracy(probs, on, off, t) for t in (0.5, threshold))
        print(
            f"{au:>2}  {area(probs, on, off):.3f}   {low:.3f} – {high:.3f}   {fixed:.3f}   {chosen:.3f} at {threshold:.2f}"
        )


def choose_thresholds(checkpoint: Path) -> NDArray[np.float64]:
    """Per AU, on the synthetic val subjects that the checkpoint names."""
    model, description = load_checkpoint(checkpoint)
    shards = Path("data/shards") / description.corpus
    spec = ClipSpec(description.au_set, 4, 4, 1, description.input.align, description.input.crop, 16)
    plan = plan_clips(shards, description.subjects["val"], spec)
    table = inference.predict_table(model, description, plan, shards, spec)
    labels, mask = label_arrays(table, description.au_set)
    best = []
    for j, column in enumerate(description.au_set.probability_columns):
        probs = table[column].to_numpy()
        known = mask[:, j] & ~np.isnan(probs)
        on, off = known & (labels[:, j] > 0), known & (labels[:, j] == 0)
        steps = np.linspace(0.02, 0.98, 97)
        best.append(steps[np.argmax([balanced_accuracy(probs, on, off, t) for t in steps])])
    return np.array(best)


def mark(text: str, frames: int) -> NDArray[np.bool_]:
    """ "255-275,292-460" → which of the frames those are."""
    marked = np.zeros(frames, bool)
    for part in text.split(","):
        first, last = map(int, part.split("-"))
        marked[first : last + 1] = True
    return marked


def area(probs: NDArray, on: NDArray[np.bool_], off: NDArray[np.bool_]) -> float:
    both = on | off
    return float(metrics.auc(probs[both, None], on[both, None], np.ones((both.sum(), 1), bool))[0])


def balanced_accuracy(probs: NDArray, on: NDArray[np.bool_], off: NDArray[np.bool_], threshold: float) -> float:
    return float(((probs[on] >= threshold).mean() + (probs[off] < threshold).mean()) / 2)


def interval(probs: NDArray, on: NDArray[np.bool_], off: NDArray[np.bool_]) -> tuple[float, float]:
    """Neighbouring frames are nearly the same picture, so whole blocks of them are drawn, on and off apart."""
    rng, areas = np.random.default_rng(0), []
    sides = [np.array_split(np.flatnonzero(side), max(1, side.sum() // BLOCK)) for side in (on, off)]
    for _ in range(DRAWS):
        drawn = [np.concatenate([side[i] for i in rng.integers(0, len(side), len(side))]) for side in sides]
        frames = np.concatenate(drawn)
        truth = np.arange(len(frames)) < len(drawn[0])
        areas.append(metrics.auc(probs[frames, None], truth[:, None], np.ones((len(frames), 1), bool))[0])
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main(*sys.argv[1:])
