"""What makes a detector trained on rendered faces read a real one? A table of trainings that each leave out one thing.

Every training is the attention CNN on 250 rendered subjects × 24 frames unless its row says otherwise; thresholds are those
with the best balanced accuracy on 50 other rendered subjects. The video is for checking: it chooses nothing. Stretches as in
transfer.py; `--only` names variants by a part of their name. Run:

    python benchmarks/ablation.py VIDEO 12:255-275,292-460/0-20 25:250-275,292-460/0-58 4:28-58/240-440 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rendered import AUS, INPUT, Pool, PoolSpec, predict, render_pool, train
from transfer import area, balanced_accuracy, interval, mark

from aupipe import metrics
from aupipe.align import align
from aupipe.config import InputSpec
from aupipe.landmarks import load_landmarker
from aupipe.video import read_frames

WHOLE = PoolSpec(0, 250, 24)
VAL = PoolSpec(250, 300, 24)
VARIANTS: dict[str, tuple[PoolSpec, InputSpec]] = {
    "the whole": (WHOLE, INPUT),
    "80 subjects, as many frames": (replace(WHOLE, last=80, frames=74), INPUT),
    "without folds in the skin": (replace(WHOLE, wrinkles=False), INPUT),
    "without distractors": (replace(WHOLE, distractors=False), INPUT),
    "second rig": (replace(WHOLE, rig="expression_units"), INPUT),
    "both rigs": (replace(WHOLE, rig="mixed"), INPUT),
    "without augmentation": (WHOLE, replace(INPUT, augment="crop")),
    "in colour": (WHOLE, replace(INPUT, normalise="image")),
    "in colour, not normalised": (WHOLE, replace(INPUT, normalise="model")),
    "96 × 96 pixels": (WHOLE, replace(INPUT, resize=None)),
    "aligned by exact landmarks": (replace(WHOLE, exact=True), INPUT),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("stretches", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)  # run two of these side by side: more threads gain little on such small steps
    faces, seen = read_faces(given.video)
    val = render_pool(VAL)
    print("| variant | seed | rendered AUC | " + " | ".join(f"AU{s.split(':')[0]}" for s in given.stretches) + " |")
    for name, (pool, spec) in VARIANTS.items():
        if given.only in name:
            for seed in given.seeds:
                cells = measure(render_pool(pool), spec, seed, val, faces, seen, given.stretches)
                print(f"| {name} | {seed} | " + " | ".join(cells) + " |", flush=True)


def read_faces(video: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Aligned faces (N, 112, 112, 3) of a video, zeros where none was found, and where one was."""
    landmarker, faces = load_landmarker("blazemesh"), []
    for frame in read_frames(video):
        found = landmarker.find_face(frame.image)
        faces.append(None if found is None else align("face112", frame.image, found.landmarks).image)
    seen = np.array([face is not None for face in faces])
    return np.stack([np.zeros((112, 112, 3), np.uint8) if face is None else face for face in faces]), seen


def measure(
    pool: Pool,
    spec: InputSpec,
    seed: int,
    val: Pool,
    faces: NDArray[np.uint8],
    seen: NDArray[np.bool_],
    stretches: list[str],
) -> list[str]:
    """Mean AUC on rendered people, then per stretch "AUC (95 % interval), balanced accuracy at the threshold of val", twice:
    of the logits, and of logits less half the lower quartile of the session's own, an estimate of the person at rest.
    """
    model = train(pool, spec, seed=seed)
    known, logits = predict(model, val.faces, val.session, spec), predict(model, faces, np.zeros(len(faces), int), spec)
    areas = metrics.auc(known, val.labels, np.ones_like(val.labels))
    cells = [f"{np.nanmean(areas):.3f}"]
    relative = subtract_rest(known, val.session), subtract_rest(logits, np.zeros(len(logits)))
    for stretch in stretches:
        au, frames = stretch.split(":")
        j = AUS.numbers.index(int(au))
        on, off = (mark(part, len(faces)) & seen for part in frames.split("/"))
        low, high = interval(logits[:, j], on, off)
        accuracies = []
        for scores, real in ((known[:, j], logits[:, j]), (relative[0][:, j], relative[1][:, j])):
            accuracies.append(balanced_accuracy(real, on, off, choose_threshold(scores, val.labels[:, j])))
        cells.append(f"{area(logits[:, j], on, off):.3f} ({low:.2f}–{high:.2f}), {accuracies[0]:.2f} / {accuracies[1]:.2f}")
    return cells


def choose_threshold(scores: NDArray, labels: NDArray[np.bool_]) -> float:
    """The one with the best balanced accuracy."""
    steps = np.quantile(scores, np.linspace(0.02, 0.98, 97))
    return float(steps[int(np.argmax([balanced_accuracy(scores, labels, ~labels, t) for t in steps]))])


def subtract_rest(logits_NM: NDArray, session_N: NDArray) -> NDArray:
    """Less half the lower quartile of each session's logits, AU by AU."""
    relative = logits_NM.copy()
    for session in np.unique(session_N):
        here = session_N == session
        relative[here] -= np.quantile(logits_NM[here], 0.25, axis=0) / 2
    return relative


if __name__ == "__main__":
    main()
