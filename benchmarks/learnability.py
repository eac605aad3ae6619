"""Is the synthetic corpus hard enough to mean something, and not too hard? A small frame network on unseen rendered people.

Prints its mean F1 beside the all-positive guess, with a 95 % interval over people; its mean AUC; the same from fewer people
at as many frames; the best single pixel; and what a clip's mean is worth on noisy landmarks. Run (some ten minutes):

    python benchmarks/learnability.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rendered import INPUT, Pool, PoolSpec, predict, render_pool, train

from aupipe import metrics
from aupipe.config import SyntheticConfig
from aupipe.processes import map_processes
from aupipe.synthetic.corpus import settle
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.scene import set_scene
from aupipe.synthetic.truth import landmarks

MANY, FEW = PoolSpec(0, 80, 48), PoolSpec(0, 20, 192, sessions=8)
TEST = PoolSpec(400, 460, 24)
EPOCHS, DRAWS = 12, 2000
NOISE = 0.008  # standard deviation of the landmarks' noise, in inter-ocular distances
RIDGE = 30.0


def main() -> None:
    test = render_pool(TEST)
    guess = metrics.Counts.from_probs(np.ones(test.labels.shape), test.labels, np.ones_like(test.labels)).f1()
    print(f"all-positive guess         mean F1 {np.nanmean(guess):.3f}")
    for name, spec in (("80 people, 48 frames each", MANY), ("20 people, 192 frames each", FEW)):
        pool = render_pool(spec)
        probs = 1 / (1 + np.exp(-predict(train(pool, INPUT, seed=0, epochs=EPOCHS), test.faces, test.session, INPUT)))
        gain, low, high = compare_f1(probs, test)
        areas = metrics.auc(probs, test.labels, np.ones_like(test.labels))
        print(
            f"{name:26} mean F1 {np.nanmean(guess) + gain:.3f}, over the guess {gain:+.3f} ({low:+.3f} to {high:+.3f}), "
            f"mean AUC {np.nanmean(areas):.3f}",
            flush=True,
        )
    print(f"best single pixel          mean AUC {rate_pixels(render_pool(MANY), test):.3f}", flush=True)
    for name, area in rate_landmarks().items():
        print(f"{name:26} mean AUC {area:.3f}", flush=True)


def compare_f1(probs_NM: NDArray, pool: Pool) -> tuple[float, float, float]:
    """Mean F1 at 0.5 minus that of the all-positive guess, with a 95 % bootstrap interval over people."""
    people, inverse = np.unique(pool.subject, return_inverse=True)
    counts = []
    for guess in (probs_NM >= 0.5, np.ones_like(pool.labels)):
        cells = (guess & pool.labels, guess & ~pool.labels, ~guess & pool.labels)
        counts.append([np.stack([np.bincount(inverse, cell[:, j]) for j in range(cell.shape[1])], 1) for cell in cells])

    def gain(weight_P: NDArray) -> float:
        f1 = []
        for hits, false, missed in counts:
            h, f, m = (weight_P @ part for part in (hits, false, missed))
            f1.append(np.mean(2 * h / np.maximum(2 * h + f + m, 1)))
        return float(f1[0] - f1[1])

    rng = np.random.default_rng(0)
    draws = [gain(np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return gain(np.ones(len(people))), float(low), float(high)


def rate_pixels(pool: Pool, test: Pool) -> float:
    """Per AU the pixel (of 56 × 56, grey) whose brightness or darkness ranks the training frames best; its AUC on test."""
    fit, check = (p.faces.reshape(-1, 56, 2, 56, 2, 3).mean((2, 4, 5)).reshape(len(p.faces), -1) for p in (pool, test))
    ranks = fit.argsort(0).argsort(0) + 1.0
    areas = []
    for j in range(pool.labels.shape[1]):
        on = pool.labels[:, j]
        n = on.sum()
        area = (ranks[on].sum(0) - n * (n + 1) / 2) / (n * (len(on) - n))
        pixel = int(np.argmax(np.abs(area - 0.5)))
        sign = 1 if area[pixel] > 0.5 else -1
        areas.append(metrics.auc(sign * check[:, [pixel]], test.labels[:, [j]], np.ones((len(check), 1), bool))[0])
    return float(np.nanmean(areas))


def rate_landmarks() -> dict[str, float]:
    """Ridge regression on noisy landmarks of unseen people: single frames and minus the clip's mean."""
    areas = {}
    for turning in (False, True):
        parts = sorted(map_processes(_draw_landmarks, [(s, turning) for s in range(110)]), key=lambda part: part[0])
        points, labels, clip, subject = (np.concatenate([part[k] for part in parts]) for k in range(1, 5))
        clips = np.unique(clip, return_inverse=True)[1]
        mean = np.stack([np.bincount(clips, column) for column in points.T], 1) / np.bincount(clips)[:, None]
        head = "head turning" if turning else "head still"
        areas[f"landmarks, {head}"] = _fit_ridge(points, labels, subject < 80)
        areas["  minus the clip's mean, " + head] = _fit_ridge(points - mean[clips], labels, subject < 80)
    return areas


def _fit_ridge(values: NDArray, labels: NDArray[np.bool_], fit: NDArray[np.bool_]) -> float:
    """Mean AUC on the rows that were not fitted."""
    x = (values - values[fit].mean(0)) / (values[fit].std(0) + 1e-9)
    y = labels[fit].astype(float)
    scores = x[~fit] @ np.linalg.solve(x[fit].T @ x[fit] + RIDGE * np.eye(x.shape[1]), x[fit].T @ (y - y.mean(0)))
    return float(np.nanmean(metrics.auc(scores, labels[~fit], np.ones_like(labels[~fit]))))


def _draw_landmarks(task: tuple[int, bool]) -> tuple[int, NDArray, NDArray, NDArray, NDArray]:
    """Two clips of ten seconds: 68 points after a similarity that puts the eyes in place, with noise."""
    subject, turning = task
    spec = settle(SyntheticConfig(subjects=1, sessions=1, fps=5, uncoded=0, seed=1), "bp4d")
    actor, rng = prepare_actor(spec.seed, subject, spec.rig), np.random.default_rng([7, subject])
    points, labels, clips = [], [], []
    for session in (1, 2):
        scene = set_scene(spec, subject, session)
        if not turning:
            still = {name: np.zeros_like(getattr(scene.motion, name)) for name in ("angles_N3", "shift_N3")}
            scene = replace(scene, motion=replace(scene.motion, **still))
        for frame in range(scene.frames):
            found = landmarks(actor, scene, frame, "ibug68").astype(float)
            left, right = found[36:42].mean(0), found[42:48].mean(0)
            axis = (right - left) / np.linalg.norm(right - left) ** 2
            turn = np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
            placed = (found - (left + right) / 2) @ turn
            points.append((placed + rng.normal(0, NOISE, placed.shape)).ravel())
            labels.append(scene.motion.intensity_NM[frame] >= 1)
            clips.append(10 * subject + session)
    return subject, np.stack(points), np.stack(labels), np.array(clips), np.full(len(clips), subject)


if __name__ == "__main__":
    main()
